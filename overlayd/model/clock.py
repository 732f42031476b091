"""Wall time and chance, injected everywhere so that tests decide them.

Deadlines never come from here: they use `trio.current_time()`.
"""

import os
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol


class Clock(Protocol):
    """Gives wall time."""

    def now_us(self) -> int:
        """Unix time in microseconds. May step in either direction."""
        ...


class SystemClock:
    """The operating system's wall clock."""

    def now_us(self) -> int:
        return time.time_ns() // 1000  # noqa: TID251 - the one place that reads the wall clock


class Entropy:
    """The one source of salts, epochs, nonces and secrets: the operating system's generator."""

    def draw(self, count: int) -> bytes:
        """`count` bytes nobody can foretell."""
        return os.urandom(count)  # noqa: TID251 - the one place that draws entropy


def format_time_us(time_us: int) -> str:
    """RFC 3339 in UTC with microseconds and `Z`: `2026-01-02T03:04:05.678901Z`."""
    seconds, micro = divmod(time_us, 1_000_000)
    return f"{_format_second(seconds)}.{micro:06d}Z"


@lru_cache(maxsize=16)
def _format_second(seconds: int) -> str:
    """Most times of one moment are in the same second."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19]


def parse_time_us(text: str) -> int:
    """Unix microseconds of an RFC 3339 time with a zone. Raises ValueError, also for a time that `format_time_us` couldn't
    write: zones can move one out of the years 1 to 9999."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None or "T" not in text.upper():
        raise ValueError(f"not an RFC 3339 time with a zone: {text!r}")
    try:
        delta = moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    except OverflowError as err:
        raise ValueError(f"{text!r} lies outside the years 1 to 9999 in UTC") from err
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds

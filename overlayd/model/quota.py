"""Quotas: how much a principal may use in an hour, a day and a month. Windows are those of the calendar, in UTC."""

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

WindowName: TypeAlias = Literal["hour", "day", "month"]
WINDOWS: tuple[WindowName, ...] = ("hour", "day", "month")
HOUR_US = 3_600_000_000
PolicyName = Annotated[str, Meta(description="Name of the policy", pattern="^[a-z0-9_-]{1,64}$", examples=["standard"])]
_Figure = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_GIB = 1 << 30


class QuotaPolicy(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=False):
    """What a policy allows. 0 = no bound."""

    name: PolicyName
    description: Annotated[str, Meta(max_length=500, description="For people")] = ""
    bytes_per_hour: Annotated[_Figure, Meta(description="Bytes published and delivered in an hour; 0: no bound")] = 0
    bytes_per_day: Annotated[_Figure, Meta(description="The same in a day; 0: no bound")] = 0
    bytes_per_month: Annotated[_Figure, Meta(description="The same in a month; 0: no bound")] = 0
    requests_per_hour: Annotated[_Figure, Meta(description="Publishes, reads and live connections; 0: no bound")] = 0
    requests_per_day: Annotated[_Figure, Meta(description="The same in a day; 0: no bound")] = 0
    requests_per_month: Annotated[_Figure, Meta(description="The same in a month; 0: no bound")] = 0
    max_concurrent_streams: Annotated[_Figure, Meta(description="Live connections at a time; 0: no bound")] = 1
    max_bandwidth_mbps: Annotated[
        float,
        Meta(
            ge=0,
            le=1e6,
            description="Bytes sent and taken, in 1,000,000 bits a second, over all connections; 0: no bound",
        ),
    ] = 10.0
    burst_bytes_allowance: Annotated[
        _Figure, Meta(description="Bytes beyond the hour's, once an hour, while a burst lasts")
    ] = 0
    burst_duration_minutes: Annotated[int, Meta(ge=1, le=60, description="How long a burst lasts")] = 5
    is_active: Annotated[bool, Meta(description="False: whoever has this policy is refused")] = True

    def bytes_in(self, window: WindowName) -> int:
        """0: no bound."""
        return int(getattr(self, f"bytes_per_{window}"))

    def requests_in(self, window: WindowName) -> int:
        """0: no bound."""
        return int(getattr(self, f"requests_per_{window}"))


def _seeded(name: str, gib: tuple[int, int, int], requests: int, streams: int, mbps: float) -> QuotaPolicy:
    hour, day, month = (_GIB * count for count in gib)
    return QuotaPolicy(
        name=name, bytes_per_hour=hour, bytes_per_day=day, bytes_per_month=month, requests_per_hour=requests,
        requests_per_day=10 * requests, requests_per_month=100 * requests, max_concurrent_streams=streams,
        max_bandwidth_mbps=mbps,
    )  # fmt: skip


SEEDED_POLICIES = (
    _seeded("standard", (1, 10, 100), 100, 1, 10.0),
    _seeded("premium", (5, 50, 500), 500, 5, 50.0),
    _seeded("enterprise", (20, 200, 2000), 2000, 20, 200.0),
)
"""What a new data directory has. They can be changed and deleted like others."""


class Span(msgspec.Struct, frozen=True):
    """From a moment to another one, in Unix microseconds; the end isn't part of it."""

    start_us: int
    end_us: int

    @property
    def length_s(self) -> int:
        return (self.end_us - self.start_us) // 1_000_000


def window_spans(now_us: int) -> tuple[Span, Span, Span]:
    """The hour, the day and the month in which a moment lies, in UTC."""
    return _spans_of_hour(now_us // HOUR_US)


def named_spans(now_us: int) -> Iterator[tuple[WindowName, Span]]:
    """As `window_spans`, with the names."""
    return zip(WINDOWS, window_spans(now_us), strict=True)


@lru_cache(maxsize=16)
def _spans_of_hour(hour: int) -> tuple[Span, Span, Span]:
    moment = datetime.fromtimestamp(hour * 3600, UTC)
    first = moment.replace(day=1, hour=0)
    following = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    day_us = hour // 24 * 24 * HOUR_US
    return (
        Span(hour * HOUR_US, (hour + 1) * HOUR_US), Span(day_us, day_us + 24 * HOUR_US),
        Span(int(first.timestamp()) * 1_000_000, int(following.timestamp()) * 1_000_000),
    )  # fmt: skip

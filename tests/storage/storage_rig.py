"""A log in a temporary directory, a clock that tests turn, and drafts in one line."""

import itertools
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from standing_clock import NO_STEP

from overlayd.model.clock import Entropy
from overlayd.model.definition import Definition, StreamLimits
from overlayd.model.draft import AppendRequest, AppendResult, Draft, Receipt, Refusal
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.names import StreamName
from overlayd.model.units import Size
from overlayd.storage import Log, StorageSettings, open_log

START_US = 1_700_000_000_000_000
SETTINGS = StorageSettings(reserve=Size(0), disk_high_water=Size(0), disk_low_water=Size(0), clock_step=NO_STEP)


class FakeClock:
    """Wall time that moves when a test says so."""

    def __init__(self, now_us: int = START_US) -> None:
        self.us = now_us

    def now_us(self) -> int:
        return self.us

    def advance(self, seconds: float) -> None:
        self.us += int(seconds * 1_000_000)


class Rig:
    """How a test's logs are opened; fields may be changed between openings."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = FakeClock()
        self.settings = SETTINGS
        self.limits = Limits()
        self.defaults = Definition()
        self.metrics = Metrics()
        self.entropy = Entropy()

    def set_limits(self, **limits: Any) -> None:
        self.limits = msgspec.structs.replace(self.limits, **limits)

    def set_settings(self, **settings: Any) -> None:
        self.settings = msgspec.structs.replace(self.settings, **settings)

    @asynccontextmanager
    async def open(self, **more: Any) -> AsyncIterator[Log]:
        self.metrics = Metrics()
        async with open_log(
            self.directory, settings=self.settings, limits=self.limits, defaults=self.defaults, clock=self.clock,
            entropy=self.entropy, metrics=self.metrics, **more,
        ) as log:  # fmt: skip
            yield log

    def connect(self) -> sqlite3.Connection:
        """A plain connection to a closed log's database."""
        return sqlite3.connect(self.directory / "log.sqlite3", isolation_level=None)

    def limit_hits(self, limit: str) -> float:
        return self.metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": limit}) or 0.0


_numbers = itertools.count()


def draft(data: str | None = None, *, index: int = 0, **fields: Any) -> Draft:
    """A draft whose body is what was sent; without data one that differs from every other."""
    sent = (data if data is not None else f'{{"n":{next(_numbers)}}}').encode()
    return Draft(index, sent, sent, **fields)


def drafts(*ids: str, data: str | None = None) -> list[Draft]:
    """One draft per id ("" = none), numbered."""
    return [draft(data, index=at, id=packet_id) for at, packet_id in enumerate(ids)]


async def append(log: Log, stream: str, items: Sequence[Draft] | None = None, **fields: Any) -> AppendResult:
    """Appends as a caller does that judged against the current definition."""
    found = log.find_stream(stream)
    fields.setdefault("definition_version", 0 if found is None else found.definition_version)
    fields.setdefault("may_create", True)
    return await log.append(AppendRequest(StreamName(stream), list(items or [draft()]), **fields))


def receipts(result: AppendResult) -> list[Receipt]:
    """Of a result."""
    return [outcome for outcome in result.outcomes if isinstance(outcome, Receipt)]


def refusals(result: AppendResult) -> list[Refusal]:
    """Of a result."""
    return [outcome for outcome in result.outcomes if isinstance(outcome, Refusal)]


def per_minute(count: int) -> Definition:
    """A definition with a rate."""
    return Definition(limits=StreamLimits(packets_per_minute=count))


def forget_tail(log: Log) -> None:
    """Makes every read go to the disk."""
    log._state.tail.reset(log.head)

"""Rows of a busy loop: what a group's commit and a page's read take while the event loop is never idle."""

import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from benchmarks.samples import Contender, Row, Sample, percentile
from benchmarks.work import Maker, Work
from overlayd.daemon import tune_interpreter
from overlayd.model.clock import Entropy, SystemClock
from overlayd.model.definition import Definition
from overlayd.model.draft import AppendRequest, Draft
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.names import StreamName
from overlayd.model.units import Size
from overlayd.storage import Log, StorageSettings, open_log

GROUP = 100
FILL = 4000
TURN_S = 0.001
"""How long the busy task holds the loop at a time; requests on a busy node hold it for less."""


async def keep_busy() -> None:
    """Leaves the loop no idle moment, but gives others their turn."""
    while True:
        until = time.perf_counter() + TURN_S
        while time.perf_counter() < until:
            pass
        await trio.lowlevel.checkpoint()


def group_of(maker: Maker) -> AppendRequest:
    """A request of a hundred packets with ids."""
    drafts = []
    for index in range(GROUP):
        data = maker.data()
        drafts.append(Draft(index, data, data, id=maker.packet_id().decode()))
    return AppendRequest(StreamName("busy"), drafts, definition_version=1)


async def measure(work: Callable[[Log], Awaitable[object]], is_busy: bool, directory: Path, seconds: float) -> Sample:
    """Does it over and over on a filled log, whose newest entries aren't kept in memory."""
    async with open_log(
        directory, settings=StorageSettings(reserve=Size(0)), limits=Limits(tail_bytes=Size(0)), defaults=Definition(),
        clock=SystemClock(), entropy=Entropy(), metrics=Metrics(),
    ) as log:  # fmt: skip
        maker = Maker(Work(1))
        await log.define_stream("busy", Definition())
        for _ in range(FILL // GROUP):
            await log.append(group_of(maker))
        waits: list[float] = []
        async with trio.open_nursery() as nursery:
            if is_busy:
                nursery.start_soon(keep_busy)
            ending = time.perf_counter() + seconds
            while time.perf_counter() < ending or not waits:
                began = time.perf_counter()
                await work(log)
                waits.append(time.perf_counter() - began)
            nursery.cancel_scope.cancel()
    waits.sort()
    return Sample({"p50_ms": percentile(waits, 0.5) * 1e3, "p99_ms": percentile(waits, 0.99) * 1e3})


def run(work: Callable[[Log], Awaitable[object]], is_busy: bool, seconds: float) -> Sample:
    """In this process, on a new log."""
    tune_interpreter()
    with tempfile.TemporaryDirectory() as directory:
        return trio.run(measure, work, is_busy, Path(directory), seconds)


def busy_rows() -> list[Row]:
    """Commits and pages, each with an idle loop and with a busy one."""
    maker = Maker(Work(1))

    async def commit(log: Log) -> object:
        return await log.append(group_of(maker))

    async def read(log: Log) -> object:
        return await log.read_page(0)

    rows = []
    for title, work in ((f"appending {GROUP} packets with ids", commit), ("reading a page of 200 from the disk", read)):
        contenders = tuple(
            Contender(name, lambda seconds, work=work, is_busy=is_busy: run(work, is_busy, seconds))  # type: ignore[misc]
            for name, is_busy in (("loop idle", False), ("loop fully busy", True))
        )
        rows.append(Row("busy", title, "p50_ms", contenders, "in one process, without the network"))
    return rows

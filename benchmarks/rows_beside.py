"""Rows of fairness: what one publishing client notices of others, in ratios to when it is alone."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.generator import generate
from benchmarks.machine import CpuClock
from benchmarks.outside import NATIVE
from benchmarks.protocols import HttpConversation
from benchmarks.samples import Contender, Row, Sample, Value
from benchmarks.servers import Server
from benchmarks.work import Work

STOP_TIMEOUT_S = 10.0
SETTLE_S = 0.5


@contextmanager
def disturbed(server: Server, kind: str) -> Iterator[CpuClock]:
    """A crowd of other clients on the server, and their processor time."""
    process = subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-m", "benchmarks.disturb", str(server.port), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError("the disturbing clients didn't come up")
        time.sleep(SETTLE_S)
        yield CpuClock(process.pid)
    finally:
        process.kill()
        process.wait(STOP_TIMEOUT_S)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def publish_alone(server: Server, seconds: float) -> Sample:
    """One client, one request in flight."""
    work = Work(1, streams=1, has_ids=False)
    return generate(server, work, lambda _: HttpConversation(work, NATIVE), seconds)


def publish_beside(server: Server, kind: str, seconds: float) -> Sample:
    """The same beside a crowd."""
    with disturbed(server, kind) as clock:
        sample = publish_alone(server, seconds)
        note = f"{sample.note}; the crowd used {clock.share():.0%}"
    return Sample(sample.values, sample.generator_share, sample.server_share, sample.errors, note)


def fairness_rows(node: Server) -> list[Row]:
    """A crowd that doesn't read beside one stream at full rate, and a crowd that lists, filters and uploads."""
    rows = []
    for kind, main, who, goal in (
        ("crowd", "p99_ms", "10 that never read, 10 that send a byte a second, one stream at full rate", "p99 at most twice"),
        ("readers", "p50_ms", "32 that list streams, 8 that read with a filter, a 50 MB upload",
         "p50 at most 4 times, p99 at most 10 ms"),
    ):  # fmt: skip
        value: Value = main  # type: ignore[assignment]
        alone = Contender("alone", lambda seconds: publish_alone(node, seconds))
        beside = Contender("beside them", lambda seconds, kind=kind: publish_beside(node, kind, seconds))  # type: ignore[misc]
        rows.append(Row("fairness", f"one publisher beside {who}", value, (alone, beside), f"to reach: {goal}"))
    return rows

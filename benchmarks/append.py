"""What appending costs: groups with and without ids, single packets from one and from many senders, cold reads.

Run: python3 -m benchmarks.append
"""

import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import trio

from overlayd.model.clock import Entropy, SystemClock
from overlayd.model.definition import Definition
from overlayd.model.draft import AppendRequest, Draft
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.names import StreamName
from overlayd.model.units import Size
from overlayd.storage import Log, StorageSettings, open_log

BODY = (
    b'{"temperature":21.5,"humidity":44.1,"pressure":1013.2,"wind":{"speed":3.4,"dir":"NW"},"station":"weather-001",'
    b'"battery":3.71,"seq":123456,"note":"nothing to report","values":[1,2,3,4,5,6,7,8,9,10],"unit":"C","ok":true,"x":1}'
)
CASES = ((200_000, 1000, False, 4), (200_000, 1000, True, 4), (50_000, 100, False, 4), (30_000, 1, False, 64),
         (3_000, 1, False, 1))  # fmt: skip
"""Packets, packets a request, whether they have random ids, senders."""


async def append_all(log: Log, requests: Iterator[AppendRequest], senders: int) -> list[float]:
    """Sends every request; the seconds that each waited."""
    waits: list[float] = []

    async def send() -> None:
        for request in requests:
            began = time.perf_counter()
            await log.append(request)
            waits.append(time.perf_counter() - began)

    async with trio.open_nursery() as nursery:
        for _ in range(senders):
            nursery.start_soon(send)
    return sorted(waits)


async def measure(count: int, batch: int, has_ids: bool, senders: int) -> None:
    """One case on a new log."""
    drafts = [Draft(n % batch, BODY, BODY, id=str(uuid.uuid4()) if has_ids else "") for n in range(count)]
    requests = [
        AppendRequest(StreamName("s"), drafts[at : at + batch], definition_version=1) for at in range(0, count, batch)
    ]
    with tempfile.TemporaryDirectory() as directory:
        async with open_log(
            Path(directory), settings=StorageSettings(reserve=Size(0)), limits=Limits(), defaults=Definition(),
            clock=SystemClock(), entropy=Entropy(), metrics=Metrics(),
        ) as log:  # fmt: skip
            await log.define_stream("s", Definition())
            began, began_cpu, began_loop = time.perf_counter(), time.process_time(), time.thread_time()
            waits = await append_all(log, iter(requests), senders)
            wall, cpu, loop = (
                time.perf_counter() - began, time.process_time() - began_cpu, time.thread_time() - began_loop
            )  # fmt: skip
            size = log.stats().database_bytes
            rows = await read_cold(log)
    print(
        f"{count:7,} packets of {len(BODY)} bytes, {batch:4} a request, {'random ids' if has_ids else 'no ids    '}, "
        f"{senders:2} senders: {count / wall:8,.0f}/s, p50 {waits[len(waits) // 2] * 1e3:6.2f} ms, "
        f"p99 {waits[len(waits) * 99 // 100] * 1e3:6.2f} ms, CPU {cpu / count * 1e6:5.1f} µs (loop {loop / count * 1e6:.1f}), "
        f"{size / count:.0f} bytes on disk; read and verified from disk {rows:,.0f}/s"
    )


async def read_cold(log: Log) -> float:
    """Entries a second, read page by page from the disk."""
    log._state.tail.reset(log.head)
    began, after = time.perf_counter(), 0
    while after < log.head:
        after = (await log.read_page(after)).after
    return log.head / (time.perf_counter() - began)


if __name__ == "__main__":
    sys.setswitchinterval(0.0005)
    for case in CASES:
        trio.run(measure, *case)

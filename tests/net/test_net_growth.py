"""What a packet costs doesn't grow with what else is there. Calls are counted, so the machine's mood doesn't matter."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from net_rig import RawClient
from publish_rig import HEAD, open_publishing

from overlayd.model.definition import Definition
from overlayd.model.limits import Limits
from overlayd.storage import Log

PACKETS = 60
MORE = 1.1
"""Rounds of the event loop differ a little from run to run."""


def post(stream: str) -> bytes:
    """A plain packet."""
    return HEAD.replace(b"/a/", b"/%b/" % stream.encode()) + (
        b'Content-Type: application/json\r\nContent-Length: 10\r\n\r\n{"data":1}'
    )


@contextmanager
def counted_calls() -> Iterator[Counter[str]]:
    """Calls of Python functions and of C functions in this thread, and of lines in neither."""
    calls: Counter[str] = Counter()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            calls[event] += 1

    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)


async def publish(client: RawClient, streams: list[str]) -> None:
    """One packet after the other, to these streams in turn."""
    for number in range(PACKETS):
        await client.send(post(streams[number % len(streams)]))
        assert (await client.read_answer()).status == 201


async def calls_of(directory: Path, streams: int, entries: int, targets: int) -> int:
    """Calls that publishing takes on a node with so many streams and entries, into so many of the streams."""
    limits = Limits(auto_create_per_minute=100_000)
    async with open_publishing(directory, limits, is_fast=True) as (edge, log), await edge.connect() as client:
        names = [f"s{number}" for number in range(streams)]
        for name in names:
            await log.define_stream(name, Definition())
        await fill(log, client, entries)
        await publish(client, names[:targets])
        with counted_calls() as calls:
            await publish(client, names[:targets])
        return calls.total()


async def fill(log: Log, client: RawClient, entries: int) -> None:
    """Appends so many packets to the first stream, in large requests."""
    lines = b"[" + b",".join([b'{"data":1}'] * 1000) + b"]"
    head = post("s0").partition(b"Content-Length")[0]
    for _ in range(entries // 1000):
        await client.send(head + b"Content-Length: %d\r\n\r\n" % len(lines) + lines)
        assert (await client.read_answer()).status == 201


@pytest.fixture
async def least(tmp_path: Path) -> int:
    """What it takes on a node with hardly anything on it."""
    return await calls_of(tmp_path / "small", 2, 0, 2)


async def test_streams_cost_nothing(tmp_path: Path, least: int) -> None:
    """With three hundred streams a packet takes no more calls than with two."""
    assert await calls_of(tmp_path / "many", 300, 0, 2) <= least * MORE


async def test_streams_in_turn_cost_nothing(tmp_path: Path, least: int) -> None:
    """Packets that go to sixty streams in turn take no more calls than those that go to two."""
    assert await calls_of(tmp_path / "turns", 60, 0, 60) <= least * MORE


async def test_entries_cost_nothing(tmp_path: Path, least: int) -> None:
    """With ten thousand entries in the log a packet takes no more calls than with none."""
    assert await calls_of(tmp_path / "full", 2, 10_000, 2) <= least * MORE

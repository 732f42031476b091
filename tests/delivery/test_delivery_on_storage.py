"""The same story told to the log in memory and to the real one: readers must hear the same."""

import contextlib
import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from delivery_fakes import FakeLog, make_delivery, query_of
from real_waiting import PATIENCE_S

from overlayd.delivery.delivery import Delivery
from overlayd.delivery.frames import encode_message
from overlayd.model.clock import Entropy, SystemClock
from overlayd.model.cursor import Cursor
from overlayd.model.definition import Definition
from overlayd.model.draft import AppendRequest, Draft
from overlayd.model.entry import Kind
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.names import StreamName
from overlayd.model.units import Size
from overlayd.storage import Log, StorageSettings, open_log

QUERIES: list[dict[str, Any]] = [
    {}, {"stream": "a"}, {"stream": ["a", "plant.>"]}, {"stream": "plant.*", "type": "x"}, {"key": "k1"},
    {"stream": "b", "filter": "data % 2 == 0"}, {"from": "last"}, {"stream": "plant.*", "from": "last", "key": ["k1", "k2"]},
    {"deliver": "both", "status": "true"},
]  # fmt: skip


@asynccontextmanager
async def open_small(directory: Path, **limits: Any) -> AsyncIterator[Log]:
    """A real log that keeps little in memory, so that pages come from the disk too."""
    settings = StorageSettings(reserve=Size(0), disk_high_water=Size(0), disk_low_water=Size(0))
    async with open_log(
        directory, settings=settings, limits=Limits(**limits), defaults=Definition(), clock=SystemClock(),
        entropy=Entropy(), metrics=Metrics(),
    ) as log:  # fmt: skip
        yield log


async def tell(fake: FakeLog, real: Log, steps: int, seed: int) -> None:
    """Appends and takes away, the same in both."""
    chance = random.Random(seed)
    names = ["a", "b", "plant.one", "plant.two"]
    for number in range(steps):
        name, kind, key = chance.choice(names), chance.choice(["x", "y"]), chance.choice(["k1", "k2", ""])
        body = b"%d" % number
        found = real.find_stream(name)
        version = 0 if found is None else found.definition_version
        draft = Draft(0, body, body, type=kind, key=key)
        await real.append(AppendRequest(StreamName(name), [draft], may_create=True, definition_version=version))
        fake.add(name, number, type=kind, key=key)
        if number % 40 == 39:
            low = chance.randint(1, number - 20)
            await take_away(fake, real, chance.choice(["a", "b"]), low, low + 15)
    await real.delete_stream("plant.two")
    fake.delete("plant.two")


async def take_away(fake: FakeLog, real: Log, name: str, low: int, high: int) -> None:
    """Reduces the stream's packets between two sequences in both."""
    for log in (fake, real):
        stream = log.find_stream(name)
        assert stream is not None
        offsets = [entry.offset for entry in await entries_of(log) if entry.stream_hash == stream.stream_hash
                   and entry.kind == Kind.PACKET and low <= entry.sequence <= high and not entry.is_reduced]  # fmt: skip
        if not offsets:
            return
        if isinstance(log, FakeLog):
            log.remove(name, offsets[0], offsets[-1], "erased")
        else:
            await log.reduce(stream, offsets[0], offsets[-1], "erased")


async def entries_of(log: Any) -> list[Any]:
    """Every entry."""
    entries, after = [], 0
    while after < log.head:
        page = await log.read_page(after)
        assert not page.damaged
        entries += page.entries
        after = page.after
    return entries


async def hear(delivery: Delivery, query: dict[str, Any], *, is_interrupted: bool = False) -> list[Any]:
    """What a reader hears, without offsets, which differ between the two; resumed after every batch if asked for."""
    heard: list[Any] = []
    query = {"from": "beginning"} | query
    opened = await delivery.open_reader(query_of(**query), "test")
    try:
        while True:
            batch = await opened.reader.read()
            for message in batch.messages:
                body = msgspec.json.decode(encode_message(message, "packet"))
                if body["type"] == "packet":
                    heard.append((body["stream_id"], body["packet"]["packet_sequence"], body["packet"]["data_payload"]))
                elif body["type"] == "erased":
                    heard.append(("erased", body["stream_id"], body["packet_sequence"]))
                elif not heard or heard[-1] != (body["type"], body["reason"]):  # the pages of the two differ
                    heard.append((body["type"], body["reason"]))
            if batch.is_at_head:
                return heard
            if is_interrupted and "last" not in query["from"]:
                opened.close()
                rest = {name: value for name, value in query.items() if name != "from"}
                opened = await delivery.open_reader(query_of(after=str(batch.cursor), **rest), "test")
    finally:
        opened.close()


@pytest.mark.parametrize("seed", [1, 2])
async def test_both_logs_tell_the_same(tmp_path: Path, seed: int) -> None:
    """Every query hears the same from the real log, read from memory and from disk, as from the one in memory."""
    fake = FakeLog(page_entries=7)
    async with open_small(tmp_path, page_entries=7) as real:
        await tell(fake, real, 160, seed)
        for query in QUERIES:
            expected = await hear(make_delivery(fake), query)
            assert await hear(make_delivery(real), query) == expected, query
    async with open_small(tmp_path, page_entries=9, tail_bytes=Size(4096)) as real:
        for query in QUERIES:
            expected = await hear(make_delivery(fake), query)
            assert await hear(make_delivery(real), query) == expected, query
            interrupted = make_delivery(real, progress_entries=1)
            assert await hear(interrupted, query, is_interrupted=True) == await hear(
                make_delivery(fake, progress_entries=1), query, is_interrupted=True
            )


async def test_live_on_the_real_log(tmp_path: Path) -> None:
    """Readers that wait at the head of the real log get every packet once, while producers append at the same time."""
    async with open_small(tmp_path) as real:
        delivery = make_delivery(real)
        got: dict[int, list[Any]] = {}

        async def read(number: int) -> None:
            got[number] = []
            with await delivery.open_reader(query_of(stream="a"), "test") as opened:
                ready.release()
                while len(got[number]) < 60:
                    await opened.reader.wait()
                    got[number] += [message.subject for message in (await opened.reader.read()).messages]

        async def write(first: int) -> None:
            for number in range(20):
                draft = Draft(0, b"%d" % (first + number), b"%d" % (first + number))
                version = real.find_stream("a")
                await real.append(
                    AppendRequest(
                        StreamName("a"), [draft], may_create=True,
                        definition_version=version.definition_version if version else 0,
                    )
                )  # fmt: skip

        ready = trio.Semaphore(0)
        await write(1000)
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(read, number)
                for _ in range(8):
                    await ready.acquire()
                for first in (0, 100, 200):
                    nursery.start_soon(write, first)
        orders = {tuple(view.entry.sequence for view in views) for views in got.values()}
        assert orders == {tuple(range(21, 81))}


async def test_damage_on_the_disk_is_a_gap(tmp_path: Path) -> None:
    """A row that was changed behind the log's back is announced as damaged, and what follows is delivered."""
    async with open_small(tmp_path) as real:
        await tell(FakeLog(), real, 30, 3)
        victim = next(e for e in await entries_of(real) if e.kind == Kind.PACKET and not e.is_reduced)
    with contextlib.closing(sqlite3.connect(tmp_path / "log.sqlite3")) as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {name}")
        (sealed,) = database.execute("SELECT sealed FROM entry WHERE offset = ?", (victim.offset,)).fetchone()
        changed = sealed[:-1] + bytes((sealed[-1] ^ 1,))
        database.execute("UPDATE entry SET sealed = ? WHERE offset = ?", (changed, victim.offset))
        database.commit()
    async with open_small(tmp_path, tail_bytes=Size(1)) as real:
        after = str(Cursor(real.epoch, victim.offset - 1))
        with await make_delivery(real).open_reader(query_of(after=after), "test") as opened:
            batch = await opened.reader.read()
            first = msgspec.json.decode(encode_message(batch.messages[0], "packet"))
            assert (first["type"], first["reason"]) == ("gap", "damaged")
            assert any(message.kind == "packet" for message in batch.messages[1:])

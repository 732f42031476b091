"""Read connections: they can't write, an impatient reader leaves them usable, and a slow read ends in time."""

import asyncio
import sqlite3
import threading
from contextlib import suppress

import aiosqlite
import pytest
import trio
import trio.testing
from real_waiting import PATIENCE_S
from storage_rig import Rig, append, draft, forget_tail
from trio.testing import MockClock

from overlayd.model.errors import DamagedEntry, IntakeBusy, ShuttingDown
from overlayd.model.units import Duration
from overlayd.storage import Log, queries
from overlayd.storage.readers import IDLE_GRACE_S

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


async def test_readers_cannot_write(rig: Rig) -> None:
    """Only the writer's connection changes the file; two that do can corrupt a WAL in the SQLite of Debian 12."""
    async with rig.open() as log:
        for statement in ("DELETE FROM entry", "CREATE TABLE t (n)", "PRAGMA wal_checkpoint(TRUNCATE)"):
            with pytest.raises((sqlite3.OperationalError, DamagedEntry), match=r"readonly|locked|disk I/O"):
                await log.read(lambda c, statement=statement: c.execute(statement).fetchall())  # type: ignore[misc]
        await append(log, "s")
        assert (await log.read_page(0)).damaged == []


async def test_impatient_readers_leave_the_pool_usable(rig: Rig) -> None:
    """Fifty readers that give up at once don't pile up statements: the next read is answered at once."""
    async with rig.open() as log:
        await append(log, "s", [draft() for _ in range(2000)])
        forget_tail(log)

        async def be_impatient(number: int) -> None:
            for _ in range(4):
                with trio.move_on_after(0.001 * (number % 5)):
                    await log.read(lambda c: c.execute(ENDLESS).fetchall())

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(be_impatient, number)
        with trio.fail_after(PATIENCE_S):  # a statement that was left running would hold its place for ever
            page = await log.read_page(0)
        assert len(page.entries) == 200
        assert log._readers._places.borrowed_tokens == 0
        assert len(log._readers._idle) <= rig.limits.readers


async def test_slow_read_ends_in_time(rig: Rig) -> None:
    """A read that takes longer than `read_timeout` is interrupted and refused."""
    rig.set_limits(read_timeout=Duration(0.02), readers=1)
    async with rig.open() as log:
        with pytest.raises(IntakeBusy, match="took longer"):
            await log.read(lambda c: c.execute(ENDLESS).fetchall())
        assert rig.limit_hits("read_timeout") == 1
        found: list[tuple[int]] = []
        with trio.fail_after(PATIENCE_S):
            while not found:
                with suppress(IntakeBusy):  # on a busy machine this, too, may take longer than 20 ms
                    found = await log.read(lambda c: c.execute("SELECT 1").fetchall())
        assert found == [(1,)]


async def test_waiting_for_a_place_counts(rig: Rig) -> None:
    """With every connection busy, a further read waits no longer than `read_timeout` either."""
    rig.set_limits(read_timeout=Duration(0.02), readers=1)
    async with rig.open() as log, trio.open_nursery() as nursery:

        async def hold() -> None:
            with pytest.raises(IntakeBusy):
                await log.read(lambda c: c.execute(ENDLESS).fetchall())

        nursery.start_soon(hold)
        nursery.start_soon(hold)


async def test_errors_of_a_read_reach_the_reader(rig: Rig) -> None:
    """And the connection goes on working."""
    async with rig.open() as log:
        for _ in range(10):
            with pytest.raises(sqlite3.OperationalError, match="no such table"):
                await log.read(lambda c: c.execute("SELECT * FROM absent").fetchall())
        assert await log.read(lambda c: c.execute("SELECT 1").fetchall()) == [(1,)]


@pytest.mark.parametrize("ticks", range(0, 40, 4))
async def test_cancelled_anywhere(rig: Rig, ticks: int) -> None:
    """Whenever a page read is cancelled, the next one is right."""
    rig.set_limits(readers=1)
    async with rig.open() as log:
        await append(log, "s", [draft() for _ in range(50)])
        forget_tail(log)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.read_page, 0)
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        page = await log.read_page(0)
        assert [entry.offset for entry in page.entries] == list(range(1, log.head + 1))


async def test_works_from_tasks_that_never_saw_the_loop(rig: Rig) -> None:
    """The trio-asyncio loop is found by reference, not through the caller's context."""
    async with trio.open_nursery() as nursery:
        send, receive = trio.open_memory_channel[Log](1)
        done = trio.Event()

        async def read_elsewhere() -> None:
            log = await receive.receive()
            assert await log.read(lambda c: c.execute("SELECT 1").fetchall()) == [(1,)]
            done.set()

        nursery.start_soon(read_elsewhere)
        await trio.lowlevel.checkpoint()
        async with rig.open() as log:
            await send.send(log)
            await done.wait()


async def test_closing_ends_what_still_reads(rig: Rig) -> None:
    """A read that outlives the block is interrupted and told so; one that comes later is refused."""
    told = []

    async def read(log: Log) -> None:
        try:
            await log.read(lambda c: c.execute(ENDLESS).fetchall())
        except ShuttingDown as err:
            told.append(err)

    threads = threading.active_count()
    async with trio.open_nursery() as nursery, rig.open() as log:
        for _ in range(3):
            nursery.start_soon(read, log)
        await trio.testing.wait_all_tasks_blocked(0.01)
    await read(log)
    assert len(told) == 4
    assert threading.active_count() <= threads + 4  # Trio keeps a few of its own


async def test_connections_that_cant_be_closed_in_time_keep_no_thread(
    rig: Rig, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one's close takes for ever; the threads of the others end all the same, or the process wouldn't."""
    opened, close = [], aiosqlite.Connection.close

    async def hang(connection: aiosqlite.Connection) -> None:
        opened.append(connection)
        monkeypatch.setattr(aiosqlite.Connection, "close", close)
        trio.lowlevel.current_trio_token().run_sync_soon(mock_clock.jump, 10 * IDLE_GRACE_S)
        await asyncio.get_running_loop().create_future()

    async with rig.open() as log:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(log.read, lambda c: c.execute("SELECT 1").fetchall())
        threads = [reader.connection._thread for reader in log._readers._idle]
        assert len(threads) == 3
        monkeypatch.setattr(aiosqlite.Connection, "close", hang)
    opened[0].stop()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


async def test_broken_page_of_the_file(rig: Rig) -> None:
    """Entries on a page that SQLite can't read are damage; the others are served, and a single one is refused."""
    async with rig.open() as log:
        await append(log, "s", [draft('"' + "x" * 900 + '"') for _ in range(500)])
    path = rig.directory / "log.sqlite3"
    with rig.connect() as connection:
        rows = connection.execute(
            "SELECT pageno FROM dbstat WHERE name = 'entry' AND pagetype = 'leaf' ORDER BY pageno"
        ).fetchall()
        (page,) = rows[len(rows) // 5]
    content = bytearray(path.read_bytes())
    content[(page - 1) * 4096 : page * 4096] = b"\xff" * 4096
    path.write_bytes(content)
    async with rig.open() as log:
        forget_tail(log)
        damaged, served, after = set(), set(), 0
        while after < log.head:
            found = await log.read_page(after)
            served |= {entry.offset for entry in found.entries}
            damaged |= {offset for low, high in found.damaged for offset in range(low, high + 1)}
            after = found.after
        assert 1 <= len(damaged) <= 8
        assert served | damaged == set(range(1, log.head + 1))
        with pytest.raises(DamagedEntry):
            await log.read_entry(min(damaged))


def test_packed_rows_are_exact() -> None:
    """SQLite's concatenation of blobs keeps NUL bytes, invalid UTF-8 and order."""
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE entry (offset INTEGER PRIMARY KEY, e BLOB, leaf BLOB, sealed BLOB)")
    rows = []
    for offset in range(1, 301):
        noise = bytes((offset * 7 + at * 13) % 256 for at in range(offset % 40)) + b"\x00\xff\x00\xc3"
        rows.append((offset, noise, b"\x00" * 3 + bytes([offset % 256]), None if offset % 5 == 0 else noise[::-1]))
    connection.executemany("INSERT INTO entry VALUES (?, ?, ?, ?)", rows)
    expected = b"".join(e + leaf + (sealed or b"\x00") for _, e, leaf, sealed in rows)
    assert queries.read_page_blob(connection, 0, 300, 1000, 1 << 20) == expected
    assert queries.read_many_blob(connection, range(1, 301), 1 << 20) == expected
    assert queries.read_page_blob(connection, 300, 300, 10, 1 << 20) == b""


def test_page_query_is_bounded() -> None:
    """By rows, by bytes, by the head; but there is always one row."""
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE entry (offset INTEGER PRIMARY KEY, e BLOB, leaf BLOB, sealed BLOB)")
    connection.executemany(
        "INSERT INTO entry VALUES (?, x'01', x'02', ?)", [(n, bytes([n]) * 100) for n in range(1, 51)]
    )

    def count(after: int, upto: int, limit: int, size: int) -> int:
        return len(queries.read_page_blob(connection, after, upto, limit, size)) // 102

    assert count(0, 50, 7, 1 << 20) == 7
    assert count(0, 3, 7, 1 << 20) == 3
    assert count(48, 50, 7, 1 << 20) == 2
    assert count(0, 50, 100, 250) == 3
    assert count(0, 50, 100, 1) == 1
    for size, rows in ((1 << 20, 3), (150, 2), (1, 1)):
        assert len(queries.read_many_blob(connection, [3, 9, 40], size)) == rows * 102

"""What the writer does when the disk or the database refuses: go on after a refusal, end after anything worse."""

import sqlite3
from typing import Any

import pytest
import trio
import trio.testing
from storage_rig import Rig, append, draft, drafts, receipts

from overlayd.model.definition import Definition
from overlayd.model.errors import CommitFailed, IntakeBusy, OverlaydError, PacketTooLarge, ShuttingDown, StorageFull
from overlayd.model.units import Duration, Size
from overlayd.storage import Log, commit, files, start
from overlayd.storage.errors import is_fatal, translate_sqlite


class Faults:
    """Errors that the writing connection raises: SQL prefix -> error, once each."""

    def __init__(self) -> None:
        self.planned: list[tuple[str, Exception]] = []
        self.seen: list[str] = []

    def plan(self, prefix: str, code: int) -> None:
        error = sqlite3.OperationalError("injected")
        error.sqlite_errorcode = code
        error.sqlite_errorname = f"code {code}"
        self.planned.append((prefix, error))

    def meet(self, sql: str) -> None:
        self.seen.append(sql)
        for at, (prefix, error) in enumerate(self.planned):
            if sql.startswith(prefix):
                del self.planned[at]
                raise error


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """The writing connection of logs opened from here on can be made to fail."""
    faults = Faults()

    class FaultyConnection(sqlite3.Connection):
        def execute(self, sql: str, *rest: Any) -> sqlite3.Cursor:
            faults.meet(sql)
            return super().execute(sql, *rest)

    class Sqlite:
        """The module, but for the kind of connection that it opens."""

        def __getattr__(self, name: str) -> Any:
            return getattr(sqlite3, name)

        @staticmethod
        def connect(*args: Any, **fields: Any) -> sqlite3.Connection:
            return sqlite3.connect(*args, factory=FaultyConnection, **fields)

    monkeypatch.setattr(start, "sqlite3", Sqlite())
    return faults


REFUSALS = [
    (sqlite3.SQLITE_FULL, StorageFull),
    (sqlite3.SQLITE_BUSY, IntakeBusy),
    (sqlite3.SQLITE_TOOBIG, PacketTooLarge),
    (sqlite3.SQLITE_IOERR_SHMSIZE, StorageFull),
]
FATAL = [
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_DIR_FSYNC,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CONSTRAINT,
]


@pytest.mark.parametrize(("code", "expected"), REFUSALS)
@pytest.mark.parametrize(
    ("statement", "plain_rows_max"),
    [("INSERT INTO entry", 96), ("BEGIN IMMEDIATE", 0), ("INSERT INTO entry", 0), ("COMMIT", 0)],
)
async def test_goes_on_after_a_refusal(
    rig: Rig, faults: Faults, code: int, expected: type[OverlaydError], statement: str, plain_rows_max: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The group is rolled back whole, everybody in it is told, and the next one is taken with no hole before it."""
    monkeypatch.setattr(commit, "PLAIN_ROWS_MAX", plain_rows_max)
    async with rig.open() as log:
        await append(log, "s", drafts("a", data="1"))
        head = log.head
        await log.checkpoint(head)  # then the signer rests for a while
        faults.plan(statement, code)
        with pytest.raises(expected) as caught:
            await append(log, "s", drafts("b", data="1"))
        assert caught.value.retryable or expected is PacketTooLarge
        log._disk.is_full = False
        assert log.head == head
        (receipt,) = receipts(await append(log, "s", drafts("b", data="1")))
        assert (receipt.offset, receipt.sequence, receipt.duplicate) == (head + 1, 2, False)


@pytest.mark.parametrize("code", FATAL)
@pytest.mark.parametrize(
    ("statement", "plain_rows_max"), [("INSERT INTO entry", 96), ("INSERT INTO entry", 0), ("COMMIT", 0)]
)
async def test_ends_after_anything_worse(
    rig: Rig, faults: Faults, code: int, statement: str, plain_rows_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody who waits is told, and the block that holds the log ends with CommitFailed."""
    monkeypatch.setattr(commit, "PLAIN_ROWS_MAX", plain_rows_max)
    told = []

    async def send(log: Log) -> None:
        try:
            await append(log, "s")
        except CommitFailed as err:
            told.append(err)

    async def run() -> None:
        async with rig.open() as log, trio.open_nursery() as nursery:
            await log.define_stream("s", Definition())
            await log.checkpoint(log.head)  # then the signer rests for a while
            faults.plan(statement, code)
            for _ in range(3):
                nursery.start_soon(send, log)
            await trio.sleep_forever()

    with pytest.raises(CommitFailed):
        await run()
    assert len(told) == 3
    async with rig.open() as log:
        assert log.find_stream("s") is not None
        assert receipts(await append(log, "s"))[0].sequence == 1


async def test_every_sqlite_error_has_a_meaning() -> None:
    """Refusals are the listed ones; everything else is fatal, also errors without a code."""
    refused = {code for code, _ in REFUSALS} | {sqlite3.SQLITE_LOCKED}
    for name in dir(sqlite3):
        code = getattr(sqlite3, name)
        if name.startswith("SQLITE_") and isinstance(code, int) and 0 < code < 100:
            error = sqlite3.OperationalError("x")
            error.sqlite_errorcode = code
            assert is_fatal(translate_sqlite(error)) == (code not in refused), name
    assert is_fatal(translate_sqlite(sqlite3.OperationalError("x")))
    assert is_fatal(translate_sqlite(OSError(5, "x")))
    assert isinstance(translate_sqlite(sqlite3.DataError("string or blob too big")), PacketTooLarge)


async def test_full_disk_releases_the_reserve(rig: Rig, faults: Faults) -> None:
    """When space ends the reserve goes, publishing stops, and both come back once there is room."""
    rig.set_settings(reserve=Size(8192))
    async with rig.open() as log:
        assert (rig.directory / "reserve").stat().st_size == 8192
        await log.checkpoint(log.head)
        faults.plan("INSERT INTO entry", sqlite3.SQLITE_FULL)
        with pytest.raises(StorageFull):
            await append(log, "s")
        assert not (rig.directory / "reserve").exists()
        with pytest.raises(StorageFull, match="nearly full"):
            await append(log, "s")
        assert log.stats().is_full
        await log.read_page(0)
        log._disk.look()
        assert (rig.directory / "reserve").stat().st_size == 8192
        assert receipts(await append(log, "s"))[0].sequence == 1


async def test_high_and_low_water(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Publishing stops below the one mark and starts again above the other."""
    rig.set_settings(disk_high_water=Size(1000), disk_low_water=Size(2000))
    free = 5000
    monkeypatch.setattr(files, "free_bytes", lambda directory: free)
    async with rig.open() as log:
        for free, is_full in ((1000, False), (999, True), (1999, True), (2000, False), (1500, False)):
            log._disk.look()
            assert log.stats().is_full == is_full
            assert log.stats().disk_free_bytes == free


async def test_bug_in_the_writer_tells_everybody(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody foresaw ends the log like a failed disk, and is raised as itself."""
    told: list[str] = []

    async def send(log: Log) -> None:
        try:
            await append(log, "s")
        except CommitFailed as err:
            told.append(err.detail)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    async def run() -> None:
        async with rig.open() as log, trio.open_nursery() as nursery:
            await log.define_stream("s", Definition())
            await log.checkpoint(log.head)  # then the signer rests for a while
            monkeypatch.setattr("overlayd.storage.writer.commit_group", fail)
            for _ in range(2):
                nursery.start_soon(send, log)
            await trio.sleep_forever()

    with pytest.raises(ZeroDivisionError):
        await run()
    assert told == ["the writer failed"] * 2


async def test_cancelled_publish_is_committed(rig: Rig) -> None:
    """A client that leaves takes nothing back."""
    async with rig.open() as log:
        await log.define_stream("s", Definition())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(append, log, "s", drafts("a", data="1"))
            await trio.testing.wait_all_tasks_blocked(0)
            nursery.cancel_scope.cancel()
        assert receipts(await append(log, "s", drafts("a", data="1")))[0].duplicate


@pytest.mark.parametrize("ticks", range(12))
async def test_cancelled_anywhere(rig: Rig, ticks: int) -> None:
    """Whenever it is cancelled, a request is in the log whole or not at all, and the log goes on."""
    async with rig.open() as log:
        await log.define_stream("s", Definition())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(append, log, "s", drafts("a", "b", data="1"))
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        result = receipts(await append(log, "s", drafts("a", "b", "c", data="1")))
        assert [receipt.sequence for receipt in result] == [1, 2, 3]
        assert result[0].duplicate == result[1].duplicate


async def test_closing_commits_what_is_queued(rig: Rig) -> None:
    """Leaving the block waits for requests in the queue; later ones are told that the node is stopping."""
    results = []

    async def send(log: Log) -> None:
        results.append(await append(log, "s", drafts("a", data="1")))

    async with trio.open_nursery() as nursery:
        async with rig.open() as log:
            await log.define_stream("s", Definition())
            nursery.start_soon(send, log)
            await trio.testing.wait_all_tasks_blocked(0)
        with pytest.raises(ShuttingDown):
            await append(log, "s")
    async with rig.open() as log:
        assert receipts(await append(log, "s", drafts("a", data="1")))[0].duplicate
    assert len(results) == 1


async def test_cancelling_the_block_commits_what_is_queued(rig: Rig) -> None:
    """The same when the block is cancelled from outside."""
    with trio.CancelScope() as scope:
        async with rig.open() as log, trio.open_nursery() as nursery:
            await log.define_stream("s", Definition())
            nursery.start_soon(append, log, "s", drafts("a", data="1"))
            await trio.testing.wait_all_tasks_blocked(0)
            scope.cancel()
    async with rig.open() as log:
        assert receipts(await append(log, "s", drafts("a", data="1")))[0].duplicate
        with rig.connect() as connection:
            assert connection.execute("SELECT value FROM state WHERE key = 'is_clean'").fetchone() == (0,)


async def test_errors_of_the_block_are_raised_plain(rig: Rig) -> None:
    """The store's nurseries don't wrap what its user raises."""
    with pytest.raises(ZeroDivisionError):
        async with rig.open():
            raise ZeroDivisionError


async def test_group_commit(rig: Rig, faults: Faults) -> None:
    """What queued during one commit goes into the next one together, in few statements."""
    async with rig.open() as log:
        await log.define_stream("s", Definition())
        await log.checkpoint(log.head)
        faults.seen.clear()
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(append, log, "s", [draft()])
        assert sum(sql.startswith("COMMIT") for sql in faults.seen) <= 4
        assert sum(sql.startswith("INSERT INTO entry") for sql in faults.seen) <= 12


async def test_linger_waits_for_company(rig: Rig, faults: Faults, autojump_clock: trio.testing.MockClock) -> None:
    """With `linger`, requests that come a little later share the commit."""
    rig.set_settings(linger=Duration(0.02))
    async with rig.open() as log:
        await log.define_stream("s", Definition())
        await log.checkpoint(log.head)
        faults.seen.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(append, log, "s", [draft()])
            for _ in range(20):
                await trio.lowlevel.checkpoint()
            nursery.start_soon(append, log, "s", [draft()])
        assert sum(sql.startswith("INSERT INTO entry") for sql in faults.seen) == 1


async def test_wal_is_copied_between_groups(rig: Rig, faults: Faults) -> None:
    """About every `wal_bytes` a PASSIVE checkpoint, and the file doesn't grow without end."""
    rig.set_settings(wal_bytes=Size(100_000))
    async with rig.open() as log:
        await log.define_stream("s", Definition())
        for _ in range(30):
            await append(log, "s", [draft('"' + "x" * 20_000 + '"')])
        passive = sum(sql.startswith("PRAGMA wal_checkpoint(PASSIVE)") for sql in faults.seen)
        assert 4 <= passive <= 12
        assert log.stats().wal_bytes < 600_000  # what the migrations wrote at the start is about 400 kB
    assert not (rig.directory / "log.sqlite3-wal").exists()

"""Read-only connections to the database, through aiosqlite on a trio-asyncio loop that nothing else sees.

A connection serves one read at a time and goes back to the pool only when its thread is idle: a cancelled read is
interrupted and waited for, because a connection handed on too early piles up abandoned statements until no read
finishes any more.
"""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import aiosqlite
import trio
from trio_asyncio import TrioEventLoop  # type: ignore[import-untyped]

from overlayd.model.errors import DamagedEntry, IntakeBusy, ShuttingDown
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics

T = TypeVar("T")

INTERRUPT_PAUSE_S = 0.005
"""An interrupt that comes before its statement began has no effect, so it is repeated."""
_UNREADABLE = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN}
IDLE_GRACE_S = 10.0
"""How long a cancelled read may take to stop before its connection is given up."""


class _Reader:
    """One connection and its thread."""

    __slots__ = ("connection", "raw")

    def __init__(self, connection: aiosqlite.Connection, raw: sqlite3.Connection) -> None:
        self.connection = connection
        self.raw = raw


class ReaderPool:
    """Runs functions over read-only connections. `close` before the writer closes."""

    def __init__(self, loop: TrioEventLoop, database: Path, limits: Limits, metrics: Metrics) -> None:
        self._loop = loop
        self._database = database
        self._limits = limits
        self._idle: deque[_Reader] = deque()
        self._places = trio.CapacityLimiter(limits.readers)
        self._seconds = metrics.histogram("overlayd_read_seconds", "One read of the database, waiting included")
        self._metrics = metrics
        self._busy: set[_Reader] = set()
        self._is_closed = False

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """What the function gives, run in a connection's thread. It may run several statements.

        Checkpoint. On cancellation the read is interrupted. Raises IntakeBusy when it took longer than
        `read_timeout`, DamagedEntry when the file can't be read, ShuttingDown, and else the function's own error.
        """
        started = trio.current_time()
        if self._places.available_tokens < 1:
            self._metrics.count_limit_hit("readers")
        with trio.move_on_after(self._limits.read_timeout):
            async with self._places:
                result = await self._translate(function)
            self._seconds.observe(trio.current_time() - started)
            return result
        self._metrics.count_limit_hit("read_timeout")
        raise IntakeBusy(
            f"a read of the log took longer than {self._limits.read_timeout}", subject="log.sqlite3",
            hint="ask for less at once, or again later", retry_after_s=1.0,
        )  # fmt: skip

    async def close(self) -> None:
        """Interrupts what still reads and closes every connection. Takes no longer than IDLE_GRACE_S twice."""
        self._is_closed = True
        with trio.move_on_after(IDLE_GRACE_S, shield=True):
            while self._busy:
                for reader in self._busy:
                    reader.raw.interrupt()
                await trio.sleep(INTERRUPT_PAUSE_S)
        with trio.move_on_after(IDLE_GRACE_S, shield=True):
            while self._idle:
                await self._loop.run_aio_coroutine(self._idle.popleft().connection.close())
        while self._idle:  # not closed in time: a thread that nobody tells would keep the process from ending
            self._idle.popleft().connection.stop()

    def __repr__(self) -> str:
        return f"ReaderPool(idle={len(self._idle)}, busy={self._places.borrowed_tokens})"

    async def _translate(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """SQLite's errors about the file itself in our own words."""
        try:
            return await self._read_alone(function)
        except sqlite3.Error as err:
            code = (err.sqlite_errorcode or 0) & 0xFF if hasattr(err, "sqlite_errorcode") else 0
            if self._is_closed:
                raise ShuttingDown("the node is stopping", retry_after_s=5.0) from err
            if code in _UNREADABLE:
                raise DamagedEntry(
                    f"the database can't be read: {err}", subject="log.sqlite3",
                    hint="overlayd verify says what else is wrong",
                ) from err  # fmt: skip
            raise

    async def _read_alone(self, function: Callable[[sqlite3.Connection], T]) -> T:
        if self._is_closed:
            raise ShuttingDown("the node is stopping", retry_after_s=5.0)
        reader = self._idle.pop() if self._idle else await self._open()
        self._busy.add(reader)
        is_abandoned = False

        def run() -> T:
            if is_abandoned:
                raise sqlite3.OperationalError("interrupted")
            return function(reader.raw)

        # aiosqlite has no public way to run a function of several statements in a connection's thread.
        task = asyncio.ensure_future(reader.connection._execute(run), loop=self._loop)  # type: ignore[no-untyped-call]
        done = trio.Event()
        task.add_done_callback(lambda _: done.set())
        try:
            await done.wait()
        except trio.Cancelled:
            is_abandoned = True
            with trio.move_on_after(IDLE_GRACE_S, shield=True):
                while not done.is_set():
                    reader.raw.interrupt()
                    with trio.move_on_after(INTERRUPT_PAUSE_S):
                        await done.wait()
            raise
        finally:
            self._busy.discard(reader)
            if done.is_set():
                if not task.cancelled():
                    task.exception()  # so that nobody warns of an error that its reader didn't wait for
                self._idle.append(reader)
            else:
                reader.connection.stop()
        return task.result()  # type: ignore[no-any-return]

    async def _open(self) -> _Reader:
        opened: list[sqlite3.Connection] = []

        def connect() -> sqlite3.Connection:
            raw = sqlite3.connect(
                f"file:{_quote(self._database)}?mode=ro", uri=True, isolation_level=None, check_same_thread=False,
                timeout=1.0,
            )  # fmt: skip
            raw.execute("PRAGMA query_only = ON")
            raw.execute("PRAGMA mmap_size = 0")
            opened.append(raw)
            return raw

        async def start() -> aiosqlite.Connection:
            return await aiosqlite.Connection(connect, 64)

        with trio.fail_after(IDLE_GRACE_S, shield=True):
            connection = await self._loop.run_aio_coroutine(start())
        return _Reader(connection, opened[0])


def _quote(path: Path) -> str:
    """The path as a SQLite URI takes it."""
    return str(path.resolve()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")

"""The signer task: at most one checkpoint a `pause` by itself, and at once when somebody asks."""

import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
import trio

from overlayd.model.clock import Clock
from overlayd.model.errors import CommitFailed, OverlaydError, ShuttingDown, StorageFull
from overlayd.model.metrics import Metrics
from overlayd.model.note import CheckpointText, Signer, sign_note
from overlayd.storage.checkpoint import Checkpoint
from overlayd.storage.files import HighWater, write_high_water
from overlayd.storage.group import LogState
from overlayd.storage.intake import Ticket

_HOUR_US = 3_600_000_000
_log = structlog.get_logger("storage.checkpoints")


class CheckpointSigner:
    """Signs the log's head. Order: the entries are committed, then the high-water mark is synced, then it signs."""

    def __init__(
        self, state: LogState, directory: Path, signer: Signer, clock: Clock, *, pause_s: float, metrics: Metrics,
        write: Callable[[Callable[[sqlite3.Connection], None]], Awaitable[None]], newest: Checkpoint | None,
    ) -> None:  # fmt: skip
        self._state = state
        self._directory = directory
        self._signer = signer
        self._clock = clock
        self._pause_s = pause_s
        self._write = write
        self._newest = newest
        self._newest_us = 0
        self._asked = trio.Event()
        self._waiting: list[tuple[int, Ticket[Checkpoint]]] = []
        self._thread = trio.CapacityLimiter(1)
        self._is_stopped = False
        self._lock = trio.Lock()
        self._seconds = metrics.histogram(
            "overlayd_checkpoint_seconds", "Making one checkpoint: high-water mark, signature, storing the note"
        )
        metrics.gauge("overlayd_checkpoint_size", "Entries that the newest checkpoint covers").set_function(
            lambda: self._newest.size if self._newest is not None else 0
        )

    async def get(self, min_size: int) -> Checkpoint:
        """The newest checkpoint, signed now if it doesn't cover `min_size`. A checkpoint in Trio's sense too."""
        assert min_size <= self._state.head.offset
        if self._newest is not None and self._newest.size >= min_size:
            await trio.lowlevel.checkpoint()
            return self._newest
        if self._is_stopped:
            raise ShuttingDown("the node is stopping")
        ticket: Ticket[Checkpoint] = Ticket()
        self._waiting.append((min_size, ticket))
        self._asked.set()
        return await ticket.wait()

    async def run(self) -> None:
        """Follows the head. Raises CommitFailed when the high-water mark can't be synced."""
        while True:
            if not self._waiting:
                await self._wait_until_due()
            await self.sign()
            with trio.move_on_after(self._pause_s):
                await self._asked.wait()

    async def sign(self) -> None:
        """Signs the head, unless it is signed already. One at a time."""
        async with self._lock:
            self._asked = trio.Event()
            await self._sign()

    async def _sign(self) -> None:
        size, root, epoch = self._state.tree.size, self._state.tree.root(), self._state.epoch
        if self._newest is not None and self._newest.size == size:
            self._settle(self._newest)
            return
        started = trio.current_time()
        try:
            made = await trio.to_thread.run_sync(self._make, HighWater(epoch, size, root), limiter=self._thread)
            now_us = self._clock.now_us()
            replaced = self._newest if now_us // _HOUR_US == self._newest_us // _HOUR_US else None
            await self._write(lambda connection: _store(connection, made, now_us, replaced))
        except OSError as err:
            self._fail(_judge_os_error(err))
            return
        except OverlaydError as err:
            self._fail(err)
            return
        self._newest, self._newest_us = made, now_us
        self._seconds.observe(trio.current_time() - started)
        self._settle(made)

    def stop(self) -> None:
        """Nobody is answered any more who isn't by now."""
        self._is_stopped = True
        for _, ticket in self._waiting:
            ticket.fail(ShuttingDown("the node is stopping"))
        self._waiting.clear()

    async def _wait_until_due(self) -> None:
        """Until the head is beyond the newest checkpoint, or somebody asks."""
        size = self._newest.size if self._newest is not None else 0
        async with trio.open_nursery() as nursery:

            async def wait_asked() -> None:
                await self._asked.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait_asked)
            await self._state.head.wait_beyond(size)
            nursery.cancel_scope.cancel()

    def _make(self, mark: HighWater) -> Checkpoint:
        """In a thread: fsync, then the signature, which may come from a device."""
        write_high_water(self._directory, mark)
        text = str(CheckpointText(self._signer.key.name, mark.size, mark.root))
        return Checkpoint(mark.epoch, mark.size, mark.root, sign_note(text, [self._signer]))

    def _settle(self, made: Checkpoint) -> None:
        later = [(size, ticket) for size, ticket in self._waiting if size > made.size]
        for size, ticket in self._waiting:
            if size <= made.size:
                ticket.settle(made)
        self._waiting = later
        if later:
            self._asked.set()

    def _fail(self, error: OverlaydError) -> None:
        if not isinstance(error, ShuttingDown):
            _log.warning("no checkpoint", error=error.detail)
        for _, ticket in self._waiting:
            ticket.fail(type(error)(error.detail, subject=error.subject, hint=error.hint))
        self._waiting.clear()
        if isinstance(error, CommitFailed):
            raise error


def _judge_os_error(error: OSError) -> OverlaydError:
    """A full disk passes; anything else about an fsynced file is fatal."""
    if error.errno in (28, 122):
        return StorageFull("no room for the high-water mark", retry_after_s=30.0)
    return CommitFailed(f"the high-water mark can't be written: {error}", subject="high-water")


def _store(connection: sqlite3.Connection, made: Checkpoint, now_us: int, replaced: Checkpoint | None) -> None:
    """Keeps the note; of those of one hour only the last, so that the table doesn't outgrow the log."""
    if replaced is not None and replaced.epoch == made.epoch:
        connection.execute("DELETE FROM checkpoint WHERE epoch = ? AND size = ?", (replaced.epoch, replaced.size))
    connection.execute(
        "INSERT OR REPLACE INTO checkpoint (epoch, size, root, note, created_us) VALUES (?, ?, ?, ?, ?)",
        (made.epoch, made.size, made.root, made.note, now_us),
    )

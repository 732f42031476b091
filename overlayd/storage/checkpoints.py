"""The signer task: at most one checkpoint a `pause` by itself, and at once when somebody asks.

The key may lie in a device that is slow, gone or silent. Then packets are still taken, whoever wants a checkpoint is told
why there is none, and the next attempt finds the key again when it is back.
"""

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import structlog
import trio

from overlayd.model.clock import Clock
from overlayd.model.errors import (
    CommitFailed,
    ConfigInvalid,
    KeyNotSuited,
    OverlaydError,
    ShuttingDown,
    SignerUnavailable,
    StorageFull,
)
from overlayd.model.metrics import Metrics
from overlayd.model.note import CheckpointText, VerifierKey
from overlayd.storage.checkpoint import Checkpoint
from overlayd.storage.damage.edges import EdgeFile
from overlayd.storage.files import HighWater, write_high_water
from overlayd.storage.group import Group, LogState
from overlayd.storage.intake import Ticket
from overlayd.storage.jobs import ChangeJob
from overlayd.storage.log_keys import KeyRing

SIGN_TIMEOUT_S = 10.0
"""For a key in a device; a hash on a smart card takes about one."""
RETRY_S = 5.0
"""Between attempts while the key can't be reached: a token that is asked every second about its PIN gets no rest."""
T = TypeVar("T")
_HOUR_US = 3_600_000_000
_log = structlog.get_logger("storage.checkpoints")


class CheckpointSigner:
    """Signs the log's head. Order: the entries are committed, then the high-water mark is synced, then it signs."""

    def __init__(
        self, state: LogState, directory: Path, keys: KeyRing, clock: Clock, *, pause_s: float, metrics: Metrics,
        write: Callable[[Callable[[sqlite3.Connection], None]], Awaitable[None]],
        change: Callable[[ChangeJob], Awaitable[Any]], newest: Checkpoint | None,
    ) -> None:  # fmt: skip
        self._state = state
        self._directory = directory
        self.keys = keys
        self.trouble = ""
        """Why checkpoints can't be signed now; "" while they can."""
        self._clock = clock
        self._pause_s = pause_s
        self._write = write
        self._change = change
        self._newest = newest
        self._newest_us = 0
        self._asked = trio.Event()
        self._waiting: list[tuple[int, Ticket[Checkpoint]]] = []
        self._edges = EdgeFile(directory)
        self._thread = trio.CapacityLimiter(1)
        self._device = trio.CapacityLimiter(1)
        self._is_stopped = False
        self._lock = trio.Lock()
        self._rotation = trio.Lock()
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
            if self.trouble:
                await trio.sleep(RETRY_S)
                continue
            with trio.move_on_after(self._pause_s):
                await self._asked.wait()

    async def sign(self) -> None:
        """Signs the head, unless it is signed already. One at a time."""
        async with self._lock:
            self._asked = trio.Event()
            await self._sign()

    async def _sign(self, *, is_again: bool = False) -> None:
        size, root, epoch = self._state.tree.size, self._state.tree.root(), self._state.epoch
        if self._newest is not None and self._newest.size == size and not is_again:
            self._settle(self._newest)
            return
        started = trio.current_time()
        try:
            made, is_takeover = await self._make(HighWater(epoch, size, root), self._state.tree.edge_hashes())
            now_us = self._clock.now_us()
            replaced = self._newest if now_us // _HOUR_US == self._newest_us // _HOUR_US else None

            def store(connection: sqlite3.Connection) -> None:
                _store(connection, made, now_us, replaced)
                if is_takeover:
                    self.keys.store_takeover(connection, made.size, made.note)

            await self._write(store)
        except OSError as err:
            self._fail(_judge_os_error(err))
            return
        except OverlaydError as err:
            self._fail(err)
            return
        if is_takeover:
            self.keys.take_over(made.size, made.note)
        if self.trouble:
            _log.info("checkpoints are signed again")
            self.trouble = ""
        self._newest, self._newest_us = made, now_us
        self._seconds.observe(trio.current_time() - started)
        self._settle(made)

    async def rotate(self, tell: Callable[[Group, str], None]) -> None:
        """Changes the log's key: draws or finds another, appends its entry, signs with both. Checkpoint.

        `tell`: called with the group and the new key's text, to add what belongs to the entry's transaction; it must not
        raise. Cancelled or cut off half way, a later checkpoint or start goes on. Raises SignerUnavailable, KeyNotSuited,
        ConfigInvalid, and as an append.
        """
        async with self._rotation:
            ring = self.keys
            if (
                ring.pending is not None
            ):  # an earlier one was cut off: bring it to its end, over the same size if need be
                async with self._lock:
                    await self._sign(is_again=True)
            else:
                new = await self._ask_key(lambda: ring.keys.next(ring.known))
                note = await self._ask_key(lambda: ring.make_note(new))

                def introduce(group: Group) -> int:
                    tell(group, str(VerifierKey(ring.origin, new.public_key)))
                    return ring.introduce(group, new, note)

                await self.get(await self._change(ChangeJob(introduce)))
            if ring.pending is not None:
                raise SignerUnavailable(
                    "the new key can't be reached; the old one signs until it can", subject="checkpoint_key",
                    retry_after_s=RETRY_S,
                )  # fmt: skip

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

    async def _make(self, mark: HighWater, edge: Sequence[bytes]) -> tuple[Checkpoint, bool]:
        """In a thread: fsync, then the signature, which may come from a device; and whether a new key takes over."""
        ring, text = self.keys, str(CheckpointText(self.keys.origin, mark.size, mark.root))

        def sign() -> tuple[Checkpoint, bool]:
            note, is_takeover = ring.sign(text, mark.size)
            return Checkpoint(mark.epoch, mark.size, mark.root, note), is_takeover

        def write() -> None:
            write_high_water(self._directory, mark, edge[0])
            self._edges.write(mark.size, edge)

        def write_and_sign() -> tuple[Checkpoint, bool]:
            write()
            return sign()

        if ring.is_quick:
            return await trio.to_thread.run_sync(write_and_sign, limiter=self._thread)
        await trio.to_thread.run_sync(write, limiter=self._thread)
        return await self._ask_key(sign)

    async def _ask_key(self, ask: Callable[[], T]) -> T:
        """Runs something that may wait for a device, in a thread of its own that nobody else waits for.

        Raises SignerUnavailable after SIGN_TIMEOUT_S; the thread is left to the device, and the next one waits behind it.
        """
        with trio.move_on_after(SIGN_TIMEOUT_S):
            return await trio.to_thread.run_sync(ask, limiter=self._device, abandon_on_cancel=True)
        raise SignerUnavailable(
            f"the key's device gave no answer in {SIGN_TIMEOUT_S:g} s", subject="checkpoint_key", retry_after_s=RETRY_S
        )

    def _settle(self, made: Checkpoint) -> None:
        later = [(size, ticket) for size, ticket in self._waiting if size > made.size]
        for size, ticket in self._waiting:
            if size <= made.size:
                ticket.settle(made)
        self._waiting = later
        if later:
            self._asked.set()

    def _fail(self, error: OverlaydError) -> None:
        is_news = error.detail != self.trouble
        if isinstance(error, SignerUnavailable | KeyNotSuited | ConfigInvalid):
            self.trouble = error.detail
        if is_news and not isinstance(error, ShuttingDown):
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

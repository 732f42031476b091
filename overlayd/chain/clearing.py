"""Clears the chain's tables of packets that retention, erasure or a cut took away, once their confirmations have ended.

Ended means: every listed depth is told and its block is deeper than any reorg that is reckoned with, or it failed and nobody
is asked about it any more. What still waits for a transaction of the wallet's goes at once: nobody could check what would be
paid for. Part of the watcher's task, since nobody else holds rows of transactions between two of its steps.
"""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import msgspec
import trio

from overlayd.chain import item_tables as items
from overlayd.chain.forgetting import forget_blank, forget_ended, has_blank
from overlayd.chain.headers import HeaderBook
from overlayd.model.entry import Z32
from overlayd.model.metrics import Metrics
from overlayd.storage import Stream
from overlayd.storage.queries import find_reduced

T = TypeVar("T")
SETTLED_BLOCKS = 144
"""A block with so many on it, about a day's, isn't expected to leave the best chain."""
EVERY_S = 600.0
PACKETS_AT_ONCE = 200
"""Packets of one transaction; publishers wait for it."""
SLICES_AT_ONCE = 20
"""Then the watcher looks at everything else before it goes on."""


class ClearedLog(Protocol):
    """What is needed of the log."""

    @property
    def head(self) -> int: ...

    def find_stream_by_hash(self, stream_hash: bytes) -> Stream | None: ...

    async def find_offset(self, stream: Stream, sequence: int) -> int | None: ...

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T: ...

    async def write(self, job: Callable[[sqlite3.Connection], T]) -> T: ...


class _Kept(msgspec.Struct, frozen=True):
    """What is kept of a stream: from an offset on, up to another, all but so many packets in between."""

    first: int
    last: int
    holes: int


class Clearing:
    """Looks at every stream now and then, a few slices at a time. Called by the watcher alone."""

    def __init__(self, log: ClearedLog, book: HeaderBook, metrics: Metrics) -> None:
        self._log = log
        self._book = book
        self._due_s = float("-inf")
        self._streams: list[bytes] = []
        self._holes: dict[bytes, int] = {}
        self._looked_to: dict[bytes, int] = {}
        self._waits: set[bytes] = set()
        self._cleared = metrics.counter(
            "overlayd_chain_cleared", "Packets that are gone whose confirmations were cleared from the tables"
        )

    def ask(self) -> None:
        """Looks at every stream at the next step, without waiting for the time."""
        self._due_s = float("-inf")

    async def step(self) -> bool:
        """Some of what is due; whether there is more at once. A checkpoint. Raises as a write."""
        if not self._streams:
            if trio.current_time() < self._due_s:
                await trio.lowlevel.checkpoint()
                return False
            self._due_s = trio.current_time() + EVERY_S
            known = await self._log.read(items.read_depths)
            self._streams = [stream_hash for stream_hash in known if stream_hash != Z32]
            while await self._log.read(has_blank):
                await self._log.write(lambda c: forget_blank(c, PACKETS_AT_ONCE))
        for _ in range(SLICES_AT_ONCE):
            if not self._streams:
                return False
            started = trio.current_time()
            if not await self._clear(self._streams[-1]):
                self._streams.pop()
            await trio.sleep(trio.current_time() - started)
        return bool(self._streams)

    async def _clear(self, stream_hash: bytes) -> bool:
        """A slice of a stream; whether there may be more."""
        kept = await self._read_kept(stream_hash)
        deep = self._book.tip.height - SETTLED_BLOCKS
        found = await self._log.read(
            lambda c: (
                items.read_ended(c, stream_hash, 0, kept.first, deep, PACKETS_AT_ONCE)
                + items.read_unpaid(c, stream_hash, kept.first, PACKETS_AT_ONCE)
            )
        )
        due = [item for item in found if item.is_over]
        await self._forget(due, deep)
        if due and len(found) >= PACKETS_AT_ONCE:
            return True
        return await self._clear_between(stream_hash, kept, deep)

    async def _clear_between(self, stream_hash: bytes, kept: _Kept, deep: int) -> bool:
        """What is gone between packets that are kept: behind one under a legal hold, say. Looked for when it got more."""
        if kept.holes == self._holes.get(stream_hash, 0):
            return False
        after = self._looked_to.get(stream_hash, kept.first)
        found = await self._log.read(
            lambda c: items.read_ended(c, stream_hash, after, kept.last + 1, deep, PACKETS_AT_ONCE)
        )
        offsets = [item.offset for item in found]
        gone = set(await self._log.read(lambda c: find_reduced(c, offsets)))
        if any(item.offset in gone and not item.is_over for item in found):
            self._waits.add(stream_hash)
        await self._forget([item for item in found if item.is_over and item.offset in gone], deep)
        if len(found) == PACKETS_AT_ONCE:
            self._looked_to[stream_hash] = offsets[-1]
            return True
        self._looked_to.pop(stream_hash, None)
        if stream_hash not in self._waits:
            self._holes[stream_hash] = kept.holes
        self._waits.discard(stream_hash)
        return False

    async def _forget(self, due: Sequence[items.Ended], deep: int) -> None:
        if not due:
            return
        offsets, tx_ids = [item.offset for item in due], {item.tx_id for item in due if item.tx_id is not None}
        await self._log.write(lambda c: forget_ended(c, offsets, tx_ids, deep))
        self._cleared.inc(len(due))

    async def _read_kept(self, stream_hash: bytes) -> _Kept:
        stream, head = self._log.find_stream_by_hash(stream_hash), self._log.head
        if stream is None or stream.is_deleted or not stream.packets:
            return _Kept(head + 1, head, self._holes.get(stream_hash, 0))
        holes = stream.head_sequence - stream.oldest_sequence + 1 - stream.packets
        first = await self._log.find_offset(stream, stream.oldest_sequence)
        return _Kept(first or 0, head, holes)

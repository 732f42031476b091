"""Writing out what memory derives from the log, a slice in each group's transaction.

Stream heads and indexes live in memory; from time to time (`flush_entries`) all of them begin a flush, and the
following transactions each carry a bounded part of it, and of the merges that it causes later. A start reads the
entries above the lowest floor again, so nothing is lost if this never happens. After a flush, one transaction drops
what is older than every window in place of its part of the merges.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any

from overlayd.storage.expiry import drop_expired
from overlayd.storage.group import Group, LogState
from overlayd.storage.packed import insert_rows
from overlayd.storage.streams import Stream

ROWS_PER_ENTRY = 5
"""Pairs that a transaction moves for each of its entries; five keep up with hundreds of millions of them (`hashindex`)."""
ROWS_MIN, ROWS_MAX = 1024, 5000 * ROWS_PER_ENTRY
"""A step costs something by itself, so small transactions pass it on until so many pairs came together: with a step in
each of them, a lone producer took 1.1 ms of the processor a packet as long as ten million ids were being merged. The
most is what the largest transaction owes: whatever it didn't move would be moved, and looked for, later."""
IDLE_ROWS = 4096
HEADS_PER_STEP = 1024

_HEADS = (
    "INSERT OR REPLACE INTO stream_head"
    " (stream_id, sequence, leaf, oldest_sequence, packets, bytes, last_packet_us, as_of) VALUES"
)


class Maintenance:
    """Decides what each transaction carries beside its own rows. Belongs to the writer."""

    def __init__(self, state: LogState, flush_entries: int) -> None:
        self._state = state
        self._flush_entries = flush_entries
        self._flush_to: int | None = None
        self._streams: list[Stream] = []
        self._taken: list[Stream] = []
        self._is_busy = True
        self._is_drop_due = True
        self._owed_rows = 0

    @property
    def is_due(self) -> bool:
        """Whether there is, or may be, something to do without new entries."""
        return self._is_busy or self._is_drop_due or self._flush_to is not None

    def begin(self) -> None:
        """Between transactions: starts a flush of everything if enough came together."""
        state = self._state
        if self._flush_to is None and state.head.offset - state.indexed >= self._flush_entries:
            self.begin_flush()

    def begin_flush(self) -> None:
        """Between transactions: starts a flush of everything. One at a time."""
        state = self._state
        assert self._flush_to is None
        self._flush_to = state.head.offset
        self._streams = sorted(state.changed, key=lambda stream: stream.id, reverse=True)
        state.changed = set()
        for index in (state.ids, state.commitments, state.keys):
            if not index.is_flushing:
                index.begin_flush(self._flush_to)
        state.positions.begin_flush(self._flush_to)

    @property
    def is_flushing(self) -> bool:
        return self._flush_to is not None

    def step(self, group: Group, is_idle: bool = False) -> "Step | None":
        """What this transaction carries; None when there is nothing to do."""
        if not self.is_due:
            return None
        self._owed_rows += ROWS_PER_ENTRY * max(1, len(group.entries))
        if not is_idle and self._owed_rows < min(ROWS_MIN, self._flush_entries):
            return None
        rows = IDLE_ROWS if is_idle else min(ROWS_MAX, self._owed_rows)
        self._owed_rows = 0
        self._taken = self._streams[-HEADS_PER_STEP:]
        values = [head_row(group, stream) for stream in self._taken]
        is_last = self._flush_to is not None and len(self._taken) == len(self._streams)
        is_last = is_last and self._flush_to != self._state.indexed
        return Step(self._state, rows, values, self._flush_to if is_last else None, self._is_drop_due)

    def adopt(self, step: "Step") -> None:
        """The transaction with the step is committed."""
        del self._streams[len(self._streams) - len(self._taken) :]
        self._taken = []
        if step.indexed is not None:
            self._state.indexed = step.indexed
        self._is_busy = step.is_more
        self._is_drop_due = False
        if self._flush_to is not None and self._flush_to <= min(self._state.indexed, self._state.positions.stored_to):
            indexes = (self._state.ids, self._state.commitments, self._state.keys)
            if not any(index.is_flushing for index in indexes):
                self._flush_to = None
                self._is_drop_due = True


class Step:
    """One transaction's part. One that `drops` does so in place of flushing and merging the hash indexes."""

    def __init__(
        self, state: LogState, rows: int, heads: list[tuple[Any, ...]], indexed: int | None, drops: bool
    ) -> None:  # fmt: skip
        self._state = state
        self._rows = rows
        self._heads = heads
        self.indexed = indexed
        self._drops = drops
        self.is_more = False

    def run(self, connection: sqlite3.Connection) -> None:
        """In the writer's thread, inside its transaction."""
        state = self._state
        store_heads(connection, self._heads)
        if self.indexed is not None:
            connection.execute("INSERT OR REPLACE INTO state (key, value) VALUES ('indexed', ?)", (self.indexed,))
        if self._drops:
            drop_expired(connection, state)
            more = [True]
        else:
            more = [index.merge_step(connection, self._rows) for index in (state.ids, state.commitments, state.keys)]
        more.append(state.positions.flush_step(connection, self._rows))
        self.is_more = any(more)


def store_heads(connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Writes stream heads out."""
    insert_rows(connection, _HEADS, rows)


def head_row(group: Group, stream: Stream) -> tuple[Any, ...]:
    """The row of a stream as the group leaves it so far; a start adds the entries after that."""
    head = group.head_of(stream)
    return (
        stream.id, head.sequence, head.leaf, head.oldest_sequence, head.packets, head.bytes, head.last_packet_us,
        group.head,
    )  # fmt: skip

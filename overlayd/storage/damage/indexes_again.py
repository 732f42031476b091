"""Indexes and stream heads of a mended log, made from its entries: whatever a start would make, and in bounded memory."""

import sqlite3
from collections.abc import Callable

import msgspec

from overlayd.model.clock import Entropy
from overlayd.model.cursor import Epoch
from overlayd.model.definition import Definition
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.storage import queries
from overlayd.storage.group import LogState
from overlayd.storage.hashindex import Family, HashIndex
from overlayd.storage.maintenance import store_heads
from overlayd.storage.positions import Positions
from overlayd.storage.replay import replay_entry
from overlayd.storage.tree import Tree

FLUSH_ENTRIES = 65_536
PAGE_ROWS = 1000
LoadStreams = Callable[[sqlite3.Connection, LogState], None]
"""Reads the table of streams into the state, as a start does."""


class StoredHead(msgspec.Struct, frozen=True):
    """What the damaged database said of a stream's last packet, which may be lost."""

    sequence: int
    leaf: bytes
    last_packet_us: int


def fill_indexes(connection: sqlite3.Connection, secret: bytes, load_streams: LoadStreams) -> None:
    """Writes positions, names and heads of every entry out, as a stop in order does. `secret`: of the hash index."""
    said = _read_heads(connection)
    connection.execute("DELETE FROM stream_head")
    state = _empty_state(secret)
    state.minimum_index = connection.execute("SELECT value FROM state WHERE key = 'minimum_index'").fetchone()[0]
    (size,) = connection.execute("SELECT max(offset) FROM entry").fetchone()
    load_streams(connection, state)
    for index in state.indexes:
        index.load(connection)
        index.adopt()
    after, flushed = state.minimum_index, state.minimum_index
    while after < size:
        upto = min(after + PAGE_ROWS, size)
        page = queries.open_rows(queries.read_rows(connection, after, upto), after, upto)
        for entry in page.entries:
            replay_entry(state, entry)
        for index in state.indexes:
            index.adopt()
        after = upto
        if after - flushed >= FLUSH_ENTRIES or after == size:
            _flush(connection, state, after)
            flushed = after
    _store_heads(connection, state, said, size)


def _flush(connection: sqlite3.Connection, state: LogState, upto: int) -> None:
    connection.execute("BEGIN")
    for index in state.indexes:
        index.flush(connection, upto)
    connection.execute("COMMIT")
    for index in state.indexes:
        index.adopt()


def _store_heads(connection: sqlite3.Connection, state: LogState, said: dict[int, StoredHead], size: int) -> None:
    rows = []
    for stream in state.book.list_all():
        head = stream.head
        known = said.get(stream.id)
        if known is not None and known.sequence > head.sequence:
            head.sequence, head.leaf, head.last_packet_us = known.sequence, known.leaf, known.last_packet_us
        if head.sequence:
            rows.append((stream.id, head.sequence, head.leaf, head.oldest_sequence, head.packets, head.bytes,
                         head.last_packet_us, size))  # fmt: skip
    connection.execute("BEGIN")
    store_heads(connection, rows)
    connection.execute("INSERT OR REPLACE INTO state (key, value) VALUES ('indexed', ?)", (size,))
    connection.execute("COMMIT")


def _read_heads(connection: sqlite3.Connection) -> dict[int, StoredHead]:
    rows = connection.execute("SELECT stream_id, sequence, leaf, last_packet_us FROM stream_head").fetchall()
    return {
        stream: StoredHead(sequence, leaf, last_us)
        for stream, sequence, leaf, last_us in rows
        if 0 < sequence < 1 << 54 and len(leaf) == 32
    }


def _empty_state(secret: bytes) -> LogState:
    return LogState(
        epoch=Epoch(0), ancestry=[], limits=Limits(), defaults=Definition(), entropy=Entropy(), metrics=Metrics(),
        ids=HashIndex(Family.ID, secret), commitments=HashIndex(Family.COMMITMENT, secret),
        keys=HashIndex(Family.KEY, secret, newest_max=4), positions=Positions(), tree=Tree(),
    )  # fmt: skip

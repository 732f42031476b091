"""Cutting the log: a prefix of it goes for good, what proofs still need of it stays (docs/log-format.md).

The cut itself is one transaction: a node entry says where the log begins now, the tree's edge is stored (a start would
rebuild it from level-0 tiles that are gone), and hashes of the tiles that the log's own checkpoints end in. Rows and tiles
go afterwards, a slice at a time; a start, or the next look, goes on with what is left.
"""

import sqlite3
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import structlog

from overlayd.model.bodies import Cut
from overlayd.model.merkle import TILE_HEIGHT, TILE_WIDTH, Node, consistency_nodes, frontier_nodes, root_of, tile_of
from overlayd.storage import queries
from overlayd.storage.group import Group, LogState
from overlayd.storage.jobs import ChangeJob
from overlayd.storage.positions import drop_cut
from overlayd.storage.readers import ReaderPool
from overlayd.storage.tree import HASH_BYTES, tile_id

Write = Callable[[Callable[[sqlite3.Connection], Any]], Awaitable[Any]]

ReadSizes = Callable[[sqlite3.Connection, int, int, int], list[int]]
"""From a connection, the sizes larger than the first and up to the second number, ascending, at most so many."""

TILES_LEFT = 8
"""Full tiles at the log's end that are never cut: a start compares the last ones with their entries."""
ROWS_PER_SLICE = 2048
CHECKPOINTS_PER_SLICE = 64
STREAMS_PER_SLICE = 256

_KEEP_TILE = (
    "INSERT INTO tile (id, hashes) VALUES (?, ?)"
    " ON CONFLICT (id) DO UPDATE SET hashes = excluded.hashes WHERE length(excluded.hashes) > length(tile.hashes)"
)
_log = structlog.get_logger("storage.retention")


class Cutter:
    """Moves the log's beginning. One for the log."""

    def __init__(
        self, state: LogState, readers: ReaderPool, *, change: Callable[[ChangeJob], Awaitable[Any]], write: Write,
        cut_entries: int,
    ) -> None:  # fmt: skip
        """`cut_entries`: the shortest prefix that is worth a cut."""
        self._state = state
        self._readers = readers
        self._change = change
        self._write = write
        self._cut_entries = cut_entries
        self._has_rest = True
        self._swept = 0
        self._read_sizes: list[ReadSizes] = [_read_checkpoint_sizes]

    def prove_from(self, read_sizes: ReadSizes) -> None:
        """From now on proofs that the log extends trees of these sizes go on working after a cut too."""
        self._read_sizes.append(read_sizes)

    async def cut(self, upto: int, before_us: int) -> bool:
        """Cuts what lies at or below an offset and was appended before a time, up to a multiple of 256; whether it did.

        Never beyond what is checkpointed and written out, nor near the head. Checkpoint. Raises as an append.
        """
        state = self._state
        upto = min(upto, state.indexed, state.positions.stored_to, state.head.offset - TILES_LEFT * TILE_WIDTH)
        if upto - state.minimum_index < self._cut_entries:
            return False
        low = state.minimum_index + 1
        upto = min(upto, await self._readers.read(lambda c: queries.find_offset_at(c, low, upto, before_us)) - 1)
        newest = await self._readers.read(lambda c: queries.read_newest_checkpoint(c, state.epoch))
        upto = min(upto, 0 if newest is None else newest.size)
        minimum = upto - upto % TILE_WIDTH
        if minimum - state.minimum_index < max(1, self._cut_entries):
            return False
        await self._keep_nodes(minimum)
        await self._change(ChangeJob(partial(self._move, minimum=minimum)))
        self._has_rest = True
        _log.info("cut the log", minimum_index=minimum)
        return True

    async def delete_slice(self) -> bool:
        """Deletes some of what was cut; whether there is more. Checkpoint. Raises as an append."""
        if self._has_rest:
            self._has_rest = await self._write(partial(_delete_entries, minimum=self._state.minimum_index))
            self._swept = 0
            return True
        if not self._state.minimum_index:
            return False
        streams = [stream.id for stream in self._state.book.list_all()][self._swept : self._swept + STREAMS_PER_SLICE]
        if streams:
            await self._write(partial(_drop_positions, streams=streams, minimum=self._state.minimum_index))
            self._swept += len(streams)
        return bool(streams)

    def _move(self, group: Group, minimum: int) -> None:
        group.add_node(Cut(minimum))
        group.statements.append(("UPDATE state SET value = ? WHERE key = 'minimum_index'", (minimum,)))
        group.statements += [(_KEEP_TILE, (tile.id, tile.hashes)) for tile in self._state.tree.edge_tiles()]
        group.on_adopt(lambda: setattr(self._state, "minimum_index", minimum))

    async def _keep_nodes(self, minimum: int) -> None:
        """What the log's own checkpoints need of tiles that go."""
        after = self._state.minimum_index
        while after < minimum:
            nodes, after = await self._readers.read(partial(self._read_nodes, after=after, minimum=minimum))
            if nodes:
                await self._write(partial(_store_nodes, nodes=nodes))

    def _read_nodes(
        self, connection: sqlite3.Connection, after: int, minimum: int
    ) -> tuple[list[tuple[int, int, bytes]], int]:
        """Nodes of some checkpoints behind a size, and the size up to which these were all."""
        every = {size for read in self._read_sizes for size in read(connection, after, minimum, CHECKPOINTS_PER_SLICE)}
        sizes = sorted(every)[:CHECKPOINTS_PER_SLICE]
        found: dict[Node, bytes] = {}
        for size in sizes:
            for node in nodes_to_keep(size, minimum):
                _, index, first, count = tile_of(node)
                (hashes,) = queries.read_tiles(connection, [(0, index)])
                part = hashes[first * HASH_BYTES : (first + count) * HASH_BYTES]
                if len(part) == count * HASH_BYTES:
                    found[node] = root_of(part[at : at + HASH_BYTES] for at in range(0, len(part), HASH_BYTES))
        is_last = len(sizes) < CHECKPOINTS_PER_SLICE
        return [(*node, value) for node, value in found.items()], minimum if is_last else sizes[-1]


def _read_checkpoint_sizes(connection: sqlite3.Connection, after: int, upto: int, limit: int) -> list[int]:
    rows = connection.execute(
        "SELECT DISTINCT size FROM checkpoint WHERE size > ? AND size <= ? ORDER BY size LIMIT ?", (after, upto, limit)
    )
    return [size for (size,) in rows]


def nodes_to_keep(size: int, minimum: int) -> set[Node]:
    """The nodes, at most nine, that a tree of `size` leaves ends in below level 8, and those beside them that proofs of
    consistency need."""
    spans = [frontier_nodes(size), *consistency_nodes(size, minimum)]
    return {node for span in spans for node in span if node[0] < TILE_HEIGHT}


def _store_nodes(connection: sqlite3.Connection, nodes: list[tuple[int, int, bytes]]) -> None:
    connection.executemany("INSERT OR IGNORE INTO kept_node (level, node_index, hash) VALUES (?, ?, ?)", nodes)


def _delete_entries(connection: sqlite3.Connection, minimum: int) -> bool:
    """Some rows from the log's beginning on, their tiles and removals; whether there are more."""
    (first,) = connection.execute("SELECT coalesce(min(offset), 0) FROM entry").fetchone()
    if not first or first > minimum:
        return False
    upto = min(minimum, first + ROWS_PER_SLICE - 1)
    connection.execute("DELETE FROM entry WHERE offset <= ?", (upto,))
    connection.execute("DELETE FROM tile WHERE id >= ? AND id < ?", (tile_id(0, 0), tile_id(0, upto // TILE_WIDTH)))
    connection.execute("DELETE FROM removal WHERE to_offset <= ?", (upto,))
    connection.execute("DELETE FROM entry_link WHERE target <= ?", (upto,))  # who could follow them asks by sequence
    return bool(upto < minimum)


def _drop_positions(connection: sqlite3.Connection, streams: list[int], minimum: int) -> None:
    for stream in streams:
        drop_cut(connection, stream, minimum)

"""Hashes of the log's tree read from the database alone, for whoever proves something without a running node. Blocking."""

import sqlite3
from collections.abc import Sequence

from overlayd.model.errors import DamagedEntry
from overlayd.model.merkle import (
    TILE_WIDTH,
    Node,
    Span,
    consistency_nodes,
    hash_spans,
    inclusion_nodes,
    root_of,
    tile_of,
)
from overlayd.storage import queries
from overlayd.storage.tree import HASH_BYTES

_LEAVES = "SELECT leaf FROM entry WHERE offset > ? AND offset <= ? ORDER BY offset"


def read_spans(connection: sqlite3.Connection, spans: Sequence[Span]) -> list[bytes]:
    """The hashes of spans. Raises DamagedEntry for what isn't there."""
    return hash_spans(spans, lambda node: _read_node(connection, node))


def read_inclusion_path(connection: sqlite3.Connection, index: int, size: int) -> list[bytes]:
    """The audit path of a leaf in the tree of the first `size` leaves. Raises DamagedEntry."""
    return read_spans(connection, inclusion_nodes(index, size))


def read_consistency_path(connection: sqlite3.Connection, old: int, new: int) -> list[bytes]:
    """The consistency proof between two sizes. Raises DamagedEntry."""
    return read_spans(connection, consistency_nodes(old, new))


def _read_node(connection: sqlite3.Connection, node: Node) -> bytes:
    level, index, first, count = tile_of(node)
    try:
        return root_of(_read_hashes(connection, level, index, first, count))
    except DamagedEntry:
        kept = queries.read_kept_nodes(connection, [node])
        if node not in kept:
            raise
        return kept[node]


def _read_hashes(connection: sqlite3.Connection, level: int, index: int, first: int, count: int) -> list[bytes]:
    """Of a tile; of one at the tree's edge, which isn't stored, from what lies below it."""
    (stored,) = queries.read_tiles(connection, [(level, index)])
    part = stored[first * HASH_BYTES : (first + count) * HASH_BYTES]
    if len(part) == count * HASH_BYTES:
        return [part[at : at + HASH_BYTES] for at in range(0, len(part), HASH_BYTES)]
    start = index * TILE_WIDTH + first
    if level:
        return [root_of(_read_hashes(connection, level - 1, at, 0, TILE_WIDTH)) for at in range(start, start + count)]
    leaves = [leaf for (leaf,) in connection.execute(_LEAVES, (start, start + count))]
    if len(leaves) != count:
        raise DamagedEntry("a part of the log's tree is missing", subject=f"tile {level}/{index}",
                           hint="overlayd verify names every damaged tile")  # fmt: skip
    return leaves

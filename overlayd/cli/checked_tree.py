"""The Merkle tree that a check of a log recomputes: leaf by leaf, or from what a cut left of its beginning."""

import sqlite3
from collections.abc import Sequence

from overlayd.model.merkle import TILE_HEIGHT, TILE_WIDTH, Node, fold_span, frontier_nodes, root_of, tile_of
from overlayd.storage import queries

HASH_BYTES = 32


class CheckedTree:
    """An RFC 6962 tree in tiles: per tile level the hashes since its last full tile."""

    def __init__(self) -> None:
        self.size = 0
        self._rows: list[list[bytes]] = [[]]

    @classmethod
    def of(cls, size: int, rows: Sequence[Sequence[bytes]]) -> "CheckedTree":
        """One that `rows` were taken from."""
        tree = cls()
        tree.size, tree._rows = size, [list(row) for row in rows]
        return tree

    @property
    def rows(self) -> list[list[bytes]]:
        """Per tile level the hashes since its last full tile, copied."""
        return [list(row) for row in self._rows]

    @classmethod
    def behind_cut(cls, connection: sqlite3.Connection, minimum: int) -> "CheckedTree":
        """The tree over everything that was cut, from the tiles of level 1 and above. Raises LookupError for a missing
        tile, and where a tile isn't what the one below it hashes to."""
        tree = cls()
        tree.size = minimum
        for level in range(1, 8):
            count = minimum >> TILE_HEIGHT * level
            if not count:
                break
            tree._rows.append(read_tile(connection, level, count // TILE_WIDTH, count % TILE_WIDTH))
            if level > 1:
                _check_level(connection, level, count)
        return tree

    def append(self, leaf: bytes) -> list[tuple[int, int, bytes]]:
        """Adds a leaf; gives the tiles that are full now: level, index, hashes."""
        self.size += 1
        full: list[tuple[int, int, bytes]] = []
        node = leaf
        for level, row in enumerate(self._rows):
            row.append(node)
            if len(row) < TILE_WIDTH:
                return full
            full.append((level, (self.size >> 8 * (level + 1)) - 1, b"".join(row)))
            node = root_of(row)
            row.clear()
        self._rows.append([node])
        return full

    def root(self) -> bytes:
        spans: list[bytes] = []
        for row in reversed(self._rows):
            at = 0
            while at < len(row):
                width = 1 << (len(row) - at).bit_length() - 1
                spans.append(root_of(row[at : at + width]))
                at += width
        return fold_span(spans)


def kept_root(connection: sqlite3.Connection, size: int) -> bytes | None:
    """The root over the first `size` leaves, all of which were cut; None where the log didn't keep what that takes."""
    nodes = frontier_nodes(size)
    low = queries.read_kept_nodes(connection, [node for node in nodes if node[0] < TILE_HEIGHT])
    try:
        return fold_span([low[node] if node[0] < TILE_HEIGHT else _read_node(connection, node) for node in nodes])
    except LookupError:
        return None


def read_tile(connection: sqlite3.Connection, level: int, index: int, count: int) -> list[bytes]:
    """The first hashes of a stored tile. Raises LookupError."""
    if not count:
        return []
    (stored,) = queries.read_tiles(connection, [(level, index)])
    if len(stored) < count * HASH_BYTES:
        raise LookupError(f"tile {level}/{index}: missing")
    return [stored[at : at + HASH_BYTES] for at in range(0, count * HASH_BYTES, HASH_BYTES)]


def _read_node(connection: sqlite3.Connection, node: Node) -> bytes:
    level, index, first, count = tile_of(node)
    return root_of(read_tile(connection, level, index, first + count)[first:])


def _check_level(connection: sqlite3.Connection, level: int, count: int) -> None:
    """Whether each hash of a level is what the full tile below it hashes to."""
    for index in range(count):
        below = read_tile(connection, level - 1, index, TILE_WIDTH)
        stored = read_tile(connection, level, index // TILE_WIDTH, index % TILE_WIDTH + 1)[-1]
        if root_of(below) != stored:
            raise LookupError(f"tile {level}/{index // TILE_WIDTH}: not what the tiles below hash to")

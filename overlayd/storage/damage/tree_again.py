"""The Merkle tree of a damaged log, made again from what is left: entries, tiles, and the edge kept outside. Blocking."""

import sqlite3

import msgspec

from overlayd.model.merkle import TILE_HEIGHT, TILE_WIDTH, root_of
from overlayd.storage import queries
from overlayd.storage.damage.edges import Edge
from overlayd.storage.damage.known_loss import HOLLOW, NO_ENTRY
from overlayd.storage.tree import HASH_BYTES, TILE_BYTES, TILE_INSERT, tile_id

_LEVEL_MAX = 7


class MadeTree(msgspec.Struct):
    """How far the tree could be made, and the offsets of which no entry is left (runs, inclusive)."""

    size: int
    missing: list[tuple[int, int]]


class TreeMaker:
    """Makes the tiles of a new database from its entries and from tiles that were brought over from the damaged one."""

    def __init__(self, target: sqlite3.Connection, edges: tuple[Edge, ...], minimum_index: int) -> None:
        self._target = target
        self._edges = edges
        self._minimum_index = minimum_index
        self._missing: list[tuple[int, int]] = []
        self._nodes: list[list[bytes]] = []

    def make(self, wanted: int) -> MadeTree:
        """The tree of the first `wanted` entries, or of as many as its hashes reach. Stores every tile it knows whole.

        A lost entry whose leaf is known gets a row that says nothing else, so that all others stay where they are.
        """
        self._nodes = [[]]
        size = self._make_leaves(wanted)
        level = 0
        while len(self._nodes[level]) >= TILE_WIDTH and level < _LEVEL_MAX:
            self._nodes.append(self._nodes_above(level, size))
            level += 1
        size = self._known_size(size)
        self._store(size)
        self._target.execute("DELETE FROM entry WHERE offset > ?", (size,))
        missing = [(low, min(high, size)) for low, high in self._missing if low <= size]
        return MadeTree(size, missing)

    def _make_leaves(self, wanted: int) -> int:
        """The leaves of every tile, b"" where one isn't known; gives the size up to which the last tile is known."""
        leaves = self._nodes[0]
        leaves += [b""] * self._minimum_index
        for first in range(self._minimum_index, wanted, TILE_WIDTH):
            end = min(first + TILE_WIDTH, wanted)
            rows = dict(
                self._target.execute("SELECT offset, leaf FROM entry WHERE offset > ? AND offset <= ?", (first, end))
            )
            found = [rows.get(offset, b"") for offset in range(first + 1, end + 1)]
            if len(rows) < end - first:
                self._fill(found, first, rows)
            leaves += found
        tail = wanted - wanted % TILE_WIDTH
        unknown = next((at for at in range(max(tail, self._minimum_index), wanted) if not leaves[at]), None)
        if unknown is None:
            return wanted
        del leaves[unknown:]
        return unknown

    def _fill(self, found: list[bytes], first: int, rows: dict[int, bytes]) -> None:
        """Leaves whose entries are gone, from the stored tile or the edge; each known one gets its row."""
        (stored,) = queries.read_tiles(self._target, [(0, first // TILE_WIDTH)])
        for at, leaf in enumerate(found):
            if leaf:
                continue
            offset = first + at + 1
            found[at] = self._hash_of(0, first + at, stored)
            self._note_missing(offset)
            if found[at]:
                self._target.execute(
                    "INSERT OR IGNORE INTO entry (offset, e, leaf, sealed) VALUES (?, ?, ?, ?)",
                    (offset, NO_ENTRY, found[at], HOLLOW),
                )

    def _nodes_above(self, level: int, size: int) -> list[bytes]:
        """The hashes of the full tiles of a level; b"" for one that is neither computed nor kept anywhere."""
        below, nodes = self._nodes[level], list[bytes]()
        count = size >> TILE_HEIGHT * (level + 1)
        stored, stored_index = b"", -1
        for index in range(count):
            children = below[index * TILE_WIDTH : (index + 1) * TILE_WIDTH]
            if all(children):
                nodes.append(root_of(children))
                continue
            if index // TILE_WIDTH != stored_index:
                stored_index = index // TILE_WIDTH
                (stored,) = queries.read_tiles(self._target, [(level + 1, stored_index)])
            nodes.append(self._hash_of(level + 1, index, stored))
        return nodes

    def _hash_of(self, level: int, index: int, stored: bytes) -> bytes:
        at = index % TILE_WIDTH * HASH_BYTES
        found = stored[at : at + HASH_BYTES]
        if len(found) == HASH_BYTES:
            return found
        return next((known for edge in self._edges if (known := edge.find(level, index))), b"")

    def _known_size(self, size: int) -> int:
        """The largest size whose right edge is known; `size` itself where no hash of the edge is lost."""
        for level in range(len(self._nodes) - 1, -1, -1):
            count = size >> TILE_HEIGHT * level
            first = count - count % TILE_WIDTH
            for index in range(first, count):
                if index >= len(self._nodes[level]) or not self._nodes[level][index]:
                    size = index << TILE_HEIGHT * level
                    break
        return size

    def _store(self, size: int) -> None:
        """Full tiles of every level, and above the leaves also the last, partial ones, which a start then need not make."""
        self._target.execute("DELETE FROM tile")
        for level, nodes in enumerate(self._nodes):
            count = size >> TILE_HEIGHT * level
            for first in range(0, count, TILE_WIDTH):
                hashes = b"".join(nodes[first : min(first + TILE_WIDTH, count)])
                is_whole = len(hashes) == TILE_BYTES
                is_edge = bool(level) and first + TILE_WIDTH > count and len(hashes) == (count - first) * HASH_BYTES
                if is_whole or is_edge:
                    row = (tile_id(level, first // TILE_WIDTH), hashes)
                    self._target.execute(f"{TILE_INSERT} (?, ?)", row)

    def _note_missing(self, offset: int) -> None:
        if self._missing and self._missing[-1][1] == offset - 1:
            self._missing[-1] = (self._missing[-1][0], offset)
        else:
            self._missing.append((offset, offset))

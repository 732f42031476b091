"""The log's Merkle tree (RFC 6962), grown by appending and stored as C2SP tlog-tiles of height 8.

Memory holds the right edge only: per tile level the hashes that don't fill a tile yet (at most 255, 8 KiB), and
the frontier (one hash per bit of the size). Everything left of it is in full tiles of 256 hashes, which never
change. The edge is one immutable value, so growing is pure: `extend` gives a plan, the writer puts the plan's tiles
in the transaction that inserts the entries, and `adopt` comes after the COMMIT. A rolled back plan is dropped.

Costs, measured by benchmarks/tree.py: extending about 0.45 µs a leaf in groups of 100 and 2.8 µs for a single
leaf; a root one hash per bit of the size; an inclusion path of a log of 10 million entries at most 5 tiles.
"""

import struct
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeAlias

import msgspec

from overlayd.model.errors import DamagedEntry, LogCut, NotFound
from overlayd.model.merkle import (
    TILE_HEIGHT,
    TILE_WIDTH,
    Node,
    Span,
    consistency_nodes,
    fold_span,
    frontier_nodes,
    hash_spans,
    inclusion_nodes,
    node_hash,
    root_of,
    tile_of,
)

__all__ = ["HASH_BYTES", "KEPT_TABLES", "TABLES", "TILE_BYTES", "TILE_INSERT", "Tile", "Tree", "TreePlan", "tile_id"]

HASH_BYTES = 32
TILE_BYTES = TILE_WIDTH * HASH_BYTES
_LEVEL_MAX = 7
_INDEX_BITS = 55

TABLES = """
CREATE TABLE tile (
    id INTEGER PRIMARY KEY,  -- (7 - level) << 55 | index
    hashes BLOB NOT NULL     -- 256 hashes of 32 bytes; fewer only on level 1 and above, written when the log is cut
) STRICT;
"""
"""One row a tile. Higher levels get smaller ids, so that level 0, which is 255 of 256 rows, is appended at the
table's end and fills its pages."""

KEPT_TABLES = """
CREATE TABLE kept_node (
    level INTEGER NOT NULL,  -- of the tree; 0: leaves
    node_index INTEGER NOT NULL,
    hash BLOB NOT NULL CHECK (length(hash) = 32),
    PRIMARY KEY (level, node_index)
) STRICT, WITHOUT ROWID;
"""
"""Hashes below level 8 that checkpoints of what was cut end in, for proofs that newer trees extend them."""

TILE_INSERT = "INSERT OR REPLACE INTO tile(id, hashes) VALUES "

TileAt: TypeAlias = tuple[int, int]
"""(tile level, tile index)."""

ReadNodes: TypeAlias = Callable[[list[Node]], Awaitable[dict[Node, bytes]]]
"""Gives those of the nodes that were kept when their tiles were cut."""

ReadTiles: TypeAlias = Callable[[list[TileAt]], Awaitable[Sequence[bytes]]]
"""Gives the hashes of full tiles, in the order asked; b"" for a tile that isn't there."""


def tile_id(level: int, index: int) -> int:
    """The tile's id in the table `tile`."""
    assert 0 <= level <= _LEVEL_MAX
    assert 0 <= index < 1 << _INDEX_BITS
    return (_LEVEL_MAX - level) << _INDEX_BITS | index


class Tile(msgspec.Struct, frozen=True, gc=False):
    """Hashes of a tile that the database must hold: 8,192 bytes, or fewer where `Tree.edge_tiles` says so."""

    level: int
    index: int
    hashes: bytes

    @property
    def id(self) -> int:
        """What stands in the column `id`."""
        return tile_id(self.level, self.index)


class _Edge(msgspec.Struct, frozen=True, gc=False):
    """The right edge of a tree. `frontier` holds per tree level the hash of the complete subtree at the end, if any."""

    size: int = 0
    partial: tuple[bytes, ...] = (b"",)
    frontier: tuple[bytes | None, ...] = ()

    def root(self) -> bytes:
        return fold_span([node for node in reversed(self.frontier) if node is not None])


class TreePlan:
    """What the tree becomes with some leaves more, and the tiles that this fills."""

    __slots__ = ("_root", "base_size", "edge", "tiles")

    def __init__(self, base_size: int, edge: _Edge, tiles: tuple[Tile, ...]) -> None:
        self.base_size = base_size
        self.edge = edge
        self.tiles = tiles
        self._root: bytes | None = None

    @property
    def size(self) -> int:
        """Leaves of the tree once the plan is adopted."""
        return self.edge.size

    @property
    def root(self) -> bytes:
        """The root at `size`; computed when first asked for (one hash per bit of the size)."""
        if self._root is None:
            self._root = self.edge.root()
        return self._root


class Tree:
    """The tree of one log. Not thread-safe for `adopt`; plans and paths work on the edge that they started from."""

    def __init__(self) -> None:
        self._edge = _Edge()
        self.read_kept: ReadNodes | None = None
        self.minimum_index: Callable[[], int] = lambda: 0

    def __repr__(self) -> str:
        return f"Tree(size={self.size})"

    @classmethod
    def load(
        cls, size: int, read_tile: Callable[[int, int], bytes], read_leaves: Callable[[int, int], Sequence[bytes]]
    ) -> "Tree":
        """The tree of a log as the database holds it.

        `read_tile(level, index)` gives the stored hashes or b"", `read_leaves(from_index, count)` the leaf hashes.
        Reads at most 255 leaves and, per level, 255 tiles (about 30 ms of hashing each). Raises DamagedEntry.
        """
        leaves = list(read_leaves(size - size % TILE_WIDTH, size % TILE_WIDTH))
        _check_hashes(b"".join(leaves), size % TILE_WIDTH, "leaves at the end of the log")
        partial = [b"".join(leaves)]
        below = size // TILE_WIDTH
        while below:
            level, index, count = len(partial), below // TILE_WIDTH, below % TILE_WIDTH
            stored = read_tile(level, index)[: count * HASH_BYTES]
            hashes = [stored]
            for at in range(index * TILE_WIDTH + len(stored) // HASH_BYTES, below):
                full = read_tile(level - 1, at)
                _check_hashes(full, TILE_WIDTH, f"tile {level - 1}/{at}")
                hashes.append(root_of(_split(full)))
            partial.append(b"".join(hashes))
            _check_hashes(partial[level], count, f"tile {level}/{index}")
            below //= TILE_WIDTH
        tree = cls()
        tree._edge = _Edge(size, tuple(partial), _frontier_of(partial, size))
        return tree

    @property
    def size(self) -> int:
        """Leaves in the tree."""
        return self._edge.size

    def root(self) -> bytes:
        """The root over all leaves; one hash per bit of the size."""
        return self._edge.root()

    def extend(self, leaves: Sequence[bytes]) -> TreePlan:
        """The tree with these leaf hashes more. Changes nothing; every complete subtree is hashed once."""
        edge = self._edge
        partial = list(edge.partial)
        frontier = list(edge.frontier)
        tiles: list[Tile] = []
        row, level = list(leaves), 0
        while row:
            if level % TILE_HEIGHT == 0:
                _fill(partial, tiles, level // TILE_HEIGHT, edge.size >> level, row)
            if level == len(frontier):
                frontier.append(None)
            waiting = frontier[level]
            if waiting is not None:
                row.insert(0, waiting)
            frontier[level] = row[-1] if len(row) % 2 else None
            pairs = iter(row)
            row = [node_hash(left, right) for left, right in zip(pairs, pairs, strict=False)]
            level += 1
        size = edge.size + len(leaves)
        return TreePlan(edge.size, _Edge(size, tuple(partial), tuple(frontier)), tuple(tiles))

    def adopt(self, plan: TreePlan) -> None:
        """Take over a plan whose tiles are committed. Plans are adopted in the order they were made."""
        assert plan.base_size == self.size, "the plan was made for another state of the tree"
        self._edge = plan.edge

    def edge_hashes(self) -> tuple[bytes, ...]:
        """Per tile level the hashes since its last full tile: with the full tiles, all that the tree needs to go on."""
        return self._edge.partial

    def edge_tiles(self) -> list[Tile]:
        """Partial tiles of level 1 and above.

        Whoever cuts the log (deletes level-0 tiles) stores these in the same transaction, because a start
        otherwise rebuilds them from level-0 tiles. A full tile replaces its partial row later.
        """
        edge = self._edge
        return [
            Tile(level, edge.size >> TILE_HEIGHT * (level + 1), hashes)
            for level, hashes in enumerate(edge.partial)
            if level and hashes
        ]

    async def inclusion_path(self, index: int, size: int, read_tiles: ReadTiles) -> list[bytes]:
        """The audit path of leaf `index` in the tree of the first `size` leaves. Raises DamagedEntry."""
        assert index < size <= self.size
        return await self._hash_spans(inclusion_nodes(index, size), read_tiles)

    async def consistency_path(self, old: int, new: int, read_tiles: ReadTiles) -> list[bytes]:
        """The consistency proof between two sizes up to the current one. Raises LogCut, DamagedEntry."""
        assert old <= new <= self.size
        return await self._hash_spans(consistency_nodes(old, new), read_tiles)

    async def root_at(self, size: int, read_tiles: ReadTiles) -> bytes:
        """The root over the first `size` leaves. Raises LogCut, DamagedEntry."""
        assert 0 <= size <= self.size
        if size == self.size:
            return self.root()
        return (await self._hash_spans([frontier_nodes(size)], read_tiles))[0]

    async def read_tile(self, level: int, index: int, width: int, read_tiles: ReadTiles) -> bytes:
        """The first `width` hashes of a tile (1 to 256). Raises NotFound for what isn't there."""
        edge = self._edge
        known = (edge.size >> TILE_HEIGHT * min(max(level, 0), _LEVEL_MAX + 1)) - index * TILE_WIDTH
        if level < 0 or index < 0 or not 1 <= width <= TILE_WIDTH or known < width:
            raise NotFound("the tree has no such tile", subject=f"tile {level}/{index}, width {width}")
        if known < TILE_WIDTH:
            return edge.partial[level][: width * HASH_BYTES]
        hashes = (await read_tiles([(level, index)]))[0]
        if len(hashes) != TILE_BYTES:
            raise NotFound("the tile was cut from the log", subject=f"tile {level}/{index}")
        return hashes[: width * HASH_BYTES]

    async def _hash_spans(self, spans: list[Span], read_tiles: ReadTiles) -> list[bytes]:
        """Reads all tiles that the spans need, each once and in one call, then hashes."""
        edge = self._edge
        wanted: dict[TileAt, bytes] = {}
        for level, index, _first, _count in map(tile_of, (node for span in spans for node in span)):
            is_full = index < edge.size >> TILE_HEIGHT * (level + 1)
            wanted[level, index] = b"" if is_full else edge.partial[level]
        stored = [at for at, hashes in wanted.items() if not hashes]
        cut: set[TileAt] = set()
        if stored:
            for at, hashes in zip(stored, await read_tiles(stored), strict=True):
                if not hashes and at[0] == 0 and self.read_kept is not None:
                    cut.add(at)
                    continue
                _check_hashes(hashes, TILE_WIDTH, f"tile {at[0]}/{at[1]}")
                wanted[at] = hashes
        kept = await self._read_kept([node for span in spans for node in span if tile_of(node)[:2] in cut])

        def read_node(node: Node) -> bytes:
            if node in kept:
                return kept[node]
            level, index, first, count = tile_of(node)
            hashes = wanted[level, index][first * HASH_BYTES : (first + count) * HASH_BYTES]
            assert len(hashes) == count * HASH_BYTES
            return root_of(_split(hashes))

        return hash_spans(spans, read_node)

    async def _read_kept(self, nodes: list[Node]) -> dict[Node, bytes]:
        """Nodes of tiles that aren't there. Raises LogCut, and DamagedEntry for those that should be."""
        kept = await self.read_kept(nodes) if nodes and self.read_kept is not None else {}
        for node in nodes:
            if node in kept:
                continue
            index, minimum = tile_of(node)[1], self.minimum_index()
            if index * TILE_WIDTH < minimum:
                raise LogCut(
                    f"the hashes that this needs were cut: the log begins at index {minimum}", subject=f"tile 0/{index}",
                    hint="below it only sizes that a checkpoint was signed for still have proofs",
                    extra={"minimum_index": minimum},
                )  # fmt: skip
            raise DamagedEntry("a tile is missing", subject=f"tile 0/{index}")
        return kept


def _fill(partial: list[bytes], tiles: list[Tile], level: int, below: int, row: Iterable[bytes]) -> None:
    """Put a level's new hashes behind its partial tile; `below` hashes of this level were there before."""
    if level == len(partial):
        partial.append(b"")
    hashes = partial[level] + b"".join(row)
    index = below // TILE_WIDTH
    for at in range(0, len(hashes) - TILE_BYTES + 1, TILE_BYTES):
        tiles.append(Tile(level, index, hashes[at : at + TILE_BYTES]))
        index += 1
    partial[level] = hashes[len(hashes) - len(hashes) % TILE_BYTES :]


def _frontier_of(partial: Sequence[bytes], size: int) -> tuple[bytes | None, ...]:
    """The frontier of a tree from its partial tiles: bit n of the size is a complete subtree of 2^n leaves."""
    frontier: list[bytes | None] = [None] * size.bit_length()
    for node in frontier_nodes(size):
        level, _index, first, count = tile_of(node)
        frontier[node[0]] = root_of(_split(partial[level][first * HASH_BYTES : (first + count) * HASH_BYTES]))
    return tuple(frontier)


def _split(hashes: bytes) -> list[bytes]:
    return [piece for (piece,) in struct.iter_unpack("32s", hashes)]


def _check_hashes(hashes: bytes, count: int, subject: str) -> None:
    if len(hashes) != count * HASH_BYTES:
        raise DamagedEntry(f"expected {count} hashes, found {len(hashes) // HASH_BYTES}", subject=subject)

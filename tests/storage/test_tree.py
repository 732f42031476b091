"""The incremental tree against RFC 6962's definition, over real tiles and over a made-up log of 10 million entries."""

import functools
import hashlib
import sqlite3
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.model.errors import DamagedEntry, NotFound
from overlayd.model.merkle import verify_consistency, verify_inclusion
from overlayd.storage.tree import TABLES, TILE_BYTES, TILE_INSERT, Tree, TreePlan


def _leaf(index: int) -> bytes:
    return hashlib.sha256(b"\0" + index.to_bytes(8, "big")).digest()


@functools.cache
def _leaves(count: int) -> list[bytes]:
    return [_leaf(index) for index in range(count)]


@functools.cache
def _mth(start: int, end: int) -> bytes:
    """MTH of RFC 6962 2.1, written from its text."""
    if start == end:
        return hashlib.sha256(b"").digest()
    if end - start == 1:
        return _leaf(start)
    k = 1
    while k * 2 < end - start:
        k *= 2
    return hashlib.sha256(b"\1" + _mth(start, start + k) + _mth(start + k, end)).digest()


class _Disk:
    """Full tiles in a real table, with a count of what was read."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:")
        self.connection.executescript(TABLES)
        self.read: list[tuple[int, int]] = []
        self.leaves: list[bytes] = []

    def write(self, plan: TreePlan, leaves: Sequence[bytes]) -> None:
        self.leaves.extend(leaves)
        for tile in plan.tiles:
            self.connection.execute(TILE_INSERT + "(?, ?)", (tile.id, tile.hashes))

    def read_tile(self, level: int, index: int) -> bytes:
        self.read.append((level, index))
        found = self.connection.execute("SELECT hashes FROM tile WHERE id = ?", ((7 - level) << 55 | index,)).fetchone()
        return b"" if found is None else found[0]

    async def read_tiles(self, at: list[tuple[int, int]]) -> list[bytes]:
        return [self.read_tile(level, index) for level, index in at]

    def read_leaves(self, start: int, count: int) -> list[bytes]:
        return self.leaves[start : start + count]


def _grow(tree: Tree, disk: _Disk, to: int, step: int = 1000) -> None:
    leaves = _leaves(to)
    while tree.size < to:
        group = leaves[tree.size : min(to, tree.size + step)]
        plan = tree.extend(group)
        disk.write(plan, group)
        tree.adopt(plan)


@functools.cache
def _grown(size: int) -> tuple[Tree, _Disk]:
    tree, disk = Tree(), _Disk()
    _grow(tree, disk, size)
    return tree, disk


def test_tree_roots_match_definition() -> None:
    """Growing leaf by leaf gives the root of RFC 6962's definition at every size."""
    tree, disk = Tree(), _Disk()
    assert tree.root() == _mth(0, 0)
    for size in range(1, 300):
        _grow(tree, disk, size)
        assert tree.root() == _mth(0, size)


@given(st.lists(st.integers(0, 700), max_size=6))
@settings(max_examples=40)
def test_tree_group_sizes_do_not_matter(groups: list[int]) -> None:
    """Any cut of the leaves into groups gives the same tiles and root as one group does."""
    total = sum(groups)
    tree, disk, at = Tree(), _Disk(), 0
    for count in groups:
        group = _leaves(total)[at : at + count]
        plan = tree.extend(group)
        assert (plan.base_size, plan.size) == (at, at + count)
        disk.write(plan, group)
        tree.adopt(plan)
        assert plan.root == tree.root()
        at += count
    whole = Tree().extend(_leaves(total))
    assert whole.root == tree.root()
    assert all(disk.read_tile(tile.level, tile.index) == tile.hashes for tile in whole.tiles)
    assert len(whole.tiles) == total // 256


def test_extend_is_pure_until_adopted() -> None:
    """A plan that is dropped leaves the tree as it was, and a plan of another state is refused."""
    tree, disk = Tree(), _Disk()
    _grow(tree, disk, 300)
    before = tree.root()
    dropped = tree.extend(_leaves(400)[300:])
    assert (tree.size, tree.root()) == (300, before)
    _grow(tree, disk, 301)
    with pytest.raises(AssertionError):
        tree.adopt(dropped)
    assert tree.root() == _mth(0, 301)


def test_plan_holds_each_full_tile_once() -> None:
    """Crossing 65,536 leaves gives 256 tiles of level 0 and one of level 1, each exactly when it fills."""
    plan = Tree().extend(_leaves(65_536))
    assert [(tile.level, tile.index) for tile in plan.tiles] == [(0, at) for at in range(256)] + [(1, 0)]
    assert all(len(tile.hashes) == TILE_BYTES for tile in plan.tiles)
    assert plan.tiles[3].hashes == b"".join(_leaves(65_536)[768:1024])
    assert plan.tiles[-1].hashes[:32] == _mth(0, 256)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 5_000, 65_536, 70_001])
def test_load_gives_the_same_tree(size: int) -> None:
    """A tree rebuilt from tiles and leaves has the same edge, and grows on to the same tree."""
    tree, disk = _grown(size)
    loaded = Tree.load(size, disk.read_tile, disk.read_leaves)
    assert loaded._edge.root() == tree.root()
    more = [_leaf(size + at) for at in range(600)]
    assert loaded.extend(more).edge == tree.extend(more).edge


async def test_paths_verify_at_every_size_of_a_small_tree() -> None:
    """Inclusion and consistency paths hold for past sizes as for the current one."""
    tree, disk = _grown(40)
    for size in range(1, 41):
        root = await tree.root_at(size, disk.read_tiles)
        assert root == _mth(0, size)
        for index in range(size):
            path = await tree.inclusion_path(index, size, disk.read_tiles)
            verify_inclusion(_leaf(index), index, size, path, root)
        for old in range(size + 1):
            path = await tree.consistency_path(old, size, disk.read_tiles)
            verify_consistency(old, _mth(0, old), size, root, path)
    assert disk.read == []


@given(st.data())
@settings(max_examples=30, deadline=None)
async def test_paths_verify_across_tiles(data: st.DataObject) -> None:
    """Inclusion and consistency paths hold for any sizes of a tree of three tile levels."""
    tree, disk = _grown(70_001)
    edges = st.sampled_from([1, 255, 256, 257, 511, 512, 65_535, 65_536, 65_537, 70_000, 70_001])
    size = data.draw(edges | st.integers(1, 70_001))
    index = data.draw(st.integers(0, size - 1))
    old = data.draw(edges.filter(lambda at: at <= size) | st.integers(0, size))
    root = _mth(0, size)
    disk.read.clear()
    path = await tree.inclusion_path(index, size, disk.read_tiles)
    verify_inclusion(_leaf(index), index, size, path, root)
    assert await tree.root_at(size, disk.read_tiles) == root
    path = await tree.consistency_path(old, size, disk.read_tiles)
    verify_consistency(old, _mth(0, old), size, root, path)
    assert len(disk.read) <= 15


async def test_read_tile_serves_full_and_partial_tiles() -> None:
    """A tile is served at each width that some size of the log gave it, and no other."""
    tree, disk = _grown(70_001)
    leaves = _leaves(70_001)
    assert await tree.read_tile(0, 0, 256, disk.read_tiles) == b"".join(leaves[:256])
    assert await tree.read_tile(0, 7, 3, disk.read_tiles) == b"".join(leaves[7 * 256 : 7 * 256 + 3])
    assert await tree.read_tile(0, 273, 113, disk.read_tiles) == b"".join(leaves[273 * 256 :])
    assert await tree.read_tile(1, 1, 17, disk.read_tiles) == b"".join(
        _mth(at * 256, at * 256 + 256) for at in range(256, 273)
    )
    assert await tree.read_tile(2, 0, 1, disk.read_tiles) == _mth(0, 65_536)
    for level, index, width in [
        (0, 273, 114),
        (0, 274, 1),
        (1, 1, 18),
        (2, 0, 2),
        (3, 0, 1),
        (0, 0, 0),
        (0, 0, 257),
        (8, 0, 1),
        (-1, 0, 1),
        (0, -1, 1),
    ]:
        with pytest.raises(NotFound):
            await tree.read_tile(level, index, width, disk.read_tiles)


async def test_proofs_of_kept_entries_after_a_cut() -> None:
    """Without the level-0 tiles below a cut, proofs for what is kept and a restart go on working."""
    tree, disk = Tree(), _Disk()
    _grow(tree, disk, 70_001)
    for tile in tree.edge_tiles():
        disk.connection.execute(TILE_INSERT + "(?, ?)", (tile.id, tile.hashes))
    minimum = 69_632
    disk.connection.execute("DELETE FROM tile WHERE id BETWEEN 7 << 55 AND (7 << 55) + ? - 1", (minimum // 256,))
    disk.leaves[:minimum] = [b""] * minimum
    loaded = Tree.load(70_001, disk.read_tile, disk.read_leaves)
    assert loaded._edge == tree._edge
    _grow(loaded, disk, 71_000)
    again = Tree.load(71_000, disk.read_tile, disk.read_leaves)
    assert again._edge == loaded._edge
    for index in (minimum, 69_999, 70_500, 70_999):
        path = await again.inclusion_path(index, 71_000, disk.read_tiles)
        verify_inclusion(_leaf(index), index, 71_000, path, _mth(0, 71_000))
    for old in (65_536, minimum, 69_888, 70_001):
        path = await again.consistency_path(old, 71_000, disk.read_tiles)
        verify_consistency(old, _mth(0, old), 71_000, _mth(0, 71_000), path)
    with pytest.raises(DamagedEntry):
        await again.inclusion_path(minimum - 1, 71_000, disk.read_tiles)
    with pytest.raises(NotFound):
        await again.read_tile(0, 0, 256, disk.read_tiles)


async def test_missing_or_short_tile_is_damage() -> None:
    """A tile that is gone or truncated is reported, never hashed."""
    tree, disk = Tree(), _Disk()
    _grow(tree, disk, 1_000)
    disk.connection.execute("UPDATE tile SET hashes = substr(hashes, 2) WHERE id = 7 << 55")
    with pytest.raises(DamagedEntry, match="expected 256 hashes"):
        await tree.inclusion_path(3, 1_000, disk.read_tiles)
    with pytest.raises(DamagedEntry):
        Tree.load(1_000, disk.read_tile, disk.read_leaves)
    with pytest.raises(DamagedEntry):
        Tree.load(1_000, lambda level, index: b"", lambda start, count: [])


class _TenMillion:
    """A log of 10 million leaves whose tiles repeat every 7, so that any of them is made in a few hashes."""

    SIZE = 10_000_000

    def __init__(self) -> None:
        self.read: list[tuple[int, int]] = []
        self._tiles: dict[tuple[int, int], bytes] = {}

    def leaf(self, index: int) -> bytes:
        return _leaf(index % 256 + 1_000 * (index // 256 % 7))

    def tile(self, level: int, index: int) -> bytes:
        """256 is 4 modulo 7, so tile `index` of a level repeats with period 7 as level 0 does."""
        key = (level, index % 7)
        if key not in self._tiles:
            if level == 0:
                hashes = [self.leaf(index * 256 + at) for at in range(256)]
            else:
                hashes = [_root(self.tile(level - 1, index * 256 + at)) for at in range(256)]
            self._tiles[key] = b"".join(hashes)
        return self._tiles[key]

    def read_leaves(self, start: int, count: int) -> list[bytes]:
        return [self.leaf(start + at) for at in range(count)]

    async def read_tiles(self, at: list[tuple[int, int]]) -> list[bytes]:
        self.read.extend(at)
        assert all((index + 1) << 8 * (level + 1) <= self.SIZE for level, index in at), "not a full tile"
        return [self.tile(level, index) for level, index in at]


@functools.cache
def _root(hashes: bytes) -> bytes:
    row = [hashes[at : at + 32] for at in range(0, len(hashes), 32)]
    while len(row) > 1:
        row = [hashlib.sha256(b"\1" + row[at] + row[at + 1]).digest() for at in range(0, len(row), 2)]
    return row[0]


async def test_proof_reads_at_most_40_tiles_of_a_log_of_10_million() -> None:
    """Any proof of a 10-million-entry log reads few tiles, counted, and verifies against the log's root."""
    log = _TenMillion()
    tree = Tree.load(log.SIZE, log.tile, log.read_leaves)
    root = tree.root()
    for index in [0, 1, 255, 256, 65_535, 65_536, 4_194_303, 8_388_607, 8_388_608, 9_961_472, 9_999_871, 9_999_999]:
        log.read.clear()
        path = await tree.inclusion_path(index, log.SIZE, log.read_tiles)
        assert len(log.read) == len(set(log.read)) <= 2
        verify_inclusion(log.leaf(index), index, log.SIZE, path, root)
    for size in [1, 255, 8_388_607, 8_388_609, 9_999_999]:
        log.read.clear()
        old_root = await tree.root_at(size, log.read_tiles)
        path = await tree.consistency_path(size, log.SIZE, log.read_tiles)
        verify_consistency(size, old_root, log.SIZE, root, path)
        path = await tree.inclusion_path(size // 3, size, log.read_tiles)
        verify_inclusion(log.leaf(size // 3), size // 3, size, path, old_root)
        assert len(log.read) <= 40

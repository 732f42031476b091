"""RFC 6962 Merkle trees with SHA-256: hashes, roots, proofs, and where a proof's hashes stand in a tree.

A *node* is `(level, index)`: the root of the complete subtree over the 2^level leaves from index·2^level on.
Complete subtrees never change once their leaves are there, so they can be stored (C2SP tlog-tiles). What a proof
needs beside them, the ragged right edge of a tree, is a *span*: nodes from left to right, each larger than the next,
whose hash is `fold_span` of theirs. A complete subtree is a span of one node.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from overlayd.model.errors import VerificationFailed

Node: TypeAlias = tuple[int, int]
Span: TypeAlias = tuple[Node, ...]

TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
EMPTY_ROOT = hashlib.sha256(b"").digest()

_sha256 = hashlib.sha256


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node, H(0x01 ‖ left ‖ right)."""
    return _sha256(b"\x01" + left + right).digest()


def fold_span(hashes: Sequence[bytes]) -> bytes:
    """The hash over a span's node hashes, left to right. No hashes: the root of the empty tree."""
    if not hashes:
        return EMPTY_ROOT
    folded = hashes[-1]
    for left in reversed(hashes[:-1]):
        folded = node_hash(left, folded)
    return folded


def root_of(leaves: Iterable[bytes]) -> bytes:
    """The root over leaf hashes (MTH of RFC 6962, 2.1)."""
    row = list(leaves)
    if not row:
        return EMPTY_ROOT
    while len(row) > 1:
        paired = [_sha256(b"\x01" + row[at] + row[at + 1]).digest() for at in range(0, len(row) - 1, 2)]
        if len(row) % 2:
            paired.append(row[-1])
        row = paired
    return row[0]


def frontier_nodes(size: int) -> Span:
    """The complete subtrees that make up a tree, largest first; its root is `fold_span` of their hashes."""
    return span_nodes(0, size)


def span_nodes(start: int, end: int) -> Span:
    """The complete subtrees over leaves [start, end), left to right.

    `start` must be a multiple of the largest power of two that fits the length, as it is for every
    subtree of RFC 6962.
    """
    nodes = []
    while start < end:
        level = (end - start).bit_length() - 1
        assert start % (1 << level) == 0, "not a subtree of RFC 6962"
        nodes.append((level, start >> level))
        start += 1 << level
    return tuple(nodes)


def inclusion_nodes(index: int, size: int) -> list[Span]:
    """The audit path of a leaf, from its sibling up to the root's child (RFC 6962, 2.1.1)."""
    assert 0 <= index < size
    spans: list[Span] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            spans.append(span_nodes(middle, end))
            end = middle
        else:
            spans.append(span_nodes(start, middle))
            start = middle
    spans.reverse()
    return spans


def consistency_nodes(old_size: int, new_size: int) -> list[Span]:
    """The consistency proof between two sizes (RFC 6962, 2.1.2). Empty for equal sizes and for old size 0."""
    assert 0 <= old_size <= new_size
    if old_size in (0, new_size):
        return []
    spans: list[Span] = []
    start, end = 0, new_size
    while end != old_size:
        middle = start + _split(end - start)
        if old_size <= middle:
            spans.append(span_nodes(middle, end))
            end = middle
        else:
            spans.append(span_nodes(start, middle))
            start = middle
    if start > 0:
        spans.append(span_nodes(start, end))
    spans.reverse()
    return spans


def hash_spans(spans: Iterable[Span], read_node: Callable[[Node], bytes]) -> list[bytes]:
    """The hashes of spans, given a way to read complete subtrees."""
    return [fold_span([read_node(node) for node in span]) for span in spans]


def tile_of(node: Node) -> tuple[int, int, int, int]:
    """Where a node's hash comes from in C2SP tiles: (tile level, tile index, first hash, count of hashes).

    `root_of` of those hashes is the node's hash; the count is 1 where the tile holds the node itself.
    """
    level, index = node
    height = level % TILE_HEIGHT
    first = index << height
    return level // TILE_HEIGHT, first // TILE_WIDTH, first % TILE_WIDTH, 1 << height


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """Raises VerificationFailed unless the leaf hash stands at `index` in the tree (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        raise VerificationFailed("the leaf lies outside the tree", subject="inclusion_path")
    folded = leaf
    for sibling, is_left in zip(path, _sides(index, size - 1, len(path), "inclusion_path"), strict=True):
        folded = node_hash(sibling, folded) if is_left else node_hash(folded, sibling)
    if folded != root:
        raise VerificationFailed("the inclusion path doesn't lead to the root", subject="inclusion_path")


def verify_consistency(old_size: int, old_root: bytes, new_size: int, new_root: bytes, path: Sequence[bytes]) -> None:
    """Raises VerificationFailed unless the newer tree extends the older (RFC 9162, 2.1.4.2)."""
    subject = "consistency_path"
    if not 0 <= old_size <= new_size:
        raise VerificationFailed("the newer tree is smaller than the older", subject=subject)
    if old_size in (0, new_size):
        _verify_trivial_consistency(old_size, old_root, new_size, new_root, path)
        return
    if not path:
        raise VerificationFailed("the consistency path is too short", subject=subject)
    steps = [old_root, *path] if old_size & (old_size - 1) == 0 else path
    node, last = old_size - 1, new_size - 1
    while node & 1:
        node >>= 1
        last >>= 1
    old_folded = new_folded = steps[0]
    for sibling, is_left in zip(steps[1:], _sides(node, last, len(steps) - 1, subject), strict=True):
        if is_left:
            old_folded = node_hash(sibling, old_folded)
            new_folded = node_hash(sibling, new_folded)
        else:
            new_folded = node_hash(new_folded, sibling)
    if old_folded != old_root:
        raise VerificationFailed("the consistency path doesn't lead to the older root", subject=subject)
    if new_folded != new_root:
        raise VerificationFailed("the consistency path doesn't lead to the newer root", subject=subject)


def _sides(node: int, last: int, count: int, subject: str) -> list[bool]:
    """For each of a path's hashes, from the bottom up, whether it stands on the left.

    `node` is the way's position in its row, `last` the row's last position.
    """
    sides = []
    for _ in range(count):
        if last == 0:
            raise VerificationFailed("the path is too long", subject=subject)
        is_left = bool(node & 1) or node == last
        while is_left and node and not node & 1:
            node >>= 1
            last >>= 1
        node >>= 1
        last >>= 1
        sides.append(is_left)
    if last != 0:
        raise VerificationFailed("the path is too short", subject=subject)
    return sides


def _verify_trivial_consistency(
    old_size: int, old_root: bytes, new_size: int, new_root: bytes, path: Sequence[bytes]
) -> None:
    """Equal sizes, or an empty older tree: nothing but the roots can be compared."""
    subject = "consistency_path"
    if path:
        raise VerificationFailed("a consistency path where none is needed", subject=subject)
    if old_size == 0 and old_root != EMPTY_ROOT:
        raise VerificationFailed("not the root of the empty tree", subject=subject)
    if old_size == new_size and old_root != new_root:
        raise VerificationFailed("two roots for one size", subject=subject)


def _split(count: int) -> int:
    """The largest power of two smaller than `count` (at least 2)."""
    return 1 << ((count - 1).bit_length() - 1)

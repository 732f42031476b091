"""One proof for many leaves of an RFC 6962 tree: the hashes of the largest subtrees that hold none of them.

The tree is walked from its root, left before right. A subtree without a wanted leaf is one hash of the proof, the next one;
a subtree of one leaf is that leaf; any other is split as RFC 6962 splits it. So the proof is a list of hashes without places,
and whoever walks the same way needs each of them once, in order (docs/export.md).
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeAlias

from overlayd.model.errors import VerificationFailed
from overlayd.model.merkle import Span, node_hash, root_of, span_nodes

Interval: TypeAlias = tuple[int, int]
"""Leaf indexes from the first up to, but without, the second."""

LEAVES_AT_ONCE = 256
"""A power of two. Leaves under a complete subtree are asked for together, which is what keeps a walk over millions quick."""


def join_indexes(indexes: Iterable[int], intervals: Sequence[Interval] = ()) -> list[Interval]:
    """Single indexes and intervals as ascending intervals that neither touch nor overlap."""
    joined: list[Interval] = []
    for start, end in sorted([*intervals, *((index, index + 1) for index in indexes)]):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def multiproof_nodes(wanted: Sequence[Interval], size: int) -> list[Span]:
    """What the proof's hashes are over, in their order. `wanted`: as `join_indexes` gives them, inside the tree."""
    cover, spans = _Cover(wanted), []
    waiting = [(0, size)]
    while waiting:
        start, end = waiting.pop()
        how = cover.of(start, end)
        if how == "none":
            spans.append(span_nodes(start, end))
        elif how == "some":
            middle = start + _split(end - start)
            waiting += ((middle, end), (start, middle))
    return spans


def multiproof_root(
    wanted: Sequence[Interval], size: int, take: Callable[[int], Sequence[bytes]], hashes: Sequence[bytes]
) -> bytes:
    """The root that wanted leaves and a proof's hashes lead to.

    `take(n)` gives the next n leaf hashes, ascending; it is asked for each wanted leaf once. Raises VerificationFailed for
    too few or too many hashes; whatever `take` raises goes through.
    """
    cover, rest = _Cover(wanted), iter(hashes)

    def fold(start: int, end: int) -> bytes:
        how, count = cover.of(start, end), end - start
        if how == "none":
            found = next(rest, None)
            if found is None:
                raise VerificationFailed("the proof has too few hashes", subject="hashes")
            return found
        if how == "all" and (count == 1 or (count <= LEAVES_AT_ONCE and count & (count - 1) == 0)):
            return root_of(take(count))
        middle = start + _split(count)
        return node_hash(fold(start, middle), fold(middle, end))

    root = fold(0, size)
    if next(rest, None) is not None:
        raise VerificationFailed("the proof has more hashes than it needs", subject="hashes")
    return root


class _Cover:
    """How much of a subtree is wanted."""

    def __init__(self, wanted: Sequence[Interval]) -> None:
        self._starts = [start for start, _ in wanted]
        self._ends = [end for _, end in wanted]

    def of(self, start: int, end: int) -> Literal["none", "some", "all"]:
        at = bisect_right(self._starts, start)
        reached = self._ends[at - 1] if at else 0
        if reached >= end:
            return "all"
        return "some" if reached > start or (at < len(self._starts) and self._starts[at] < end) else "none"


def _split(count: int) -> int:
    """The largest power of two smaller than `count` (at least 2)."""
    return 1 << ((count - 1).bit_length() - 1)

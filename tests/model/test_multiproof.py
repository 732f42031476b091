"""One proof for many leaves: of any choice in any tree, against another way to compute it, and with anything changed."""

from collections.abc import Sequence
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.model.errors import VerificationFailed
from overlayd.model.merkle import hash_spans, root_of
from overlayd.model.multiproof import Interval, join_indexes, multiproof_nodes, multiproof_root

SIZE_MAX = 700
LEAVES = [sha256(b"leaf %d" % index).digest() for index in range(SIZE_MAX)]


def prove(wanted: Sequence[Interval], size: int) -> list[bytes]:
    """The proof's hashes, each node by its own leaves."""
    return hash_spans(
        multiproof_nodes(wanted, size), lambda node: root_of(LEAVES[node[1] << node[0] : (node[1] + 1) << node[0]])
    )


def follow(wanted: Sequence[Interval], size: int, leaves: Sequence[bytes], hashes: Sequence[bytes]) -> bytes:
    """The root; each wanted leaf must be asked for once."""
    rest = list(leaves)

    def take(count: int) -> list[bytes]:
        taken = rest[:count]
        assert len(taken) == count
        del rest[:count]
        return taken

    root = multiproof_root(wanted, size, take, hashes)
    assert not rest
    return root


def naive_hashes(chosen: set[int], start: int, end: int) -> list[bytes]:
    """The same list by the definition alone."""
    if not chosen & set(range(start, end)):
        return [root_of(LEAVES[start:end])]
    if end - start == 1:
        return []
    middle = start + 1
    while (middle - start) * 2 < end - start:
        middle = start + (middle - start) * 2
    return naive_hashes(chosen, start, middle) + naive_hashes(chosen, middle, end)


@st.composite
def choices(draw: st.DrawFn) -> tuple[int, list[Interval], set[int]]:
    """A tree, a range of it and some leaves beside."""
    size = draw(st.integers(1, SIZE_MAX))
    start = draw(st.integers(0, size - 1))
    end = draw(st.integers(start + 1, size))
    more = draw(st.sets(st.integers(0, size - 1), max_size=6))
    return size, join_indexes(more, [(start, end)]), {*range(start, end), *more}


@settings(deadline=None)
@given(choices())
def test_any_choice_of_leaves_leads_to_the_root(choice: tuple[int, list[Interval], set[int]]) -> None:
    """And the hashes are those that the definition names."""
    size, wanted, chosen = choice
    hashes = prove(wanted, size)
    assert hashes == naive_hashes(chosen, 0, size)
    assert follow(wanted, size, [LEAVES[index] for index in sorted(chosen)], hashes) == root_of(LEAVES[:size])


@settings(deadline=None)
@given(choices(), st.data())
def test_nothing_changed_leads_there(choice: tuple[int, list[Interval], set[int]], data: st.DataObject) -> None:
    """One bit of one leaf or one hash, a hash more or less, two of them exchanged."""
    size, wanted, chosen = choice
    leaves, hashes = [LEAVES[index] for index in sorted(chosen)], prove(wanted, size)
    parts = data.draw(st.sampled_from([leaves, hashes] if hashes else [leaves]))
    at, bit = data.draw(st.integers(0, len(parts) - 1)), data.draw(st.integers(0, 255))
    original = parts[at]
    parts[at] = (int.from_bytes(original, "big") ^ 1 << bit).to_bytes(32, "big")
    assert follow(wanted, size, leaves, hashes) != root_of(LEAVES[:size])
    parts[at] = original
    if len(parts) > 1:
        parts[at], parts[at - 1] = parts[at - 1], parts[at]
        assert follow(wanted, size, leaves, hashes) != root_of(LEAVES[:size])
        parts[at], parts[at - 1] = parts[at - 1], parts[at]
    with pytest.raises(VerificationFailed, match="more hashes"):
        follow(wanted, size, leaves, [*hashes, LEAVES[0]])
    if hashes:
        with pytest.raises(VerificationFailed, match="too few"):
            follow(wanted, size, leaves, hashes[:-1])


def test_a_range_of_a_large_tree_takes_few_hashes() -> None:
    """At most two for each level of the tree."""
    assert len(multiproof_nodes([(333_333, 1_333_333)], 100_000_000)) <= 2 * 27


def test_intervals_are_joined() -> None:
    """Touching, overlapping and single ones."""
    assert join_indexes([9, 3, 4, 20], [(5, 9), (6, 8)]) == [(3, 10), (20, 21)]

"""Why packets are gone: what is told of each, and what that costs in memory."""

import sys

from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.bodies import RemovalCause
from overlayd.model.entry import StoredEntry
from overlayd.storage.removals import Removal, Removals

STREAM, OTHER = b"s" * 32, b"o" * 32
_ORDER: tuple[RemovalCause, ...] = ("erased", "deleted", "retention")
_RUNS = st.tuples(st.integers(1, 60), st.integers(0, 12), st.sampled_from(_ORDER))


def entry(offset: int, *, stream: bytes = STREAM, target: int = 0) -> StoredEntry:
    """A reduced entry."""
    return StoredEntry(b"", b"", 1, 1, offset, 0, stream, 1, b"", target, target, is_reduced=True)


@given(st.lists(_RUNS))
def test_causes_are_those_of_the_runs(added: list[tuple[int, int, RemovalCause]]) -> None:
    """Whatever order runs come in, and however they overlap: the strongest cause of those that hold the packet; retention by
    its hull, and deleted where nobody knows."""
    removals, loaded = Removals(), Removals()
    runs = [(low, low + more, cause) for low, more, cause in added]
    for low, high, cause in runs:
        removals.add(Removal(STREAM, low, high, cause))
    loaded.load((STREAM, low, high, cause) for low, high, cause in sorted(runs))
    kept = [run for run in runs if run[2] == "retention"]
    if kept:
        runs.append((min(run[0] for run in kept), max(run[1] for run in kept), "retention"))
    for offset in range(80):
        causes = {cause for low, high, cause in runs if low <= offset <= high}
        expected = next((cause for cause in _ORDER if cause in causes), "deleted")
        assert removals.cause_of(entry(offset)) == loaded.cause_of(entry(offset)) == expected
        assert removals.cause_of(entry(100 + offset, target=offset or 1)) == removals.cause_of(entry(offset or 1))
        assert removals.cause_of(entry(offset, stream=OTHER)) == "deleted"
    assert removals.run_count == loaded.run_count <= len(runs)


def test_neighbours_become_one() -> None:
    """Packets that are erased one after the other cost as much as one; each that stands alone 16 bytes and a little room."""
    removals = Removals()
    for offset in range(1, 10_001):
        removals.add(Removal(STREAM, offset, offset, "erased"))
    assert removals.run_count == 1
    for offset in range(20_001, 40_001, 2):
        removals.add(Removal(STREAM, offset, offset, "erased"))
    assert removals.run_count == 10_001
    (runs,) = removals._runs.values()
    assert sys.getsizeof(runs._lows) + sys.getsizeof(runs._highs) < 10_001 * 16 * 1.2


def test_damaged_rows_are_passed_over() -> None:
    """What can't be a run of offsets tells nothing, and the rows beside it do."""
    removals = Removals()
    removals.load([(STREAM, -5, 9, "erased"), (STREAM, None, "x", "erased"), (STREAM, 9, 3, "erased")])
    removals.load([(STREAM, 5, 6, "erased")])
    assert [removals.cause_of(entry(offset)) for offset in (4, 5, 6, 7)] == ["deleted", "erased", "erased", "deleted"]

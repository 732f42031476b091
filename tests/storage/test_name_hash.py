"""Hashes of names: many at once are the same as one by one, and what is known is never missed."""

import random
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.storage import hashrun
from overlayd.storage.hashindex import STEPS, HashIndex
from overlayd.storage.name_hash import Family, NameHasher
from overlayd.storage.positions import Positions

SECRET = bytes(range(32))
NAMES = st.lists(st.binary(min_size=1, max_size=40), max_size=20)


@given(NAMES, st.binary(max_size=32))
def test_ids_hashed_together_have_the_hashes_they_have_alone(names: list[bytes], scope: bytes) -> None:
    """A stored index stays true whichever way a name was hashed; no name has no hash."""
    hasher = NameHasher(Family.ID, SECRET)
    assert hasher.id_keys([b"", *names], scope) == [0, *(hasher.key(name, scope) for name in names)]


@pytest.mark.parametrize("newest_max", [0, 1, 3])
@given(data=st.data())
def test_pairs_added_together_stand_as_added_one_by_one(newest_max: int, data: st.DataObject) -> None:
    """Many pairs at once leave the same memory, and rolling back takes them all away."""
    keys = data.draw(st.lists(st.integers(1, 6), max_size=20))
    pairs = [(key, offset) for offset, key in enumerate(keys, 1)]
    together, alone = (HashIndex(Family.KEY, SECRET, newest_max=newest_max) for _ in range(2))
    together.add_each(pairs[:7])
    together.adopt()
    together.add_each(pairs[7:])
    for key, offset in pairs:
        alone.add(key, offset)
    assert [together.recent(key) for key in range(8)] == [alone.recent(key) for key in range(8)]
    assert together.find_known(range(8)) == set(keys) == {key for key in range(8) if together.is_recent(key)}
    together.roll_back()
    assert together.find_known(range(8)) == set(keys[:7])


def test_known_names_are_found_in_runs_and_while_they_are_flushed() -> None:
    """Whatever is stored or on its way to the disk counts as known; hardly anything else does."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for step in STEPS:
        connection.executescript(step)
    index = HashIndex(Family.ID, SECRET)
    index.load(connection)
    stored, frozen, new = (
        index.names.id_keys([b"%b%d" % (what, at) for at in range(500)], b"s") for what in (b"a", b"b", b"c")
    )
    index.add_each([(key, at) for at, key in enumerate(stored, 1)])
    index.adopt()
    index.flush(connection, 500)
    index.adopt()
    index.add_each([(key, at) for at, key in enumerate(frozen, 501)])
    index.adopt()
    index.begin_flush(1000)
    known = index.find_known([*stored, *frozen, *new])
    assert known >= {*stored, *frozen}
    assert known == {*stored, *frozen} | {key for key in new if index.maybe_stored(key)}
    assert len(known & set(new)) < 100


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=30))
def test_positions_added_together_stand_as_added_one_by_one(steps: list[tuple[int, int]]) -> None:
    """Runs of one stream, gaps and streams in turn: memory is the same, and so is what rolling back leaves."""
    heads: dict[int, int] = {}
    packets = []
    for offset, (stream, gap) in enumerate(steps, 1):
        heads[stream] = heads.get(stream, 0) + gap
        packets.append((stream, heads[stream], offset))
    together, alone = Positions(), Positions()
    together.add_each(packets)
    for packet in packets:
        alone.add(*packet)
    for stream in (1, 2, 3):
        assert together.read_recent(stream, 0, 99) == alone.read_recent(stream, 0, 99)
    together.roll_back()
    assert all(not together.read_recent(stream, 0, 99) for stream in (1, 2, 3))


def test_names_looked_for_together_are_those_found_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Filters of several sizes are asked about many hashes at once, and give what each gives for each hash."""
    monkeypatch.setattr(hashrun, "FINE_FILTER_BITS_PER_PAIR", 4)  # so coarse that strange hashes pass each of its steps
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for step in STEPS:
        connection.executescript(step)
    index, chance, offset = HashIndex(Family.ID, SECRET), random.Random(5), 0
    index.load(connection)
    stored = []
    for count in (3000, 40, 6000, 3000, 41):
        keys = [chance.getrandbits(64) for _ in range(count)]
        index.add_each([(key, offset + at) for at, key in enumerate(keys, 1)])
        index.adopt()
        offset += count
        stored += keys
        if len(index._runs) < 4:
            index.flush(connection, offset)
            index.adopt()
    assert len({run.shift for run in index._runs}) == 3
    strange = [chance.getrandbits(64) for _ in range(3000)]
    known = index.find_known([*stored, *strange])
    assert known >= set(stored)
    assert known == {key for key in (*stored, *strange) if index.is_recent(key) or index.maybe_stored(key)}
    assert 0 < len(known.intersection(strange)) < 1500
    assert set().union(*(index.find_known([key]) for key in (*stored[:50], *strange))) == known - set(stored[50:])

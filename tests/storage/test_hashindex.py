"""The hash index against a dict: rollbacks, interrupted merges, restarts, erasure, the dedup window."""

import random
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from overlayd.model.errors import LogInconsistent
from overlayd.storage.hashindex import STEPS, Family, HashIndex
from overlayd.storage.hashrun import FINE_FILTER_PAIRS_MAX, Run, encode_pairs, filter_bits_for

SECRET = bytes(range(32))


def _connect(path: Path | str = ":memory:") -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    if not connection.execute("SELECT name FROM sqlite_master WHERE name = 'hash_run'").fetchone():
        connection.executescript("".join(STEPS))
    return connection


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    """A database with the tables of the index."""
    connection = _connect()
    yield connection
    connection.close()


def _make(connection: sqlite3.Connection, family: Family = Family.ID, newest_max: int = 0) -> HashIndex:
    index = HashIndex(family, SECRET, newest_max=newest_max)
    index.load(connection)
    return index


def _add(index: HashIndex, keys: list[int], first: int) -> int:
    for offset, key in enumerate(keys, first):
        index.add(key, offset)
    index.adopt()
    return first + len(keys)


def _flush(index: HashIndex, connection: sqlite3.Connection, up_to: int) -> None:
    connection.execute("BEGIN")
    index.flush(connection, up_to)
    connection.execute("COMMIT")
    index.adopt()


def _settle(index: HashIndex, connection: sqlite3.Connection, rows_max: int = 4_096) -> int:
    steps = 0
    while index.merge_step(connection, rows_max):
        index.adopt()
        steps += 1
    return steps


def _find(index: HashIndex, connection: sqlite3.Connection, key: int) -> list[int]:
    recent = index.recent(key)
    stored = index.read_stored(connection, [key])[key]
    assert index.maybe_stored(key) or not stored
    return [*stored, *recent]


def _random_keys(count: int, seed: int = 1) -> list[int]:
    chance = random.Random(seed)
    return [chance.getrandbits(64) for _ in range(count)]


def test_key_of_an_id_begins_with_the_name_alone() -> None:
    """One id has the same high half in every stream and a low half of its own in each."""
    index = HashIndex(Family.ID, SECRET)
    one, other = index.key(b"id-1", b"a" * 32), index.key(b"id-1", b"b" * 32)
    assert one >> 32 == other >> 32 == index.prefix(b"id-1")
    assert one != other
    assert index.key(b"id-2", b"a" * 32) >> 32 != one >> 32


def test_key_depends_on_secret_family_scope_and_name() -> None:
    """No two of them can be exchanged, and scope and name don't run together."""
    keys = {
        HashIndex(family, secret).key(name, scope)
        for family in Family
        for secret in (SECRET, bytes(32))
        for name, scope in ((b"ab", b""), (b"b", b"a"), (b"", b"ab"))
    }
    assert len(keys) == 18
    assert all(0 <= key < 1 << 64 for key in keys)


def test_pair_is_found_on_its_whole_way(connection: sqlite3.Connection) -> None:
    """In memory, in a run, in merged runs: a name is found everywhere, a strange one nowhere."""
    index = _make(connection)
    keys = _random_keys(8 * 300)
    offset = 1
    for at in range(8):
        offset = _add(index, keys[at * 300 : at * 300 + 300], offset)
        assert index.recent(keys[at * 300]) == (at * 300 + 1,)
        _flush(index, connection, offset - 1)
        assert index.recent(keys[at * 300]) == ()
        assert index.stored_to == offset - 1
    assert len(index._runs) == 8
    assert _settle(index, connection, 500) > 5
    assert [run.pairs for run in index._runs] == [2_400]
    assert connection.execute("SELECT count(DISTINCT id >> 32) FROM hash_block").fetchone() == (1,)
    found = index.read_stored(connection, keys)
    assert found == {key: [at] for at, key in enumerate(keys, 1)}
    strange = _random_keys(3_000, seed=2)
    assert index.read_stored(connection, strange) == {key: [] for key in strange}
    assert sum(map(index.maybe_stored, strange)) < 60


@pytest.mark.parametrize("key", [0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_extreme_hashes(connection: sqlite3.Connection, key: int) -> None:
    """SQLite's integers are signed; hashes are not."""
    index = _make(connection)
    for at in range(8):
        _add(index, [key, *_random_keys(20, at)], 1 + at * 21)
        _flush(index, connection, 21 + at * 21)
    _settle(index, connection, 10)
    assert _find(index, connection, key) == [1 + at * 21 for at in range(8)]


def test_ids_are_found_across_streams(connection: sqlite3.Connection) -> None:
    """Looking by the id alone gives its pairs in all streams, from memory and from runs."""
    index = _make(connection)
    scopes = [bytes([at]) * 32 for at in range(6)]
    names = [b"same", *(b"%d" % at for at in range(400))]
    offset = 1
    for scope in scopes:
        offset = _add(index, [index.key(name, scope) for name in names], offset)
        if scope != scopes[-1]:
            _flush(index, connection, offset - 1)
    prefix = index.prefix(b"same")
    expected = sorted((index.key(b"same", scope), at * 401 + 1) for at, scope in enumerate(scopes))
    assert sorted([*index.read_stored_like(connection, prefix), *index.recent_like(prefix)]) == expected
    assert len(index.recent_like(prefix)) == 1
    assert index.read_stored_like(connection, index.prefix(b"strange")) == []


def test_one_hash_many_offsets_shares_a_block(connection: sqlite3.Connection) -> None:
    """More pairs of one high half than a block has room for are all found."""
    index = _make(connection)
    keys = [7 << 32 | at for at in range(900)] + _random_keys(900)
    _flush_to = _add(index, keys, 1)
    _flush(index, connection, _flush_to - 1)
    assert index.read_stored(connection, keys) == {key: [at] for at, key in enumerate(keys, 1)}
    assert len(index.read_stored_like(connection, 7)) == 900


def test_rolled_back_adds_are_gone() -> None:
    """A transaction that left no trace leaves none in memory."""
    index = HashIndex(Family.ID, SECRET)
    index.add(5, 1)
    index.adopt()
    index.add(5, 2)
    index.add(6, 3)
    assert index.recent(5) == (1, 2)
    index.roll_back()
    assert index.recent(5) == (1,)
    assert index.recent(6) == ()


def test_rolled_back_step_is_repeated(connection: sqlite3.Connection) -> None:
    """Steps that are lost, the first and last of a flush and a merge included, are done again."""
    index = _make(connection)
    keys = _random_keys(8 * 50)
    for at in range(8):
        _add(index, keys[at * 50 : at * 50 + 50], at * 50 + 1)
        index.begin_flush(at * 50 + 50)
        is_more = True
        while is_more:
            for end in ("ROLLBACK", "COMMIT"):
                connection.execute("BEGIN")
                is_more = index.merge_step(connection, 20)
                connection.execute(end)
                index.adopt() if end == "COMMIT" else index.roll_back()
                assert _find(index, connection, keys[at * 50]) == [at * 50 + 1]
    assert [run.pairs for run in index._runs] == [400]
    assert index.read_stored(connection, keys) == {key: [at] for at, key in enumerate(keys, 1)}
    assert connection.execute("SELECT count(*) FROM hash_run").fetchone() == (1,)


def test_merge_goes_on_after_a_restart(connection: sqlite3.Connection) -> None:
    """A start in the middle of a merge goes on where it stood; one in the middle of a flush begins it anew."""
    index = _make(connection)
    keys = _random_keys(8 * 100)
    for at in range(8):
        _add(index, keys[at * 100 : at * 100 + 100], at * 100 + 1)
        _flush(index, connection, at * 100 + 100)
    for _ in range(4):
        assert index.merge_step(connection, 100)
        index.adopt()
    done = index._builds[0].done
    assert 0 < done < 1 << 32
    index = _make(connection)
    assert index._builds[0].done == done
    assert index.read_stored(connection, keys) == {key: [at] for at, key in enumerate(keys, 1)}
    _settle(index, connection, 100)
    assert [run.pairs for run in index._runs] == [800]

    late = _random_keys(100, seed=3)
    _add(index, late, 801)
    index.begin_flush(900)
    index.merge_step(connection, 30)
    index.adopt()
    again = _make(connection)
    assert again.stored_to == 800
    _add(again, late, 801)
    _flush(again, connection, 900)
    _settle(again, connection)
    assert again.read_stored(connection, keys + late) == {key: [at] for at, key in enumerate(keys + late, 1)}
    assert connection.execute("SELECT count(*) FROM hash_run").fetchone() == (2,)


def test_empty_flush_moves_on(connection: sqlite3.Connection) -> None:
    """Entries without ids needn't be read again at a start."""
    index = _make(connection)
    _flush(index, connection, 5_000)
    assert _make(connection).stored_to == 5_000
    assert connection.execute("SELECT count(*) FROM hash_run").fetchone() == (0,)


def test_another_secret_is_noticed(connection: sqlite3.Connection) -> None:
    """With a lost key file every stored id would look new, so the index refuses to load."""
    index = _make(connection)
    _add(index, [1], 1)
    HashIndex(Family.ID, bytes(32)).load(connection)
    _flush(index, connection, 1)
    with pytest.raises(LogInconsistent):
        HashIndex(Family.ID, bytes(32)).load(connection)
    HashIndex(Family.KEY, bytes(32)).load(connection)
    assert _make(connection).stored_to == 1


def test_stored_pairs_are_not_added_twice(connection: sqlite3.Connection) -> None:
    """A start may add entries again that are in runs already."""
    index = _make(connection)
    _add(index, [1, 2, 3], 1)
    _flush(index, connection, 3)
    _add(index, [3], 3)
    assert index.recent(3) == ()


def test_erased_pair_is_gone_everywhere(connection: sqlite3.Connection) -> None:
    """Memory, a flush under way, runs, a merge under way and its dead sources all lose the pair."""
    index = _make(connection)
    keys = _random_keys(9 * 40)
    for at in range(8):
        _add(index, keys[at * 40 : at * 40 + 40], at * 40 + 1)
        _flush(index, connection, at * 40 + 40)
    index.merge_step(connection, 200)
    index.adopt()
    _add(index, keys[320:], 321)
    index.begin_flush(360)
    index.merge_step(connection, 20)
    index.adopt()
    for at in range(0, 360, 2):
        index.discard(connection, keys[at], at + 1)
    index.adopt()
    rest = {key: [at + 1] if at % 2 else [] for at, key in enumerate(keys)}
    assert {key: _find(index, connection, key) for key in keys} == rest
    blob = b"".join(row[0] for row in connection.execute("SELECT pairs FROM hash_block"))
    assert not any(keys[at].to_bytes(8, "big") in blob for at in range(0, 360, 2))
    _settle(index, connection)
    assert {key: _find(index, connection, key) for key in keys} == rest


def test_erasure_reaches_runs_that_wait_for_deletion(connection: sqlite3.Connection) -> None:
    """A pair isn't left in the rows of runs that a merge replaced."""
    index, keys = _make(connection), _random_keys(8)
    for at in range(8):
        _add(index, [keys[at]], at + 1)
        _flush(index, connection, at + 1)
    while not index._dead:
        index.merge_step(connection)
        index.adopt()
    index.discard(connection, keys[5], 6)
    index.adopt()
    blob = b"".join(row[0] for row in connection.execute("SELECT pairs FROM hash_block"))
    assert [blob.count(key.to_bytes(8, "big")) for key in keys] == [2, 2, 2, 2, 2, 0, 2, 2]


def test_erasure_reaches_what_the_same_transaction_wrote(connection: sqlite3.Connection) -> None:
    """A flush and an erasure may share a transaction."""
    index = _make(connection)
    _add(index, [11, 12], 1)
    connection.execute("BEGIN")
    index.flush(connection, 2)
    index.discard(connection, 11, 1)
    connection.execute("COMMIT")
    index.adopt()
    assert _find(index, connection, 11) == []
    assert _find(index, connection, 12) == [2]


def test_rolled_back_erasure_leaves_the_pair(connection: sqlite3.Connection) -> None:
    """Memory gets back what it lost."""
    index = _make(connection)
    _add(index, [11, 11, 12], 1)
    _flush(index, connection, 3)
    _add(index, [11, 13], 4)
    connection.execute("BEGIN")
    index.discard_all(connection, [(11, 1), (11, 4), (13, 5), (14, 6)])
    assert index.recent(13) == ()
    connection.execute("ROLLBACK")
    index.roll_back()
    assert _find(index, connection, 11) == [1, 2, 4]
    assert _find(index, connection, 13) == [5]


def test_window_drops_whole_runs(connection: sqlite3.Connection) -> None:
    """Runs whose newest pair is too old go; in merged ones the old pairs go at the next merge."""
    index = _make(connection)
    keys = _random_keys(9 * 30)
    for at in range(3):
        _add(index, keys[at * 30 : at * 30 + 30], at * 30 + 1)
        _flush(index, connection, at * 30 + 30)
    index.drop_before(connection, 45)
    index.adopt()
    assert [run.oldest for run in index._runs] == [31, 61]
    _settle(index, connection)
    assert connection.execute("SELECT count(*) FROM hash_run").fetchone() == (2,)
    for at in range(3, 9):
        _add(index, keys[at * 30 : at * 30 + 30], at * 30 + 1)
        _flush(index, connection, at * 30 + 30)
    _settle(index, connection)
    assert [run.pairs for run in index._runs] == [270 - 44]
    assert index.read_stored(connection, keys) == {key: [at] if at >= 45 else [] for at, key in enumerate(keys, 1)}


def test_window_leaves_what_is_being_merged(connection: sqlite3.Connection) -> None:
    """A merge under way keeps its sources until it is done, also over a restart."""
    index = _make(connection)
    keys = _random_keys(8 * 30)
    for at in range(8):
        _add(index, keys[at * 30 : at * 30 + 30], at * 30 + 1)
        _flush(index, connection, at * 30 + 30)
    index.merge_step(connection, 20)
    index.adopt()
    index.drop_before(connection, 100)
    index.adopt()
    for _ in range(15):
        index.merge_step(connection, 5)
        index.adopt()
    index = _make(connection)
    _settle(index, connection, 20)
    found = index.read_stored(connection, keys)
    assert all(found[key] == [at] for at, key in enumerate(keys, 1) if at >= 100)
    assert connection.execute("SELECT count(*) FROM hash_run").fetchone() == (1,)


def test_commitments_never_expire(connection: sqlite3.Connection) -> None:
    """Families share tables and nothing else."""
    ids, commitments = _make(connection), _make(connection, Family.COMMITMENT)
    for index in (ids, commitments):
        _add(index, [1, 2], 1)
        _flush(index, connection, 2)
    ids.drop_before(connection, 100)
    ids.adopt()
    _settle(ids, connection)
    assert _find(_make(connection), connection, 1) == []
    assert _find(_make(connection, Family.COMMITMENT), connection, 1) == [1]


def test_newest_offsets_of_a_key(connection: sqlite3.Connection) -> None:
    """A key that comes again and again keeps its newest offsets only, in memory and through merges."""
    index = _make(connection, Family.KEY, newest_max=2)
    for at in range(8):
        _add(index, [9, 9, 9, 8, 9], at * 5 + 1)
        assert index.recent(9) == (at * 5 + 3, at * 5 + 5)
        _flush(index, connection, at * 5 + 5)
    _settle(index, connection)
    assert index.read_stored(connection, [8, 9]) == {8: [34, 39], 9: [38, 40]}
    assert [run.pairs for run in index._runs] == [4]


def test_newest_one_of_a_key(connection: sqlite3.Connection) -> None:
    """With a bound of one, only the last offset stays."""
    index = _make(connection, Family.KEY, newest_max=1)
    for at in range(8):
        _add(index, [9, 9, 8], at * 3 + 1)
        _flush(index, connection, at * 3 + 3)
    _settle(index, connection, 1)
    assert index.read_stored(connection, [8, 9]) == {8: [24], 9: [23]}


def test_filters_get_coarser_when_memory_ends(connection: sqlite3.Connection) -> None:
    """The memory for filters is bounded; looks get more frequent and stay right."""
    index = HashIndex(Family.ID, SECRET, filter_bytes_max=4_000)
    index.load(connection)
    keys = _random_keys(3 * 2_000)
    for at in range(3):
        _add(index, keys[at * 2_000 : at * 2_000 + 2_000], at * 2_000 + 1)
        _flush(index, connection, at * 2_000 + 2_000)
    assert index.filter_bytes <= 4_000
    assert index.read_stored(connection, keys) == {key: [at] for at, key in enumerate(keys, 1)}
    assert [run.filter_bits for run in _make(connection)._runs] == [run.filter_bits for run in index._runs]


@pytest.mark.parametrize("pairs", [0, 1, 100, 4_096, 65_536, 65_537])
def test_filter_lets_few_strangers_pass(pairs: int) -> None:
    """A filter never hides a pair and lets under 0.2 % of strange hashes pass, and one in a hundred in a large run."""
    run = Run(1, filter_bits_for(pairs))
    keys = _random_keys(pairs)
    run.note(b"".join(encode_pairs([(key, 1) for key in keys])))
    assert all(map(run.may_hold, keys[:5_000]))
    assert all(run.may_hold_prefix(key >> 32) for key in keys[:5_000])
    assert sum(map(run.may_hold, _random_keys(10_000, seed=2))) <= 20
    assert len(run.bits) * 8 <= max(4_096, 44 * pairs)
    large = FINE_FILTER_PAIRS_MAX + 1
    assert 11 * large <= 1 << filter_bits_for(large) < 22 * large


def test_reads_hold_on_to_the_runs_they_use(connection: sqlite3.Connection) -> None:
    """Runs that a merge replaced aren't deleted while another thread reads them."""
    index = _make(connection)
    for at in range(8):
        _add(index, [at], at + 1)
        _flush(index, connection, at + 1)
    inside, go = threading.Event(), threading.Event()

    def hold() -> None:
        with index._pinned():
            inside.set()
            go.wait(5)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(5)
    _settle(index, connection)
    assert connection.execute("SELECT count(*) FROM hash_run").fetchone() == (9,)
    go.set()
    thread.join()
    _settle(index, connection)
    assert connection.execute("SELECT count(*) FROM hash_run").fetchone() == (1,)


class HashIndexModel(RuleBasedStateMachine):
    """Any mix of adding, erasing, flushing, merging in slices, losing them and starting again, against a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.connection = _connect()
        self.index = _make(self.connection)
        self.model: dict[int, list[int]] = {}
        self.log: list[tuple[int, int]] = []
        self.head = 0
        self.floor = 0
        """Pairs of older offsets may be gone."""

    @initialize(keys=st.lists(st.integers(0, (1 << 64) - 1), min_size=12, max_size=12, unique=True))
    def begin(self, keys: list[int]) -> None:
        self.keys = [*keys, *(keys[0] >> 32 << 32 | at for at in range(8))]

    def _draw(self, chosen: list[int]) -> list[int]:
        return [self.keys[at % len(self.keys)] for at in chosen]

    @rule(chosen=st.lists(st.integers(0, 19), max_size=30), is_kept=st.sampled_from([True, True, True, False]))
    def publish(self, chosen: list[int], is_kept: bool) -> None:
        before = self.head
        for key in self._draw(chosen):
            self.head += 1
            self.index.add(key, self.head)
            if is_kept:
                self.model.setdefault(key, []).append(self.head)
                self.log.append((key, self.head))
        if is_kept:
            self.index.adopt()
        else:
            self.head = before
            self.index.roll_back()

    @precondition(lambda self: not self.index.is_flushing)
    @rule()
    def begin_flush(self) -> None:
        self.index.begin_flush(self.head)

    @rule(rows_max=st.integers(1, 60), steps=st.integers(1, 8), is_kept=st.sampled_from([True, True, False]))
    def work(self, rows_max: int, steps: int, is_kept: bool) -> None:
        for _ in range(steps):
            self.connection.execute("BEGIN")
            self.index.merge_step(self.connection, rows_max)
            self.connection.execute("COMMIT" if is_kept else "ROLLBACK")
            if is_kept:
                self.index.adopt()
            else:
                self.index.roll_back()

    @rule(times=st.integers(1, 9))
    def flush_whole(self, times: int) -> None:
        for _ in range(times):
            self.publish([self.head, self.head + 3], True)
            _flush(self.index, self.connection, self.head)
            if self.index.stored_to < self.head:
                _flush(self.index, self.connection, self.head)

    @rule(chosen=st.lists(st.integers(0, 500), min_size=1, max_size=5), is_kept=st.booleans(), is_working=st.booleans())
    def erase(self, chosen: list[int], is_kept: bool, is_working: bool) -> None:
        pairs = [self.log[at % len(self.log)] for at in chosen] if self.log else []
        self.connection.execute("BEGIN")
        if is_working:
            self.index.merge_step(self.connection, 20)
        self.index.discard_all(self.connection, pairs)
        self.connection.execute("COMMIT" if is_kept else "ROLLBACK")
        if not is_kept:
            self.index.roll_back()
            return
        self.index.adopt()
        for key, offset in pairs:
            if offset in self.model.get(key, ()):
                self.model[key].remove(offset)

    @rule()
    def start_again(self) -> None:
        self.index = _make(self.connection)
        for key, offset in self.log:
            if offset in self.model[key]:
                self.index.add(key, offset)
        self.index.adopt()

    @rule(back=st.integers(0, 40))
    def move_window(self, back: int) -> None:
        """Whatever was dropped is too old; the model then forgets what the index did."""
        self.floor = max(self.floor, self.head - back)
        self.index.drop_before(self.connection, self.floor)
        self.index.adopt()
        for key, offsets in self.model.items():
            found = _find(self.index, self.connection, key)
            assert [at for at in offsets if at not in found and at >= self.floor] == []
            self.model[key] = found

    @invariant()
    def same_as_model(self) -> None:
        for key in getattr(self, "keys", ()):
            found = _find(self.index, self.connection, key)
            expected = self.model.get(key, [])
            assert found == sorted(set(found))
            assert [at for at in found if at >= self.floor] == [at for at in expected if at >= self.floor]
            assert set(found) <= set(expected)
            self.model[key] = found

    def teardown(self) -> None:
        self.connection.close()


HashIndexModel.TestCase.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
TestHashIndexModel = HashIndexModel.TestCase

"""The ledger against random histories: the floor never passes what isn't settled, and a restart forgets nothing."""

from collections import defaultdict

from hypothesis import example, given, settings
from hypothesis import strategies as st
from left_behind import nothing_left_of

from overlayd.delivery.subscriptions.ledger import SPARE_TIMERS, Ledger
from overlayd.delivery.subscriptions.units import Item, Key, Unit, UnitRow
from overlayd.model.cursor import Cursor, make_epoch

EPOCH = make_epoch(1, b"12345")


def cursor(offset: int) -> Cursor:
    """A place in the one log of these tests."""
    return Cursor(EPOCH, offset)


def item(offset: int, stream: str) -> Item:
    """A packet."""
    return Item(
        (offset, -1, 0), "packets", stream, before=cursor(offset - 1), after=cursor(offset), message=None,
        packet_offset=offset,
    )  # fmt: skip


class Model:
    """A ledger, the rows that were written down, and what must hold."""

    def __init__(self, *, is_ordered: bool, batch_size: int) -> None:
        self.rules = {"is_ordered": is_ordered, "batch_size": batch_size}
        self.is_ordered = is_ordered
        self.ledger = Ledger(cursor(0), is_ordered=is_ordered, batch_size=batch_size)
        self.rows: dict[Key, UnitRow] = {}
        self.written_floor = 0
        self.log: list[str] = []
        self.scanned = 0
        self.settled: set[int] = set()
        self.settled_durably: set[int] = set()
        self.flying: list[Unit] = []
        self.given: dict[int, list[tuple[int, ...]]] = defaultdict(list)
        self.now = 0.0

    def append(self, stream: str) -> None:
        self.log.append(stream)

    def scan(self, count: int) -> None:
        upto = min(len(self.log), self.scanned + count)
        for offset in range(self.scanned + 1, upto + 1):
            if self.log[offset - 1] != "-":
                self.ledger.add(item(offset, self.log[offset - 1]), self.now)
        self.scanned = upto
        self.ledger.scanned(cursor(upto))
        self.check()

    def take(self) -> None:
        unit = self.ledger.take(self.now)
        if unit is None:
            return
        members = tuple(one.key[0] for one in unit.items)
        assert not self.settled.intersection(members)
        for other in self.flying:
            assert not set(members) & {one.key[0] for one in other.items}
            assert not (self.is_ordered and other.stream == unit.stream)
        if self.is_ordered:
            before = [
                offset for offset in range(1, members[0])
                if self.log[offset - 1] == unit.stream and offset not in self.settled
            ]  # fmt: skip
            assert not before
        if len(members) > 1 and not unit.is_fixed:
            self.ledger.fix(unit)
            self.flush()
        for offset in members:
            if self.given[offset]:
                assert self.given[offset][-1] == members or len(self.given[offset][-1]) == 1 or not unit.is_fixed
            self.given[offset].append(members)
        self.flying.append(unit)
        self.check()

    def settle(self, index: int) -> None:
        if self.flying:
            unit = self.flying.pop(index % len(self.flying))
            self.ledger.settle(unit)
            self.ledger.release(unit)
            self.settled.update(one.key[0] for one in unit.items)
            self.check()

    def fail(self, index: int, pause: int) -> None:
        if self.flying:
            unit = self.flying.pop(index % len(self.flying))
            unit.attempts += 1
            self.ledger.fail(unit, self.now + pause, pause)
            self.check()

    def give_back(self, index: int) -> None:
        if self.flying:
            self.ledger.give_back(self.flying.pop(index % len(self.flying)), self.now)
            self.check()

    def flush(self) -> None:
        changes = self.ledger.drain()
        for key in changes.gone:
            self.rows.pop(key, None)
        for row in changes.rows:
            self.rows[row.key] = row
        self.written_floor = self.ledger.floor.offset
        self.settled_durably = set(self.settled)

    def kill(self) -> None:
        self.ledger = Ledger(cursor(self.written_floor), [(row, self.now) for row in self.rows.values()], **self.rules)
        self.scanned = self.written_floor
        self.settled = set(self.settled_durably)
        self.flying = []

    def check(self) -> None:
        """The floor stands in front of the first packet that was found and isn't settled."""
        floor = self.ledger.floor.offset
        wanted = [o for o in range(1, self.scanned + 1) if self.log[o - 1] != "-" and o not in self.settled]
        assert floor <= (wanted[0] - 1 if wanted else self.scanned)
        if not self.ledger.is_restoring:
            assert floor == (wanted[0] - 1 if wanted else self.scanned)
            assert self.ledger.unsettled == len(wanted)
        assert self.ledger.flying == len(self.flying)
        assert 0 <= self.ledger.ready <= self.ledger.unsettled


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.sampled_from("aab-")),
        st.tuples(st.just("scan"), st.integers(1, 5)),
        st.tuples(st.just("take")),
        st.tuples(st.just("take")),
        st.tuples(st.just("settle"), st.integers(0, 9)),
        st.tuples(st.just("settle"), st.integers(0, 9)),
        st.tuples(st.just("fail"), st.integers(0, 9), st.integers(0, 3)),
        st.tuples(st.just("give_back"), st.integers(0, 9)),
        st.tuples(st.just("flush")),
        st.tuples(st.just("kill")),
        st.tuples(st.just("tick")),
    ),
    max_size=80,
)


@given(steps=STEPS, is_ordered=st.booleans(), batch_size=st.sampled_from([1, 1, 3]))
@settings(max_examples=300, deadline=None)
def test_random_histories(steps: list[tuple[object, ...]], is_ordered: bool, batch_size: int) -> None:
    """Nothing is lost, settled twice or delivered out of order; in the end everything is settled and no row is left."""
    model = Model(is_ordered=is_ordered, batch_size=batch_size)
    for name, *arguments in steps:
        if name == "tick":
            model.now += 1.0
        else:
            getattr(model, str(name))(*arguments)
    model.scan(10_000)
    for _ in range(500):
        model.now += 1.0
        model.take()
        model.settle(0)
    model.flush()
    assert model.settled == {offset for offset, stream in enumerate(model.log, 1) if stream != "-"}
    assert model.ledger.floor.offset == len(model.log)
    assert model.rows == {}
    assert model.ledger.is_empty


@given(steps=STEPS, batch_size=st.sampled_from([2, 3, 7]))
@settings(max_examples=200, deadline=None)
def test_bounds_of_a_batch_never_change(steps: list[tuple[object, ...]], batch_size: int) -> None:
    """Once a batch was begun, its packets come in the same batch each time, through kills and retries."""
    model = Model(is_ordered=False, batch_size=batch_size)
    fixed: dict[int, tuple[int, ...]] = {}
    for name, *arguments in steps:
        if name == "tick":
            model.now += 1.0
            continue
        if name == "take":
            unit = model.ledger.take(model.now)
            if unit is None:
                continue
            members = tuple(one.key[0] for one in unit.items)
            for offset in members:
                assert fixed.setdefault(offset, members) == members
            if not unit.is_fixed:
                model.ledger.fix(unit)
                model.flush()
            model.flying.append(unit)
        elif name == "give_back":
            continue
        else:
            getattr(model, str(name))(*arguments)


class Forming(Model):
    """Batches whose bounds are fixed a while after they were formed, perhaps cut before, as a worker does it."""

    def __init__(self, *, is_ordered: bool, batch_size: int) -> None:
        super().__init__(is_ordered=is_ordered, batch_size=batch_size)
        self.forming: list[Unit] = []
        self.bounds: dict[int, tuple[int, ...]] = {}

    def take(self) -> None:
        unit = self.ledger.take(self.now)
        if unit is not None and unit.is_fixed:
            self.deliver(unit)
        elif unit is not None:
            self.forming.append(unit)

    def cut(self, index: int, count: int) -> None:
        if self.forming:
            unit = self.forming[index % len(self.forming)]
            if count < len(unit.items):
                self.ledger.cut(unit, count)

    def fix(self, index: int) -> None:
        if self.forming:
            unit = self.forming.pop(index % len(self.forming))
            self.ledger.fix(unit)
            self.flush()
            self.deliver(unit)

    def deliver(self, unit: Unit) -> None:
        members = tuple(one.key[0] for one in unit.items)
        assert list(members) == sorted(members)
        for offset in members:
            assert self.bounds.setdefault(offset, members) == members
        self.flying.append(unit)

    def give_back(self, index: int) -> None:
        if self.forming:
            self.ledger.give_back(self.forming.pop(index % len(self.forming)), self.now)

    def kill(self) -> None:
        super().kill()
        self.forming = []

    def check(self) -> None:
        """As ever, with those that are being formed."""
        self.flying, flying = [*self.flying, *self.forming], self.flying
        try:
            super().check()
        finally:
            self.flying = flying


FORMING_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.sampled_from("aaab")),
        st.tuples(st.just("scan"), st.integers(1, 5)),
        st.tuples(st.just("take")),
        st.tuples(st.just("cut"), st.integers(0, 3), st.integers(1, 3)),
        st.tuples(st.just("fix"), st.integers(0, 3)),
        st.tuples(st.just("settle"), st.integers(0, 9)),
        st.tuples(st.just("fail"), st.integers(0, 9), st.integers(0, 3)),
        st.tuples(st.just("give_back"), st.integers(0, 3)),
        st.tuples(st.just("flush")),
        st.tuples(st.just("kill")),
        st.tuples(st.just("tick")),
    ),
    max_size=80,
)


@example(
    steps=[("take",), ("take",), ("cut", 0, 1), ("cut", 1, 1), ("take",), ("fix", 2)], is_ordered=False, batch_size=3
)
@given(steps=FORMING_STEPS, is_ordered=st.booleans(), batch_size=st.sampled_from([2, 3, 5]))
@settings(max_examples=400, deadline=None)
def test_cut_batches_keep_their_bounds(steps: list[tuple[object, ...]], is_ordered: bool, batch_size: int) -> None:
    """Whatever is cut, fixed, killed and given back in between: a packet comes in one batch for ever, and in the end
    everything is settled."""
    model = Forming(is_ordered=is_ordered, batch_size=batch_size)
    model.log += list("aaaaaaaaaaaaaaaa")
    model.scan(16)
    for name, *arguments in steps:
        if name == "tick":
            model.now += 1.0
        else:
            getattr(model, str(name))(*arguments)
    model.scan(10_000)
    for _ in range(300):
        model.now += 1.0
        model.take()
        model.fix(0)
        model.settle(0)
    model.flush()
    assert model.settled == {offset for offset, stream in enumerate(model.log, 1)}
    assert model.rows == {}
    assert model.ledger.is_empty


def test_what_was_settled_is_forgotten() -> None:
    """However long leases would have lasted, no more than a few settled units stay in memory, and those only as timers."""
    ledger = Ledger(cursor(0))
    with nothing_left_of(Item):
        for offset in range(1, 5 * SPARE_TIMERS):
            ledger.add(item(offset, "s"), 0.0)
            ledger.scanned(cursor(offset))
            unit = ledger.take(0.0)
            assert unit is not None
            ledger.lease(unit, 30.0, 0)
            ledger.settle(unit)
            ledger.release(unit)
            assert len(ledger._timers) <= SPARE_TIMERS + 2
        del unit
        ledger.add(item(offset + 1, "s"), 0.0)
        waiting = ledger.take(0.0)
        assert waiting is not None
        ledger.lease(waiting, 30.0, 0)
        assert ledger.next_due() == 30.0
        ledger.settle(waiting)
        del waiting
        ledger.drain()
        ledger.expire(31.0)

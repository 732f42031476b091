"""What one subscription has settled and what is outstanding: a floor, and the items above it in the log's order.

No input or output and no clock: the caller tells the time (seconds that never go back) and writes down what `drain`
gives. Memory leads and the database follows; what must not be seen before it is durable waits for that outside.
"""

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence

from overlayd.delivery.matching import PacketView
from overlayd.delivery.subscriptions.units import Changes, Item, Key, Unit, UnitRow, row_of
from overlayd.model.cursor import Cursor

SPARE_TIMERS = 256
"""Timers of what needs none any more that are kept beside as many as count, before they are looked through."""
HELD_MESSAGES = 8
"""Decoded packets kept of a stream that is held; those behind them are read again when their turn comes."""


class _Stream:
    """One stream's items that nobody took yet. `busy`: the unit that holds it, where order is asked for."""

    __slots__ = ("busy", "loose", "parked", "timer")

    def __init__(self) -> None:
        self.loose: deque[Item] = deque()
        self.busy: Unit | None = None
        self.parked: deque[Unit] = deque()
        self.timer = 0.0


class Ledger:
    """The floor and everything above it. One task at a time changes it, between two awaits."""

    def __init__(
        self, floor: Cursor, rows: Sequence[tuple[UnitRow, float]] = (), *, is_ordered: bool = False,
        batch_size: int = 1, batch_wait_s: float = 0.0, batch_bytes: int = 1 << 62, is_coalescing: bool = False,
    ) -> None:  # fmt: skip
        """`rows`: what was written down before, each with when it is due; the scan from the floor finds their items
        again. `batch_bytes`: payload in a batch, unless one packet alone has more. `is_coalescing`: a packet settles one of the same stream and key that wasn't taken yet."""
        self.floor = floor
        self.position = floor
        self._is_ordered = is_ordered
        self._batch_size = batch_size
        self._batch_wait_s = batch_wait_s
        self._batch_bytes = batch_bytes
        self._newest: dict[tuple[str, str], Item] | None = {} if is_coalescing else None
        self.coalesced = 0
        self._items: deque[Item] = deque()
        self._streams: dict[str, _Stream] = {}
        self._ready: OrderedDict[str, None] = OrderedDict()
        self._due: deque[Unit] = deque()
        self._expired: deque[Unit] = deque()
        self._timers: list[tuple[float, int, Unit | str]] = []
        self._timer_number = 0
        self._timers_max = SPARE_TIMERS
        self._changed: dict[Key, Unit] = {}
        self._gone: list[Key] = []
        self._owed: dict[Key, UnitRow] = {}
        self._dead: dict[int, Unit] = {}
        self._restored: deque[tuple[Unit, UnitRow]] = deque()
        self._restored_by_key: dict[Key, Unit] = {}
        self._loose = 0
        self._held_loose = 0
        self._last_key: Key = (-1, -1, 0)
        self.unsettled = 0
        self.flying = 0
        for row, due in sorted(rows, key=lambda pair: pair[0].key):
            self._restore(row, due)

    def __repr__(self) -> str:
        return f"Ledger(floor={self.floor}, outstanding={self.outstanding}, loose={self._loose}, flying={self.flying})"

    @property
    def outstanding(self) -> int:
        """Items above the floor that were found, settled ones included."""
        return len(self._items)

    @property
    def ready(self) -> int:
        """Items that nobody took yet and whose stream isn't held."""
        return self._loose - self._held_loose

    @property
    def is_empty(self) -> bool:
        """Nothing above the floor that is known, and nothing written down that isn't found again yet."""
        return not self._items and not self._restored

    @property
    def is_restoring(self) -> bool:
        """Whether something that was written down before a restart isn't found again yet."""
        return bool(self._restored)

    @property
    def oldest(self) -> Item | None:
        """The item that holds the floor."""
        return self._items[0] if self._items else None

    @property
    def last_key(self) -> Key:
        """The key of what was added last."""
        return self._last_key

    def items(self) -> Iterator[Item]:
        """Everything above the floor that was found, in the log's order."""
        return iter(self._items)

    def dead(self) -> list[Unit]:
        """Dead letters that are tried again."""
        return list(self._dead.values())

    def settled_before(self) -> list[int]:
        """Offsets of packets that were settled before a restart and weren't found again yet."""
        return [key[0] for key, unit in self._restored_by_key.items() if unit.state == "done" and key[1] == -1]

    # What the scan finds

    def add(self, item: Item, now: float) -> None:
        """The next item in the log's order. One that was settled before a restart stays settled."""
        assert item.key > self._last_key or not self._items
        self._last_key = item.key
        item.arrived = now
        self._items.append(item)
        self.unsettled += 1
        unit = self._restored_by_key.pop(item.key, None)
        if unit is None:
            self._add_loose(item, self._stream(item.stream))
            return
        item.unit = unit
        item.message = item.message if item.kind != "packets" else None
        unit.items.append(item)
        unit.stream = item.stream
        if unit.state == "done":
            self._settle_item(item)
        elif self._is_ordered:
            stream = self._stream(item.stream)
            if stream.busy is None:
                self._hold(stream, unit)
            elif stream.busy is not unit and (not stream.parked or stream.parked[-1] is not unit):
                stream.parked.append(unit)  # begun before order was asked for

    def scanned(self, position: Cursor) -> None:
        """Everything up to the position was looked at."""
        self.position = position
        while self._restored and self._restored[0][1].keys[-1][0] <= position.offset:
            unit, row = self._restored.popleft()
            missing = 0
            for key in row.keys:
                missing += self._restored_by_key.pop(key, None) is not None
            unit.left -= missing
            if not unit.left:
                self._drop(unit)
            elif unit.state != "done":
                self._set_timer(unit.due, unit)
        self._advance()

    def _coalesce(self, item: Item, stream: _Stream, newest: dict[tuple[str, str], Item]) -> None:
        """Settles the packet of the same key that waits, if there is one."""
        view = None if item.message is None else item.message.subject
        if not isinstance(view, PacketView) or not view.meta.key:
            return
        before = newest.get((item.stream, view.meta.key))
        newest[item.stream, view.meta.key] = item
        if before is None or before.unit is not None or before not in stream.loose:
            return
        stream.loose.remove(before)
        self._loose -= 1
        self._held_loose -= stream.busy is not None
        unit = before.unit = Unit(before.key, [before], before.stream, left=1)
        unit.state = "done"
        self._settle_item(before)
        self._change(unit)
        self.coalesced += 1

    def _add_loose(self, item: Item, stream: _Stream) -> None:
        if self._newest is not None:
            self._coalesce(item, stream, self._newest)
        stream.loose.append(item)
        self._loose += 1
        if stream.busy is None:
            self._ready[item.stream] = None
            return
        self._held_loose += 1
        if len(stream.loose) > HELD_MESSAGES and item.kind == "packets":
            item.message = None

    def _restore(self, row: UnitRow, due: float) -> None:
        unit = Unit(row.key, [], "", left=len(row.keys))
        unit.state, unit.attempts, unit.first_us, unit.next_us = row.state, row.attempts, row.first_us, row.next_us
        unit.is_fixed, unit.members, unit.has_row, unit.due = bool(row.members), row.members, True, due
        self._restored.append((unit, row))
        for key in row.keys:
            self._restored_by_key[key] = unit

    # Taking, and what becomes of what was taken

    def take(self, now: float) -> Unit | None:
        """The next unit that may be delivered, now flying; None when there is none at the moment."""
        self._run_timers(now)
        while self._due:
            unit = self._due.popleft()
            if unit.state != "waiting":
                continue
            stream = self._stream(unit.stream)
            if self._is_ordered and stream.busy is not None and stream.busy is not unit:
                if unit.dead_id:
                    stream.parked.append(unit)
                continue  # others are parked from the start
            return self._begin(unit, stream)
        while self._ready:
            name = next(iter(self._ready))
            stream = self._streams[name]
            del self._ready[name]
            taken = self._form(name, stream, now)
            if taken is None:
                continue
            self._begin(taken, stream)
            if stream.loose and stream.busy is None:
                self._ready[name] = None
            return taken
        return None

    def lease(self, unit: Unit, due: float, next_us: int) -> None:
        """A flying unit is given out until then; counts as an attempt."""
        assert unit.state == "flying"
        self.flying -= 1
        unit.state = "leased"
        unit.attempts += 1
        self.extend(unit, due, next_us)

    def extend(self, unit: Unit, due: float, next_us: int) -> None:
        """The lease ends then instead."""
        assert unit.state == "leased"
        unit.next_us = next_us
        self._set_timer(due, unit)
        self._change(unit)

    def hold(self, unit: Unit) -> None:
        """A leased unit is being settled: its lease doesn't end meanwhile."""
        assert unit.state == "leased"
        unit.state = "flying"
        self.flying += 1

    def unhold(self, unit: Unit) -> None:
        """It wasn't settled; the lease goes on as it was."""
        assert unit.state == "flying"
        unit.state = "leased"
        self.flying -= 1
        self._set_timer(unit.due, unit)

    def fix(self, unit: Unit) -> None:
        """The unit's bounds are written down, so that they are the same at every attempt."""
        unit.is_fixed, unit.members = True, tuple(item.key for item in unit.items)
        self._change(unit)

    def cut(self, unit: Unit, count: int) -> None:
        """Only the first items stay in a flying batch whose bounds aren't fixed; the others go back to their stream."""
        assert unit.state == "flying"
        assert not unit.is_fixed
        assert 0 < count < len(unit.items)
        self._put_back(unit, unit.items[count:])
        unit.items = unit.items[:count]
        unit.left = count

    def settle(self, unit: Unit) -> None:
        """Nothing more is to be done for it. Its stream stays held until `release`, once that is durable."""
        assert unit.state != "done"
        self.flying -= unit.state == "flying"
        unit.state = "done"
        if unit.dead_id:
            self._dead.pop(unit.dead_id, None)
            return  # its items stand below the floor
        for item in unit.items:
            self._settle_item(item)
        self._change(unit)
        self._advance()

    def release(self, unit: Unit) -> None:
        """Its stream may go on. Again does nothing."""
        stream = self._streams.get(unit.stream)
        if stream is None:
            return
        if stream.busy is unit:
            stream.busy = None
            self._held_loose -= len(stream.loose)
            while stream.parked and stream.busy is None:
                following = stream.parked.popleft()
                if following.state != "done":
                    self._hold(stream, following)
                    self._due.append(following)
            if stream.loose and stream.busy is None:
                self._ready[unit.stream] = None
        if not stream.loose and stream.busy is None and not stream.parked:
            self._ready.pop(unit.stream, None)
            del self._streams[unit.stream]

    def fail(self, unit: Unit, due: float, next_us: int) -> None:
        """It is tried again then. Where order is asked for its stream waits with it; not so for dead letters."""
        assert unit.state in ("flying", "leased")
        self.flying -= unit.state == "flying"
        unit.state = "waiting"
        unit.next_us = next_us
        self._set_timer(due, unit)
        self._change(unit)
        for item in unit.items:
            item.message = item.message if item.kind != "packets" else None
        if unit.dead_id:
            self.release(unit)

    def give_back(self, unit: Unit, now: float) -> None:
        """A flying unit wasn't tried after all."""
        assert unit.state == "flying"
        if unit.dead_id or unit.attempts or unit.is_fixed:
            self.fail(unit, now, unit.next_us)
            return
        self.flying -= 1
        items, unit.items = unit.items, []
        self._put_back(unit, items)
        self.release(unit)
        self._ready[unit.stream] = None
        self._ready.move_to_end(unit.stream, last=False)

    def add_dead(self, unit: Unit, due: float) -> None:
        """A dead letter that is to be tried again."""
        assert unit.dead_id
        assert unit.state in ("waiting", "leased")
        self._dead[unit.dead_id] = unit
        self._set_timer(due, unit)

    def expire(self, now: float) -> list[Unit]:
        """The units whose lease is over; they stay leased until the caller fails or settles each."""
        self._run_timers(now)
        expired = {id(unit): unit for unit in self._expired if unit.state == "leased" and unit.due <= now}
        self._expired.clear()
        return list(expired.values())

    def next_due(self) -> float | None:
        """When something waiting may be taken, or a lease ends."""
        while self._timers and not self._is_timer_valid(self._timers[0]):
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def drain(self) -> Changes:
        """What is to be written down now. It must be, before what is drained next."""
        rows = []
        for unit in self._changed.values():
            if not unit.left:
                continue
            unit.has_row = True
            rows.append(row_of(unit))
        taken = {*self._gone, *(row.key for row in rows)}
        rows += [row for key, row in self._owed.items() if key not in taken]
        changes = Changes(rows, self._gone)
        self._changed, self._gone, self._owed = {}, [], {}
        return changes

    def discard(self, keys: Iterable[Key]) -> None:
        """Rows of before, which go when this ledger is written down."""
        self._gone += keys

    def owe(self, changes: Changes) -> None:
        """What the ledger before this one had yet to have written down, with the rows that this one began with."""
        self._gone += changes.gone
        self._owed = {row.key: row for row in changes.rows}

    def export(self) -> list[tuple[UnitRow, float]]:
        """The rows that stand in the database, each with when it is due; right once everything drained is written."""
        units = {id(item.unit): item.unit for item in self._items if item.unit is not None}
        rows = [(row_of(unit), unit.due) for unit in units.values() if unit.has_row]
        return [*rows, *((row, unit.due) for unit, row in self._restored)]

    def forget_messages(self) -> None:
        """Packets are read again from the log before they are delivered."""
        for item in self._items:
            if item.kind == "packets":
                item.message = None

    def _form(self, name: str, stream: _Stream, now: float) -> Unit | None:
        """A unit of the stream's next items; None when a batch still waits to get full."""
        if not stream.loose or stream.busy is not None:
            return None
        first, count = stream.loose[0], 1
        if self._batch_size > 1 and first.kind == "packets":
            size = first.size
            while count < min(self._batch_size, len(stream.loose)) and stream.loose[count].kind == "packets":
                size += stream.loose[count].size
                if size > self._batch_bytes:
                    break
                count += 1
            is_full = count == self._batch_size or count < len(stream.loose)
            ripe = first.arrived + self._batch_wait_s
            if not is_full and now < ripe:
                if stream.timer != ripe:
                    stream.timer = ripe
                    self._set_timer(ripe, name)
                return None
        items = [stream.loose.popleft() for _ in range(count)]
        self._loose -= count
        unit = Unit(items[0].key, items, name, left=count)
        for item in items:
            item.unit = unit
        if self._newest is not None and not self._loose:
            self._newest.clear()
        return unit

    def _put_back(self, unit: Unit, items: list[Item]) -> None:
        """Where they stood among what nobody took of the stream yet: others may have been put back before them."""
        stream, last = self._stream(unit.stream), items[-1].key
        for item in items:
            item.unit = None
        self._loose += len(items)
        if stream.busy is not None:
            self._held_loose += len(items)
        before = []
        while stream.loose and stream.loose[0].key < last:
            before.append(stream.loose.popleft())
        stream.loose.extendleft(sorted([*before, *items], key=lambda one: one.key, reverse=True))
        if stream.busy is None:
            self._ready[unit.stream] = None
            self._ready.move_to_end(unit.stream, last=False)

    def _stream(self, name: str) -> _Stream:
        stream = self._streams.get(name)
        if stream is None:
            stream = self._streams[name] = _Stream()
        return stream

    def _begin(self, unit: Unit, stream: _Stream) -> Unit:
        unit.state = "flying"
        self.flying += 1
        if self._is_ordered:
            self._hold(stream, unit)
        return unit

    def _hold(self, stream: _Stream, unit: Unit) -> None:
        if stream.busy is None:
            self._held_loose += len(stream.loose)
            self._ready.pop(unit.stream, None)
        stream.busy = unit

    def _settle_item(self, item: Item) -> None:
        assert not item.is_settled
        item.is_settled = True
        item.message = None
        self.unsettled -= 1

    def _advance(self) -> None:
        """Moves the floor up to the first item that isn't settled."""
        items = self._items
        while items and items[0].is_settled:
            item = items.popleft()
            unit, item.unit = item.unit, None  # else each holds the other until a collector comes by
            assert unit is not None
            unit.left -= 1
            if not unit.left:
                self._drop(unit)
        self.floor = items[0].before if items else self.position

    def _change(self, unit: Unit) -> None:
        if not unit.dead_id:
            self._changed[unit.key] = unit

    def _drop(self, unit: Unit) -> None:
        if self._changed.get(unit.key) is unit:
            del self._changed[unit.key]
        if unit.has_row:
            unit.has_row = False
            self._gone.append(unit.key)

    def _set_timer(self, due: float, what: Unit | str) -> None:
        if isinstance(what, Unit):
            what.due = due
        self._timer_number += 1
        heapq.heappush(self._timers, (due, self._timer_number, what))
        if len(self._timers) > self._timers_max:  # most are of what was settled long before it was due
            self._timers = [timer for timer in self._timers if self._is_timer_valid(timer)]
            heapq.heapify(self._timers)
            self._timers_max = 2 * len(self._timers) + SPARE_TIMERS

    def _is_timer_valid(self, timer: tuple[float, int, Unit | str]) -> bool:
        due, _, what = timer
        if isinstance(what, str):
            stream = self._streams.get(what)
            return stream is not None and stream.timer == due and bool(stream.loose)
        return what.due == due and what.state in ("waiting", "leased")

    def _run_timers(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)
            if not self._is_timer_valid(timer):
                continue
            what = timer[2]
            if isinstance(what, str):
                if self._streams[what].busy is None:
                    self._ready[what] = None
            elif what.state == "leased":
                self._expired.append(what)
            else:
                self._due.append(what)

"""What is delivered: items in the log's order, and the units that they are delivered in."""

from typing import Literal

import msgspec

from overlayd.delivery.frames import Message
from overlayd.model.cursor import Cursor
from overlayd.model.outlet import DeliveryKind

Key = tuple[int, int, int]
"""Trigger's offset, index in its range (-1: it stands for itself), number among what the trigger tells there."""

UnitState = Literal["flying", "waiting", "leased", "done"]


class Item:
    """One thing to deliver. `before` and `after`: where to resume to get it again, and to go on behind it.

    `packet_offset`: where the packet stands, which isn't the trigger's offset for confirmations; 0 for notices.
    `size`: bytes of its payload.
    `message` is dropped when it may stay long; packets are read again from the log.
    """

    __slots__ = (
        "after", "arrived", "before", "is_settled", "key", "kind", "message", "packet_offset", "size", "stream",
        "trigger_us", "unit",
    )  # fmt: skip

    def __init__(
        self, key: Key, kind: DeliveryKind, stream: str, *, before: Cursor, after: Cursor, message: Message | None,
        packet_offset: int = 0, trigger_us: int = 0, size: int = 0,
    ) -> None:  # fmt: skip
        self.key = key
        self.kind = kind
        self.stream = stream
        self.before = before
        self.after = after
        self.message = message
        self.packet_offset = packet_offset
        self.size = size
        self.trigger_us = trigger_us
        self.arrived = 0.0
        self.is_settled = False
        self.unit: Unit | None = None

    def __repr__(self) -> str:
        return f"Item({self.key}, {self.kind}, settled={self.is_settled})"


class Unit:
    """What is delivered at once: an item, or a batch of one stream's packets whose bounds stay as they are.

    `attempts`: those that ended, or leases that began; `attempts_before`: those of them that don't count any more,
    because somebody had a dead letter tried again. `due`: when it may fly again, or when its lease ends; `next_us`
    is the same as wall time. `members`: keys of all that a batch was fixed with, by which it is called; another definition
    may have left it with fewer `items`. `dead_id`: a dead letter that is tried again, which moves no floor.
    """

    __slots__ = (
        "attempts", "attempts_before", "dead_id", "due", "first_us", "has_row", "is_fixed", "items", "key", "left", "members", "next_us",
        "state", "stream",
    )  # fmt: skip

    def __init__(self, key: Key, items: list[Item], stream: str, *, left: int, dead_id: int = 0) -> None:
        self.key = key
        self.items = items
        self.stream = stream
        self.left = left
        self.dead_id = dead_id
        self.state: UnitState = "waiting"
        self.is_fixed = False
        self.members: tuple[Key, ...] = ()
        self.has_row = False
        self.attempts = 0
        self.attempts_before = 0
        self.first_us = 0
        self.next_us = 0
        self.due = 0.0

    @property
    def tries(self) -> int:
        """Attempts that count."""
        return self.attempts - self.attempts_before

    def offsets(self) -> tuple[int, int]:
        """Where its packets stand, the first and the last, or what tells of them."""
        offsets = [item.packet_offset or item.key[0] for item in self.items]
        return min(offsets), max(offsets)

    def __repr__(self) -> str:
        return f"Unit({self.key}, {self.state}, items={len(self.items)}, attempts={self.attempts})"


class UnitRow(msgspec.Struct, frozen=True):
    """A unit as it is written down. `members`: the keys of a batch. One that flies is written as `waiting`: after a
    crash it is tried again."""

    key: Key
    state: Literal["waiting", "leased", "done"]
    attempts: int = 0
    first_us: int = 0
    next_us: int = 0
    members: tuple[Key, ...] = ()

    @property
    def keys(self) -> tuple[Key, ...]:
        """Of all its items."""
        return self.members or (self.key,)


class Changes(msgspec.Struct):
    """Rows to write, and keys of rows to take away, since the last time."""

    rows: list[UnitRow]
    gone: list[Key]


def row_of(unit: Unit) -> UnitRow:
    """The unit as it is written down."""
    assert unit.items
    return UnitRow(
        key=unit.key,
        state=unit.state if unit.state != "flying" else "waiting",
        attempts=unit.attempts,
        first_us=unit.first_us,
        next_us=unit.next_us,
        members=unit.members,
    )

"""The tables of durable subscriptions, and everything that reads or writes them.

Writes take one JSON argument for many rows: each step of a statement gives the interpreter's lock up and takes it
back, so a round of settlements is a handful of statements however many subscriptions it is about.
"""

import bisect
import sqlite3
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from overlayd.delivery.agents.brakes import RunCount
from overlayd.delivery.subscriptions.units import Key, Unit, UnitRow, row_of
from overlayd.model.cursor import Cursor, Epoch
from overlayd.model.subscription import decode_subscription
from overlayd.storage.migrations import Feature

_TABLES = """
CREATE TABLE subscription (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,  -- api, or the place in the config file that declares it
    principal TEXT NOT NULL,  -- JSON: for whom it reads
    created_us INTEGER NOT NULL,
    definition BLOB NOT NULL
) STRICT;
CREATE TABLE subscription_state (
    number INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL,  -- of the floor
    floor INTEGER NOT NULL,
    floor_index INTEGER,
    is_shared INTEGER NOT NULL,  -- also settled: everything up to subscription_position
    rest TEXT NOT NULL  -- JSON
) STRICT;
CREATE TABLE subscription_position (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    epoch INTEGER NOT NULL,
    offset INTEGER NOT NULL
) STRICT;
CREATE TABLE subscription_unit (
    number INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    part INTEGER NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    first_us INTEGER NOT NULL,
    next_us INTEGER NOT NULL,
    members TEXT NOT NULL,
    PRIMARY KEY (number, offset, idx, part)
) STRICT, WITHOUT ROWID;
CREATE TABLE subscription_attempt (
    number INTEGER NOT NULL,
    slot INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (number, slot)
) STRICT, WITHOUT ROWID;
CREATE TABLE subscription_dead (
    id INTEGER PRIMARY KEY,
    number INTEGER NOT NULL,
    died_us INTEGER NOT NULL,
    is_queued INTEGER NOT NULL,
    first_offset INTEGER NOT NULL,
    last_offset INTEGER NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX subscription_dead_number ON subscription_dead (number, id);
CREATE INDEX subscription_dead_died ON subscription_dead (died_us);
"""

_SAID = """
ALTER TABLE subscription_attempt ADD COLUMN said_from INTEGER;
ALTER TABLE subscription_attempt ADD COLUMN said_to INTEGER;
ALTER TABLE subscription_dead ADD COLUMN said_from INTEGER;
ALTER TABLE subscription_dead ADD COLUMN said_to INTEGER;
UPDATE subscription_attempt SET said_from = 0, said_to = (1 << 62);
UPDATE subscription_dead SET said_from = first_offset, said_to = last_offset;
CREATE INDEX subscription_attempt_said ON subscription_attempt (said_to, said_from) WHERE said_to IS NOT NULL;
CREATE INDEX subscription_dead_said ON subscription_dead (said_to, said_from) WHERE said_to IS NOT NULL;
"""
"""What receivers answered is found by the packets that it was about, NULL where they said nothing. Of older attempts nobody
knows which these were."""

FEATURE = Feature(
    "subscriptions", (_TABLES, _SAID),
    sound={
        "subscription": lambda row: (decode_subscription(row["definition"]), msgspec.json.decode(row["principal"])),
        "subscription_state": lambda row: msgspec.json.decode(row["rest"], type=Rest),
        "subscription_unit": lambda row: msgspec.json.decode(row["members"] or "[]", type=tuple[Key, ...]),
        "subscription_attempt": lambda row: msgspec.json.decode(row["body"], type=AttemptBody),
        "subscription_dead": lambda row: msgspec.json.decode(row["body"], type=DeadBody),
    },
)  # fmt: skip
ROWS_PER_DELETE = 2000

State = Literal["active", "paused", "disabled"]
Runs = tuple[tuple[int, int], ...]


class Rest(msgspec.Struct, array_like=True):
    """What a subscription's state holds beside its floor. Times are Unix microseconds, 0 for never.

    `start`: nothing up to this offset was given. `told`: runs of offsets that it knows it won't get. `failing_us`:
    for how long nothing but failures, as far as the node was there to see it. `hold_us`: nothing is sent before then.
    `generation`: leases of earlier ones don't count. `declared`: hash of the secret that the configuration gives.
    `runs`: of an agent. `given_to`: everything up to this offset may have been given before it was sought back.
    """

    state: State = "active"
    reason: str = ""
    start: int = 0
    told: Runs = ()
    generation: int = 1
    delivered: int = 0
    failed: int = 0
    attempts: int = 0
    last_success_us: int = 0
    last_failure_us: int = 0
    last_error: str = ""
    failing_us: int = 0
    hold_us: int = 0
    disabled_us: int = 0
    declared: str = ""
    runs: RunCount = RunCount()
    given_to: int = 0


class StateRow(msgspec.Struct, frozen=True):
    """Where one subscription stands."""

    number: int
    floor: Cursor
    is_shared: bool
    rest: Rest


class StoredSubscription(msgspec.Struct, frozen=True):
    """One subscription as it is read at the start. `rows`: its units."""

    number: int
    id: str
    name: str
    owner: str
    principal: bytes
    created_us: int
    definition: bytes
    state: StateRow
    rows: list[UnitRow]


class AttemptBody(msgspec.Struct, array_like=True):
    """One attempt, as it is kept for a while. `first_offset`, `last_offset`: where the packets stand that it was about, or
    what told of them; 0 where nobody wrote that down."""

    at_us: int
    delivery_id: str
    attempt: int
    outcome: str
    reason: str
    status: int | None
    duration_us: int
    excerpt: str
    first_offset: int = 0
    last_offset: int = 0


class DeadBody(msgspec.Struct, array_like=True):
    """A delivery that exhausted its retries. `members`: keys of its items,
    where their packets stand, and the indexes of their cursors. `cursors`: in front of
    it and behind it. `notice`: what it told, where that was no packet."""

    delivery_id: str
    kind: str
    stream: str
    cursors: tuple[str, str]
    members: list[tuple[Key, int, int | None]]
    reason: str
    status: int | None
    excerpt: str
    attempts: int
    first_us: int
    notice: str = ""
    trigger_us: int = 0

    def offsets(self) -> tuple[int, int]:
        """Where the packets stand that it is about, the first and the last, or what told of them."""
        offsets = [offset or key[0] for key, offset, _ in self.members]
        return min(offsets), max(offsets)


class DeadRow(msgspec.Struct, frozen=True):
    """A dead letter. `is_queued`: it is being tried again."""

    id: int
    number: int
    died_us: int
    is_queued: bool
    body: DeadBody


class Loaded(msgspec.Struct):
    """Everything that a start needs."""

    subscriptions: list[StoredSubscription]
    position: Cursor | None
    queued: list[DeadRow]
    dead_counts: dict[int, int]
    last_dead_id: int
    last_number: int


class Round(msgspec.Struct):
    """What one transaction writes, as JSON texts where there is anything."""

    states: list[tuple[int, int, int, int | None, int, str]] = msgspec.field(default_factory=list)
    units: list[tuple[int, int, int, int, str, int, int, int, str]] = msgspec.field(default_factory=list)
    gone: list[tuple[int, int, int, int]] = msgspec.field(default_factory=list)
    attempts: list[tuple[int, int, str, int | None, int | None]] = msgspec.field(default_factory=list)
    dead: list[tuple[int, int, int, int, int, int, str, int | None, int | None]] = msgspec.field(default_factory=list)
    dead_gone: list[int] = msgspec.field(default_factory=list)
    position: Cursor | None = None

    def add_state(self, row: StateRow) -> None:
        self.states.append(
            (row.number, row.floor.epoch, row.floor.offset, row.floor.index, int(row.is_shared), _text(row.rest))
        )

    def add_unit(self, number: int, row: UnitRow) -> None:
        members = _text(row.members) if row.members else ""
        self.units.append((number, *row.key, row.state, row.attempts, row.first_us, row.next_us, members))

    def add_gone(self, number: int, key: Key) -> None:
        self.gone.append((number, *key))

    def add_attempt(self, number: int, slot: int, body: AttemptBody) -> None:
        said = (body.first_offset, body.last_offset or 1 << 62) if body.excerpt else (None, None)
        self.attempts.append((number, slot, _text(body), *said))

    def add_dead(self, row: DeadRow) -> None:
        first, last = row.body.offsets()
        said = (first, last) if row.body.excerpt else (None, None)
        self.dead.append((row.id, row.number, row.died_us, int(row.is_queued), first, last, _text(row.body), *said))

    def write(self, connection: sqlite3.Connection) -> None:
        """In the writer's transaction."""
        for rows, statement in (
            (self.gone, _DELETE_UNITS), (self.units, _PUT_UNITS), (self.states, _PUT_STATES),
            (self.attempts, _PUT_ATTEMPTS), (self.dead, _PUT_DEAD), (self.dead_gone, _DELETE_DEAD),
        ):  # fmt: skip
            if rows:
                connection.execute(statement, (_text(rows),))
        if self.position is not None:
            values = (self.position.epoch, self.position.offset)
            connection.execute("INSERT OR REPLACE INTO subscription_position VALUES (1, ?, ?)", values)


def _columns(count: int) -> str:
    return ", ".join(f"value ->> {number}" for number in range(count))


_PUT_STATES = f"INSERT OR REPLACE INTO subscription_state SELECT {_columns(6)} FROM json_each(?)"  # noqa: S608 - constants
_PUT_UNITS = f"INSERT OR REPLACE INTO subscription_unit SELECT {_columns(9)} FROM json_each(?)"  # noqa: S608 - constants
_DELETE_UNITS = f"""DELETE FROM subscription_unit WHERE (number, offset, idx, part) IN
    (SELECT {_columns(4)} FROM json_each(?))"""  # noqa: S608 - constants
_PUT_ATTEMPTS = f"INSERT OR REPLACE INTO subscription_attempt SELECT {_columns(5)} FROM json_each(?)"  # noqa: S608 - constants
_PUT_DEAD = f"INSERT OR REPLACE INTO subscription_dead SELECT {_columns(9)} FROM json_each(?)"  # noqa: S608 - constants
_DELETE_DEAD = "DELETE FROM subscription_dead WHERE id IN (SELECT value FROM json_each(?))"
_WITH_EXCERPTS = (("subscription_attempt", "number, slot"), ("subscription_dead", "id"))
"""Tables and their keys. The excerpt is at 7 in `AttemptBody` and in `DeadBody`."""


def settling_statement(number: int, unit: Unit) -> tuple[str, tuple[Any, ...]]:
    """What makes it durable that nothing more is to be done for a unit, with something else in the same transaction.

    Nothing happens for a subscription that is gone. A dead letter is taken away.
    """
    if unit.dead_id:
        return "DELETE FROM subscription_dead WHERE id = ?", (unit.dead_id,)
    row = msgspec.structs.replace(row_of(unit), state="done")
    members = _text(row.members) if row.members else ""
    values = (number, *row.key, row.state, row.attempts, row.first_us, row.next_us, members)
    return (
        "INSERT OR REPLACE INTO subscription_unit SELECT ?, ?, ?, ?, ?, ?, ?, ?, ? "
        "WHERE EXISTS (SELECT 1 FROM subscription WHERE number = ?)",
        (*values, number),
    )


def floor_statement(number: int, floor: Cursor) -> tuple[str, tuple[Any, ...]]:
    """The same for everything up to a cursor, of a subscription whose floor is moved by its reader."""
    return (
        "UPDATE subscription_state SET epoch = ?, floor = ?, floor_index = ? WHERE number = ?",
        (floor.epoch, floor.offset, floor.index, number),
    )


def insert_subscription(
    connection: sqlite3.Connection, number: int, id: str, name: str, owner: str, principal: bytes, created_us: int,
    definition: bytes,
) -> None:  # fmt: skip
    """Adds it, or replaces what is said about it."""
    connection.execute(
        "INSERT OR REPLACE INTO subscription VALUES (?, ?, ?, ?, ?, ?, ?)",
        (number, id, name, owner, principal.decode(), created_us, definition),
    )


def delete_subscription(connection: sqlite3.Connection, number: int) -> None:
    """All of it but its dead letters, which go before, a slice at a time."""
    for table in ("subscription", "subscription_state", "subscription_unit", "subscription_attempt"):
        connection.execute(f"DELETE FROM {table} WHERE number = ?", (number,))  # noqa: S608 - constants


def clear_units(connection: sqlite3.Connection, number: int) -> None:
    """Nothing of it is outstanding any more."""
    connection.execute("DELETE FROM subscription_unit WHERE number = ?", (number,))


def queue_dead(connection: sqlite3.Connection, ids: Sequence[int]) -> list[int]:
    """Parked letters are tried again; gives the ids of those that are still there."""
    ask = "UPDATE subscription_dead SET is_queued = 1 WHERE id IN (SELECT value FROM json_each(?)) RETURNING id"
    return [row[0] for row in connection.execute(ask, (_text(ids),)).fetchall()]


def discard_dead(connection: sqlite3.Connection, ids: Sequence[int]) -> int:
    """Throws parked letters away; gives how many were still there."""
    ask = "DELETE FROM subscription_dead WHERE id IN (SELECT value FROM json_each(?)) AND NOT is_queued"
    return connection.execute(ask, (_text(ids),)).rowcount


def delete_dead(connection: sqlite3.Connection, number: int) -> list[int]:
    """Some of its dead letters, a slice at a time; gives their ids."""
    found = connection.execute(
        "SELECT id FROM subscription_dead WHERE number = ? ORDER BY id LIMIT ?", (number, ROWS_PER_DELETE)
    ).fetchall()
    ids = [row[0] for row in found]
    connection.execute(_DELETE_DEAD, (_text(ids),))
    return ids


def expire_dead(connection: sqlite3.Connection, before_us: int) -> list[tuple[int, int]]:
    """Takes parked letters away that died before a time, a slice at a time; gives (id, number) of each."""
    found = connection.execute(
        "SELECT id, number FROM subscription_dead WHERE died_us < ? AND NOT is_queued ORDER BY died_us LIMIT ?",
        (before_us, ROWS_PER_DELETE),
    ).fetchall()
    connection.execute(_DELETE_DEAD, (_text([row[0] for row in found]),))
    return found


def oldest_dead(connection: sqlite3.Connection, number: int, count: int) -> list[int]:
    """Ids of the oldest parked letters."""
    found = connection.execute(
        "SELECT id FROM subscription_dead WHERE number = ? AND NOT is_queued ORDER BY id LIMIT ?", (number, count)
    ).fetchall()
    return [row[0] for row in found]


def read_dead(
    connection: sqlite3.Connection, number: int, *, after: int = 0, upto: int = (1 << 63) - 1, limit: int = 1
) -> list[DeadRow]:
    """Dead letters with ids after one, up to another (inclusive), ascending."""
    found = connection.execute(
        "SELECT id, number, died_us, is_queued, body FROM subscription_dead "
        "WHERE number = ? AND id > ? AND id <= ? ORDER BY id LIMIT ?",
        (number, after, upto, limit),
    ).fetchall()
    return [_dead_of(row) for row in found]


def read_attempts(connection: sqlite3.Connection, number: int) -> list[AttemptBody]:
    """The attempts that are kept, newest first."""
    found = connection.execute("SELECT body FROM subscription_attempt WHERE number = ?", (number,)).fetchall()
    bodies = [_decode_attempt(row[0]) for row in found]
    return sorted(bodies, key=lambda body: (body.at_us, body.attempt), reverse=True)


def clear_excerpts(connection: sqlite3.Connection, offsets: Sequence[int]) -> None:
    """For the erasure of packets, by their ascending offsets: what receivers answered may repeat what they were sent."""
    if not offsets:
        return
    for table, key in _WITH_EXCERPTS:
        rows = connection.execute(
            f"SELECT said_from, said_to, {key} FROM {table} WHERE said_to >= ? AND said_from <= ?",  # noqa: S608 - constants
            (offsets[0], offsets[-1]),
        )
        keys = [row[2:] for row in rows if is_about(row[0], row[1], offsets)]
        if keys:
            columns = ", ".join(f"value ->> {number}" for number in range(len(keys[0])))
            connection.execute(
                f"UPDATE {table} SET said_from = NULL, said_to = NULL,"  # noqa: S608 - constants
                " body = iif(json_valid(body), json_set(body, '$[7]', ''), '')"
                f" WHERE ({key}) IN (SELECT {columns} FROM json_each(?))",
                (_text(keys),),
            )


def is_about(first: int, last: int, offsets: Sequence[int]) -> bool:
    """Whether one of some ascending offsets lies in a range, inclusive."""
    at = bisect.bisect_left(offsets, first)
    return at < len(offsets) and offsets[at] <= last


def load(connection: sqlite3.Connection) -> Loaded:
    """Everything but attempts and parked dead letters. One read transaction."""
    units: dict[int, list[UnitRow]] = {}
    for number, *key, state, attempts, first_us, next_us, members in connection.execute(
        "SELECT * FROM subscription_unit ORDER BY number, offset, idx, part"
    ):
        offset, index, part = key
        row = UnitRow((offset, index, part), state, attempts, first_us, next_us, _decode_members(members or "[]"))
        units.setdefault(number, []).append(row)
    subscriptions = []
    for (
        number,
        id,
        name,
        owner,
        principal,
        created_us,
        definition,
        epoch,
        floor,
        index,
        is_shared,
        rest,
    ) in connection.execute(
        "SELECT subscription.*, epoch, floor, floor_index, is_shared, rest "
        "FROM subscription JOIN subscription_state USING (number) ORDER BY number"
    ):
        state = StateRow(number, Cursor(Epoch(epoch), floor, index), bool(is_shared), _decode_rest(rest))
        subscriptions.append(
            StoredSubscription(
                number, id, name, owner, principal.encode(), created_us, definition, state, units.get(number, [])
            )
        )
    position = connection.execute("SELECT epoch, offset FROM subscription_position").fetchone()
    queued = connection.execute(
        "SELECT id, number, died_us, is_queued, body FROM subscription_dead WHERE is_queued ORDER BY id"
    ).fetchall()
    counts = connection.execute("SELECT number, count(*) FROM subscription_dead GROUP BY number").fetchall()
    (last_dead_id,) = connection.execute("SELECT coalesce(max(id), 0) FROM subscription_dead").fetchone()
    (last_number,) = connection.execute("SELECT coalesce(max(number), 0) FROM subscription").fetchone()
    return Loaded(
        subscriptions,
        None if position is None else Cursor(Epoch(position[0]), position[1]),
        [_dead_of(row) for row in queued],
        dict(counts),
        last_dead_id,
        last_number,
    )


def _dead_of(row: tuple[int, int, int, int, str]) -> DeadRow:
    id, number, died_us, is_queued, body = row
    return DeadRow(id, number, died_us, bool(is_queued), _decode_dead(body))


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


_decode_rest = msgspec.json.Decoder(Rest).decode
_decode_attempt = msgspec.json.Decoder(AttemptBody).decode
_decode_dead = msgspec.json.Decoder(DeadBody).decode
_decode_members = msgspec.json.Decoder(tuple[Key, ...]).decode

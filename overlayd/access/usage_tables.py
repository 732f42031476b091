"""Usage on the disk: counts by hour, principal, stream and method, and the deliveries that are over."""

import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from overlayd.model.quota import HOUR_US
from overlayd.model.usage import Counts, EndedDelivery
from overlayd.storage.migrations import Feature

USAGE_FEATURE = Feature(
    "usage",
    (
        """
CREATE TABLE usage_hour (
    principal TEXT NOT NULL,
    hour INTEGER NOT NULL,  -- since 1970
    stream TEXT NOT NULL,  -- or the pattern that the reader named
    method TEXT NOT NULL,
    requests INTEGER NOT NULL,
    packets INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    errors INTEGER NOT NULL,
    latency_us INTEGER NOT NULL,
    latencies INTEGER NOT NULL,
    latency_max_us INTEGER NOT NULL,
    completions INTEGER NOT NULL,
    completed_ppm INTEGER NOT NULL,
    PRIMARY KEY (principal, hour, stream, method)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_hour_by_hour ON usage_hour (hour);
CREATE TABLE streaming_usage (
    id INTEGER PRIMARY KEY,
    session TEXT NOT NULL,
    stream TEXT NOT NULL,
    principal TEXT NOT NULL,
    method TEXT NOT NULL,
    address_hash TEXT NOT NULL,
    started_us INTEGER NOT NULL,
    ended_us INTEGER NOT NULL,
    packets INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    errors INTEGER NOT NULL,
    completed_ppm INTEGER NOT NULL,
    reason TEXT NOT NULL
) STRICT;
CREATE INDEX streaming_usage_by_principal ON streaming_usage (principal, id);
""",
        """
ALTER TABLE streaming_usage ADD COLUMN latency_us INTEGER NOT NULL DEFAULT 0;  -- mean; 0: nothing was measured
""",
    ),
)
PRUNED_AT_ONCE = 1000
_FIELDS = Counts.__struct_fields__
_ADD = (
    f"INSERT INTO usage_hour (principal, hour, stream, method, {', '.join(_FIELDS)})"  # noqa: S608 - names of a struct
    f" VALUES (?, ?, ?, ?, {', '.join('?' * len(_FIELDS))}) ON CONFLICT DO UPDATE SET "
    + ", ".join(
        f"{name} = max({name}, excluded.{name})" if name == "latency_max_us" else f"{name} = {name} + excluded.{name}"
        for name in _FIELDS
    )
)
_SUMS = ", ".join(
    f"max({name}) AS {name}" if name == "latency_max_us" else f"sum({name}) AS {name}" for name in _FIELDS
)


class UsageKey(NamedTuple):
    """What is counted apart."""

    principal: str
    stream: str
    method: str


class UsageRow(msgspec.Struct):
    """Counts of a span of hours."""

    hour: int
    key: UsageKey
    counts: Counts


class UsageAsk(msgspec.Struct, frozen=True):
    """What of the usage is asked for; "" for all. `from_hour` is in, `to_hour` isn't. `hours`: how many make a row."""

    from_hour: int
    to_hour: int
    hours: int
    principal: str = ""
    stream: str = ""
    method: str = ""
    after: tuple[int, str, str, str] | None = None
    limit: int = 100


def add_counts(connection: sqlite3.Connection, now_us: int, counts: Mapping[UsageKey, Counts]) -> None:
    """Adds to the hour's rows."""
    hour = now_us // HOUR_US
    connection.executemany(
        _ADD, [(key.principal, hour, key.stream, key.method, *_values(found)) for key, found in counts.items()]
    )


def read_used(connection: sqlite3.Connection, principal: str, from_us: int, to_us: int) -> tuple[int, int]:
    """Bytes and requests of a principal in whole hours."""
    row = connection.execute(
        "SELECT coalesce(sum(bytes), 0), coalesce(sum(requests), 0) FROM usage_hour"
        " WHERE principal = ? AND hour >= ? AND hour < ?",
        (principal, from_us // HOUR_US, to_us // HOUR_US),
    ).fetchone()
    return int(row[0]), int(row[1])


def read_usage(connection: sqlite3.Connection, ask: UsageAsk) -> list[UsageRow]:
    """Rows in the order of time, then of principal, stream and method."""
    where, values = ["hour >= ?", "hour < ?"], [ask.from_hour, ask.to_hour]
    arguments: list[Any] = list(values)
    for name in ("principal", "stream", "method"):
        if getattr(ask, name):
            where.append(f"{name} = ?")
            arguments.append(getattr(ask, name))
    span = f"(hour - {ask.from_hour}) / {ask.hours} * {ask.hours} + {ask.from_hour}"
    having = ""
    if ask.after is not None:
        having = "HAVING (span, principal, stream, method) > (?, ?, ?, ?)"
        arguments += ask.after
    rows = connection.execute(
        f"SELECT {span} AS span, principal, stream, method, {_SUMS} FROM usage_hour WHERE {' AND '.join(where)}"  # noqa: S608 - numbers and names of ours
        f" GROUP BY span, principal, stream, method {having} ORDER BY span, principal, stream, method LIMIT ?",
        (*arguments, ask.limit),
    )
    return [UsageRow(row[0], UsageKey(*row[1:4]), Counts(*row[4:])) for row in rows]


def add_deliveries(connection: sqlite3.Connection, ended: Iterable[tuple[EndedDelivery, str]]) -> None:
    """Deliveries with the hashes of their addresses."""
    connection.executemany(
        "INSERT INTO streaming_usage (session, stream, principal, method, address_hash, started_us, ended_us, packets,"
        " bytes, errors, completed_ppm, reason, latency_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (one.session, one.stream, one.principal, one.method, hashed, one.started_us, one.ended_us, one.packets,
             one.bytes, one.errors, one.completed_ppm, one.reason, one.latency_us)
            for one, hashed in ended
        ],
    )  # fmt: skip


def read_deliveries(
    connection: sqlite3.Connection, principal: str, stream: str, before: int, limit: int
) -> list[tuple[Any, ...]]:
    """The newest first: id, session, stream and so on, as in the table. "" for all."""
    where, values = ["id < ?"], [before]
    arguments: list[Any] = list(values)
    for name, value in (("principal", principal), ("stream", stream)):
        if value:
            where.append(f"{name} = ?")
            arguments.append(value)
    return connection.execute(
        f"SELECT * FROM streaming_usage WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT ?",  # noqa: S608 - names of ours
        (*arguments, limit),
    ).fetchall()


def prune(connection: sqlite3.Connection, before_hour: int, before_us: int, rows_max: int) -> int:
    """Takes old rows away, a bounded number at a time; gives how many."""
    old = connection.execute(
        "DELETE FROM usage_hour WHERE (principal, hour, stream, method) IN"
        " (SELECT principal, hour, stream, method FROM usage_hour WHERE hour < ? LIMIT ?)",
        (before_hour, PRUNED_AT_ONCE),
    ).rowcount
    over = connection.execute(
        "DELETE FROM streaming_usage WHERE id IN"
        " (SELECT id FROM (SELECT id, ended_us FROM streaming_usage ORDER BY id LIMIT ?)"
        " WHERE ended_us < ? OR id <= (SELECT max(id) FROM streaming_usage) - ?)",
        (PRUNED_AT_ONCE, before_us, rows_max),
    ).rowcount
    return old + over


def _values(counts: Counts) -> tuple[int, ...]:
    return tuple(getattr(counts, name) for name in _FIELDS)

"""Facts into rows. What a session looks like depends on which facts there are, never on their order or repetition.

Every function here runs in the writer's transaction, in its thread.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import msgspec

from overlayd.dialects.agentpipe.checks import time_us_of
from overlayd.dialects.agentpipe.facts import Agent, Ended, Failure, Message, Started, Status, pico, whole
from overlayd.dialects.agentpipe.tables import TABLES

SessionFact: TypeAlias = Started | Message | Ended | Failure
SUM_MAX = (1 << 63) - 1

_encode = msgspec.json.Encoder(order="deterministic").encode
_started = msgspec.json.Decoder(Started).decode
_ended = msgspec.json.Decoder(Ended).decode
_failure = msgspec.json.Decoder(Failure).decode


class Placed(msgspec.Struct, frozen=True):
    """A fact with the packet that says so. `original_id`: what an uploaded session was called before."""

    fact: SessionFact
    stream: str
    stream_hash: bytes
    offset: int
    appended_us: int
    original_id: str = ""


class Removed(msgspec.Struct, frozen=True):
    """Packets of a stream were taken away; offsets, both ends inclusive."""

    stream_hash: bytes
    from_offset: int
    to_offset: int


Change: TypeAlias = Placed | Removed


class Progress(msgspec.Struct, frozen=True):
    """How far the read model has got. `position`: the last offset looked at. `version`: the last that changed it."""

    epoch: int
    position: int
    version: int


def read_progress(connection: sqlite3.Connection) -> Progress:
    """Where it stands; at the beginning for a new one."""
    found = dict(connection.execute("SELECT key, value FROM agentpipe_state"))
    return Progress(found.get("epoch", 0), found.get("position", 0), found.get("version", 0))


def write_progress(connection: sqlite3.Connection, progress: Progress) -> None:
    """Notes where it stands, with what it stands for."""
    rows = msgspec.structs.asdict(progress).items()
    connection.executemany("INSERT OR REPLACE INTO agentpipe_state (key, value) VALUES (?, ?)", rows)


def apply(connection: sqlite3.Connection, changes: Sequence[Change], progress: Progress) -> int:
    """Brings the tables to a position; gives how many sessions are active then."""
    touched: dict[str, None] = {}
    for change in changes:
        if isinstance(change, Removed):
            touched |= dict.fromkeys(_remove(connection, change))
        else:
            _place(connection, change)
            touched[change.fact.conversation] = None
    for session in touched:
        _settle(connection, session)
    write_progress(connection, progress)
    return count_active(connection)


def count_active(connection: sqlite3.Connection) -> int:
    """Sessions that go on."""
    return int(connection.execute("SELECT count(*) FROM agentpipe_session WHERE status = 'ACTIVE'").fetchone()[0])


def read_recent_offsets(connection: sqlite3.Connection, limit: int) -> list[int]:
    """Where the newest streamed messages stand in the log, oldest first."""
    rows = connection.execute(
        "SELECT m.offset FROM agentpipe_message AS m JOIN agentpipe_session AS s ON s.id = m.session"
        " WHERE s.source <> 'upload' ORDER BY m.number DESC LIMIT ?",
        (limit,),
    )
    return sorted(offset for (offset,) in rows)


def clear(connection: sqlite3.Connection, epoch: int) -> None:
    """Takes everything away, to be made again from the log's beginning."""
    connection.execute("INSERT INTO agentpipe_text (agentpipe_text) VALUES ('delete-all')")
    for table in TABLES:
        connection.execute(f"DELETE FROM {table}")
    write_progress(connection, Progress(epoch, 0, 0))


def _place(connection: sqlite3.Connection, placed: Placed) -> None:
    fact, session = placed.fact, placed.fact.conversation
    connection.execute(
        "INSERT INTO agentpipe_session (id, stream, stream_hash, created_us, updated_us, original_id)"
        " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET stream_hash = excluded.stream_hash,"
        " created_us = min(created_us, excluded.created_us), updated_us = max(updated_us, excluded.updated_us),"
        " original_id = max(original_id, excluded.original_id)",
        (session, placed.stream, placed.stream_hash, placed.appended_us, placed.appended_us, placed.original_id),
    )
    if isinstance(fact, Message):
        _place_message(connection, fact, placed.offset)
        return
    kind = {Started: "started", Ended: "ended", Failure: "failure"}[type(fact)]
    connection.execute(
        "INSERT OR IGNORE INTO agentpipe_fact (session, kind, offset, time_us, body) VALUES (?, ?, ?, ?, ?)",
        (session, kind, placed.offset, time_us_of(fact.time), _encode(fact)),
    )


def _place_message(connection: sqlite3.Connection, fact: Message, offset: int) -> None:
    agent_id = fact.agent_id or f"{fact.conversation}-{fact.agent_type}"
    time_us = time_us_of(fact.time)
    cursor = connection.execute(
        "INSERT OR IGNORE INTO agentpipe_message (session, id, offset, time_us, time, sequence, turn, agent_id, agent_name,"
        " agent_type, agent_version, role, content, model, tokens, input_tokens, output_tokens, cost, duration_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            fact.conversation, fact.id, offset, time_us, fact.time, _real(fact.sequence), _real(fact.turn), agent_id,
            fact.agent_name, fact.agent_type, fact.agent_version, fact.role, fact.content, fact.model,
            _real(fact.tokens), _real(fact.input_tokens), _real(fact.output_tokens), _real(fact.cost),
            _real(fact.duration_ms),
        ),
    )  # fmt: skip
    if not cursor.rowcount:
        return
    connection.execute(
        "INSERT INTO agentpipe_text (rowid, content) VALUES (?, ?)", (cursor.lastrowid, fact.content)
    )  # fmt: skip
    _add_sums(connection, fact.conversation, [(fact.tokens, fact.cost, fact.duration_ms)])
    body = _encode(Agent(agent_id, fact.agent_type, fact.agent_name, fact.agent_version, fact.model))
    connection.execute(
        "INSERT INTO agentpipe_agent (session, agent_id, is_declared, place, message, agent_type, agent_name, model, body)"
        " VALUES (?, ?, 0, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET place = excluded.place,"
        " message = excluded.message, agent_type = excluded.agent_type, agent_name = excluded.agent_name,"
        " model = excluded.model, body = excluded.body WHERE (excluded.place, excluded.message) < (place, message)",
        (fact.conversation, agent_id, time_us, fact.id, fact.agent_type, fact.agent_name, fact.model, body),
    )


def _add_sums(
    connection: sqlite3.Connection, session: str, rows: Iterable[tuple[float | None, float | None, float | None]]
) -> None:
    """Adds messages' tokens, costs and durations to the session's sums."""
    held = connection.execute(
        "SELECT messages, tokens, cost, duration FROM agentpipe_session WHERE id = ?", (session,)
    ).fetchone()
    messages, tokens, cost, duration = held
    for one_tokens, one_cost, one_duration in rows:
        messages += 1
        tokens, cost = tokens + whole(one_tokens), cost + pico(one_cost)
        duration += whole(one_duration)
    sums = (messages, _bounded(tokens), _bounded(cost), _bounded(duration))
    connection.execute(
        "UPDATE agentpipe_session SET messages = ?, tokens = ?, cost = ?, duration = ? WHERE id = ?", (*sums, session)
    )


def _real(value: float | None) -> float | None:
    """JSON has whole numbers beyond SQLite's."""
    return None if value is None else float(value)


def _bounded(value: int) -> int:
    return max(-SUM_MAX, min(SUM_MAX, value))


def _settle(connection: sqlite3.Connection, session: str) -> None:
    """Looks at all facts of a session and writes what follows from them."""
    facts: dict[str, list[tuple[int, bytes]]] = {"started": [], "ended": [], "failure": []}
    for kind, time_us, body in connection.execute(
        "SELECT kind, time_us, body FROM agentpipe_fact WHERE session = ?", (session,)
    ):
        facts[kind].append((time_us, body))
    row = connection.execute(
        "SELECT messages, tokens, cost, duration FROM agentpipe_session WHERE id = ?", (session,)
    ).fetchone()
    if row is None:
        return
    if not row[0] and not any(facts.values()):
        _forget(connection, session)
        return
    # The first beginning counts, and the last end: whoever goes on with a conversation ends it again.
    started_row = min(facts["started"], default=None)
    ended_row = max(facts["ended"], default=None)
    failure_row = max(facts["failure"], default=None)
    started = _started(started_row[1]) if started_row else None
    ended = _ended(ended_row[1]) if ended_row else None
    _write_session(connection, session, row, started, ended)
    error = _failure(failure_row[1]).message if failure_row else ""
    status: Status = ended.status if ended else "ERROR" if failure_row else "ACTIVE"
    connection.execute(
        "UPDATE agentpipe_session SET status = ?, errors = ?, error = ?, completed_us = ?, started_us = ?,"
        " started = ?, ended = ? WHERE id = ?",
        (
            status, len(set(facts["failure"])), error, ended_row[0] if ended_row else None,
            started_row[0] if started_row else _first_time(connection, session, facts),
            started_row[1] if started_row else None, ended_row[1] if ended_row else None, session,
        ),
    )  # fmt: skip


def _write_session(
    connection: sqlite3.Connection, session: str, sums: tuple[int, int, int, int], started: Started | None,
    ended: Ended | None,
) -> None:  # fmt: skip
    """Totals that the end names beat those that were added up."""
    messages, tokens, cost, duration = sums
    if ended is not None:
        messages = messages if ended.messages is None else whole(ended.messages)
        tokens = tokens if ended.tokens is None else whole(ended.tokens)
        cost = cost if ended.cost is None else pico(ended.cost)
        duration = duration if ended.duration_ms is None else whole(ended.duration_ms)
    begun: tuple[Any, ...] = ("", "", "cli-stream", "")
    if started is not None:
        begun = (started.name, started.mode, started.source, started.prompt)
    connection.execute(
        "UPDATE agentpipe_session SET total_messages = ?, total_tokens = ?, total_cost = ?, total_duration = ?,"
        " name = ?, mode = ?, source = ?, prompt = ? WHERE id = ?",
        (messages, tokens, cost, duration, *begun, session),
    )
    connection.execute("DELETE FROM agentpipe_agent WHERE session = ? AND is_declared", (session,))
    connection.executemany(
        "INSERT OR IGNORE INTO agentpipe_agent (session, agent_id, is_declared, place, agent_type, agent_name, model, body)"
        " VALUES (?, ?, 1, ?, ?, ?, ?, ?)",
        [
            (session, agent.agent_id, place, agent.agent_type, agent.name, agent.model, _encode(agent))
            for place, agent in enumerate(started.agents if started else ())
        ],
    )


def _first_time(connection: sqlite3.Connection, session: str, facts: dict[str, list[tuple[int, bytes]]]) -> int:
    """When a session seems to have begun whose beginning didn't come."""
    query = "SELECT min(time_us) FROM agentpipe_message WHERE session = ?"
    (message_us,) = connection.execute(query, (session,)).fetchone()
    times = [time_us for found in facts.values() for time_us, _ in found]
    return int(min(times if message_us is None else [*times, message_us]))


def _remove(connection: sqlite3.Connection, removed: Removed) -> list[str]:
    """The sessions that lost something."""
    span = (removed.from_offset, removed.to_offset)
    sessions = [
        id for (id,) in connection.execute("SELECT id FROM agentpipe_session WHERE stream_hash = ?", (removed.stream_hash,))
    ]  # fmt: skip
    has_text = False
    for session in sessions:
        where = "WHERE session = ? AND offset BETWEEN ? AND ?"
        lost = connection.execute(
            f"SELECT number, content FROM agentpipe_message {where}",
            (session, *span),
        ).fetchall()
        connection.executemany(
            "INSERT INTO agentpipe_text (agentpipe_text, rowid, content) VALUES ('delete', ?, ?)", lost
        )
        has_text = has_text or bool(lost)
        for table in ("agentpipe_message", "agentpipe_fact"):
            connection.execute(f"DELETE FROM {table} {where}", (session, *span))
        connection.execute("DELETE FROM agentpipe_agent WHERE session = ? AND NOT is_declared", (session,))
        _count_again(connection, session)
    if has_text:  # words of what was taken away would stay in the index until its parts happen to be merged
        connection.execute("INSERT INTO agentpipe_text (agentpipe_text) VALUES ('optimize')")
    return sessions


def _count_again(connection: sqlite3.Connection, session: str) -> None:
    connection.execute(
        "UPDATE agentpipe_session SET messages = 0, tokens = 0, cost = 0, duration = 0 WHERE id = ?", (session,)
    )
    rows = connection.execute(
        "SELECT id, time_us, agent_id, agent_type, agent_name, agent_version, model, tokens, cost, duration_ms"
        " FROM agentpipe_message WHERE session = ? ORDER BY time_us DESC, id DESC",
        (session,),
    ).fetchall()
    _add_sums(connection, session, [row[-3:] for row in rows])
    connection.executemany(
        "INSERT OR REPLACE INTO agentpipe_agent"
        " (session, agent_id, is_declared, place, message, agent_type, agent_name, model, body)"
        " VALUES (?, ?, 0, ?, ?, ?, ?, ?, ?)",
        [
            (
                session,
                row[2],
                row[1],
                row[0],
                row[3],
                row[4],
                row[6],
                _encode(Agent(row[2], row[3], row[4], row[5], row[6])),
            )
            for row in rows
        ],
    )


def _forget(connection: sqlite3.Connection, session: str) -> None:
    for table in ("agentpipe_agent", "agentpipe_fact"):
        connection.execute(f"DELETE FROM {table} WHERE session = ?", (session,))
    connection.execute("DELETE FROM agentpipe_session WHERE id = ?", (session,))

"""What is read of the session read model. Every value of a client's is a bound parameter; search texts are quoted for
FTS5, which has a language of its own."""

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec

from overlayd.dialects.agentpipe.facts import PICO
from overlayd.dialects.agentpipe.times import iso_ms

SORTS = {
    "createdAt": "created_us", "startedAt": "started_us", "updatedAt": "updated_us", "completedAt": "completed_us",
    "totalCost": "total_cost", "totalTokens": "total_tokens", "totalDuration": "total_duration",
    "totalMessages": "total_messages", "name": "name", "status": "status",
}  # fmt: skip
_SESSION = (
    "id, name, mode, status, source, prompt, started_us, completed_us, created_us, updated_us, total_messages,"
    " total_tokens, total_cost, total_duration, messages, errors, error, original_id, started, ended, stream"
)
_MESSAGE = (
    "id, session, time_us, time, sequence, turn, agent_id, agent_name, agent_type, agent_version, role, content, model,"
    " tokens, input_tokens, output_tokens, cost, duration_ms, offset"
)
MESSAGE_ORDER = "sequence IS NULL, sequence, time_us, id"


class SessionRow(msgspec.Struct, frozen=True, array_like=True):
    """A session, as the columns stand."""

    id: str
    name: str
    mode: str
    status: str
    source: str
    prompt: str
    started_us: int
    completed_us: int | None
    created_us: int
    updated_us: int
    total_messages: int
    total_tokens: int
    total_cost: int
    total_duration: int
    messages: int
    errors: int
    error: str
    original_id: str
    started: bytes | None
    ended: bytes | None
    stream: str

    @property
    def shown_name(self) -> str:
        """A name for people."""
        return self.name or f"Conversation {iso_ms(self.started_us)}"

    @property
    def cost(self) -> float:
        """In dollars."""
        return self.total_cost / PICO


class MessageRow(msgspec.Struct, frozen=True, array_like=True):
    """A message, as the columns stand."""

    id: str
    session: str
    time_us: int
    time: str
    sequence: float | None
    turn: float | None
    agent_id: str
    agent_name: str
    agent_type: str
    agent_version: str
    role: str
    content: str
    model: str
    tokens: float | None
    input_tokens: float | None
    output_tokens: float | None
    cost: float | None
    duration_ms: float | None
    offset: int


class AgentRow(msgspec.Struct, frozen=True, array_like=True):
    """Somebody who takes part in a session; `body` is JSON."""

    session: str
    agent_id: str
    agent_type: str
    agent_name: str
    model: str
    body: bytes


class Wanted(msgspec.Struct, frozen=True):
    """Which sessions. `streams`: those that may be seen, None for all. Times in microseconds, of `createdAt`."""

    statuses: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    agent_types: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    start_us: int | None = None
    end_us: int | None = None
    cost_min: int | None = None
    cost_max: int | None = None
    tokens_min: int | None = None
    tokens_max: int | None = None
    text: str = ""
    prompt: str = ""
    streams: tuple[str, ...] | None = None


class Ordered(msgspec.Struct, frozen=True):
    """A page of sessions in an order; `sort` is one of SORTS."""

    sort: str = "createdAt"
    is_descending: bool = True
    limit: int = 20
    offset: int = 0


def quote_search(query: str, terms_max: int) -> tuple[str, int]:
    """The text as FTS5 takes it literally: every word a quoted phrase, all of which must be there (it holds no NUL). And how many
    words it had; those beyond `terms_max` don't count."""
    words = [word for word in query.split() if any(map(str.isalnum, word))]
    quoted = ['"' + word.replace('"', '""') + '"' for word in words[:terms_max]]
    return " ".join(quoted), len(words)


def escape_like(query: str) -> str:
    """The text for LIKE with `\\` as escape, to be found anywhere."""
    for mark in "\\%_":
        query = query.replace(mark, "\\" + mark)
    return f"%{query}%"


def _where(wanted: Wanted) -> tuple[str, list[Any]]:
    parts: list[str] = []
    values: list[Any] = []
    for column, found in (("status", wanted.statuses), ("mode", wanted.modes), ("source", wanted.sources)):
        if found:
            parts.append(f"{column} IN (SELECT value FROM json_each(?))")
            values.append(json.dumps(found))
    for test, bound in (
        ("created_us >= ?", wanted.start_us), ("created_us <= ?", wanted.end_us), ("total_cost >= ?", wanted.cost_min),
        ("total_cost <= ?", wanted.cost_max), ("total_tokens >= ?", wanted.tokens_min),
        ("total_tokens <= ?", wanted.tokens_max),
    ):  # fmt: skip
        if bound is not None:
            parts.append(test)
            values.append(bound)
    for column, found in (("agent_type", wanted.agent_types), ("model", wanted.models)):
        if found:
            parts.append(
                f"id IN (SELECT session FROM agentpipe_agent WHERE {column} IN (SELECT value FROM json_each(?)))"
            )
            values.append(json.dumps(found))
    if wanted.streams is not None:
        parts.append("stream IN (SELECT value FROM json_each(?))")
        values.append(json.dumps(wanted.streams))
    if wanted.text or wanted.prompt:
        found_in = ["prompt LIKE ? ESCAPE '\\'", "name LIKE ? ESCAPE '\\'"]
        values += [wanted.prompt, wanted.prompt]
        if wanted.text:
            found_in.append(
                "id IN (SELECT session FROM agentpipe_message WHERE number IN"
                " (SELECT rowid FROM agentpipe_text WHERE agentpipe_text MATCH ?))"
            )
            values.append(wanted.text)
        parts.append(f"({' OR '.join(found_in)})")
    return (" WHERE " + " AND ".join(parts) if parts else ""), values


def read_sessions(connection: sqlite3.Connection, wanted: Wanted, ordered: Ordered) -> tuple[list[SessionRow], int]:
    """A page of sessions, and how many there are in all."""
    where, values = _where(wanted)
    (total,) = connection.execute(f"SELECT count(*) FROM agentpipe_session{where}", values).fetchone()
    direction = "DESC" if ordered.is_descending else "ASC"
    rows = connection.execute(
        f"SELECT {_SESSION} FROM agentpipe_session{where}"
        f" ORDER BY {SORTS[ordered.sort]} {direction}, id {direction} LIMIT ? OFFSET ?",
        [*values, ordered.limit, ordered.offset],
    )
    return [SessionRow(*row) for row in rows], total


def read_session(connection: sqlite3.Connection, id: str) -> SessionRow | None:
    """One session."""
    row = connection.execute(
        f"SELECT {_SESSION} FROM agentpipe_session WHERE id = ?",
        (id,),
    ).fetchone()
    return None if row is None else SessionRow(*row)


def find_original(connection: sqlite3.Connection, original_id: str) -> str | None:
    """The session that was uploaded under an id of its client's."""
    row = connection.execute("SELECT id FROM agentpipe_session WHERE original_id = ?", (original_id,)).fetchone()
    return None if row is None else str(row[0])


def read_agents(connection: sqlite3.Connection, sessions: Sequence[str]) -> dict[str, list[AgentRow]]:
    """Who takes part: those that a session's beginning names, in its order, then others by their ids. An agent that is
    known only by its type isn't told beside one of that type which is known by an id."""
    found: dict[str, list[AgentRow]] = {id: [] for id in sessions}
    rows = connection.execute(
        "SELECT session, agent_id, agent_type, agent_name, model, body, is_declared FROM agentpipe_agent"
        " WHERE session IN (SELECT value FROM json_each(?))"
        " ORDER BY session, is_declared DESC, CASE WHEN is_declared THEN place END, agent_id",
        (json.dumps(list(sessions)),),
    )
    for *row, is_declared in rows:
        agent, agents = AgentRow(*row), found[row[0]]
        is_known = any(one.agent_id == agent.agent_id for one in agents)
        is_nameless = agent.agent_id == f"{agent.session}-{agent.agent_type}"
        has_peer = is_nameless and any(one.agent_type == agent.agent_type for one in agents)
        if is_declared or not (is_known or has_peer):
            agents.append(agent)
    return found


def read_messages(
    connection: sqlite3.Connection, session: str, limit: int, offset: int = 0, order: str = MESSAGE_ORDER
) -> list[MessageRow]:
    """Messages of a session in an order of our own words."""
    rows = connection.execute(
        f"SELECT {_MESSAGE} FROM agentpipe_message WHERE session = ? ORDER BY {order} LIMIT ? OFFSET ?",
        (session, limit, offset),
    )
    return [MessageRow(*row) for row in rows]


def read_previews(
    connection: sqlite3.Connection, sessions: Sequence[str], count: int
) -> dict[str, list[MessageRow]]:  # fmt: skip
    """The first messages of sessions, by time."""
    return {id: read_messages(connection, id, count, order="time_us, id") for id in sessions}


def read_recent(
    connection: sqlite3.Connection, wanted: Wanted, limit: int
) -> list[tuple[MessageRow, SessionRow]]:  # fmt: skip
    """The newest messages of the sessions that are wanted."""
    where, values = _where(wanted)
    rows = connection.execute(
        f"SELECT {_MESSAGE} FROM agentpipe_message WHERE session IN (SELECT id FROM agentpipe_session{where})"
        " ORDER BY time_us DESC, number DESC LIMIT ?",
        [*values, limit],
    )
    messages = [MessageRow(*row) for row in rows]
    sessions: dict[str, SessionRow] = {}
    for id in {message.session for message in messages}:
        found = read_session(connection, id)
        assert found is not None, id
        sessions[id] = found
    return [(message, sessions[message.session]) for message in messages]


def read_failures(connection: sqlite3.Connection, session: str, limit: int) -> list[bytes]:
    """The errors of a session, oldest first, as JSON."""
    rows = connection.execute(
        "SELECT DISTINCT time_us, body FROM agentpipe_fact WHERE session = ? AND kind = 'failure' ORDER BY 1, 2 LIMIT ?",
        (session, limit),
    )
    return [body for _, body in rows]


class Summary(msgspec.Struct, frozen=True):
    """Sums over sessions; `agents`: type, sessions, cost in 1e-12 dollars."""

    sessions: int
    active: int
    messages: int
    tokens: int
    cost: float
    duration_mean: float
    agents: list[tuple[str, int, float]]


def read_summary(connection: sqlite3.Connection, wanted: Wanted) -> Summary:
    """What the sessions come to together. Sums are doubles: neither schema bounds what goes into them."""
    where, values = _where(wanted)
    sums = connection.execute(
        "SELECT count(*), total(status = 'ACTIVE'), total(total_messages), total(total_tokens), total(total_cost),"
        f" avg(total_duration) FROM agentpipe_session{where}",
        values,
    ).fetchone()
    agents = connection.execute(
        "SELECT agent_type, count(DISTINCT session), total(total_cost) FROM"
        " (SELECT DISTINCT agent_type, session FROM agentpipe_agent) AS a"
        f" JOIN (SELECT id, total_cost FROM agentpipe_session{where}) AS s ON s.id = a.session"
        " GROUP BY agent_type ORDER BY 2 DESC, 1 LIMIT 10",
        values,
    ).fetchall()
    count, active, messages, tokens, cost, mean = sums
    return Summary(count, int(active), int(messages), int(tokens), cost, mean or 0.0, agents)


def read_names(connection: sqlite3.Connection, column: str, wanted: Wanted) -> list[tuple[str, int]]:
    """Agents' types or models with how often they stand; `column` is a word of our own."""
    assert column in ("agent_type", "model")
    where, values = _where(wanted)
    rows = connection.execute(
        f"SELECT {column}, count(*) FROM agentpipe_agent WHERE {column} <> '' AND session IN"
        f" (SELECT id FROM agentpipe_session{where}) GROUP BY {column} ORDER BY 2 DESC, 1 LIMIT 1000",
        values,
    )
    return [(name, count) for name, count in rows]

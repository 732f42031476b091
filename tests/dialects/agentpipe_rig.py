"""AgentPipe's events, and the session read model over a database of its own."""

import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from overlayd.dialects.agentpipe.bodies import conversation_whole, session_whole
from overlayd.dialects.agentpipe.events import Event, read_event
from overlayd.dialects.agentpipe.facts import Bridge
from overlayd.dialects.agentpipe.projection import Change, Placed, Progress, apply
from overlayd.dialects.agentpipe.queries import read_agents, read_failures, read_messages, read_session
from overlayd.dialects.agentpipe.tables import AGENTPIPE_FEATURE
from overlayd.storage.migrations import split_statements

DATA = Path(__file__).parents[1] / "data" / "agentpipe"
CONVERSATION = "e0aa6d27-08a6-41a2-8e54-8cced6c084b3"
STREAM_HASH = b"h" * 32
WHEN_IT_CAME = ("createdAt", "updatedAt")
"""Members that tell when the node heard of it."""


def open_tables() -> sqlite3.Connection:
    """An empty read model."""
    connection = sqlite3.connect(":memory:")
    for step in AGENTPIPE_FEATURE.steps:
        for statement in split_statements(step):
            connection.execute(statement)
    return connection


def event_of(body: dict[str, Any]) -> Event:
    """A right event."""
    read = read_event(body, json.dumps(body).encode(), draw_id=lambda: "c" + "0" * 24, now="2026-01-01T00:00:00Z")
    assert isinstance(read, Event), read
    return read


def recorded_events() -> list[dict[str, Any]]:
    """A whole conversation, as the client stored it."""
    return [json.loads(line) for line in (DATA / "recorded-event-store.jsonl").read_text().splitlines()]


def place(connection: sqlite3.Connection, events: Iterable[Event], first: int = 1) -> None:
    """Applies events as packets at these offsets, one after the other."""
    changes: list[Change] = [
        Placed(event.fact, event.stream, STREAM_HASH, offset, offset)
        for offset, event in enumerate(events, first)
        if not isinstance(event.fact, Bridge)
    ]
    apply(connection, changes, Progress(1, first, first))


def shown(connection: sqlite3.Connection, session: str = CONVERSATION) -> dict[str, Any]:
    """The session as both APIs show it, but for when the node heard of it."""
    row = read_session(connection, session)
    assert row is not None
    agents = read_agents(connection, [session])[session]
    messages, failures = read_messages(connection, session, 1000), read_failures(connection, session, 1000)
    both = {
        "session": session_whole(row, agents, messages, failures),
        "conversation": conversation_whole(row, agents, messages, failures),
    }
    for body in both.values():
        for name in WHEN_IT_CAME:
            body.pop(name, None)
    return both

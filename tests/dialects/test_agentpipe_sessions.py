"""Sessions are the sum of what was said about them: order, repeats and interruptions make no difference."""

import sqlite3
from typing import Any

from agentpipe_rig import CONVERSATION, STREAM_HASH, event_of, open_tables, place, recorded_events, shown
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.dialects.agentpipe.projection import Progress, Removed, apply, clear

TIMES = [f"2026-01-01T00:00:{second:02}Z" for second in range(12)]
AGENTS = [("a-0", "claude"), ("b-0", "gemini"), ("", "codex"), ("", "claude")]


def message(draw: st.DrawFn, number: int) -> dict[str, Any]:
    """One message, with as little or as much about it as there may be."""
    agent_id, agent_type = draw(st.sampled_from(AGENTS))
    data: dict[str, Any] = {
        "conversation_id": CONVERSATION, "message_id": f"m{number}", "agent_type": agent_type,
        "content": draw(st.sampled_from(["yes", "no", "perhaps"])),
    }  # fmt: skip
    if agent_id:
        data["agent_id"] = agent_id
    optional = {
        "agent_name": st.sampled_from(["Ann", "Bob"]), "sequence_number": st.integers(1, 20),
        "tokens_used": st.integers(0, 1000), "cost": st.floats(0, 1), "duration_ms": st.integers(0, 5000),
        "model": st.sampled_from(["m-1", "m-2"]), "turn_number": st.integers(1, 9),
    }  # fmt: skip
    for name in draw(st.sets(st.sampled_from(sorted(optional)))):
        data[name] = draw(optional[name])
    return {"type": "message.created", "timestamp": draw(st.sampled_from(TIMES)), "data": data}


def ending(draw: st.DrawFn) -> dict[str, Any]:
    """One end."""
    data: dict[str, Any] = {
        "conversation_id": CONVERSATION,
        "status": draw(st.sampled_from(["completed", "interrupted", "error"])),
    }
    if draw(st.booleans()):
        data |= {"total_messages": draw(st.integers(0, 9)), "total_cost": draw(st.floats(0, 9))}
    return {"type": "conversation.completed", "timestamp": draw(st.sampled_from(TIMES)), "data": data}


def failure(draw: st.DrawFn) -> dict[str, Any]:
    """One error."""
    data = {"conversation_id": CONVERSATION, "error_message": draw(st.sampled_from(["slow", "gone"]))}
    return {"type": "conversation.error", "timestamp": draw(st.sampled_from(TIMES)), "data": data}


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Events of one conversation."""
    started = recorded_events()[1]
    events = [started] if draw(st.booleans()) else []
    events += [message(draw, number) for number in range(draw(st.integers(0, 6)))]
    events += [failure(draw) for _ in range(draw(st.integers(0, 2)))]
    events += [ending(draw) for _ in range(draw(st.integers(0, 2)))]
    return events or [started]


def found_by(connection: sqlite3.Connection, word: str) -> list[str]:
    """The messages that a word finds."""
    rows = connection.execute(
        "SELECT id FROM agentpipe_message WHERE number IN (SELECT rowid FROM agentpipe_text WHERE agentpipe_text MATCH ?)",
        (word,),
    )
    return sorted(id for (id,) in rows)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_order_and_any_repeats_end_in_the_same_session(data: st.DataObject) -> None:
    """Shuffled, duplicated, cut off and sent again, in groups of any size."""
    events = [event_of(body) for body in data.draw(conversations())]
    straight, tossed = open_tables(), open_tables()
    place(straight, events)
    others = data.draw(st.permutations(events))
    cut = data.draw(st.integers(0, len(others)))
    delivered = others[:cut] + others + data.draw(st.lists(st.sampled_from(events), max_size=5))
    at = 0
    while at < len(delivered):
        count = data.draw(st.integers(1, 4))
        place(tossed, delivered[at : at + count], first=at + 1)
        at += count
    assert shown(tossed) == shown(straight)
    for word in ("yes", "no", "perhaps"):
        assert found_by(tossed, word) == found_by(straight, word)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_taken_away_leaves_no_trace(data: st.DataObject) -> None:
    """A session without some of its packets is the one that it would be if they had never come."""
    events = [event_of(body) for body in data.draw(conversations())]
    lost = data.draw(st.integers(1, len(events)))
    whole, rest = open_tables(), open_tables()
    place(whole, events)
    apply(whole, [Removed(STREAM_HASH, 1, lost)], Progress(1, 99, 99))
    place(rest, events[lost:], first=lost + 1)
    if lost == len(events):
        assert whole.execute("SELECT count(*) FROM agentpipe_session").fetchone() == (0,)
        assert whole.execute("SELECT count(*) FROM agentpipe_agent").fetchone() == (0,)
    else:
        assert shown(whole) == shown(rest)
    assert found_by(whole, "yes") == found_by(rest, "yes")


def test_an_error_and_an_end_are_both_kept() -> None:
    """The real server forgets the error."""
    connection = open_tables()
    place(connection, map(event_of, recorded_events()))
    session = shown(connection)["session"]
    assert (session["status"], session["errorCount"], session["lastError"]) == (
        "COMPLETED", 1, "API rate limit exceeded",
    )  # fmt: skip
    assert session["errors"][0]["type"] == "rate_limit"
    assert (session["totalMessages"], session["totalTokens"], session["totalCost"]) == (3, 2753, 0.00323)
    assert [one["agentId"] for one in session["participants"]] == ["claude-0", "gemini-0"]


def test_a_message_before_its_beginning_makes_a_placeholder() -> None:
    """The client doesn't wait for one event before it sends the next."""
    connection = open_tables()
    events = [event_of(body) for body in recorded_events()]
    place(connection, events[2:3])
    early = shown(connection)["session"]
    assert (early["status"], early["mode"], early["participantCount"]) == ("ACTIVE", "", 1)
    place(connection, events[1:2], first=2)
    late = shown(connection)["session"]
    assert (late["mode"], late["initialPrompt"], late["participantCount"]) == (
        "round-robin", "Hello agents — π 🚀", 2,
    )  # fmt: skip


def test_numbers_beyond_all_bounds_are_cut() -> None:
    """Neither schema bounds counts; sums stay whole numbers that the database holds."""
    connection = open_tables()
    data = {"conversation_id": CONVERSATION, "agent_type": "x", "content": "y"}
    huge = {"tokens_used": 2**64 - 1, "cost": 1e300, "duration_ms": -1e300, "sequence_number": 2**64 - 1}
    bodies = [
        {"type": "message.created", "timestamp": TIMES[0], "data": {**data, **huge, "message_id": str(number)}}
        for number in range(200)
    ]
    place(connection, map(event_of, bodies))
    session = shown(connection)["session"]
    assert session["totalTokens"] == 200 << 52
    assert session["totalCost"] == ((1 << 63) - 1) / 1e12


def test_a_rebuilt_model_begins_empty() -> None:
    """Nothing is left to be added to, and search finds nothing."""
    connection = open_tables()
    place(connection, map(event_of, recorded_events()))
    assert found_by(connection, "tiny") != []
    clear(connection, 2)
    assert found_by(connection, "tiny") == []
    place(connection, map(event_of, recorded_events()))
    assert shown(connection)["session"]["messageCount"] == 3

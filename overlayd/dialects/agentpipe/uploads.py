"""A finished session as one body: in the documents' shape, or in that of the web server's schema. The top-level member
`session` or `conversation` tells them apart."""

from typing import Any

import msgspec

from overlayd.dialects.agentpipe.checks import (
    Check,
    Issue,
    Path,
    array,
    find_issues,
    number,
    one_of,
    optional,
    record,
    shape,
    text,
    time_us_of,
    timestamp,
)
from overlayd.dialects.agentpipe.documented import (
    COUNT,
    MESSAGE,
    MODE,
    NAME_UNITS_MAX,
    PARTICIPANT,
    PARTICIPANTS_MAX,
    PROMPT_UNITS_MAX,
    TIME,
    TURNS_MAX,
    agent_of,
    message_of,
)
from overlayd.dialects.agentpipe.facts import STATUSES, Agent, Ended, Message, Started
from overlayd.dialects.agentpipe.wire import CONTENT_UNITS_MAX, SYSTEM_INFO
from overlayd.dialects.agentpipe.wire import agent_of as wire_agent_of

HEADER_TYPE = "session.uploaded"
MESSAGE_TYPE = "session.message"
UPLOAD_TYPES = (HEADER_TYPE, MESSAGE_TYPE)
SOURCE = "upload"


class Upload(msgspec.Struct, frozen=True):
    """A whole session. `original_id`: what the client calls it, "" when it doesn't say. `is_documented`: its shape."""

    original_id: str
    is_documented: bool
    started: Started
    ended: Ended | None
    messages: list[Message]


class Header(msgspec.Struct, frozen=True, omit_defaults=True):
    """The first packet of an uploaded session."""

    started: Started
    ended: Ended | None = None
    original_id: str = ""


def _documented(messages_max: int) -> Check:
    return shape(
        {
            "session": shape({
                "name": text(least=1, most=NAME_UNITS_MAX), "mode": MODE,
                "maxTurns": optional(number(above=0, most=TURNS_MAX, is_whole=True)),
                "initialPrompt": text(least=1, most=PROMPT_UNITS_MAX),
                "status": one_of(*STATUSES, code="invalid_enum_value"), "startedAt": TIME,
                "completedAt": optional(TIME), "totalDuration": optional(COUNT), "metadata": optional(record),
            }),
            "participants": array(PARTICIPANT, least=1, most=PARTICIPANTS_MAX),
            "messages": array(MESSAGE, most=messages_max),
        },
        [_refuse_strangers, _refuse_early_end],
    )  # fmt: skip


def _web(messages_max: int) -> Check:
    counts = ("sequence_number", "turn_number", "tokens_used", "input_tokens", "output_tokens", "cost", "duration_ms")
    numbers = {name: optional(number()) for name in counts}
    agent = {"agent_type": text(), "agent_name": text(), "agent_version": optional(text()), "model": optional(text())}
    return shape({
        "conversation": shape({
            "id": optional(text()), "name": text(), "mode": text(), "initial_prompt": text(),
            "max_turns": optional(number()), "started_at": timestamp(), "completed_at": optional(timestamp()),
            "status": one_of(*STATUSES), "total_messages": optional(number()), "total_tokens": optional(number()),
            "total_cost": optional(number()), "total_duration": optional(number()),
            "system_info": optional(SYSTEM_INFO),
        }),
        "agents": array(shape({**agent, "prompt": optional(text()), "cli_version": optional(text())})),
        "messages": array(
            shape({**agent, "content": text(most=CONTENT_UNITS_MAX), "role": optional(text()),
                   "timestamp": timestamp(), **numbers}), most=messages_max,
        ),
    })  # fmt: skip


def read_upload(value: Any, conversation: str, *, messages_max: int) -> Upload | list[Issue]:
    """The session in a body, or what is wrong with it. `conversation`: its id where the client names none, to be
    replaced by `with_id`."""
    is_documented = not (type(value) is dict and "conversation" in value and "session" not in value)
    issues = find_issues((_documented if is_documented else _web)(messages_max), value)
    if issues:
        return issues
    return _read_documented(value, conversation) if is_documented else _read_web(value, conversation)


def _read_documented(value: dict[str, Any], conversation: str) -> Upload:
    session = value["session"]
    metadata = session.get("metadata")
    original = (metadata or {}).get("originalId")
    started = Started(
        conversation, session["startedAt"], session["mode"], session["initialPrompt"],
        [agent_of(one) for one in value["participants"]], name=session["name"], max_turns=session.get("maxTurns"),
        source=SOURCE, metadata=metadata,
    )  # fmt: skip
    messages = [message_of(one, conversation, str(at)) for at, one in enumerate(value["messages"])]
    ended = _ended(
        conversation, started, session["status"], session.get("completedAt"), messages, session.get("totalDuration"), {}
    )
    return Upload(str(original) if isinstance(original, (str, int)) else "", True, started, ended, messages)


def _read_web(value: dict[str, Any], conversation: str) -> Upload:
    session = value["conversation"]
    agents: dict[str, Agent] = {}
    for one in value["agents"]:
        agent = wire_agent_of({**one, "agent_id": f"{one['agent_type']}-{one['agent_name']}"}, conversation)
        agents.setdefault(agent.agent_id, agent)
    started = Started(
        conversation, session["started_at"], session["mode"], session["initial_prompt"], list(agents.values()),
        name=session["name"], max_turns=session.get("max_turns"), source=SOURCE,
        system_info=session.get("system_info"),
    )  # fmt: skip
    messages = [
        Message(
            conversation, str(at), one["timestamp"], one["agent_type"], one["content"],
            f"{one['agent_type']}-{one['agent_name']}", one["agent_name"], one.get("agent_version", ""),
            one.get("role", "agent"), one.get("sequence_number"), one.get("turn_number"), one.get("tokens_used"),
            one.get("input_tokens"), one.get("output_tokens"), one.get("cost"), one.get("model", ""),
            one.get("duration_ms"),
        )
        for at, one in enumerate(value["messages"])
    ]  # fmt: skip
    ended = _ended(
        conversation,
        started,
        session["status"],
        session.get("completed_at"),
        messages,
        session.get("total_duration"),
        session,
    )
    return Upload(session.get("id", ""), False, started, ended, messages)


def _ended(
    conversation: str, started: Started, status: Any, completed: str | None, messages: list[Message],
    duration: float | None, totals: dict[str, Any],
) -> Ended | None:  # fmt: skip
    if status == "ACTIVE":
        return None
    times = [completed] if completed else [message.time for message in messages] or [started.time]
    return Ended(
        conversation, max(times, key=time_us_of), status, totals.get("total_messages"), None,
        totals.get("total_tokens"), totals.get("total_cost"), duration,
    )  # fmt: skip


def _refuse_strangers(value: dict[str, Any]) -> tuple[Path, str] | None:
    known = {one["agentId"] for one in value["participants"]}
    if all(message["agentId"] in known for message in value["messages"]):
        return None
    return ("messages",), "All message agentIds must exist in participants array"


def _refuse_early_end(value: dict[str, Any]) -> tuple[Path, str] | None:
    session = value["session"]
    if "completedAt" not in session or time_us_of(session["completedAt"]) > time_us_of(session["startedAt"]):
        return None
    return ("session", "completedAt"), "completedAt must be after startedAt"

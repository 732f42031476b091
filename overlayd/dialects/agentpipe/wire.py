"""The dialect that AgentPipe's client speaks: snake_case, the client makes the ids.

Judged as the schema of AgentPipe's own web server judges it (zod 4), with one thing more that is taken: a summary whose
zeros were left out, as the client leaves them out.
"""

from typing import Any

from overlayd.dialects.agentpipe.checks import Check, array, number, one_of, optional, record, shape, text, timestamp
from overlayd.dialects.agentpipe.facts import Agent, Bridge, Ended, Fact, Failure, Message, Started, Status

CONTENT_UNITS_MAX = 100_000
SUMMARY_UNITS_MAX = 10_000
SHORT_SUMMARY_UNITS_MAX = 1_000

_STATUS: dict[str, Status] = {"completed": "COMPLETED", "interrupted": "INTERRUPTED", "error": "ERROR"}
_AGENT = shape({
    "agent_id": optional(text()), "agent_type": text(), "agent_version": optional(text()), "model": optional(text()),
    "name": optional(text()), "prompt": optional(text()), "cli_version": optional(text()),
})  # fmt: skip
SYSTEM_INFO = shape(
    {
        "agentpipe_version": text(), "os": text(), "os_version": text(), "go_version": text(),
        "architecture": optional(text()), "arch": optional(text()),
    },
    [lambda value: None if value.get("architecture") or value.get("arch")
     else ((), "Either 'architecture' or 'arch' must be provided")],
)  # fmt: skip
_STARTED = shape(
    {
        "conversation_id": text(), "mode": text(), "initial_prompt": text(), "max_turns": optional(number()),
        "participants": optional(array(_AGENT)), "agents": optional(array(_AGENT)), "system_info": SYSTEM_INFO,
        "command": optional(record),
    },
    [lambda value: None if "participants" in value or "agents" in value
     else ((), "Either 'participants' or 'agents' must be provided")],
)  # fmt: skip
_MESSAGE = shape({
    "conversation_id": text(), "message_id": optional(text()), "agent_id": optional(text()), "agent_type": text(),
    "agent_name": optional(text()), "agent_version": optional(text()), "content": text(most=CONTENT_UNITS_MAX),
    "role": optional(text()), "sequence_number": optional(number()), "turn_number": optional(number()),
    "tokens_used": optional(number()), "input_tokens": optional(number()), "output_tokens": optional(number()),
    "cost": optional(number()), "model": optional(text()), "duration_ms": optional(number()),
})  # fmt: skip
_SUMMARY = shape({
    "short_text": optional(text(most=SHORT_SUMMARY_UNITS_MAX)), "text": text(most=SUMMARY_UNITS_MAX),
    "agent_type": text(), "model": optional(text()), "input_tokens": optional(number()),
    "output_tokens": optional(number()), "total_tokens": optional(number()), "cost": optional(number()),
    "duration_ms": optional(number()),
})  # fmt: skip
_COMPLETED = shape({
    "conversation_id": text(), "status": one_of(*_STATUS), "total_messages": optional(number()),
    "total_turns": optional(number()), "total_tokens": optional(number()), "total_cost": optional(number()),
    "duration_seconds": optional(number()), "summary": optional(_SUMMARY),
})  # fmt: skip
_ERROR = shape({
    "conversation_id": text(), "error_message": text(), "error_type": optional(text()), "agent_type": optional(text()),
})  # fmt: skip


def _event(data: Check) -> Check:
    return shape({"timestamp": timestamp(), "data": data})


EVENTS: dict[str, Check] = {
    "conversation.started": _event(_STARTED),
    "message.created": _event(_MESSAGE),
    "conversation.completed": _event(_COMPLETED),
    "conversation.error": _event(_ERROR),
    "bridge.connected": _event(shape({"system_info": SYSTEM_INFO, "connected_at": timestamp()})),
    "bridge.test": _event(shape({"message": optional(text()), "system_info": optional(SYSTEM_INFO)})),
}


def fact_of(event: dict[str, Any], message_id: str) -> Fact:
    """What an event says that was found right. `message_id`: of a message that brings none."""
    kind, time, data = event["type"], event["timestamp"], event["data"]
    if kind == "message.created":
        return _message(data, time, message_id)
    if kind == "conversation.started":
        agents = data["participants"] if "participants" in data else data["agents"]
        return Started(
            data["conversation_id"], time, data["mode"], data["initial_prompt"],
            [agent_of(one, data["conversation_id"]) for one in agents], max_turns=data.get("max_turns"),
            system_info=data["system_info"], command=data.get("command"),
        )  # fmt: skip
    if kind == "conversation.completed":
        seconds = data.get("duration_seconds")
        return Ended(
            data["conversation_id"], time, _STATUS[data["status"]], data.get("total_messages"),
            data.get("total_turns"), data.get("total_tokens"), data.get("total_cost"),
            None if seconds is None else seconds * 1000, data.get("summary"),
        )  # fmt: skip
    if kind == "conversation.error":
        return Failure(
            data["conversation_id"], time, data["error_message"], data.get("error_type", ""),
            data.get("agent_type", ""),
        )  # fmt: skip
    is_test = kind == "bridge.test"
    return Bridge(time, "test" if is_test else "connected", data.get("message", ""), data.get("system_info"))


def agent_of(one: dict[str, Any], conversation: str) -> Agent:
    """A participant. Without an id it has that which AgentPipe's server gives it."""
    agent_type = one["agent_type"]
    return Agent(
        one.get("agent_id") or f"{conversation}-{agent_type}", agent_type, one.get("name") or one.get("agent_name", ""),
        one.get("agent_version", ""), one.get("model", ""), one.get("prompt", ""), "", one.get("cli_version", ""),
    )  # fmt: skip


def _message(data: dict[str, Any], time: str, message_id: str) -> Message:
    return Message(
        data["conversation_id"], data.get("message_id") or message_id, time, data["agent_type"], data["content"],
        data.get("agent_id", ""), data.get("agent_name", ""), data.get("agent_version", ""), data.get("role", "agent"),
        data.get("sequence_number"), data.get("turn_number"), data.get("tokens_used"), data.get("input_tokens"),
        data.get("output_tokens"), data.get("cost"), data.get("model", ""), data.get("duration_ms"),
    )  # fmt: skip

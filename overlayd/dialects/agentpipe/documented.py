"""The dialect that AgentPipe's documents describe: camelCase, the server makes the ids, timestamps may be missing.

Judged as the documents' schema judges it, whose issues have zod 3's codes.
"""

from typing import Any

from overlayd.dialects.agentpipe.checks import (
    Check,
    array,
    either,
    number,
    one_of,
    optional,
    record,
    shape,
    text,
    timestamp,
)
from overlayd.dialects.agentpipe.facts import Agent, Ended, Fact, Failure, Message, Started

MODES = ("round-robin", "reactive", "free-form")
ROLES = ("agent", "user", "system")
CONTENT_UNITS_MAX = 100_000
PROMPT_UNITS_MAX = 10_000
NAME_UNITS_MAX = 200
TURNS_MAX = 1000
PARTICIPANTS_MAX = 50

TIME = timestamp("invalid_string")
COUNT = number(least=0, is_whole=True)
_ID = text(pattern=r"c[a-z0-9]{24}", code="invalid_string")
_METRICS = shape({
    "duration": optional(number(above=0, is_whole=True)), "inputTokens": optional(COUNT),
    "outputTokens": optional(COUNT), "totalTokens": optional(COUNT), "model": optional(text(least=1)),
    "cost": optional(number(least=0)),
})  # fmt: skip
PARTICIPANT = shape({
    "agentId": text(least=1, most=100), "agentType": text(least=1, most=50), "agentName": text(least=1, most=100),
    "agentVersion": optional(text(most=20)), "model": optional(text(most=100)),
    "prompt": optional(text(most=PROMPT_UNITS_MAX)), "announcement": optional(text(most=500)),
    "settings": optional(record),
})  # fmt: skip
MESSAGE = shape({
    "agentId": text(least=1), "agentName": text(least=1), "agentType": text(least=1), "agentVersion": optional(text()),
    "content": text(least=1, most=CONTENT_UNITS_MAX), "role": one_of(*ROLES, code="invalid_enum_value"),
    "timestamp": either(TIME), "sequenceNumber": optional(COUNT), "metrics": optional(_METRICS),
})  # fmt: skip
MODE = one_of(*MODES, code="invalid_enum_value")


def _event(data: Check) -> Check:
    return shape({"timestamp": optional(TIME), "data": data})


EVENTS: dict[str, Check] = {
    "conversation.started": _event(shape({
        "name": optional(text(least=1, most=NAME_UNITS_MAX)), "mode": MODE,
        "maxTurns": optional(number(above=0, most=TURNS_MAX, is_whole=True)),
        "initialPrompt": text(least=1, most=PROMPT_UNITS_MAX),
        "participants": array(PARTICIPANT, least=1, most=PARTICIPANTS_MAX), "metadata": optional(record),
    })),
    "message.created": _event(shape({"conversationId": _ID, "message": MESSAGE})),
    "conversation.completed": _event(shape({
        "conversationId": _ID, "totalMessages": COUNT, "totalTokens": COUNT, "totalCost": number(least=0),
        "totalDuration": COUNT, "completionReason": optional(text(most=100)),
    })),
    "conversation.interrupted": _event(shape({
        "conversationId": _ID, "reason": optional(text(most=500)), "totalMessages": optional(COUNT),
        "totalTokens": optional(COUNT), "totalCost": optional(number(least=0)), "totalDuration": optional(COUNT),
    })),
    "error.occurred": _event(shape({
        "conversationId": optional(_ID), "error": text(least=1, most=1000), "errorCode": optional(text(most=50)),
        "agentId": optional(text(most=100)), "details": optional(record),
    })),
}  # fmt: skip


def fact_of(event: dict[str, Any], time: str) -> Fact:
    """What an event says that was found right, and to which the server's ids were added: `data.conversationId`, and
    `data.messageId` of a message. `time`: of an event that brings none."""
    kind, time, data = event["type"], event.get("timestamp") or time, event["data"]
    conversation = data.get("conversationId", "")
    if kind == "message.created":
        return message_of(data["message"], conversation, data["messageId"])
    if kind == "conversation.started":
        return Started(
            conversation, time, data["mode"], data["initialPrompt"], [agent_of(one) for one in data["participants"]],
            name=data.get("name", ""), max_turns=data.get("maxTurns"), metadata=data.get("metadata"),
        )  # fmt: skip
    if kind == "error.occurred":
        return Failure(
            conversation, time, data["error"], data.get("errorCode", ""), data.get("agentId", ""), data.get("details")
        )
    is_completed = kind == "conversation.completed"
    return Ended(
        conversation, time, "COMPLETED" if is_completed else "INTERRUPTED", data.get("totalMessages"), None,
        data.get("totalTokens"), data.get("totalCost"), data.get("totalDuration"), None,
        data.get("completionReason" if is_completed else "reason", ""),
    )  # fmt: skip


def agent_of(one: dict[str, Any]) -> Agent:
    """A participant."""
    return Agent(
        one["agentId"], one["agentType"], one["agentName"], one.get("agentVersion", ""), one.get("model", ""),
        one.get("prompt", ""), one.get("announcement", ""), "", one.get("settings"),
    )  # fmt: skip


def message_of(one: dict[str, Any], conversation: str, message_id: str) -> Message:
    """A message."""
    metrics = one.get("metrics") or {}
    return Message(
        conversation, message_id, one["timestamp"], one["agentType"], one["content"], one["agentId"], one["agentName"],
        one.get("agentVersion", ""), one["role"], one.get("sequenceNumber"), None, metrics.get("totalTokens"),
        metrics.get("inputTokens"), metrics.get("outputTokens"), metrics.get("cost"), metrics.get("model", ""),
        metrics.get("duration"),
    )  # fmt: skip

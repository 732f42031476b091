"""What an event says, whichever of the two dialects said it. A session is the sum of its facts, in whatever order and
however often they came."""

from typing import Any, Literal, TypeAlias

import msgspec

Status: TypeAlias = Literal["ACTIVE", "COMPLETED", "INTERRUPTED", "ERROR"]
STATUSES: tuple[Status, ...] = ("ACTIVE", "COMPLETED", "INTERRUPTED", "ERROR")

TOKENS_MAX = 1 << 52
"""Counts of one message beyond it, either way, are cut: neither schema bounds them, and sums must stay exact."""
COST_MAX = 1e5
"""The same for the dollars of one message."""
PICO = 1_000_000_000_000
"""Costs are kept in whole units of 1e-12 dollars, so that sums don't depend on the order."""


class Agent(msgspec.Struct, frozen=True, omit_defaults=True):
    """Somebody who takes part."""

    agent_id: str
    agent_type: str
    name: str = ""
    version: str = ""
    model: str = ""
    prompt: str = ""
    announcement: str = ""
    cli_version: str = ""
    settings: dict[str, Any] | None = None


class Started(msgspec.Struct, frozen=True, omit_defaults=True, tag="started"):
    """A conversation began. `time`: as it was written."""

    conversation: str
    time: str
    mode: str
    prompt: str
    agents: list[Agent]
    name: str = ""
    max_turns: float | None = None
    source: str = "cli-stream"
    system_info: dict[str, Any] | None = None
    command: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None


class Message(msgspec.Struct, frozen=True, omit_defaults=True, tag="message"):
    """Somebody said something. `agent_id` is "" where the event didn't name one."""

    conversation: str
    id: str
    time: str
    agent_type: str
    content: str
    agent_id: str = ""
    agent_name: str = ""
    agent_version: str = ""
    role: str = "agent"
    sequence: float | None = None
    turn: float | None = None
    tokens: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None
    cost: float | None = None
    model: str = ""
    duration_ms: float | None = None


class Ended(msgspec.Struct, frozen=True, omit_defaults=True, tag="ended"):
    """A conversation is over. Totals are None where the event doesn't say."""

    conversation: str
    time: str
    status: Status
    messages: float | None = None
    turns: float | None = None
    tokens: float | None = None
    cost: float | None = None
    duration_ms: float | None = None
    summary: dict[str, Any] | None = None
    reason: str = ""


class Failure(msgspec.Struct, frozen=True, omit_defaults=True, tag="failure"):
    """Something went wrong in a conversation, or, without one, at the client."""

    conversation: str
    time: str
    message: str
    kind: str = ""
    agent: str = ""
    details: dict[str, Any] | None = None


class Bridge(msgspec.Struct, frozen=True, omit_defaults=True, tag="bridge"):
    """A client connected, or tried whether it can."""

    time: str
    kind: Literal["connected", "test"]
    text: str = ""
    system_info: dict[str, Any] | None = None


Fact: TypeAlias = Started | Message | Ended | Failure | Bridge


def whole(value: float | None) -> int:
    """A count as a whole number within bounds; 0 for none."""
    if value is None:
        return 0
    return max(-TOKENS_MAX, min(TOKENS_MAX, round(value)))


def pico(value: float | None) -> int:
    """Dollars in units of 1e-12, within bounds; 0 for none."""
    if value is None:
        return 0
    return round(max(-COST_MAX, min(COST_MAX, value)) * PICO)

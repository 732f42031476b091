"""One event of a body: which dialect it is in, whether it is right, and what is to be stored of it.

Both dialects share one address. No body is right in both, so what it holds tells which one is meant; where that is open,
the client's own dialect is.
"""

import re
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import msgspec
from blake3 import blake3

from overlayd.dialects.agentpipe import documented, wire
from overlayd.dialects.agentpipe.checks import Issue, find_issues, record, word_of
from overlayd.dialects.agentpipe.facts import Bridge, Fact, Message
from overlayd.model.names import StreamName, name_of_foreign_id

Dialect: TypeAlias = Literal["wire", "documented"]

PREFIX = "sessions"
BRIDGE_STREAM = StreamName(f"{PREFIX}.bridge.events")
"""What belongs to no conversation. Two tokens behind the prefix, so that no conversation has this name."""
PATTERN = f"{PREFIX}.>"
EVENT_TYPES: tuple[str, ...] = tuple(dict.fromkeys((*wire.EVENTS, *documented.EVENTS)))
_ONLY_DOCUMENTED = frozenset(documented.EVENTS) - frozenset(wire.EVENTS)
_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"
_PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{1,80}", re.ASCII)

_encode = msgspec.json.Encoder(order="deterministic").encode
_encode_plain = msgspec.json.Encoder().encode


class Refused(msgspec.Struct, frozen=True):
    """An event that isn't right: in the dialect that it seems to be in."""

    dialect: Dialect
    issues: list[Issue]
    type: str


class Event(msgspec.Struct, frozen=True):
    """An event that is right. `body`: the JSON text to store; `id`: of its packet, the same for a repeat.

    `is_new`: the node made the conversation's id, so that there can't be one yet.
    """

    dialect: Dialect
    type: str
    conversation: str
    stream: StreamName
    id: str
    body: bytes
    fact: Fact
    is_new: bool = False


def stream_of(conversation: str) -> StreamName:
    """The stream of a conversation."""
    return StreamName(f"{PREFIX}.{name_of_foreign_id(conversation)}")


def read_event(value: Any, raw: bytes, *, draw_id: Callable[[], str], now: str) -> Event | Refused:
    """Judges one event. `value`: decoded from `raw`. `draw_id`: a conversation's id that nobody has. `now`: the time of
    an event that brings none, which isn't stored with it."""
    if type(value) is not dict:
        return Refused("wire", find_issues(record, value), "")
    kind = value.get("type")
    dialect = dialect_of(value)
    checks = wire.EVENTS if dialect == "wire" else documented.EVENTS
    if not isinstance(kind, str) or kind not in checks:
        message = f"Invalid input: no event type {word_of(kind) if not isinstance(kind, str) else kind[:60]!r}"
        return Refused(dialect, [Issue("invalid_union", ["type"], message)], "unknown")
    issues = find_issues(checks[kind], value)
    if issues:
        return Refused(dialect, issues, kind)
    return _wire_event(value, raw) if dialect == "wire" else _documented_event(value, draw_id, now)


def dialect_of(value: dict[str, Any]) -> Dialect:
    """Which dialect an event is in."""
    kind, data = value.get("type"), value.get("data")
    if kind in _ONLY_DOCUMENTED:
        return "documented"
    if not isinstance(data, dict):
        return "wire"
    if kind == "conversation.started":
        return "wire" if "conversation_id" in data or "initial_prompt" in data else "documented"
    is_documented = "conversationId" in data and "conversation_id" not in data
    return "documented" if is_documented and kind in documented.EVENTS else "wire"


def fact_of_packet(kind: str, body: bytes, appended: str) -> Fact | None:
    """What a stored packet says; None for one that is no event, or isn't right: whoever may publish into a
    conversation's stream can put anything there."""
    try:
        value = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return None
    if type(value) is not dict or value.get("type") != kind:
        return None
    dialect = dialect_of(value)
    check = (wire.EVENTS if dialect == "wire" else documented.EVENTS).get(kind)
    if check is None or find_issues(check, value):
        return None
    if dialect == "wire":
        return wire.fact_of(value, _digest_id(value))
    data = value["data"]
    if (kind == "message.created" and not isinstance(data.get("messageId"), str)) or (
        kind != "error.occurred" and not isinstance(data.get("conversationId"), str)
    ):
        return None
    return documented.fact_of(value, appended)


def cuid_of(octets: bytes) -> str:
    """An id in the form of AgentPipe's server: `c` and 24 characters."""
    number = int.from_bytes(blake3(octets).digest()[:20], "big")
    text = ""
    for _ in range(24):
        number, digit = divmod(number, 36)
        text += _BASE36[digit]
    return f"c{text}"


def conversation_of(fact: Fact) -> str:
    """The conversation that a fact is about; "" for none."""
    return "" if isinstance(fact, Bridge) else fact.conversation


def packet_id(kind: str, conversation: str, name: str) -> str:
    """The id of a packet in its conversation's stream. Streams' names are in lower case, so where a conversation's isn't,
    two could share one stream: then it goes into the ids."""
    scope = "" if conversation == conversation.lower() else f"{cuid_of(conversation.encode())}:"
    shown = name if _PLAIN_ID.fullmatch(name) else f"~{cuid_of(name.encode())}"
    return f"{scope}{kind}:{shown}"


def _wire_event(value: dict[str, Any], raw: bytes) -> Event:
    kind, digest = value["type"], _digest_id(value)
    fact = wire.fact_of(value, digest)
    conversation = conversation_of(fact)
    stream = BRIDGE_STREAM if isinstance(fact, Bridge) else stream_of(conversation)
    name = fact.id if isinstance(fact, Message) else digest
    return Event("wire", kind, conversation, stream, packet_id(kind, conversation, name), raw, fact)


def _documented_event(value: dict[str, Any], draw_id: Callable[[], str], now: str) -> Event:
    kind, data = value["type"], dict(value["data"])
    digest = _digest_id(value)
    is_new = kind == "conversation.started"
    if is_new:
        # A repeat has the same time. Without a time nobody can tell a repeat from a second conversation like the first.
        data["conversationId"] = cuid_of(_encode(value)) if "timestamp" in value else draw_id()
    if kind == "message.created":
        data["messageId"] = cuid_of(_encode([data["conversationId"], data["message"]]))
    stored = {**value, "data": data}
    fact = documented.fact_of(stored, now)
    conversation = conversation_of(fact)
    name = fact.id if isinstance(fact, Message) else digest
    return Event(
        "documented", kind, conversation, stream_of(conversation) if conversation else BRIDGE_STREAM,
        packet_id(kind, conversation, name), _encode_plain(stored), fact, is_new,
    )  # fmt: skip


def _digest_id(value: dict[str, Any]) -> str:
    """The same for events that say the same."""
    return cuid_of(_encode(value))

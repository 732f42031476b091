"""Table `[agentpipe]`: being the server that AgentPipe's client streams to."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from overlayd.access.rates import parse_rules
from overlayd.model.units import Duration, Size

_RATE = ': "100/min", with or without "burst 200"; "": no bound'


class AgentPipeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """AgentPipe's routes below /api, off by default."""

    enabled: Annotated[bool, Meta(description="Serve AgentPipe's routes below /api")] = False
    bridge_key: Annotated[
        str,
        Meta(
            max_length=512, extra={"secret": True},
            description="Key that the client shows, as AGENTPIPE_BRIDGE_API_KEY gives it; better kept in [[keys]]",
        ),
    ] = ""  # fmt: skip
    visibility: Annotated[
        Literal["private", "public"],
        Meta(description="Who may read new conversations: holders of rights, or every key"),
    ] = "private"
    event_bytes: Annotated[Size, Meta(description="One event")] = Size(1_000_000)
    batch_bytes: Annotated[Size, Meta(description="An array of events, or one a line")] = Size(16 << 20)
    batch_events: Annotated[int, Meta(ge=1, description="Events in one request")] = 1000
    upload_bytes: Annotated[Size, Meta(description="A session that is uploaded whole")] = Size(50 << 20)
    upload_messages: Annotated[int, Meta(ge=1, le=10_000, description="Messages of such a session")] = 10_000
    ingest_rate: Annotated[
        str, Meta(max_length=100, description="Events of one key in the documented dialect" + _RATE)
    ] = "100/min"
    bridge_rate: Annotated[
        str,
        Meta(
            max_length=100,
            description="Events of one key in the client's own dialect, which drops what is refused for good" + _RATE,
        ),
    ] = "60000/min burst 60000"
    conversation_rate: Annotated[
        str, Meta(max_length=100, description="Events of one conversation, in either dialect" + _RATE)
    ] = ""
    upload_rate: Annotated[str, Meta(max_length=100, description="Uploads of one key" + _RATE)] = "10/min"
    retrieval_rate: Annotated[str, Meta(max_length=100, description="Read requests of one key" + _RATE)] = "1000/h"
    sse_connections: Annotated[int, Meta(ge=1, description="Live listeners in all")] = 1000
    sse_per_conversation: Annotated[
        int, Meta(ge=1, description="Live listeners that ask for the same conversation")
    ] = 100
    sse_per_address: Annotated[
        int, Meta(ge=1, description="Live listeners of one address (IPv6: one /64)")
    ] = 50  # fmt: skip
    sse_heartbeat: Annotated[Duration, Meta(description="Longest silence on a live connection")] = Duration(30)
    sse_replayed: Annotated[int, Meta(ge=0, le=1000, description="Newest events that a new listener gets first")] = 100
    page_max: Annotated[int, Meta(ge=1, le=1000, description="Sessions or messages on one page")] = 100
    messages_shown: Annotated[int, Meta(ge=1, description="Messages of a session in one answer")] = 10_000
    search_terms: Annotated[int, Meta(ge=1, le=64, description="Words of one search")] = 32

    def __post_init__(self) -> None:
        """Raises ValueError."""
        for name in ("ingest_rate", "bridge_rate", "conversation_rate", "upload_rate", "retrieval_rate"):
            rules = parse_rules(name, name, "principal", getattr(self, name))
            if any(rule.is_bytes for rule in rules):
                raise ValueError(f"{name}: counts requests, not bytes")

"""The bodies of the native API and of the live protocol, as they travel (docs/api.md).

The node encodes them, the client decodes them, and the served OpenAPI and AsyncAPI documents are made from
them. A member that wasn't measured, or that the producer didn't give, is left out rather than filled in.
JSON that a producer sent (`data_payload`, `metadata`) is carried as text and never re-encoded.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from overlayd.model.clock import format_time_us
from overlayd.model.cursor import Cursor, Epoch
from overlayd.model.definition import Definition
from overlayd.model.draft import Receipt, StreamStateName
from overlayd.model.errors import Violation
from overlayd.model.hash_text import format_blake3 as format_blake3
from overlayd.model.hash_text import format_sha256 as format_sha256
from overlayd.model.hash_text import parse_blake3 as parse_blake3
from overlayd.model.hash_text import parse_sha256 as parse_sha256
from overlayd.model.txid import format_hash
from overlayd.model.units import Duration, Size

NetworkName = Literal["none", "regtest", "mainnet", "testnet"]
ConfirmationStatus = Literal["none", "pending", "seen", "mined", "confirmed", "failed", "dropped"]
GapReason = Literal["retention", "erased", "damaged", "restored", "deleted", "filter_disabled"]
Time = Annotated[str, Meta(description="RFC 3339, UTC with Z", examples=["2024-01-15T10:30:00.000000Z"])]
CursorText = Annotated[str, Meta(description="Position in the log, opaque", examples=["e1k7f3q2ma-12345"])]
ContentHash = Annotated[str, Meta(description="BLAKE3 of the stored body", pattern="^blake3:[0-9a-f]{64}$")]
Sha256Text = Annotated[str, Meta(description="A SHA-256 value", pattern="^sha256:[0-9a-f]{64}$")]
LeafHash = Annotated[str, Meta(description="Hash of the entry in the Merkle tree", pattern="^sha256:[0-9a-f]{64}$")]
TxIdText = Annotated[str, Meta(description="Transaction id, display order", pattern="^[0-9a-f]{64}$")]
SubscriptionId = Annotated[str, Meta(description="The id the client gave the subscription", max_length=64)]
Ref = Annotated[
    Annotated[str, Meta(max_length=128)] | int, Meta(description="What the client sent along to tell answers apart")
]
Sequence = Annotated[int, Meta(description="1-based number of the packet in its stream", ge=0)]
Offset = Annotated[int, Meta(description="1-based number of the entry in the log", ge=0)]
Json = Annotated[Raw, Meta(description="Any JSON value, byte for byte as stored")]


class ReceiptBody(msgspec.Struct, kw_only=True):
    """What a producer gets for a durable packet."""

    stream: Annotated[str, Meta(description="Name of the stream")]
    sequence: Sequence
    offset: Offset
    cursor: CursorText
    id: Annotated[str, Meta(description="The producer's id, else epoch and offset")]
    content_hash: ContentHash | UnsetType = UNSET
    leaf_hash: LeafHash
    appended_at: Time
    durability: Annotated[Literal["full"], Meta(description="full: fsynced before this was written")] = "full"
    duplicate: Annotated[bool, Meta(description="The packet was durable before this request")] = False
    commitment: Sha256Text | UnsetType = UNSET
    txid: TxIdText | UnsetType = UNSET
    confirmation_status: ConfirmationStatus = "none"
    proof: Annotated[Raw, Meta(description="Proof with checkpoint and inclusion path")] | UnsetType = UNSET


class PublishBody(msgspec.Struct, kw_only=True):
    """What became of several packets. `receipts` is left out of long NDJSON answers; `first` and `last` stay."""

    accepted: Annotated[int, Meta(description="Packets appended by this request")]
    duplicates: Annotated[int, Meta(description="Packets that were durable before")]
    rejected: Annotated[int, Meta(description="Packets that are not in the log")]
    receipts: list[ReceiptBody] | UnsetType = UNSET
    errors: list[Violation] = []
    first: ReceiptBody | UnsetType = UNSET
    last: ReceiptBody | UnsetType = UNSET


class Problem(msgspec.Struct, kw_only=True):
    """RFC 9457 problem details. Some codes add members, named in docs/errors.md."""

    type: Annotated[str, Meta(description="Where the error is explained")]
    title: str
    status: Annotated[int, Meta(ge=100, le=599)]
    detail: str
    instance: Annotated[str, Meta(description="The request's id, as in X-Request-Id")]
    code: Annotated[str, Meta(description="Stable, dotted; docs/errors.md lists them")]
    retryable: Annotated[bool, Meta(description="Whether the same request may succeed later")]
    subject: Annotated[str, Meta(description="What it is about")] | UnsetType = UNSET
    hint: Annotated[str, Meta(description="What to do")] | UnsetType = UNSET
    errors: list[Violation] | UnsetType = UNSET


class Packet(msgspec.Struct, kw_only=True):
    """A packet as consumers see it."""

    stream_id: Annotated[str, Meta(description="Name of the stream")]
    packet_sequence: Sequence
    packet_id: Annotated[str, Meta(description="The producer's id, else epoch and offset")]
    offset: Offset
    type: Annotated[str, Meta(description="As the producer gave it")] | UnsetType = UNSET
    key: Annotated[str, Meta(description="As the producer gave it, or taken from data")] | UnsetType = UNSET
    timestamp: Annotated[str, Meta(description="The producer's time, as sent (RFC 3339)")] | UnsetType = UNSET
    appended_at: Time
    source: Annotated[str, Meta(description="As the producer gave it")] | UnsetType = UNSET
    topics: Annotated[list[str], Meta(description="The definition's topics, then the packet's")] = []
    metadata: Annotated[Raw, Meta(description="The producer's metadata, an object")] | UnsetType = UNSET
    data_payload: Json
    data_encoding: Annotated[Literal["base64"], Meta(description="data_payload holds octets")] | UnsetType = UNSET
    content_hash: ContentHash
    leaf_hash: LeafHash
    hops: Annotated[int, Meta(description="How often it was made from another entry")] | UnsetType = UNSET
    traceparent: Annotated[str, Meta(description="W3C trace context of its publishing")] | UnsetType = UNSET
    commitment: Sha256Text | UnsetType = UNSET
    signature: Annotated[Raw, Meta(description="The producer's, BRC-77 over the commitment")] | UnsetType = UNSET
    txid: TxIdText | UnsetType = UNSET
    confirmation_status: ConfirmationStatus = "none"
    confirmations: Annotated[int, Meta(ge=0)] | UnsetType = UNSET
    block_height: Annotated[int, Meta(ge=0)] | UnsetType = UNSET
    block_hash: TxIdText | UnsetType = UNSET


class PacketGap(msgspec.Struct, kw_only=True):
    """Sequences of one stream that can't be given any more, both ends inclusive."""

    from_sequence: Sequence
    to_sequence: Sequence
    reason: GapReason


class PacketsBody(msgspec.Struct, kw_only=True):
    """Answer of `GET /v1/streams/{stream}/packets`."""

    packets: list[Packet]
    gaps: list[PacketGap] = []
    next_after: Annotated[int, Meta(description="Give it as `after` to go on")]
    head_sequence: Sequence


class PacketList(msgspec.Struct, kw_only=True):
    """Answer of `GET /v1/packets`: packets of any streams."""

    packets: list[Packet]


class StreamBody(Definition, kw_only=True, frozen=True, forbid_unknown_fields=False):
    """A stream: its definition's members and where it stands.

    A subclass because the API shows both on one level, and a copy of the members would drift.
    """

    stream: Annotated[str, Meta(description="Name")]
    owner: Annotated[Literal["api", "config"], Meta(description="config: declared in the config file, read-only here")]
    owned_by: Annotated[
        str | UnsetType, Meta(description="Owner of the credential that created it, for scopes over @own")
    ] = UNSET
    state: StreamStateName
    definition_version: Annotated[int, Meta(ge=1)]
    created_at: Time
    head_sequence: Annotated[int, Meta(description="Newest sequence, 0 when empty")]
    oldest_sequence: Annotated[int, Meta(description="Oldest sequence still kept, 0 when empty")]
    packets: Annotated[int, Meta(description="Packets still kept")]
    bytes: Annotated[int, Meta(description="Bytes they take: bodies with meta, salts and hashes")]
    confirmed_sequence: Sequence | UnsetType = UNSET
    subscribers: (
        Annotated[int, Meta(description="Live sessions that name this stream or a pattern over it")] | UnsetType
    ) = UNSET
    last_packet_at: Time | UnsetType = UNSET


class StreamList(msgspec.Struct, kw_only=True):
    """Answer of `GET /v1/streams`, by name."""

    streams: list[StreamBody]
    next_after: Annotated[str, Meta(description="Give it as `after` to go on")] | UnsetType = UNSET


class StreamStateBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of `PUT /v1/streams/{stream}/state`."""

    state: StreamStateName


class StreamRemoved(msgspec.Struct, kw_only=True):
    """Answer of `DELETE /v1/streams/{stream}`."""

    stream: str
    packets_removed: int


class EpochBody(msgspec.Struct, kw_only=True):
    """An earlier epoch of this log and the last offset it shares with the next one."""

    epoch: str
    last_offset: Offset


class NodeBody(msgspec.Struct, kw_only=True):
    """Answer of `GET /v1/node`: who this node is and where its log stands."""

    node: Annotated[str, Meta(description="Its name from the settings")]
    log: Annotated[str, Meta(description="Log id, from its first public key")]
    origin: Annotated[str, Meta(description="First line of its checkpoints")]
    keys: Annotated[list[str], Meta(description="Verifier keys of its checkpoints (C2SP vkey)")]
    identity_key: Annotated[
        str | UnsetType,
        Meta(description="Public key that it signs answers with (BRC-104), where identities may come in"),
    ] = UNSET
    network: Annotated[NetworkName, Meta(description="Its chain; none: this node confirms nothing on a chain")] = "none"
    epoch: str
    ancestry: list[EpochBody] = []
    head: Offset
    cursor: Annotated[str, Meta(description="The head as a cursor")]
    minimum_index: Annotated[int, Meta(description="Leaf index below which entries were cut away")] = 0
    started_at: Time
    versions: Annotated[dict[str, str], Meta(description="overlayd, Python, SQLite and the parts that matter")]


class CheckBody(msgspec.Struct, kw_only=True):
    """One of the things that `/readyz` looked at."""

    ok: bool
    detail: str | UnsetType = UNSET


class ReadyBody(msgspec.Struct, kw_only=True):
    """Answer of `/readyz`: whether the node can take packets."""

    ready: bool
    checks: dict[str, CheckBody]


class QueryBody(msgspec.Struct, kw_only=True):
    """What a live reader asked for."""

    streams: Annotated[list[str], Meta(description="Patterns over stream names")] = []
    topics: Annotated[list[str], Meta(description="Patterns over topics")] = []
    types: list[str] = []
    keys: list[str] = []
    deliver: Literal["appended", "confirmed", "both"] = "appended"
    min_confirmations: Annotated[int, Meta(ge=1)] | UnsetType = UNSET
    filter: Annotated[str, Meta(description="A CEL expression")] | UnsetType = UNSET
    format: Annotated[
        Literal["packet", "cloudevents", "agent"], Meta(description="agent: packets also say who they are from")
    ] = "packet"
    status: Annotated[bool, Meta(description="Whether status changes are sent too")] = False


class SessionSubscription(msgspec.Struct, kw_only=True):
    """One reading position of a session."""

    id: SubscriptionId | UnsetType = UNSET
    query: QueryBody
    cursor: CursorText
    lag_entries: Annotated[int, Meta(description="Entries between the position and the head")]


class SessionBody(msgspec.Struct, kw_only=True):
    """One live connection that reads."""

    id: str
    transport: Literal["websocket", "sse", "ndjson"]
    principal: str
    address: Annotated[str, Meta(description="The peer, as its listener sees it")]
    opened_at: Time
    messages_sent: int
    bytes_sent: int
    subscriptions: list[SessionSubscription]


class SessionList(msgspec.Struct, kw_only=True):
    """Answer of `GET /v1/sessions`."""

    sessions: list[SessionBody]


class ConsistencyBody(msgspec.Struct, kw_only=True, rename={"from_": "from"}):
    """That the log at size `to` begins with the log at size `from` (RFC 6962 consistency path)."""

    from_: Annotated[int, Meta(description="Older size")]
    to: Annotated[int, Meta(description="Newer size")]
    from_root: Sha256Text
    to_root: Sha256Text
    path: list[Sha256Text]
    checkpoint: Annotated[str, Meta(description="Signed note over the newer size")] | UnsetType = UNSET


class LossBody(msgspec.Struct, kw_only=True):
    """The node was restored: what the client saw above the common size isn't in the log any more."""

    epoch: Annotated[str, Meta(description="The earlier epoch, of which the client's cursor is")]
    common_size: Annotated[int, Meta(description="Size up to which both are the same")]
    seen_size: Annotated[int, Meta(description="Size that the client saw")]


class WelcomeMessage(msgspec.Struct, kw_only=True, tag_field="type", tag="welcome"):
    """First message of a live connection."""

    node: str
    epoch: str
    head: Offset
    session: str
    consistency: Annotated[ConsistencyBody, Meta(description="Answer to `seen`")] | UnsetType = UNSET
    loss: Annotated[LossBody, Meta(description="Answer to `seen` after a restore")] | UnsetType = UNSET


class SubscribedMessage(msgspec.Struct, kw_only=True, tag_field="type", tag="subscribed"):
    """A subscription stands; what follows its cursor will come. Without `id`: the one of the connection's URL."""

    id: SubscriptionId | UnsetType = UNSET
    cursor: CursorText
    never: Annotated[list[str], Meta(description="Streams named here that will never confirm a packet")] = []


class PacketMessage(msgspec.Struct, kw_only=True, tag_field="type", tag="packet"):
    """One packet; `cursor` is where to resume behind it."""

    stream_id: str
    cursor: CursorText
    packet: Packet
    sub: SubscriptionId | UnsetType = UNSET


class StatusMessage(msgspec.Struct, kw_only=True, tag_field="type", tag="status", rename={"from_": "from"}):
    """The confirmation of one packet (`packet_sequence`) or of a run (`from`, `to`, inclusive) changed."""

    stream_id: str
    cursor: CursorText
    packet_sequence: Sequence | UnsetType = UNSET
    from_: Sequence | UnsetType = UNSET
    to: Sequence | UnsetType = UNSET
    confirmation_status: ConfirmationStatus
    confirmations: Annotated[int, Meta(ge=0)] | UnsetType = UNSET
    block_height: Annotated[int, Meta(ge=0)] | UnsetType = UNSET
    block_hash: TxIdText | UnsetType = UNSET
    txid: TxIdText | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    sub: SubscriptionId | UnsetType = UNSET


class GapMessage(msgspec.Struct, kw_only=True, tag_field="type", tag="gap", rename={"from_": "from"}):
    """Entries the reader should have got and can't: from and to are cursors, both inclusive."""

    from_: CursorText
    to: CursorText
    reason: GapReason
    cursor: Annotated[str, Meta(description="Where to resume behind the gap")] | UnsetType = UNSET
    sub: SubscriptionId | UnsetType = UNSET


class ErasedMessage(msgspec.Struct, kw_only=True, tag_field="type", tag="erased"):
    """A packet the reader was given has been erased; it should forget it."""

    stream_id: str
    cursor: CursorText
    packet_sequence: Sequence
    sub: SubscriptionId | UnsetType = UNSET


class HeartbeatMessage(msgspec.Struct, kw_only=True, tag_field="type", tag="heartbeat"):
    """Nothing to send; the cursor is safe to resume from."""

    timestamp: Time
    head: Offset
    cursor: CursorText
    sub: SubscriptionId | UnsetType = UNSET


class ReceiptMessage(msgspec.Struct, kw_only=True, tag_field="type", tag="receipt"):
    """Answer to a `publish` message."""

    ref: Ref | UnsetType = UNSET
    accepted: int
    duplicates: int
    rejected: int
    receipts: list[ReceiptBody]
    errors: list[Violation] = []


class ErrorMessage(msgspec.Struct, kw_only=True, tag_field="type", tag="error"):
    """A message couldn't be carried out (`ref` names it), or the reading can't go on."""

    code: Annotated[str, Meta(description="Stable, dotted; docs/errors.md lists them")]
    detail: str
    ref: Ref | UnsetType = UNSET
    sub: SubscriptionId | UnsetType = UNSET
    retryable: bool = False
    errors: list[Violation] | UnsetType = UNSET


class ByeMessage(msgspec.Struct, kw_only=True, tag_field="type", tag="bye"):
    """The node ends the connection."""

    reason: str
    retry_after: Annotated[float, Meta(description="Seconds to wait before reconnecting")] | UnsetType = UNSET


ServerMessage = (
    WelcomeMessage
    | SubscribedMessage
    | PacketMessage
    | StatusMessage
    | GapMessage
    | ErasedMessage
    | HeartbeatMessage
    | ReceiptMessage
    | ErrorMessage
    | ByeMessage
)
"""What a live connection receives in the `packet` format; told apart by `type`."""

LogMessage = PacketMessage | StatusMessage | GapMessage | ErasedMessage
"""What comes out of the log itself, also through `GET /v1/read`."""


class ReadBody(msgspec.Struct, kw_only=True):
    """Answer of `GET /v1/read`. It may hold nothing but a moved cursor."""

    messages: list[LogMessage]
    cursor: CursorText
    at_head: Annotated[bool, Meta(description="Whether everything up to the head was looked at")]


class SubscribeMessage(msgspec.Struct, kw_only=True, tag_field="type", tag="subscribe", rename={"from_": "from"}):
    """Starts a subscription, or attaches to a durable one by its name, with nothing else said but `id`. The names are
    plural because `type` already tells the message apart."""

    id: SubscriptionId
    ref: Ref | UnsetType = UNSET
    name: Annotated[str, Meta(description="Of a durable subscription that is read live")] | UnsetType = UNSET
    streams: list[str] = []
    topics: list[str] = []
    types: list[str] = []
    keys: list[str] = []
    deliver: Literal["appended", "confirmed", "both"] | UnsetType = UNSET
    min_confirmations: int | UnsetType = UNSET
    filter: str | UnsetType = UNSET
    after: CursorText | UnsetType = UNSET
    from_: Annotated[str, Meta(description="now, beginning, last or a time")] | UnsetType = UNSET
    status: bool = False
    on_gap: Literal["message", "error"] = "message"


class UnsubscribeMessage(msgspec.Struct, kw_only=True, tag_field="type", tag="unsubscribe"):
    """Ends a subscription."""

    id: SubscriptionId


class PublishMessage(msgspec.Struct, kw_only=True, tag_field="type", tag="publish"):
    """Publishes packet objects over the live connection."""

    ref: Ref | UnsetType = UNSET
    stream: str
    packets: Annotated[list[Raw], Meta(description="Packet objects, as in POST /v1/streams/{stream}/packets")]
    atomic: bool = True
    expected_sequence: Annotated[int, Meta(ge=0)] | UnsetType = UNSET


class PingMessage(msgspec.Struct, kw_only=True, tag_field="type", tag="ping"):
    """Asks for a heartbeat now."""

    ref: Ref | UnsetType = UNSET


ClientMessage = SubscribeMessage | UnsubscribeMessage | PublishMessage | PingMessage
"""What a WebSocket client may send; told apart by `type`."""


def receipt_body(receipt: Receipt, epoch: Epoch) -> ReceiptBody:
    """The receipt as it travels; `epoch` is the log's present one, in which the cursor is given.

    What retention took (content hash, commitment) is left out.
    """
    return ReceiptBody(
        stream=receipt.stream,
        sequence=receipt.sequence,
        offset=receipt.offset,
        cursor=str(Cursor(epoch, receipt.offset)),
        id=receipt.packet_id,
        content_hash=format_blake3(receipt.content_hash) if receipt.content_hash else UNSET,
        leaf_hash=format_sha256(receipt.leaf),
        appended_at=format_time_us(receipt.appended_us),
        duplicate=receipt.duplicate,
        commitment=format_sha256(receipt.commitment) if receipt.commitment else UNSET,
        txid=format_hash(receipt.txid) if receipt.txid else UNSET,
        confirmation_status=receipt.confirmation_status,
    )


def encode_wire(body: Any) -> bytes:
    """Compact JSON of any of these bodies."""
    return _ENCODER.encode(body)


def _encode_unit(value: Any) -> Any:
    if isinstance(value, (Duration, Size)):
        return str(value)
    raise TypeError(f"no JSON form for {type(value).__name__}")  # pragma: no cover - a programming error


_ENCODER = msgspec.json.Encoder(enc_hook=_encode_unit)

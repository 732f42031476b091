"""Every request of the API as a value: what to send, and how to read the answer. No I/O here.

Both clients send these, so that they can't differ in what they ask or understand.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import msgspec

from overlayd.client.problems import error_of_answer
from overlayd.model.definition import Definition, decode_unit, encode_definition
from overlayd.model.errors import UnexpectedAnswer
from overlayd.model.key_chain import LogKeysBody
from overlayd.model.units import Duration
from overlayd.model.wire import (
    ConsistencyBody,
    NodeBody,
    Packet,
    PacketList,
    PacketsBody,
    PublishBody,
    ReadBody,
    ReadyBody,
    ReceiptBody,
    SessionBody,
    SessionList,
    StreamBody,
    StreamList,
    StreamRemoved,
)

T = TypeVar("T")

JSON = "application/json"
NDJSON = "application/x-ndjson"
OCTETS = "application/octet-stream"
HOLD_MAX_S = 55.0
"""The longest that the node holds a request open."""


class Answer(msgspec.Struct, frozen=True):
    """A whole answer. Header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Call(msgspec.Struct, Generic[T], frozen=True):
    """One request. `hold_s`: how long the node may hold it open on purpose, beyond the usual timeout.

    `is_repeatable`: sending it twice is the same as sending it once.
    """

    method: str
    path: str
    parse: Callable[[Answer], T]
    params: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    content: bytes = b""
    is_repeatable: bool = True
    hold_s: float = 0.0

    def read(self, answer: Answer) -> T:
        """What the answer says. Raises the error it stands for, or UnexpectedAnswer."""
        if answer.status >= 300:
            raise error_of_answer(answer.status, answer.headers, answer.body)
        return self.parse(answer)


class Tagged(msgspec.Struct, Generic[T], frozen=True):
    """What an answer says, and its ETag; "" when it has none."""

    value: T
    etag: str


def tagged(call: Call[T]) -> Call[Tagged[T]]:
    """The same request; its answer with what a change that means only this can name as `if_match`."""

    def parse(answer: Answer) -> Tagged[T]:
        return Tagged(call.parse(answer), answer.headers.get("etag", ""))

    return Call(call.method, call.path, parse, call.params, call.headers, call.content, call.is_repeatable, call.hold_s)


def decoder_of(kind: type[T]) -> Callable[[Answer], T]:
    """A parse function for a JSON answer of this type."""
    decoder = msgspec.json.Decoder(kind, dec_hook=decode_unit)

    def parse(answer: Answer) -> T:
        try:
            return decoder.decode(answer.body)
        except msgspec.DecodeError as err:
            raise UnexpectedAnswer(f"the answer can't be read as {kind.__name__}: {err}") from err

    return parse


_NODE = decoder_of(NodeBody)
_READY = decoder_of(ReadyBody)
_STREAM = decoder_of(StreamBody)
_STREAMS = decoder_of(StreamList)
_REMOVED = decoder_of(StreamRemoved)
_RECEIPT = decoder_of(ReceiptBody)
_PUBLISH = decoder_of(PublishBody)
_PACKET = decoder_of(Packet)
_PACKETS = decoder_of(PacketsBody)
_PACKET_LIST = decoder_of(PacketList)
_READ = decoder_of(ReadBody)
_SESSIONS = decoder_of(SessionList)
_LOG_KEYS = decoder_of(LogKeysBody)
_CONSISTENCY = decoder_of(ConsistencyBody)


def node() -> Call[NodeBody]:
    """Who the node is and where its log stands."""
    return Call("GET", "/v1/node", _NODE)


class _ReadyCall(Call[ReadyBody], frozen=True):
    """Not ready is an answer here, not an error."""

    def read(self, answer: Answer) -> ReadyBody:
        return self.parse(answer) if answer.status in (200, 503) else super().read(answer)


def ready() -> Call[ReadyBody]:
    """Whether the node can take packets, and what it looked at."""
    return _ReadyCall("GET", "/readyz", _READY)


def streams(*, q: str = "", tag: str = "", state: str = "", limit: int = 0, after: str = "") -> Call[StreamList]:
    """A page of streams by name."""
    named = (("q", q), ("tag", tag), ("state", state), ("limit", str(limit or "")), ("after", after))
    return Call("GET", "/v1/streams", _STREAMS, params=_given(named))


def stream(name: str) -> Call[StreamBody]:
    """One stream's definition and where it stands."""
    return Call("GET", stream_path(name), _STREAM)


def define(
    name: str, definition: Definition | Mapping[str, Any], *, if_match: str = "", is_new: bool = False
) -> Call[StreamBody]:  # fmt: skip
    """Creates or changes a stream. A mapping holds only what differs from the node's defaults. `if_match`: only the one
    with this ETag is changed; `is_new`: none is."""
    content = encode_definition(definition) if isinstance(definition, Definition) else _encode_mapping(definition)
    headers = (("Content-Type", JSON), *_given((("If-Match", if_match), ("If-None-Match", "*" if is_new else ""))))
    return Call("PUT", stream_path(name), _STREAM, headers=headers, content=content)


def set_state(name: str, state: str) -> Call[StreamBody]:
    """active, paused or stopped."""
    content = msgspec.json.encode({"state": state})
    return Call("PUT", stream_path(name, "state"), _STREAM, headers=(("Content-Type", JSON),), content=content)


def delete(name: str, *, if_match: str = "", expected_sequence: int | None = None) -> Call[StreamRemoved]:
    """Takes a stream's packets away and frees its name. There is no way back. `if_match`, `expected_sequence`: unless its
    definition, or its newest packet, is another by now."""
    sequence = "" if expected_sequence is None else str(expected_sequence)
    return Call(
        "DELETE", stream_path(name), _REMOVED, params=_given((("confirm", name), ("expected_sequence", sequence))),
        headers=_given((("If-Match", if_match),)), is_repeatable=False,
    )  # fmt: skip


def publish_packet(
    name: str, packet: bytes, *, is_repeatable: bool, expected_sequence: int | None = None, proof: bool = False
) -> Call[ReceiptBody]:
    """One packet object. `expected_sequence` makes it repeatable in another way: a second append is refused."""
    params = [("proof", "true")] if proof else []
    if expected_sequence is not None:
        params.append(("expected_sequence", str(expected_sequence)))
    return Call(
        "POST", stream_path(name, "packets"), _RECEIPT, params=tuple(params), headers=(("Content-Type", JSON),),
        content=packet, is_repeatable=is_repeatable,
    )  # fmt: skip


class _LinesCall(Call[PublishBody], frozen=True):
    """A request whose packets were all rejected is an answer too: its body lists why."""

    def read(self, answer: Answer) -> PublishBody:
        if answer.status == 422:
            body = _publish_body_of_rejected(answer.body)
            if body is not None:
                return body
        return super().read(answer)


def _publish_body_of_rejected(body: bytes) -> PublishBody | None:
    try:
        return msgspec.json.decode(body, type=PublishBody)
    except msgspec.DecodeError:
        return None


def publish_lines(name: str, lines: Sequence[bytes], *, is_repeatable: bool) -> Call[PublishBody]:
    """Packet objects, one a line; each is taken or rejected by itself."""
    return _LinesCall(
        "POST", stream_path(name, "packets"), _PUBLISH, headers=(("Content-Type", NDJSON),),
        content=b"\n".join(lines) + b"\n", is_repeatable=is_repeatable,
    )  # fmt: skip


def read_packets(
    name: str, *, after: int = 0, limit: int = 100, wait_s: float = 0.0, deliver: str = ""
) -> Call[PacketsBody]:
    """Packets of one stream behind a sequence, waiting up to `wait_s` for the first."""
    hold_s = min(wait_s, HOLD_MAX_S)
    wait = str(Duration(hold_s)) if hold_s else ""
    named = (("after", str(after)), ("limit", str(limit)), ("wait", wait), ("deliver", deliver))
    return Call("GET", stream_path(name, "packets"), _PACKETS, params=_given(named), hold_s=hold_s)


def read_packet(name: str, sequence: int) -> Call[Packet]:
    """One packet."""
    return Call("GET", stream_path(name, "packets", str(sequence)), _PACKET)


def read_data(name: str, sequence: int) -> Call[bytes]:
    """A packet's stored body, byte for byte."""
    return Call("GET", stream_path(name, "packets", str(sequence), "data"), lambda answer: answer.body)


def read_last(name: str, key: str = "") -> Call[Packet]:
    """The newest packet, of one key if given."""
    return Call("GET", stream_path(name, "last"), _PACKET, params=_given([("key", key)]))


def find_packets(packet_id: str) -> Call[PacketList]:
    """Packets of any stream that carry this id."""
    return Call("GET", "/v1/packets", _PACKET_LIST, params=(("id", packet_id),))


def read_log(params: Sequence[tuple[str, str]], *, wait_s: float = 0.0) -> Call[ReadBody]:
    """Messages behind a cursor, by a live query."""
    hold_s = min(wait_s, HOLD_MAX_S)
    wait = [("wait", str(Duration(hold_s)))] if hold_s else []
    return Call("GET", "/v1/read", _READ, params=(*params, *wait), hold_s=hold_s)


def live_lines(params: Sequence[tuple[str, str]]) -> Call[None]:
    """A live reading as NDJSON. Its answer has no end; only a refusal is read through `Call.read`."""
    return Call("GET", "/v1/live", lambda answer: None, params=tuple(params), headers=(("Accept", NDJSON),))


def proof(name: str, sequence: int) -> Call[bytes]:
    """A packet's proof, as the JSON text that stands alone in a file."""
    return Call("GET", stream_path(name, "packets", str(sequence), "proof"), lambda answer: answer.body)


def checkpoint() -> Call[str]:
    """The newest signed checkpoint, as a note."""
    return Call("GET", "/v1/log/checkpoint", lambda answer: answer.body.decode("utf-8", "replace"))


def log_keys() -> Call[LogKeysBody]:
    """The keys that signed the log's checkpoints, each with what introduced it. Check them with `follow_keys`."""
    return Call("GET", "/v1/log/keys", _LOG_KEYS)


def rotate_log_key() -> Call[LogKeysBody]:
    """Changes the key that signs the log; gives all keys then."""
    return Call("POST", "/v1/log/keys/rotate", _LOG_KEYS, is_repeatable=False, hold_s=60.0)


def consistency(old_size: int, new_size: int) -> Call[ConsistencyBody]:
    """That the log of one size begins with the log of another."""
    return Call("GET", "/v1/log/consistency", _CONSISTENCY, params=(("from", str(old_size)), ("to", str(new_size))))


def sessions() -> Call[list[SessionBody]]:
    """The live connections that read."""
    return Call("GET", "/v1/sessions", lambda answer: _SESSIONS(answer).sessions)


def end_session(session_id: str) -> Call[None]:
    """Ends a live connection; its client may come back."""
    return Call("DELETE", f"/v1/sessions/{quote(session_id, safe='')}", lambda answer: None, is_repeatable=False)


def stream_path(name: str, *rest: str) -> str:
    """`/v1/streams/<name>/…`, quoted, so that no name leads elsewhere."""
    return "/".join(["/v1/streams", *(quote(part, safe="") for part in (name, *rest))])


def _given(named: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in named if value)


def _encode_mapping(definition: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(dict(definition))

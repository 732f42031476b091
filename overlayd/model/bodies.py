"""Bodies of the entries that aren't packets: compact JSON, members in a fixed order (docs/log-format.md, Other kinds).

The structs' field order is the order in the bytes; absent members are left out. Hashes of this log are written
`sha256:<64 hex>`, txids and block hashes as 64 hex digits in display order, salts and octets as base64.
"""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import msgspec

from overlayd.model.errors import VerificationFailed

RemovalCause = Literal["erased", "retention", "deleted"]
StatusState = Literal["pending", "seen", "mined", "confirmed", "failed", "dropped"]


class StatusBody(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A state change of one packet or of a range (the entry's target).

    `depth`: of `confirmed` the listed depth that is reached; of a return to `pending` the deepest that was told before.
    """

    state: StatusState
    depth: int | None = None
    txid: str = ""
    vout: int | None = None
    height: int | None = None
    block: str = ""
    anchor_size: int | None = None
    reason: str = ""
    late: bool = False


StatusEntry: TypeAlias = tuple[StatusBody, bytes, int, int]
"""An entry to be: its body, the stream's hash (Z32: a range over all streams), the target's first and last offset."""


class RemovalBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a run of one stream's packets was taken away and how many they were."""

    cause: RemovalCause
    count: int


class Genesis(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="genesis"):
    """Offset 1 of a log: the verifier keys it begins with."""

    keys: tuple[str, ...]


class Boot(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, tag_field="type", tag="boot"):
    """The daemon started. Uptime is the machine's; what the system doesn't tell is left out."""

    version: str
    boot_id: str = ""
    uptime_ms: int | None = None
    clock_synced: bool | None = None


class ClockStep(
    msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, tag_field="type", tag="clock"
):
    """The wall clock moved against the monotonic one; positive is forward. Or its synchronization changed."""

    step_us: int
    boot_id: str = ""
    uptime_ms: int | None = None
    clock_synced: bool | None = None


class DefinitionChange(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="definition"
):  # fmt: skip
    """A stream's definition from here on. `ssalt` is base64; `definition` is JSON, or msgspec.Raw to keep its text."""

    stream: str
    ssalt: str
    version: int
    definition: Any


class KeyChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="key"):
    """The log's key changes; the note is signed by the old and the new one."""

    note: str


class SeenHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A size and root that was signed or seen outside."""

    size: int
    root: str


class Restore(
    msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, tag_field="type", tag="restore"
):
    """First entry of an epoch that continues another one up to its common size.

    `last_seen` is the newest head known of the older epoch, when that is more than the common part.
    """

    from_epoch: str
    common_size: int
    common_root: str
    last_seen: SeenHead | None = None


class Cut(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="cut"):
    """Entries below this index aren't served any more."""

    minimum_index: int


class Witnessed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="witnessed"):
    """A checkpoint with the cosignatures that came back."""

    note: str


class Heads(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="heads"):
    """Each stream's last packet at a size, as one root."""

    size: int
    streams: int
    root: str


NodeBody: TypeAlias = (
    Genesis | Boot | ClockStep | DefinitionChange | KeyChange | Restore | Cut | Witnessed | Heads
)  # fmt: skip

_ENCODER = msgspec.json.Encoder()
_NODE_DECODER: msgspec.json.Decoder[NodeBody] = msgspec.json.Decoder(NodeBody)
_REMOVAL_DECODER = msgspec.json.Decoder(RemovalBody)
_STATUS_DECODER = msgspec.json.Decoder(StatusBody)


def encode_node_body(body: NodeBody | Mapping[str, Any]) -> bytes:
    """A mapping needs its `type` and may have its members in any order. Raises ValueError for a wrong member."""
    if isinstance(body, Mapping):
        body = msgspec.convert(dict(body), NodeBody)
    return _ENCODER.encode(body)


def decode_node_body(raw: bytes) -> NodeBody:
    """Raises VerificationFailed, also for a type that this version doesn't know."""
    try:
        return _NODE_DECODER.decode(raw)
    except msgspec.DecodeError as err:
        raise VerificationFailed(f"not a node entry's body: {err}", subject="body") from err


def encode_removal_body(cause: RemovalCause, count: int) -> bytes:
    """The body of a removal entry."""
    assert count > 0
    return _ENCODER.encode(RemovalBody(cause, count))


def decode_removal_body(raw: bytes) -> RemovalBody:
    """Raises VerificationFailed."""
    try:
        return _REMOVAL_DECODER.decode(raw)
    except msgspec.DecodeError as err:
        raise VerificationFailed(f"not a removal entry's body: {err}", subject="body") from err


def encode_status_body(status: StatusBody) -> bytes:
    """The body of a status entry."""
    return _ENCODER.encode(status)


def decode_status_body(raw: bytes) -> StatusBody:
    """Raises VerificationFailed."""
    try:
        return _STATUS_DECODER.decode(raw)
    except msgspec.DecodeError as err:
        raise VerificationFailed(f"not a status entry's body: {err}", subject="body") from err


def encode_certificate_body(certificate: Mapping[str, Any]) -> bytes:
    """The body of a certificate entry: the certificate as compact JSON, its members in the given order."""
    return _ENCODER.encode(dict(certificate))

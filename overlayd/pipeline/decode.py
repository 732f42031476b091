"""Packet objects: from JSON text to draft."""

import re
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from overlayd.model.draft import Draft
from overlayd.model.errors import BatchTooLarge, InvalidPacket, MalformedJson, OverlaydError, Violation
from overlayd.model.limits import Limits
from overlayd.pipeline.chain_members import CHAIN_MEMBERS, Claim, read_claim
from overlayd.pipeline.json_text import check_depth, diagnose, parse_each, parse_json
from overlayd.pipeline.members import (
    Findings,
    check_metadata,
    check_names,
    check_octets,
    check_salt,
    check_text,
    check_time,
    check_topics,
    word_of,
)

MEMBERS = frozenset(
    (
        "data",
        "data_base64",
        "id",
        "type",
        "time",
        "source",
        "key",
        "topics",
        "metadata",
        "salt",
        "tx",
        "txid",
        "signature",
    )
)
_PLAIN_MEMBERS = frozenset(("data", "id", "type", "time", "source", "key"))
_ELEMENTS_TAIL = re.compile(rb"[ \t\r\n]*\[")


VALUES_BYTES = 64 << 10
"""Text of one request whose decoded values are kept until they are judged."""


class Decoded(msgspec.Struct, gc=False):
    """A draft and the decoded value of its data, so that schema and rules don't decode small ones again.

    `value` is UNSET once it was forgotten: decoded data can take thirty times the room of its text. `claim`: what the
    packet says about the chain, to be held against its stream. `subject`: whom the packet is about, where its stream
    asks; before anything was taken out of it.
    """

    draft: Draft
    value: Any
    claim: Claim | None = None
    subject: str = ""

    def data(self) -> Any:
        """The value, decoded again where it was forgotten."""
        return _decode_data(self.draft.body) if self.value is UNSET else self.value

    def forget(self) -> None:
        """Keeps the text only."""
        self.value = UNSET


class ValueBudget:
    """Forgets the values of a request's packets beyond the first few."""

    __slots__ = ("_left_bytes",)

    def __init__(self) -> None:
        self._left_bytes = VALUES_BYTES

    def trim(self, decoded: Decoded) -> Decoded:
        """The same packet, without its value once there are too many of them."""
        self._left_bytes -= len(decoded.draft.sent)
        if self._left_bytes < 0:
            decoded.forget()
        return decoded


class _Cuts(msgspec.Struct, gc=False):
    """The members that are kept as they were sent, cut to the first and last byte of the value."""

    data: Raw | UnsetType = UNSET
    data_base64: Raw | UnsetType = UNSET
    topics: Raw | UnsetType = UNSET
    metadata: Raw | UnsetType = UNSET
    signature: Raw | UnsetType = UNSET


_cut = msgspec.json.Decoder(_Cuts).decode
_decode_data = msgspec.json.Decoder().decode
_split = msgspec.json.Decoder(list[Raw]).decode


def decode_packet(raw: bytes, index: int, limits: Limits) -> Decoded:
    """The draft of a packet object. `index`: its place in the request.

    The caller has bounded the length. Raises MalformedJson, UnusableJson and InvalidPacket, whose violations
    point into the packet object.
    """
    members = parse_json(raw, limits.json_depth_max + 1)
    if type(members) is not dict:
        raise _not_an_object(members, index)
    cuts = _cut(raw)
    return _decode_plain(members, cuts, index, limits.id_chars) or _decode_members(members, cuts, index, limits)


def decode_packets(raws: Sequence[bytes], first_index: int, limits: Limits) -> list[Decoded | OverlaydError] | None:
    """The same for several at once, and why not where one is refused. None: each is to be decoded alone."""
    try:
        cuts = [_cut(raw) for raw in raws]  # also says that each is one object
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    packets = parse_each(raws, limits.json_depth_max + 1)
    if packets is None:
        return None
    decoded: list[Decoded | OverlaydError] = []
    chars_max = limits.id_chars
    for index, (members, cut) in enumerate(zip(packets, cuts, strict=True), first_index):
        plain = _decode_plain(members, cut, index, chars_max)
        if plain is not None:
            decoded.append(plain)
            continue
        try:
            decoded.append(_decode_members(members, cut, index, limits))
        except OverlaydError as refusal:
            decoded.append(refusal)
    return decoded


def _decode_plain(members: dict[str, Any], cuts: _Cuts, index: int, id_chars: int) -> Decoded | None:
    """What comes most: nothing but data and an id that can be one. None for everything else."""
    packet_id = members.get("id", "")
    count = 2 if packet_id else 1
    if len(members) == count and type(packet_id) is str and len(packet_id) <= id_chars and cuts.data is not UNSET:
        sent = bytes(cuts.data)
        return Decoded(Draft(index, sent, sent, packet_id), members["data"])
    return None


def _decode_members(members: dict[str, Any], cuts: _Cuts, index: int, limits: Limits) -> Decoded:
    findings = Findings(index)
    if not members.keys() <= MEMBERS:
        check_names(members, MEMBERS, findings)
    is_octets = "data_base64" in members
    if ("data" in members) == is_octets:
        _refuse_data(is_octets, findings)
        findings.raise_any()
    sent = bytes(cuts.data_base64 if is_octets else cuts.data)  # type: ignore[arg-type]
    draft = Draft(index, sent, sent, is_octets=is_octets)
    if is_octets:
        check_octets(members["data_base64"], "data_base64", findings)
    claim = _take_members(draft, members, cuts, limits, findings) if len(members) > 1 else None
    findings.raise_any()
    return Decoded(draft, members["data_base64"] if is_octets else members["data"], claim)


def _take_members(
    draft: Draft, members: dict[str, Any], cuts: _Cuts, limits: Limits, findings: Findings
) -> Claim | None:
    if "id" in members:
        draft.id = check_text(members["id"], "id", limits.id_chars, findings)
    if "type" in members:
        draft.type = check_text(members["type"], "type", limits.id_chars, findings)
    if "time" in members:
        draft.time = check_time(members["time"], "time", findings)
    if "source" in members:
        draft.source = check_text(members["source"], "source", limits.source_chars, findings)
    if "key" in members:
        draft.key = check_text(members["key"], "key", limits.id_chars, findings)
    return None if members.keys() <= _PLAIN_MEMBERS else _take_rarer_members(draft, members, cuts, limits, findings)


def _take_rarer_members(
    draft: Draft, members: dict[str, Any], cuts: _Cuts, limits: Limits, findings: Findings
) -> Claim | None:
    if cuts.topics is not UNSET:
        check_topics(members["topics"], limits, findings)
        draft.topics = bytes(cuts.topics)
    if cuts.metadata is not UNSET:
        draft.metadata = bytes(cuts.metadata)
        check_metadata(members["metadata"], draft.metadata, limits, findings)
    if "salt" in members:
        draft.csalt = check_salt(members["salt"], findings)
    if cuts.signature is not UNSET:
        draft.signature = bytes(cuts.signature)
    if members.keys().isdisjoint(CHAIN_MEMBERS):
        return None
    return read_claim(members, int(limits.packet_bytes), findings)


def _refuse_data(has_both: bool, findings: Findings) -> None:
    if has_both:
        findings.add("/data_base64", "member.exclusive", "only one of data and data_base64 may be given")
    else:
        findings.add("/data", "member.missing", "data (any JSON) or data_base64 (octets) is required")


def _not_an_object(value: Any, index: int) -> InvalidPacket:
    detail = f"a packet is an object with a member data, this is {word_of(value)}"
    return InvalidPacket(
        detail, hint='send {"data": …}, or the bare value to …/data',
        violations=[Violation("", "packet.object", detail, index=index)],
    )  # fmt: skip


def is_array(body: bytes) -> bool:
    """Whether a JSON body is an array of packets rather than one packet."""
    return _ELEMENTS_TAIL.match(body) is not None


def split_array(body: bytes, limits: Limits) -> list[bytes]:
    """The texts of an array's elements, first to last byte of each; what is in them isn't judged yet.

    Raises MalformedJson for a body that isn't one JSON array, UnusableJson for one that nests too deep,
    BatchTooLarge.
    """
    check_depth(body, limits.json_depth_max + 2)
    try:
        parts = _split(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as err:
        raise diagnose(body) or MalformedJson(f"not a JSON array: {err}") from err
    if len(parts) > limits.batch_packets_max:
        raise BatchTooLarge(
            f"{len(parts)} packets in one request; {limits.batch_packets_max} are taken", subject="batch_packets_max",
            hint="send several requests, or stream NDJSON, which has no such bound",
        )  # fmt: skip
    return [bytes(part) for part in parts]

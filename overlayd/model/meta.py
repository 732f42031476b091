"""Meta: everything about a packet beside its body, as tagged records (docs/log-format.md, Meta).

A record is tag u8 ‖ length u32 ‖ value; tags ascend strictly; what is absent is left out. Every meta that
decodes encodes to the same bytes again.
"""

import struct
from functools import lru_cache

import msgspec

from overlayd.model.entry import ENTRY_BYTES, SALT_BYTES
from overlayd.model.errors import VerificationFailed

COMMITMENT_NONE = 0
COMMITMENT_NODE = 1
"""The node's own commitment: csalt = salt, over stored values."""
COMMITMENT_OPEN = 2
"""The producer's; opens from stored values with the csalt that is kept."""
COMMITMENT_CLOSED = 3
"""The producer's, but the stored form differs from what it sent; "not opened"."""

_ID, _TYPE, _TIME, _SOURCE, _KEY, _TOPICS, _METADATA, _SIGNATURE, _ENCODING = range(1, 10)
_DEFINITION_VERSION, _DEFINITION_TOPICS, _HOPS, _TRACEPARENT, _PRINCIPAL = range(16, 21)
_DERIVED_FROM, _ORIGIN, _COMMITMENT_FORM, _TXID = range(21, 25)
_KNOWN = frozenset({*range(1, 10), *range(16, 25)})

_ID_TAG = bytes([_ID])
_RECORD = struct.Struct(">BI")
_RECORD_BYTES = _RECORD.size
_pack_record = _RECORD.pack
_unpack_record = _RECORD.unpack_from


class Meta(msgspec.Struct, gc=False):
    """A packet's meta. Absent text is "", absent JSON text and octets are b"".

    `topics`, `metadata`, `signature` and `definition_topics` are JSON texts. `is_octets`: the body is the
    base64 JSON string of octets. `derived_from` holds ascending offsets; `origin` the record of a forwarded
    packet (`Origin`), beside which the packet's own members stand only inside it; `commitment_form` is 0 to 3
    with `csalt` in form 2; `txid` is in display order. `unknown` keeps records of tags that this version
    doesn't know.
    """

    id: str = ""
    type: str = ""
    time: str = ""
    source: str = ""
    key: str = ""
    topics: bytes = b""
    metadata: bytes = b""
    signature: bytes = b""
    is_octets: bool = False
    definition_version: int = 0
    definition_topics: bytes = b""
    hops: int = 0
    traceparent: str = ""
    principal: str = ""
    derived_from: tuple[int, ...] = ()
    origin: bytes = b""
    commitment_form: int = COMMITMENT_NONE
    csalt: bytes = b""
    txid: bytes = b""
    unknown: tuple[tuple[int, bytes], ...] = ()


class Origin(msgspec.Struct, frozen=True):
    """Where a forwarded packet came from: the sending node's entry with all that opens it."""

    line: str
    entry: bytes
    salt: bytes
    ssalt: bytes
    stream: str
    commitment: bytes
    meta: bytes


def encode_meta(meta: Meta) -> bytes:
    """The records. `unknown` tags must not be known ones."""
    parts = _encode_own(meta)
    assert not (meta.origin and parts), "a forwarded packet's own members stand in its origin alone"
    if meta.definition_version:
        parts.append(b"\x10\x00\x00\x00\x04" + meta.definition_version.to_bytes(4, "big"))
    if meta.definition_topics:
        parts += (_pack_record(_DEFINITION_TOPICS, len(meta.definition_topics)), meta.definition_topics)
    if meta.hops:
        parts.append(b"\x12\x00\x00\x00\x01" + meta.hops.to_bytes(1, "big"))
    for tag, text in ((_TRACEPARENT, meta.traceparent), (_PRINCIPAL, meta.principal)):
        if text:
            value = text.encode()
            parts += (_pack_record(tag, len(value)), value)
    if meta.derived_from or meta.origin or meta.commitment_form or meta.txid:
        parts += _encode_rare(meta)
    return _with_unknown(parts, meta.unknown) if meta.unknown else b"".join(parts)


def encode_plain_meta(packet_id: str, definition_version: int, principal: str) -> bytes:
    """The same for a packet that has nothing but these; any may be absent."""
    tail = _plain_tail(definition_version, principal)
    if not packet_id:
        return tail
    value = packet_id.encode()
    return _pack_record(_ID, len(value)) + value + tail


@lru_cache(maxsize=4096)
def _plain_tail(definition_version: int, principal: str) -> bytes:
    """What packets of one producer into one stream have in common."""
    return encode_meta(Meta(definition_version=definition_version, principal=principal))


def _encode_own(meta: Meta) -> list[bytes]:
    """Tags 1 to 9: what the producer wrote."""
    parts: list[bytes] = []
    for tag, text in ((_ID, meta.id), (_TYPE, meta.type), (_TIME, meta.time), (_SOURCE, meta.source), (_KEY, meta.key)):
        if text:
            value = text.encode()
            parts += (_pack_record(tag, len(value)), value)
    for tag, value in ((_TOPICS, meta.topics), (_METADATA, meta.metadata), (_SIGNATURE, meta.signature)):
        if value:
            parts += (_pack_record(tag, len(value)), value)
    if meta.is_octets:
        parts.append(b"\x09\x00\x00\x00\x06base64")
    return parts


def _encode_rare(meta: Meta) -> list[bytes]:
    parts: list[bytes] = []
    if meta.derived_from:
        assert all(low < high for low, high in zip(meta.derived_from, meta.derived_from[1:], strict=False))
        value = b"".join(offset.to_bytes(8, "big") for offset in meta.derived_from)
        parts.append(_pack_record(_DERIVED_FROM, len(value)) + value)
    if meta.origin:
        parts.append(_pack_record(_ORIGIN, len(meta.origin)) + meta.origin)
    if meta.commitment_form:
        assert COMMITMENT_NODE <= meta.commitment_form <= COMMITMENT_CLOSED
        assert len(meta.csalt) == (SALT_BYTES if meta.commitment_form == COMMITMENT_OPEN else 0)
        value = bytes([meta.commitment_form]) + meta.csalt
        parts.append(_pack_record(_COMMITMENT_FORM, len(value)) + value)
    if meta.txid:
        assert len(meta.txid) == 32
        parts.append(_pack_record(_TXID, 32) + meta.txid)
    return parts


def _with_unknown(parts: list[bytes], unknown: tuple[tuple[int, bytes], ...]) -> bytes:
    """All records in the order of their tags; only readers of newer logs ever have unknown ones."""
    records = split_records(b"".join(parts))
    for tag, value in unknown:
        assert tag not in _KNOWN
        assert tag not in records
        records[tag] = value
    return b"".join(_pack_record(tag, len(value)) + value for tag, value in sorted(records.items()))


def split_records(raw: bytes) -> dict[int, bytes]:
    """Tag to value, in order. Raises VerificationFailed for tags out of order or a truncated record."""
    records: dict[int, bytes] = {}
    at, end, last = 0, len(raw), -1
    while at < end:
        if end - at < _RECORD_BYTES:
            raise VerificationFailed("the meta ends inside a record", subject="meta")
        tag, length = _unpack_record(raw, at)
        at += _RECORD_BYTES
        if tag <= last:
            raise VerificationFailed("the meta's tags don't ascend", subject="meta")
        if length > end - at:
            raise VerificationFailed("the meta ends inside a record", subject="meta")
        records[tag] = raw[at : at + length]
        at += length
        last = tag
    return records


def decode_meta(raw: bytes) -> Meta:
    """Raises VerificationFailed for anything that `encode_meta` doesn't write."""
    if raw[:1] == _ID_TAG:
        end = _RECORD_BYTES + int.from_bytes(raw[1:_RECORD_BYTES], "big")
        rest = _decode_plain_rest(raw[end:]) if _RECORD_BYTES < end <= len(raw) else None
        if rest is not None:
            return Meta(_text_of(_ID, raw[_RECORD_BYTES:end]), definition_version=rest[0], principal=rest[1])
    return _decode_records(raw)


@lru_cache(maxsize=4096)
def _decode_plain_rest(raw: bytes) -> tuple[int, str] | None:
    """What packets of one producer into one stream have in common beside their ids: definition version and principal.
    None where there is anything else, or something wrong."""
    try:
        meta = _decode_records(raw)
    except VerificationFailed:
        return None
    is_plain = meta == Meta(definition_version=meta.definition_version, principal=meta.principal)
    return (meta.definition_version, meta.principal) if is_plain else None


def _decode_records(raw: bytes) -> Meta:
    records = split_records(raw)
    meta = Meta()
    unknown: list[tuple[int, bytes]] = []
    for tag, value in records.items():
        if not value and tag in _KNOWN:
            raise VerificationFailed(f"meta tag {tag} is empty; absent is left out", subject="meta")
        if tag in _TEXT_FIELDS:
            setattr(meta, _TEXT_FIELDS[tag], _text_of(tag, value))
        elif tag in _OCTET_FIELDS:
            setattr(meta, _OCTET_FIELDS[tag], value)
        elif tag == _DEFINITION_VERSION:
            meta.definition_version = _number_of(tag, value, 4)
        elif tag == _HOPS:
            meta.hops = _number_of(tag, value, 1)
        elif tag in _KNOWN:
            _decode_rare(meta, tag, value)
        else:
            unknown.append((tag, value))
    if unknown:
        meta.unknown = tuple(unknown)
    if meta.origin and records.keys() & range(1, 10):
        raise VerificationFailed("a forwarded packet's own members stand in its origin alone", subject="meta")
    return meta


_TEXT_FIELDS = {
    _ID: "id", _TYPE: "type", _TIME: "time", _SOURCE: "source", _KEY: "key",
    _TRACEPARENT: "traceparent", _PRINCIPAL: "principal",
}  # fmt: skip
_OCTET_FIELDS = {
    _TOPICS: "topics", _METADATA: "metadata", _SIGNATURE: "signature", _DEFINITION_TOPICS: "definition_topics",
}  # fmt: skip


def _decode_rare(meta: Meta, tag: int, value: bytes) -> None:
    if tag == _ENCODING:
        if value != b"base64":
            raise VerificationFailed("unknown encoding of the body", subject="meta")
        meta.is_octets = True
    elif tag == _DERIVED_FROM:
        meta.derived_from = _offsets_of(value)
    elif tag == _ORIGIN:
        decode_origin(value)
        meta.origin = value
    elif tag == _COMMITMENT_FORM:
        form = value[0]
        if not COMMITMENT_NODE <= form <= COMMITMENT_CLOSED:
            raise VerificationFailed(f"unknown form of the commitment: {form}", subject="meta")
        if len(value) != 1 + (SALT_BYTES if form == COMMITMENT_OPEN else 0):
            raise VerificationFailed("the commitment's record has a wrong length", subject="meta")
        meta.commitment_form = form
        meta.csalt = value[1:]
    else:
        assert tag == _TXID
        if len(value) != 32:
            raise VerificationFailed("a txid has 32 bytes", subject="meta")
        meta.txid = value


def _text_of(tag: int, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as err:
        raise VerificationFailed(f"meta tag {tag} isn't UTF-8", subject="meta") from err


def _number_of(tag: int, value: bytes, width: int) -> int:
    if len(value) != width or not any(value):
        raise VerificationFailed(f"meta tag {tag} isn't a number of {width} bytes above 0", subject="meta")
    return int.from_bytes(value, "big")


def _offsets_of(value: bytes) -> tuple[int, ...]:
    if len(value) % 8:
        raise VerificationFailed("offsets have 8 bytes each", subject="meta")
    offsets = struct.unpack(f">{len(value) // 8}Q", value)
    if any(low >= high for low, high in zip((0, *offsets), offsets, strict=False)):
        raise VerificationFailed("the offsets that it was made from don't ascend", subject="meta")
    return offsets


def encode_origin(origin: Origin) -> bytes:
    """The value of tag 22."""
    line, stream = origin.line.encode(), origin.stream.encode()
    assert len(origin.entry) == ENTRY_BYTES
    assert len(origin.salt) == len(origin.ssalt) == SALT_BYTES
    assert len(origin.commitment) == 32
    return b"".join((
        len(line).to_bytes(4, "big"), line, origin.entry, origin.salt, origin.ssalt,
        len(stream).to_bytes(4, "big"), stream, origin.commitment, len(origin.meta).to_bytes(4, "big"), origin.meta,
    ))  # fmt: skip


def decode_origin(value: bytes) -> Origin:
    """Raises VerificationFailed for a truncated or overlong record. What it says is not verified."""
    line, at = _prefixed_at(value, 0)
    entry, at = _octets_at(value, at, ENTRY_BYTES)
    salt, at = _octets_at(value, at, SALT_BYTES)
    ssalt, at = _octets_at(value, at, SALT_BYTES)
    stream, at = _prefixed_at(value, at)
    commitment, at = _octets_at(value, at, 32)
    meta, at = _prefixed_at(value, at)
    if at != len(value):
        raise VerificationFailed("the origin record has a rest", subject="meta")
    return Origin(_text_of(_ORIGIN, line), entry, salt, ssalt, _text_of(_ORIGIN, stream), commitment, meta)


def _octets_at(value: bytes, at: int, count: int) -> tuple[bytes, int]:
    if count > len(value) - at:
        raise VerificationFailed("the origin record is truncated", subject="meta")
    return value[at : at + count], at + count


def _prefixed_at(value: bytes, at: int) -> tuple[bytes, int]:
    length, at = _octets_at(value, at, 4)
    return _octets_at(value, at, int.from_bytes(length, "big"))

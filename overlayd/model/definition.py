"""A stream's definition: what its owner says about it. Shapes of the native API."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from overlayd.model.privacy import RedactRule
from overlayd.model.units import Duration, Size


class ConfirmRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How packets of the stream get onto the chain."""

    commit: Annotated[
        Literal["none", "packet", "batch"],
        Meta(description="What is written to the chain: nothing, each packet, or many packets together"),
    ] = "none"
    depths: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=1000)], ...],
        Meta(description="Depths, in blocks, that count as confirmed; each gets an entry"),
    ] = (1,)
    order: Annotated[
        Literal["sequence", "confirmation"], Meta(description="Order in which confirmations are told to consumers")
    ] = "sequence"
    timeout_blocks: Annotated[
        int, Meta(ge=1, description="Blocks after which a transaction that nobody knows is given up")
    ] = 144
    verbose: Annotated[bool, Meta(description="Make entries of the first pending and every seen, too")] = False


class RetentionRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long packets stay. 0 of `max_age`, `max_bytes` or `max_packets` = no such bound."""

    max_age: Annotated[Duration, Meta(description="Packets older than it are taken away; 0s: never for their age")] = (
        Duration(30 * 86_400)
    )
    max_bytes: Annotated[
        Size,
        Meta(description="Stored bytes of the stream above which its oldest packets are taken away; 0B: no bound"),
    ] = Size(10 << 30)
    max_packets: Annotated[
        int,
        Meta(
            ge=0,
            description="Packets above which the oldest are taken away; 0: no bound",
        ),
    ] = 0
    min_age: Annotated[
        Duration, Meta(description="Nothing takes a packet away that is younger: no bound, no erasure, no deletion")
    ] = Duration(0)
    hold_max: Annotated[
        Duration | None,
        Meta(
            description="Age up to which a packet waits for who needs it: a confirmation, a subscription; 0s: none does;"
            " left out: twice max_age, or 60d where that is 0s",
            examples=["60d"],
        ),
    ] = None
    when_full: Annotated[
        Literal["keep", "drop_oldest"],
        Meta(description="When the disk is full: keep the packets, or drop the oldest to make room"),
    ] = "keep"

    @property
    def waits(self) -> Duration:
        """Age up to which a packet waits for who needs it."""
        if self.hold_max is not None:
            return self.hold_max
        return Duration(2 * self.max_age) if self.max_age else _HOLD_MAX_WITHOUT_AGE


_HOLD_MAX_WITHOUT_AGE = Duration(60 * 86_400)


class StreamLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of one stream. 0 packets a minute = no bound."""

    packet_bytes: Annotated[Size, Meta(description="One packet object of the stream")] = Size(1 << 20)
    packets_per_minute: Annotated[
        int, Meta(ge=0, description="Packets a minute that the stream takes; 0: no bound")
    ] = 0


class DedupRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether an id is demanded and how long it is remembered."""

    required_id: Annotated[bool, Meta(description="Refuse packets without an id")] = False
    window: Annotated[Duration, Meta(description="A repeated id is recognized for so long")] = Duration(30 * 86_400)


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a packet costs its consumer; 0 = free."""

    satoshis_per_packet: Annotated[int, Meta(ge=0, description="Price of one packet in satoshis; 0: free")] = 0


class Definition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a `PUT /v1/streams/{stream}` may say; all optional."""

    title: Annotated[str, Meta(max_length=200, description="A name for people")] = ""
    description: Annotated[str, Meta(max_length=4000, description="What the stream is, for people")] = ""
    tags: Annotated[
        tuple[Annotated[str, Meta(max_length=64)], ...], Meta(description="Words to find the stream by")
    ] = ()
    visibility: Annotated[Literal["private", "public"], Meta(description="Who may learn that the stream exists")] = (
        "private"
    )
    schema: Annotated[
        dict[str, Any] | bool | None, Meta(description="JSON Schema that each packet's data must satisfy")
    ] = None
    schema_version: Annotated[str, Meta(max_length=64, description="The schema's version, for people")] = ""
    topics: Annotated[
        tuple[Annotated[str, Meta(max_length=128)], ...], Meta(description="Topics that each packet is given")
    ] = ()
    key: Annotated[
        str, Meta(max_length=256, description="Path of the key in a packet that brings none, such as data.sensorId")
    ] = ""
    confirm: Annotated[ConfirmRule, Meta(description="How packets get onto the chain")] = ConfirmRule()
    retention: Annotated[RetentionRule, Meta(description="How long packets stay")] = RetentionRule()
    limits: Annotated[StreamLimits, Meta(description="Bounds of the stream")] = StreamLimits()
    dedup: Annotated[DedupRule, Meta(description="How repeats are recognized")] = DedupRule()
    price: Annotated[Price, Meta(description="What a packet costs its consumer")] = Price()
    subject: Annotated[
        str, Meta(max_length=512, description="JSON pointer to whom a packet is about, such as /data/user/id")
    ] = ""
    purpose: Annotated[
        str, Meta(max_length=64, description="What packets about people are kept for, such as analytics")
    ] = ""
    consent: Annotated[
        Literal["none", "required"],
        Meta(description="required: a packet is taken only if its subject consented to the purpose"),
    ] = "none"
    redact: Annotated[
        tuple[RedactRule, ...], Meta(description="What is taken out of each packet before it is stored")
    ] = ()


def _encode_unit(value: Any) -> Any:
    if isinstance(value, (Duration, Size)):
        return str(value)
    raise TypeError(f"no JSON form for {type(value).__name__}")  # pragma: no cover - a programming error


def decode_unit(target: type, value: Any) -> Any:
    """msgspec `dec_hook` for Duration and Size. Raises ValueError in words a person can act on."""
    if target is Duration:
        if not isinstance(value, str):
            raise ValueError(f'expected a duration with a unit such as "30s", got {value!r}')
        return Duration.parse(value)
    if target is Size:
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return Size(value)
        if not isinstance(value, str):
            raise ValueError(f'expected a size such as "64KiB" or a number of bytes, got {value!r}')
        return Size.parse(value)
    raise TypeError(f"no decoder for {target!r}")  # pragma: no cover - a programming error


def encode_definition(definition: Definition) -> bytes:
    """Compact JSON; the same definition always gives the same bytes."""
    return _ENCODER.encode(definition)


def decode_definition(text: bytes) -> Definition:
    """Raises msgspec.ValidationError or msgspec.DecodeError."""
    return _DECODER.decode(text)


def complete_definition(text: bytes, defaults: Definition) -> Definition:
    """As `decode_definition`; members that the text leaves out, at either level, are those of `defaults`."""
    said = decode_definition(text)
    named: dict[str, Any] = msgspec.json.decode(text)
    members = {}
    for name, value in named.items():
        member = getattr(said, name)
        if isinstance(member, msgspec.Struct):
            parts = {part: getattr(member, part) for part in value}
            member = msgspec.structs.replace(getattr(defaults, name), **parts)
        members[name] = member
    return msgspec.structs.replace(defaults, **members)


_ENCODER = msgspec.json.Encoder(enc_hook=_encode_unit, order="deterministic")
_DECODER = msgspec.json.Decoder(Definition, dec_hook=decode_unit)

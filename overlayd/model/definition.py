"""A stream's definition: what its owner says about it. Shapes of the native API."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from overlayd.model.units import Duration, Size


class ConfirmRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How packets of the stream get onto the chain."""

    commit: Literal["none", "packet", "batch"] = "none"
    depths: tuple[Annotated[int, Meta(ge=1, le=1000)], ...] = (1,)
    order: Literal["sequence", "confirmation"] = "sequence"
    timeout_blocks: Annotated[int, Meta(ge=1)] = 144
    verbose: bool = False


class RetentionRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long packets stay. 0 packets = no bound on the count."""

    max_age: Duration = Duration(30 * 86_400)
    max_bytes: Size = Size(10 << 30)
    max_packets: Annotated[int, Meta(ge=0)] = 0
    min_age: Duration = Duration(0)
    hold_max: Duration = Duration(60 * 86_400)


class StreamLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of one stream. 0 packets a minute = no bound."""

    packet_bytes: Size = Size(1 << 20)
    packets_per_minute: Annotated[int, Meta(ge=0)] = 0


class DedupRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether an id is demanded and how long it is remembered."""

    required_id: bool = False
    window: Duration = Duration(30 * 86_400)


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a packet costs its consumer; 0 = free."""

    satoshis_per_packet: Annotated[int, Meta(ge=0)] = 0


class Definition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a `PUT /v1/streams/{stream}` may say; all optional."""

    title: Annotated[str, Meta(max_length=200)] = ""
    description: Annotated[str, Meta(max_length=4000)] = ""
    tags: tuple[Annotated[str, Meta(max_length=64)], ...] = ()
    visibility: Literal["private", "public"] = "private"
    schema: dict[str, Any] | bool | None = None
    schema_version: Annotated[str, Meta(max_length=64)] = ""
    topics: tuple[Annotated[str, Meta(max_length=128)], ...] = ()
    key: Annotated[str, Meta(max_length=256)] = ""
    confirm: ConfirmRule = ConfirmRule()
    retention: RetentionRule = RetentionRule()
    limits: StreamLimits = StreamLimits()
    dedup: DedupRule = DedupRule()
    price: Price = Price()


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


_ENCODER = msgspec.json.Encoder(enc_hook=_encode_unit, order="deterministic")
_DECODER = msgspec.json.Decoder(Definition, dec_hook=decode_unit)

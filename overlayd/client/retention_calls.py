"""The requests about legal holds and retention as values (calls.py)."""

import msgspec
from msgspec import UNSET

from overlayd.client.calls import JSON, Call, decoder_of, stream_path
from overlayd.model.wire_retention import HoldBody, HoldIn, HoldList, RetentionBody

_HOLD = decoder_of(HoldBody)
_HOLDS = decoder_of(HoldList)
_RETENTION = decoder_of(RetentionBody)


def list_holds(stream: str) -> Call[HoldList]:
    """What holds a stream's packets."""
    return Call("GET", stream_path(stream, "holds"), _HOLDS)


def place_hold(stream: str, reason: str, first: int = 1, last: int | None = None) -> Call[HoldBody]:
    """Holds sequences `first` to `last`; without a last one whatever comes too."""
    wanted = HoldIn(from_=first, to=UNSET if last is None else last, reason=reason)
    return Call(
        "POST", stream_path(stream, "holds"), _HOLD, headers=(("Content-Type", JSON),),
        content=msgspec.json.encode(wanted), is_repeatable=False,
    )  # fmt: skip


def lift_hold(stream: str, hold: int) -> Call[None]:
    """Lifts a hold."""
    return Call("DELETE", stream_path(stream, "holds", str(hold)), lambda answer: None, is_repeatable=False)


def show_retention() -> Call[RetentionBody]:
    """How taking packets away stands."""
    return Call("GET", "/v1/retention", _RETENTION)


def trust_clock() -> Call[RetentionBody]:
    """Says that the clock is right, so that packets age again."""
    return Call("POST", "/v1/retention/trust-clock", _RETENTION)

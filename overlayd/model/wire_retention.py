"""The bodies about legal holds and retention, as they travel (docs/retention.md)."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from overlayd.model.wire import Time

SEQUENCE_MAX = (1 << 63) - 2
"""The largest that can be named; one more stands for "whatever comes" where holds are kept."""
_From = Annotated[int, Meta(ge=1, le=SEQUENCE_MAX, description="First sequence that is held")]
_To = Annotated[
    int, Meta(ge=1, le=SEQUENCE_MAX, description="Last sequence that is held; left out: whatever comes too")
]


class HoldIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A legal hold that is to be placed; without sequences on the whole stream, and what comes."""

    from_: _From = msgspec.field(default=1, name="from")
    to: _To | UnsetType = UNSET
    reason: Annotated[str, Meta(min_length=1, max_length=500, description="Why, for people and the audit stream")]


class HoldBody(msgspec.Struct, kw_only=True):
    """A legal hold."""

    id: Annotated[int, Meta(description="Its number; lifting it needs it")]
    stream: str
    from_: _From = msgspec.field(name="from")
    to: _To | UnsetType = UNSET
    reason: str
    placed_by: Annotated[str, Meta(description="Principal that placed it")]
    placed_at: Time


class HoldList(msgspec.Struct, kw_only=True):
    """A stream's legal holds, oldest first."""

    holds: list[HoldBody]


class RetentionBody(msgspec.Struct, kw_only=True):
    """How taking packets away stands."""

    clock_trusted: Annotated[bool, Meta(description="Whether packets age")]
    clock_trouble: Annotated[str, Meta(description="Why they don't")] | UnsetType = UNSET
    oldest_at: Annotated[Time, Meta(description="When the oldest packet that is kept was appended")] | UnsetType = UNSET
    minimum_index: Annotated[int, Meta(description="Entries that were cut from the log's beginning")]
    holds: Annotated[int, Meta(description="Legal holds on all streams")]
    disk: Annotated[Literal["ok", "low", "full"], Meta(description="How much room there is")]
    disk_free_bytes: int

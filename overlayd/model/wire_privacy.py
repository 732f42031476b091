"""The bodies about people and erasure, as they travel (docs/privacy.md)."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from overlayd.model.wire import Packet, Time

Purpose = Annotated[str, Meta(min_length=1, max_length=64, description="What packets are kept for, such as billing")]
Subject = Annotated[str, Meta(min_length=1, max_length=256, description="Whom packets are about, as they name them")]

ErasureState = Literal["planned", "working", "done", "held"]


class EraseIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is to be erased: `stream` with `sequence`, or with `from` and `to`; or `subject`."""

    stream: Annotated[str, Meta(description="The stream")] | UnsetType = UNSET
    sequence: Annotated[int, Meta(ge=1, description="One packet")] | UnsetType = UNSET
    from_: Annotated[int, Meta(ge=1, description="The first of several packets")] | UnsetType = msgspec.field(
        name="from", default=UNSET
    )
    to: Annotated[int, Meta(ge=1, description="The last of them")] | UnsetType = UNSET
    subject: Subject | UnsetType = UNSET
    dry_run: Annotated[bool, Meta(description="Only say what would be erased")] = False


class ErasedStream(msgspec.Struct, kw_only=True):
    """What was erased of one stream."""

    stream: str
    packets: int
    first_sequence: int
    last_sequence: int


class ErasedRecipient(msgspec.Struct, kw_only=True):
    """A durable subscription, named connection or agent that was given some of it. It is told by an `erased` notice."""

    id: str
    name: str
    kind: str


class ErasureBody(msgspec.Struct, kw_only=True):
    """An erasure: what became of it, and who else has what it was about.

    `packets`, `derived` and `streams` tell what is to be erased while it is planned or working, and afterwards what was.
    """

    id: Annotated[str, Meta(description="Names it in the audit stream; empty when nothing was done")]
    state: Annotated[
        ErasureState,
        Meta(
            description="working: it is carried out whatever happens; held: a hold or a least age that came in between keeps"
            " some of it, which goes as soon as that ends"
        ),
    ]
    asked_at: Time
    done_at: Time | UnsetType = UNSET
    packets: Annotated[int, Meta(description="Packets erased, those made from others included")]
    held: Annotated[int, Meta(description="Packets that stay for now, because of a hold or a least age")] = 0
    derived: Annotated[int, Meta(description="Of these, packets that the node had made from the others")]
    streams: list[ErasedStream]
    recipients: list[ErasedRecipient]
    backups: Annotated[
        list[str],
        Meta(
            description="Copies of the log from before, which may still hold it: backups, and files that were put aside as damaged"
        ),
    ]


class ErasureList(msgspec.Struct, kw_only=True):
    """Answer of `GET /v1/erase`, the newest first."""

    erasures: list[ErasureBody]
    next_before: str | UnsetType = UNSET


class ConsentIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A consent, given or withdrawn."""

    purpose: Purpose
    granted: bool
    until: Annotated[Time, Meta(description="When it ends by itself")] | UnsetType = UNSET
    reference: Annotated[
        str, Meta(max_length=200, description="Names the form or act by which it was given; no personal data")
    ] = ""


class ConsentBody(msgspec.Struct, kw_only=True):
    """Whether a subject agreed to a purpose."""

    purpose: str
    granted: bool
    changed_at: Time
    until: Time | UnsetType = UNSET
    reference: str | UnsetType = UNSET
    by: Annotated[str, Meta(description="Who recorded it")]


class ConsentList(msgspec.Struct, kw_only=True):
    """Answer of `GET /v1/subjects/{subject}/consent`."""

    consents: list[ConsentBody]


class SubjectStream(msgspec.Struct, kw_only=True):
    """How much of a subject is in one stream."""

    stream: str
    packets: int
    first_sequence: int
    last_sequence: int


class SubjectBody(msgspec.Struct, kw_only=True):
    """Answer of `GET /v1/subjects/{subject}`: where packets about it are, and what it consented to."""

    streams: list[SubjectStream]
    complete: Annotated[bool, Meta(description="False: only the first `subject_packets_max` packets were counted")]
    searched: Annotated[list[str], Meta(description="Streams that say where the subject stands; no other was searched")]
    consents: list[ConsentBody]


class SubjectExport(msgspec.Struct, kw_only=True):
    """Answer of `GET /v1/subjects/{subject}/export`, by offset."""

    packets: list[Packet]
    next_after: Annotated[int, Meta(description="Offset to go on from; absent at the end")] | UnsetType = UNSET


class RebuildBody(msgspec.Struct, kw_only=True):
    """Answer of `POST /v1/admin/rebuild/{part}`."""

    part: str
    behind: Annotated[int, Meta(description="Packets whose subject is still to be entered, or entries whose links are")]

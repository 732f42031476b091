"""The bodies about durable subscriptions, as they travel (docs/api.md, Subscriptions)."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from overlayd.model.subscription import AgentRule, PullRule, SubscriptionDefinition, WebhookRule
from overlayd.model.wire import ConfirmationStatus, CursorText, Packet, Time
from overlayd.model.wire_agents import FetchedPacket, Reply

StartText = Annotated[str, Meta(description="now, beginning, an RFC 3339 time or a cursor; default now")]
Count = Annotated[int, Meta(ge=0)]


class SubscriptionIn(SubscriptionDefinition, kw_only=True, frozen=True, rename={"from_": "from"}):
    """Body of `POST /v1/subscriptions`: a definition, and where to begin.

    A subclass because the API takes both on one level.
    """

    from_: StartText | UnsetType = UNSET


class SubscriptionPatch(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of `PATCH /v1/subscriptions/{subscription}`: a JSON merge patch (RFC 7396); null takes a member away.

    For the served documents: the node applies the patch to the JSON.
    """

    streams: tuple[str, ...] | UnsetType | None = UNSET
    topics: tuple[str, ...] | UnsetType | None = UNSET
    types: tuple[str, ...] | UnsetType | None = UNSET
    keys: tuple[str, ...] | UnsetType | None = UNSET
    filter: str | UnsetType | None = UNSET
    deliver: Literal["appended", "confirmed", "both"] | UnsetType | None = UNSET
    min_confirmations: int | UnsetType | None = UNSET
    webhook: WebhookRule | UnsetType = UNSET
    pull: PullRule | UnsetType | None = UNSET
    agent: AgentRule | UnsetType = UNSET


class SubscriptionState(msgspec.Struct, kw_only=True):
    """Where a subscription stands."""

    state: Literal["active", "paused", "disabled"]
    reason: Annotated[str, Meta(description="Why it is disabled")] | UnsetType = UNSET
    cursor: Annotated[str, Meta(description="Everything up to it is settled")]
    outstanding: Annotated[int, Meta(ge=0, description="Found above the cursor and not settled: in flight or waiting")]
    lag_entries: Annotated[int, Meta(ge=0, description="Entries of the log behind the cursor, whoever they are for")]
    oldest_undelivered_at: (
        Annotated[str, Meta(description="When the oldest one that was found and isn't settled was appended")]
        | UnsetType
    ) = UNSET
    delivered: Annotated[int, Meta(ge=0, description="Packets and notices that were taken; not known of kind live")] | (
        UnsetType
    ) = UNSET
    failed: Annotated[int, Meta(ge=0, description="Attempts that failed, or leases that came to nothing")] | (
        UnsetType
    ) = UNSET
    dead_letters: Count
    last_success_at: Time | UnsetType = UNSET
    last_failure_at: Time | UnsetType = UNSET
    last_error: Annotated[str, Meta(description="What the last failure said")] | UnsetType = UNSET


class AgentRuns(msgspec.Struct, kw_only=True):
    """What an agent has used of what it may."""

    this_hour: Annotated[int, Meta(ge=0, description="Deliveries to it in this hour, UTC")]
    today: Annotated[int, Meta(ge=0, description="The same of today")]
    bytes_today: Annotated[int, Meta(ge=0, description="Payload that it was given and replied with today")]
    coalesced: Annotated[int, Meta(ge=0, description="Packets settled because a newer one of their key waited")]
    replies: Annotated[int, Meta(ge=0, description="Deliveries that it replied to with packets")]
    held_by: (
        Annotated[
            Literal["runs_per_hour", "runs_per_day", "bytes_per_day"], Meta(description="What is used up, if anything")
        ]
        | UnsetType
    ) = UNSET
    held_until: Time | UnsetType = UNSET


class SubscriptionBody(SubscriptionState, kw_only=True):
    """A durable subscription: its definition's members without secrets, and where it stands."""

    id: Annotated[str, Meta(description="Drawn by the node")]
    name: str
    kind: Literal["webhook", "agent", "pull", "live", "forward"]
    owner: Annotated[Literal["api", "config"], Meta(description="config: declared in a file, read-only here")]
    principal: Annotated[str, Meta(description="For whom it reads")]
    created_at: Time
    streams: list[str] = []
    topics: list[str] = []
    types: list[str] = []
    keys: list[str] = []
    filter: str | UnsetType = UNSET
    deliver: Literal["appended", "confirmed", "both"] = "appended"
    min_confirmations: int | UnsetType = UNSET
    webhook: WebhookRule | UnsetType = UNSET
    pull: PullRule | UnsetType = UNSET
    agent: AgentRule | UnsetType = UNSET
    runs: Annotated[AgentRuns, Meta(description="Of an agent")] | UnsetType = UNSET
    secret: Annotated[str, Meta(description="Shown this once: what deliveries are signed with")] | UnsetType = UNSET
    never: (
        Annotated[list[str], Meta(description="Streams under its patterns that will never confirm a packet as asked")]
        | UnsetType
    ) = UNSET


class SubscriptionList(msgspec.Struct, kw_only=True):
    """Answer of `GET /v1/subscriptions`, by name."""

    subscriptions: list[SubscriptionBody]
    next_after: Annotated[str, Meta(description="Give it as `after` to go on")] | UnsetType = UNSET


class SeekIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST …/seek`: either of both."""

    cursor: CursorText | UnsetType = UNSET
    time: Time | UnsetType = UNSET


class SecretIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST …/rotate-secret`; without a secret one is drawn."""

    secret: Annotated[str, Meta(max_length=256)] | UnsetType = UNSET


class SecretBody(msgspec.Struct, kw_only=True):
    """Answer of `POST …/rotate-secret`."""

    secret: Annotated[str, Meta(description="Shown this once; the one before stays valid for a while")]


class AttemptBody(msgspec.Struct, kw_only=True):
    """One attempt to deliver. `gap`: nothing was sent; the subscription doesn't ask for gaps and couldn't have these.
    `hops`: nothing was sent; the packet was made from others too often in a row to be replied to."""

    at: Time
    delivery_id: str
    attempt: Annotated[int, Meta(ge=0, description="Counted from 1; 0 for a gap")]
    outcome: Literal["delivered", "retry", "disable", "undeliverable", "gap", "hops"]
    reason: Annotated[str, Meta(description="Why it failed")] | UnsetType = UNSET
    status: Annotated[int, Meta(description="HTTP status of the answer")] | UnsetType = UNSET
    duration_ms: Annotated[float, Meta(ge=0)]
    response: Annotated[str, Meta(description="The start of the answer's body")] | UnsetType = UNSET


class AttemptList(msgspec.Struct, kw_only=True):
    """Answer of `GET …/attempts`: the last ones, newest first."""

    attempts: list[AttemptBody]


class DeadLetterBody(msgspec.Struct, kw_only=True):
    """A delivery that exhausted its retries."""

    number: Annotated[int, Meta(ge=1, description="Names it, on this node")]
    delivery_id: str
    state: Annotated[Literal["parked", "queued"], Meta(description="queued: it is being tried again")]
    kind: Annotated[Literal["packets", "gap", "status", "erased"], Meta(description="What it holds")]
    stream: str | UnsetType = UNSET
    cursor: Annotated[str, Meta(description="Where to resume behind it")]
    offsets: Annotated[list[int], Meta(description="Where its packets stand in the log")]
    reason: str
    status: int | UnsetType = UNSET
    response: Annotated[str, Meta(description="The start of the last answer's body")] | UnsetType = UNSET
    attempts: Count
    first_attempt_at: Time | UnsetType = UNSET
    died_at: Time
    packets: Annotated[
        list[Packet], Meta(description="Those that are still kept; only where one letter is asked for")
    ] | (UnsetType) = UNSET


class DeadLetterList(msgspec.Struct, kw_only=True):
    """Answer of `GET …/dead-letters`, by number."""

    dead_letters: list[DeadLetterBody]
    next_after: Annotated[int, Meta(description="Give it as `after` to go on")] | UnsetType = UNSET


class RangeIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """A range of dead letters by number, both ends inclusive; without them all."""

    from_: Annotated[int, Meta(ge=0)] | UnsetType = UNSET
    to: Annotated[int, Meta(ge=0)] | UnsetType = UNSET


class CountBody(msgspec.Struct, kw_only=True):
    """How many dead letters it was."""

    count: Count


class TestBody(msgspec.Struct, kw_only=True):
    """Answer of `POST …/test`: what came of one attempt, which counts nowhere."""

    delivery_id: str
    outcome: Literal["delivered", "retry", "disable", "undeliverable"]
    reason: str | UnsetType = UNSET
    status: int | UnsetType = UNSET
    duration_ms: Annotated[float, Meta(ge=0)]
    response: str | UnsetType = UNSET


class FetchIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST …/fetch`."""

    max: Annotated[int, Meta(ge=1, description="At most so many messages")] = 1
    wait: Annotated[str, Meta(description="Hold so long for a first one, such as 30s; at most 55s")] = "0s"


class LeasedMessage(msgspec.Struct, kw_only=True, rename={"from_": "from"}):
    """A message with its lease: the members of a `packet`, `status`, `gap` or `erased` message, and these."""

    type: Literal["packet", "status", "gap", "erased"]
    lease: Annotated[str, Meta(description="Opaque; names this delivery of it in ack, nack and extend")]
    deliveries: Annotated[int, Meta(ge=1, description="How often it was given out, this time included")]
    cursor: CursorText | UnsetType = UNSET
    stream_id: str | UnsetType = UNSET
    packet: FetchedPacket | UnsetType = UNSET
    packet_sequence: Count | UnsetType = UNSET
    from_: Annotated[str | int, Meta(description="gap: a cursor; status: a sequence; both ends inclusive")] | (
        UnsetType
    ) = UNSET
    to: str | int | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    confirmation_status: ConfirmationStatus | UnsetType = UNSET
    confirmations: Count | UnsetType = UNSET
    block_height: Count | UnsetType = UNSET
    block_hash: str | UnsetType = UNSET
    txid: str | UnsetType = UNSET


class FetchBody(msgspec.Struct, kw_only=True):
    """Answer of `POST …/fetch`."""

    messages: list[LeasedMessage]
    lease_until: Annotated[str, Meta(description="When the leases end")] | UnsetType = UNSET
    cursor: Annotated[str, Meta(description="The floor: everything up to it is settled")]


class LeasesIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST …/ack`, `…/nack` and `…/extend`."""

    leases: list[Annotated[str, Meta(max_length=256)]]
    delay: (
        Annotated[str, Meta(description="nack: given out again after it, default 0s; extend: the lease from now on")]
        | UnsetType
    ) = UNSET
    reply: Annotated[Reply, Meta(description="ack of an agent's only lease: what it replies")] | UnsetType = UNSET


class LeasesBody(msgspec.Struct, kw_only=True):
    """Answer of `POST …/ack`, `…/nack` and `…/extend`, in the order of the leases."""

    results: Annotated[list[Literal["ok", "expired"]], Meta(description="expired: another delivery counts, or none")]
    lease_until: Annotated[str, Meta(description="extend: when the leases end now")] | UnsetType = UNSET

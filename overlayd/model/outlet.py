"""What pushes entries to one kind of consumer, as the dispatcher of durable subscriptions sees it.

The dispatcher owns when: order, concurrency, batches, pauses, dead letters. An outlet owns how: one attempt.
`M` is what is delivered; for the outlets in `delivery/` that is `delivery.frames.Message`.
"""

import sqlite3
from collections.abc import Callable, Mapping
from typing import Generic, Literal, Protocol, TypeVar

import msgspec

from overlayd.model.errors import SealBroken
from overlayd.model.subscription import SubscriptionDefinition

M = TypeVar("M")

DeliveryKind = Literal["packets", "gap", "status", "erased", "test"]
Outcome = Literal["delivered", "retry", "disable", "undeliverable"]


class Delivery(msgspec.Struct, Generic[M], frozen=True):
    """One delivery, the same at each attempt but for `attempt`.

    `delivery_id` is stable over retries and restarts; receivers drop repeats by it. `messages`: packets of one
    stream in order (as many as the batch holds, their bounds fixed with the first attempt), or a single gap, status
    or erased notice; empty for a test. `stream`: "" where the messages have none (gaps, tests). `attempt` counts
    from 1. Times are Unix microseconds.
    """

    subscription_id: str
    definition: SubscriptionDefinition
    delivery_id: str
    kind: DeliveryKind
    stream: str
    messages: tuple[M, ...]
    attempt: int
    first_attempt_us: int


class AttemptResult(msgspec.Struct, frozen=True):
    """How one attempt ended.

    `delivered`: the consumer has it. `retry`: it may not have it; tried again while the rule says so, then a dead
    letter. `disable`: the consumer wants nothing more, ever (HTTP 410): the subscription is disabled with the reason
    and the delivery stays outstanding. `undeliverable`: no attempt can ever send it: a dead letter at once, which says
    nothing against the consumer.
    `reason`: plain words for people, "" when delivered. `retry_after_s`: nothing is sent to this subscription before
    it has passed. `response_excerpt`: the start of what the consumer answered, cut by the outlet.
    `reply`: JSON that an agent with an output answered, whole; judged by whoever appends it.
    """

    outcome: Outcome
    reason: str = ""
    status: int | None = None
    retry_after_s: float | None = None
    response_excerpt: bytes = b""
    duration_us: int = 0
    reply: bytes = b""


class Outlet(Protocol[M]):
    """Delivers to one kind of consumer."""

    async def attempt(self, delivery: Delivery[M]) -> AttemptResult:
        """One attempt, bounded in time by the outlet itself. Checkpoint. Raises nothing but Cancelled."""
        ...

    async def fit(self, delivery: Delivery[M]) -> int:
        """How many of the messages of a batch can be delivered at once, at least one: asked before its bounds are
        fixed. Checkpoint. Raises nothing but Cancelled."""
        ...


Statements = Callable[[sqlite3.Connection], None]
"""Runs in the writer's group transaction, together with the change that it belongs to."""


class HeaderKeeper(Protocol):
    """Holds the values of webhooks' headers, sealed, in a table of its own. Definitions are stored without them."""

    def seal(self, subscription_id: str, headers: Mapping[str, str]) -> Statements:
        """What makes these the subscription's values; without any, its row goes."""
        ...

    async def open_all(self) -> dict[str, dict[str, str] | SealBroken]:
        """The values of all subscriptions, by id and name, or why they can't be opened. Checkpoint."""
        ...


class SecretKeeper(Protocol):
    """Holds the secrets that an outlet signs with, in tables of its own. Definitions are stored without them."""

    def create(self, subscription_id: str, given: str | None) -> tuple[str, Statements]:
        """The secret to show once (the given one, else a new one), and what makes it stand.

        Raises InvalidSubscription for a secret that can't be used.
        """
        ...

    def rotate(self, subscription_id: str, given: str | None) -> tuple[str, Statements]:
        """As `create`; the one before stays valid for a while."""
        ...

    def forget(self, subscription_id: str) -> Statements:
        """For a subscription that is deleted."""
        ...

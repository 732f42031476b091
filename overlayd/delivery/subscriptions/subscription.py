"""One durable subscription while the node runs: its definition, its ledger, and what is written down about it."""

import math
from collections import deque
from collections.abc import Iterable

import msgspec
import trio

from overlayd.delivery.agents.brakes import Brakes, Hold
from overlayd.delivery.matching import Matcher
from overlayd.delivery.query import Selection
from overlayd.delivery.scanning import Judge
from overlayd.delivery.subscriptions.ledger import Ledger
from overlayd.delivery.subscriptions.pacing import Pace, Service, Window
from overlayd.delivery.subscriptions.retry import RETRY_AFTER_MAX_S, RetryPolicy, policy_of
from overlayd.delivery.subscriptions.tables import AttemptBody, DeadRow, Rest, Round, Runs, State, StateRow
from overlayd.model.cursor import Cursor
from overlayd.model.limits import Limits
from overlayd.model.subscription import AgentRule, Ordering, PullRule, SubscriptionDefinition, WebhookRule

ATTEMPTS_KEPT = 100
"""Attempts of each subscription that can be looked at."""

TOLD_MAX = 256
"""Runs of packets that a subscription knows it won't get, which their removal therefore needn't tell again."""


class Reading(msgspec.Struct, frozen=True):
    """For whom a subscription reads: a principal's name, and what it was allowed when it made the subscription. Of a
    key only the name counts: what it is allowed is looked up."""

    principal: str
    rights: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    owner: str = ""


class Rules(msgspec.Struct, frozen=True):
    """What the definition comes down to, whichever kind it is."""

    ordering: Ordering
    batch_size: int
    batch_wait_s: float
    concurrency: int
    rate_per_second: float | None
    gaps: bool
    retry: RetryPolicy
    is_coalescing: bool = False


def rules_of(definition: SubscriptionDefinition) -> Rules:
    """The rules of a definition that was judged."""
    webhook, agent = definition.webhook, definition.agent
    is_coalescing = isinstance(agent, AgentRule) and agent.coalesce == "key"
    if isinstance(webhook, WebhookRule):
        return Rules(
            ordering=webhook.ordering,
            batch_size=webhook.batch_size,
            batch_wait_s=float(webhook.batch_wait),
            concurrency=webhook.concurrency,
            rate_per_second=webhook.rate_per_second or None,
            gaps=bool(webhook.gaps),
            retry=policy_of(webhook.retry, webhook.ordering),
            is_coalescing=is_coalescing,
        )
    pull = definition.pull if isinstance(definition.pull, PullRule) else PullRule()
    return Rules(pull.ordering, 1, 0.0, 1, None, True, RetryPolicy(pull.max_deliveries), is_coalescing)


def in_state(rest: Rest, state: State, reason: str = "", at_us: int = 0) -> Rest:
    """With another state; `at_us`: when, for a disabled one."""
    return msgspec.structs.replace(
        rest, state=state, reason=reason, failing_us=0, hold_us=0, disabled_us=at_us if state == "disabled" else 0
    )


def sought(rest: Rest, position: Cursor, floor: Cursor) -> Rest:
    """Where it goes on from the floor. `position`: up to where it had looked. What it passes over forwards it knows it
    won't get; going back, what it passed over behind the floor it may get now."""
    if floor.offset > position.offset:
        told = _with_run(rest.told, position.offset + 1, floor.offset)
    else:
        told = tuple((low, min(high, floor.offset)) for low, high in rest.told if low <= floor.offset)
    return msgspec.structs.replace(
        rest, told=told, start=min(rest.start, floor.offset), generation=rest.generation + 1,
        given_to=max(rest.given_to, position.offset) if position.epoch == floor.epoch else 0,
    )  # fmt: skip


def for_endpoint(rest: Rest, present: SubscriptionDefinition, definition: SubscriptionDefinition) -> Rest:
    """With another definition. Another URL is another endpoint: how long the one before failed, and wanted to be left
    alone, doesn't count for it."""
    urls = [one.webhook.url if isinstance(one.webhook, WebhookRule) else "" for one in (present, definition)]
    return rest if urls[0] == urls[1] else msgspec.structs.replace(rest, failing_us=0, hold_us=0)


def _with_run(told: Runs, low: int, high: int) -> Runs:
    return (*told[-TOLD_MAX + 1 :], (low, high))


def _brakes_of(definition: SubscriptionDefinition, limits: Limits) -> Brakes | None:
    return Brakes(definition.agent, limits) if isinstance(definition.agent, AgentRule) else None


class Subscription:
    """A subscription and where it stands. Changed between two awaits only.

    `is_tracked`: the dispatcher follows the head for it; everything up to the dispatcher's position that it wants is
    in the ledger. `shared_row`: what is written down says that it shares the stored position. `bell`: rung when its
    worker should look again. `brakes`: of an agent; `is_held`: all agents are paused; `changing`: decisions that
    aren't durable yet and let nothing be in flight.
    """

    def __init__(
        self, *, number: int, id: str, owner: str, reading: Reading, created_us: int,
        definition: SubscriptionDefinition, selection: Selection, matcher: Matcher, rest: Rest, ledger: Ledger,
        limits: Limits,
    ) -> None:  # fmt: skip
        self.number = number
        self.id = id
        self.owner = owner
        self.reading = reading
        self.created_us = created_us
        self.definition = definition
        self.selection = selection
        self.matcher = matcher
        self.rules = rules_of(definition)
        self.brakes = _brakes_of(definition, limits)
        self.rest = rest
        self.ledger = ledger
        self.judge: Judge | None = None
        self.is_tracked = False
        self.is_gone = False
        self.is_draining = False
        self.shared_row = False
        self.dead_letters = 0
        self.bell = trio.Event()
        self.attempts_new: deque[tuple[int, AttemptBody]] = deque(maxlen=ATTEMPTS_KEPT)
        self.dead_new: list[DeadRow] = []
        self.dead_gone: list[int] = []
        self.dead_queued: dict[int, DeadRow] = {}
        self.is_held = False
        self.changing = 0
        self._limits = limits
        self._service: Service | None = None

    def __repr__(self) -> str:
        return f"Subscription({self.definition.name!r}, {self.definition.kind}, {self.rest.state}, {self.ledger!r})"

    @property
    def name(self) -> str:
        return self.definition.name

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing to do until the dispatcher finds something for it."""
        return self.is_tracked and self.ledger.is_empty and not self.dead_queued

    @property
    def has_work(self) -> bool:
        """Whether a worker has something to do, or to wait for."""
        return self.is_served and not self.is_idle

    @property
    def is_served(self) -> bool:
        """Whether anything may be begun for it."""
        is_stopped = self.is_gone or self.is_draining or self.is_held or self.changing > 0
        return self.rest.state == "active" and not is_stopped

    def serve(self, now_us: int) -> Service:
        """How it is served at the moment; lasts until it is defined anew. What it asked for before a restart holds on,
        but not for longer than a day however the clock jumped."""
        if self._service is None:
            held_s = min(max(0.0, (self.rest.hold_us - now_us) / 1e6), RETRY_AFTER_MAX_S)
            self._service = Service(
                Window(self.rules.concurrency), Pace(self.rules.rate_per_second), trio.current_time() + held_s
            )
        return self._service

    def redefine(self, definition: SubscriptionDefinition, matcher: Matcher) -> None:
        """From now on it is this; the ledger is the caller's business."""
        self.definition, self.matcher, self.selection = definition, matcher, matcher.selection
        self.rules = rules_of(definition)
        self.brakes = _brakes_of(definition, self._limits)
        self._service = None

    def ring(self) -> None:
        """Whoever works for it looks again."""
        self.bell.set()
        self.bell = trio.Event()

    def floor(self, position: Cursor) -> Cursor:
        """Everything at or below it is settled. `position`: the dispatcher's."""
        if self.is_tracked and self.ledger.is_empty and position.epoch == self.ledger.position.epoch:
            return max(self.ledger.floor, position, key=lambda cursor: cursor.offset)
        return self.ledger.floor

    def change(self, **members: object) -> None:
        """Changes what is kept beside the floor."""
        self.rest = msgspec.structs.replace(self.rest, **members)

    def set_state(self, state: State, reason: str = "", at_us: int = 0) -> None:
        """Active again forgets for how long it failed."""
        self.rest = in_state(self.rest, state, reason, at_us)
        if state == "active" and self._service is not None:
            self._service.held_until = -math.inf
            self._service.failed_at, self._service.failures = None, 0
        self.ring()

    def hold(self, now_us: int) -> Hold | None:
        """Why an agent may be given nothing now; None when it may, and for all others."""
        return None if self.brakes is None else self.brakes.hold(self.rest.runs, now_us)

    def note_run(self, now_us: int) -> None:
        """An agent is given something."""
        if self.brakes is not None:
            self.change(runs=self.rest.runs.with_run(now_us))

    def note_run_bytes(self, now_us: int, size: int) -> None:
        """It was so many bytes of payload, given or replied."""
        if self.brakes is not None and size:
            self.change(runs=self.rest.runs.with_bytes(now_us, size))

    def note_reply(self, now_us: int, size: int) -> None:
        """An agent replied with so many bytes."""
        self.note_run_bytes(now_us, size)
        if size:
            self.change(runs=msgspec.structs.replace(self.rest.runs, replies=self.rest.runs.replies + 1))

    def note_attempt(self, body: AttemptBody) -> None:
        """Keeps an attempt for those who ask."""
        self.attempts_new.append((self.rest.attempts % ATTEMPTS_KEPT, body))
        self.change(attempts=self.rest.attempts + 1)

    def note_told(self, low: int, high: int) -> None:
        """It knows that it won't get these packets."""
        self.change(told=_with_run(self.rest.told, low, high))

    def was_told(self, offset: int) -> bool:
        return any(low <= offset <= high for low, high in self.rest.told)

    def forget_letters(self, ids: Iterable[int]) -> None:
        """These dead letters were taken away."""
        for id in ids:
            self.dead_letters -= 1
            self.dead_queued.pop(id, None)

    def drain(self, round: Round, position: Cursor) -> None:
        """Adds everything that changed to the next transaction. `position`: the dispatcher's."""
        changes = self.ledger.drain()
        if self.ledger.coalesced:
            runs = self.rest.runs
            self.change(runs=msgspec.structs.replace(runs, coalesced=runs.coalesced + self.ledger.coalesced))
            self.ledger.coalesced = 0
        for key in changes.gone:
            round.add_gone(self.number, key)
        for row in changes.rows:
            round.add_unit(self.number, row)
        for slot, body in self.attempts_new:
            round.add_attempt(self.number, slot, body)
        for letter in self.dead_new:
            round.add_dead(letter)
        round.dead_gone += self.dead_gone
        self.attempts_new.clear()
        self.dead_new, self.dead_gone = [], []
        # A queued letter is written down in a row of its own, so it keeps nobody from sharing the position.
        self.shared_row = self.is_tracked and self.ledger.is_empty
        round.add_state(StateRow(self.number, self.floor(position), self.shared_row, self.rest))


class Created(msgspec.Struct):
    """A subscription that was made. `secret`: to be shown this once, "" where there is none. `never`: streams under
    its patterns that will never confirm a packet as asked."""

    subscription: Subscription
    secret: str
    never: list[str]

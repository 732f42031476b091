"""Fetching by several workers: each message is leased to one of them, until it acknowledges, gives up, or is too late."""

import math
from collections.abc import Callable
from typing import Literal

import msgspec
import trio

from overlayd.delivery.agents.brakes import count_hold
from overlayd.delivery.frames import Message
from overlayd.delivery.subscriptions.content import body_bytes, delivery_id
from overlayd.delivery.subscriptions.finding import Finder
from overlayd.delivery.subscriptions.leases import Lease, scope_of
from overlayd.delivery.subscriptions.letters import letter_of, queue_letter
from overlayd.delivery.subscriptions.subscription import Subscription
from overlayd.delivery.subscriptions.tables import AttemptBody
from overlayd.delivery.subscriptions.units import Unit
from overlayd.delivery.subscriptions.worker import Workshop, drop_deep
from overlayd.model.cursor import Cursor
from overlayd.model.errors import SubscriptionConflict
from overlayd.model.subscription import PullRule

Verdict = Literal["ok", "expired"]
DISPATCH_S = 1.0
UNACKED = "no worker acknowledged it"


class Leased(msgspec.Struct):
    """A message with its lease. `deliveries`: how often it was given out, this time included."""

    message: Message
    lease: str
    deliveries: int


class Fetched(msgspec.Struct):
    """`lease_until_us`: when the leases end, as wall time; 0 without messages. `cursor`: the floor."""

    messages: list[Leased]
    lease_until_us: int
    cursor: Cursor


class Desk:
    """One pull subscription's workers meet here. It has no task: it works when somebody asks."""

    def __init__(self, subscription: Subscription, shop: Workshop) -> None:
        self._subscription = subscription
        self._shop = shop
        self._finder: Finder = shop.finder(subscription)
        self._finding = trio.Lock()
        self._leased: dict[Lease, Unit] = {}
        self._scope = scope_of(subscription.id, shop.contents.epoch)

    def __repr__(self) -> str:
        return f"Desk({self._subscription.name!r}, leased={len(self._leased)})"

    @property
    def _rule(self) -> PullRule:
        rule = self._subscription.definition.pull
        return rule if isinstance(rule, PullRule) else PullRule()

    @property
    def is_agent(self) -> bool:
        return self._subscription.brakes is not None

    @property
    def leased(self) -> int:
        return len(self._leased)

    async def fetch(
        self, count: int, wait_s: float, check: Callable[[], object] | None = None, address: str = ""
    ) -> Fetched:
        """Leases up to so many messages; waits for a first one. The leases are durable when it returns. Checkpoint.
        `address`: of who asks.

        `check` raises when whoever asked may no longer have them; it is asked after each wait. Cancelled, what was taken
        is given back. Raises SubscriptionConflict, StorageFull, and what `check` raises.
        """
        subscription, deadline = self._subscription, trio.current_time() + wait_s
        scanned, head = 0, self._shop.contents.head
        with trio.move_on_after(DISPATCH_S):  # what was durable before the call is seen by it
            await self._shop.wait_reached(head)
        while True:
            self._check_active()
            bell = subscription.bell
            self._sync()
            self.expire()
            has_more, looked = await self._fill(count)
            scanned += looked
            if units := self._take(count):
                fetched = await self._give_out(units, address)
                if fetched.messages:
                    return fetched
                continue
            if has_more and scanned < self._shop.limits.scan_max:
                continue
            if has_more:
                self._shop.meters.metrics.count_limit_hit("scan_max")
            if has_more or trio.current_time() >= deadline:
                return self._nothing()
            due = subscription.ledger.next_due()
            with trio.move_on_at(deadline if due is None else min(due, deadline)):
                await bell.wait()
            if check is not None:
                check()

    async def ack(self, tokens: list[str]) -> list[Verdict]:
        """Settles the messages of the leases that still count; durable when it returns. Checkpoint."""
        await self._recall()
        verdicts: list[Verdict] = []
        settled: list[Unit] = []
        for unit in self._find(tokens):
            verdicts.append("expired" if unit is None else "ok")
            if unit is not None:
                self._drop(unit)
                self._settle(unit)
                settled.append(unit)
        await self._write(settled)
        return verdicts

    async def reply(self, token: str, body: bytes) -> Verdict:
        """Settles a message with what an agent replied to it; both are durable when it returns. Checkpoint.

        Raises what keeps the reply from being taken; the lease then goes on. Raises SubscriptionConflict for no agent.
        """
        await self._recall()
        subscription, replies = self._subscription, self._shop.replies
        if replies is None or subscription.brakes is None:
            raise SubscriptionConflict(f"{subscription.name} is no agent, so it can't reply", subject=subscription.id)
        (unit,) = self._find([token])
        if unit is None:
            return "expired"
        ledger, lease = subscription.ledger, self._lease_of(unit)
        self._drop(unit)
        ledger.hold(unit)
        try:
            parcel = await self._shop.contents.read(subscription, unit)
            if parcel.kind == "packets" and parcel.messages:
                size = await replies.take(subscription, unit, parcel.messages, body)
                subscription.note_reply(self._shop.clock.now_us(), size)
        except BaseException:
            if subscription.ledger is ledger:
                ledger.unhold(unit)
                self._leased[lease] = unit
            raise
        if subscription.ledger is ledger:  # else it was sought elsewhere meanwhile, with this settled
            self._settle(unit)
            await self._write([unit])
        return "ok"

    async def nack(self, tokens: list[str], delay_s: float) -> list[Verdict]:
        """Gives messages back, to be fetched again after a while, or dead letters if that was their last delivery."""
        await self._recall()
        verdicts: list[Verdict] = []
        given: list[Unit] = []
        for unit in self._find(tokens):
            verdicts.append("expired" if unit is None else "ok")
            if unit is not None:
                self._drop(unit)
                self._give_up(unit, delay_s, "a worker gave it back")
                given.append(unit)
        await self._write(given)
        return verdicts

    async def extend(self, tokens: list[str], duration_s: float | None) -> tuple[list[Verdict], int]:
        """Leases from now on for so long; also says until when, as wall time."""
        await self._recall()
        lease_s = float(self._rule.lease) if duration_s is None else duration_s
        due, until_us = trio.current_time() + lease_s, self._shop.clock.now_us() + round(lease_s * 1e6)
        verdicts: list[Verdict] = []
        extended: list[Unit] = []
        for unit in self._find(tokens):
            verdicts.append("expired" if unit is None else "ok")
            if unit is not None:
                self._subscription.ledger.extend(unit, due, until_us)
                extended.append(unit)
        await self._write(extended)
        return verdicts, until_us

    def expire(self) -> bool:
        """Ends the leases whose time is over; whether there were any. What changed is written in the next round."""
        expired = self._subscription.ledger.expire(trio.current_time())
        for unit in expired:
            self._drop(unit)
            self._give_up(unit, 0.0, "its lease ran out")
            if unit.state == "done":
                self._subscription.ledger.release(unit)
        if expired:
            self._shop.rounds.mark(self._subscription)
            self._subscription.ring()
        return bool(expired)

    def next_expiry(self) -> float:
        """When the next lease ends; infinity without any."""
        due = self._subscription.ledger.next_due() if self._leased else None
        return math.inf if due is None else due

    def restore(self) -> None:
        """Takes leases of before a restart up again, as the reading finds their messages."""
        ledger = self._subscription.ledger
        for unit in [*(item.unit for item in ledger.items()), *ledger.dead()]:
            if unit is not None and unit.state == "leased":
                self._leased.setdefault(self._lease_of(unit), unit)

    async def catch_up(self) -> None:
        """Finds again what was given out before a restart. Checkpoint."""
        subscription = self._subscription
        async with self._finding:
            self._sync()
            while subscription.ledger.is_restoring and not subscription.is_tracked:
                await self._step()
                self._sync()
            self.restore()

    def _sync(self) -> None:
        """After a seek or another definition there is another ledger, and what was given out is found again in it."""
        if self._finder.ledger is not self._subscription.ledger:
            self._finder = self._shop.finder(self._subscription)
            self._leased.clear()
            self.restore()

    async def _fill(self, count: int) -> tuple[bool, int]:
        """Reads on until so many messages are at hand; at most one page. Whether there may be more, and how many
        entries were looked at. Checkpoint."""
        subscription, ledger = self._subscription, self._subscription.ledger
        if ledger.is_restoring:
            await self.catch_up()
        async with self._finding:
            self._sync()
            if subscription.is_tracked or ledger.ready >= count:
                return False, 0
            if ledger.outstanding >= self._shop.limits.outstanding_max:
                self._shop.meters.metrics.count_limit_hit("outstanding_max")
                return False, 0
            looked = await self._step()
            return not subscription.is_tracked, looked

    async def _step(self) -> int:
        subscription = self._subscription
        looked = await self._finder.step()
        if self._finder.ledger is subscription.ledger and self._finder.caught_up(self._shop.frontier()):
            subscription.is_tracked = True
            if subscription.is_idle and not subscription.shared_row:
                self._shop.rounds.mark(subscription)
        return looked

    def _take(self, count: int) -> list[Unit]:
        units: list[Unit] = []
        now = trio.current_time()
        while len(units) < count and not self._is_braked():
            unit = self._subscription.ledger.take(now)
            if unit is None:
                break
            self._subscription.note_run(self._shop.clock.now_us())
            units.append(unit)
        return units

    def _is_braked(self) -> bool:
        """Whether an agent has used up what it may."""
        hold = self._subscription.hold(self._shop.clock.now_us())
        if hold is not None:
            count_hold(self._shop.meters.metrics, hold)
        return hold is not None

    async def _give_out(self, units: list[Unit], address: str) -> Fetched:
        subscription, ledger = self._subscription, self._subscription.ledger
        pairs: list[tuple[Unit, Message]] = []
        try:
            for unit in units:
                message = await self._message_of(unit)
                if message is not None:
                    pairs.append((unit, message))
        except BaseException:
            for unit in units:
                if unit.state == "flying":
                    ledger.give_back(unit, trio.current_time())
            raise
        if subscription.ledger is not ledger:  # a seek or another definition came between: they are found again
            return self._nothing()
        lease_s = float(self._rule.lease)
        due, now_us = trio.current_time() + lease_s, self._shop.clock.now_us()
        until_us = now_us + round(lease_s * 1e6)
        leased = []
        for unit, message in pairs:
            unit.first_us = unit.first_us or now_us
            ledger.lease(unit, due, until_us)
            if unit.dead_id:
                letter = queue_letter(subscription.dead_queued[unit.dead_id], attempts=unit.attempts)
                subscription.dead_new.append(letter)
            lease = self._lease_of(unit)
            self._leased[lease] = unit
            leased.append(Leased(message, lease.encode(), unit.attempts))
        self._shop.stir()
        await self._shop.rounds.mark(subscription).wait_or_raise()
        if not leased:
            return self._nothing()
        self._count_usage(pairs, address)
        return Fetched(leased, until_us, self._floor())

    def _count_usage(self, pairs: list[tuple[Unit, Message]], address: str) -> None:
        by_stream: dict[str, tuple[int, int]] = {}
        for unit, message in pairs:
            packets, size = by_stream.get(unit.stream, (0, 0))
            by_stream[unit.stream] = packets + (message.kind == "packet"), size + body_bytes([message])
        self._shop.usage.note_fetched(self._subscription, by_stream, address)
        for stream, (packets, _) in by_stream.items():
            self._shop.meters.tally.count_sent(stream, packets)

    async def _message_of(self, unit: Unit) -> Message | None:
        """What is given out for it; None when there is nothing, and it is settled."""
        subscription = self._subscription
        parcel = await self._shop.contents.read(subscription, unit)
        drop_deep(self._shop, subscription, parcel)
        if parcel.messages:
            subscription.note_run_bytes(self._shop.clock.now_us(), body_bytes(parcel.messages[:1]))
            return parcel.messages[0]
        if parcel.gaps:
            gap = parcel.gaps[0]
            return Message("gap", unit.items[-1].after, 0, gap)
        self._settle(unit)
        subscription.ledger.release(unit)
        return None

    async def _recall(self) -> None:
        """Leases of before a restart count, so they must be known before one is looked for. Checkpoint."""
        self._check_active(may_be_paused=True)
        self._sync()
        if self._subscription.ledger.is_restoring:
            await self.catch_up()
        else:
            await trio.lowlevel.checkpoint()

    def _find(self, tokens: list[str]) -> list[Unit | None]:
        """The units of the leases that count now; one lease named twice counts once."""
        self.expire()
        found: list[Unit | None] = []
        seen: set[Lease] = set()
        for token in tokens:
            lease = Lease.decode(token)
            unit = None if lease is None or lease in seen else self._leased.get(lease)
            if lease is not None:
                seen.add(lease)
            found.append(unit)
        return found

    def _drop(self, unit: Unit) -> None:
        self._leased.pop(self._lease_of(unit), None)

    def _lease_of(self, unit: Unit) -> Lease:
        # A dead letter that is tried again may stand at the place of a message: its key is set apart.
        offset, index, part = unit.key
        key = (offset, -2 - unit.dead_id, part) if unit.dead_id else (offset, index, part)
        return Lease(self._scope, self._subscription.rest.generation, key, unit.attempts)

    def _settle(self, unit: Unit) -> None:
        subscription = self._subscription
        subscription.change(
            delivered=subscription.rest.delivered + len(unit.items), last_success_us=self._shop.clock.now_us()
        )
        self._shop.meters.delivered.labels("pull").inc(len(unit.items))
        if unit.dead_id:
            subscription.dead_queued.pop(unit.dead_id, None)
            subscription.dead_gone.append(unit.dead_id)
            subscription.dead_letters -= 1
        subscription.ledger.settle(unit)

    def _give_up(self, unit: Unit, delay_s: float, reason: str) -> None:
        subscription, now_us = self._subscription, self._shop.clock.now_us()
        letter = subscription.dead_queued.get(unit.dead_id)
        name = delivery_id(subscription.id, unit) if letter is None else letter.body.delivery_id
        subscription.note_attempt(
            AttemptBody(now_us, name, unit.attempts, "retry", reason, None, max(0, now_us - unit.first_us), "")
        )
        subscription.change(failed=subscription.rest.failed + 1, last_failure_us=now_us, last_error=reason)
        self._shop.usage.note_lost(subscription)
        self._shop.meters.tell_stream(unit, "retry")
        self._shop.meters.attempts["retry"].inc()
        if unit.tries < self._rule.max_deliveries:
            next_us = now_us + round(delay_s * 1e6)
            subscription.ledger.fail(unit, trio.current_time() + delay_s, next_us)
            return
        row = letter_of(
            subscription, unit, name, f"{UNACKED} in {unit.tries} deliveries; the last: {reason}", status=None,
            excerpt="", died_us=now_us, id=unit.dead_id or self._shop.next_dead_id(),
        )  # fmt: skip
        if not unit.dead_id:
            subscription.dead_letters += 1
        subscription.dead_queued.pop(unit.dead_id, None)
        subscription.dead_new.append(row)
        subscription.ledger.settle(unit)
        self._shop.meters.dead.inc()
        if subscription.dead_letters > self._shop.limits.dead_letters_per_subscription:
            self._shop.stir()

    async def _write(self, units: list[Unit]) -> None:
        if not units:
            await trio.lowlevel.checkpoint()
            return
        subscription = self._subscription
        ticket = self._shop.rounds.mark(subscription)
        try:
            await ticket.wait_or_raise()
        finally:
            for unit in units:
                if unit.state == "done":
                    subscription.ledger.release(unit)
            subscription.ring()

    def _floor(self) -> Cursor:
        return self._subscription.ledger.floor

    def _nothing(self) -> Fetched:
        return Fetched([], 0, self._floor())

    def _check_active(self, *, may_be_paused: bool = False) -> None:
        rest = self._subscription.rest
        if self._subscription.is_held and not may_be_paused and not self._subscription.is_gone:
            raise SubscriptionConflict(
                "all agents are paused", subject=self._subscription.id, hint="they are resumed with /v1/agents/resume"
            )
        if self._subscription.is_gone or (rest.state != "active" and not may_be_paused):
            state = "deleted" if self._subscription.is_gone else rest.state
            raise SubscriptionConflict(
                f"{self._subscription.name} is {state}", subject=self._subscription.id, hint="resume it first"
            )

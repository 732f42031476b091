"""Delivers for one subscription that is behind or busy: finds, sends, settles, and ends when there is nothing to do."""

import math
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import msgspec
import structlog
import trio

from overlayd.delivery.agents.brakes import count_hold
from overlayd.delivery.frames import Message
from overlayd.delivery.subscriptions.content import Contents, Parcel, body_bytes, delivery_id
from overlayd.delivery.subscriptions.finding import Finder, gap_id, note_gap
from overlayd.delivery.subscriptions.letters import letter_of
from overlayd.delivery.subscriptions.meters import SubscriptionMeters
from overlayd.delivery.subscriptions.pacing import NodePlaces, TroubledTurns
from overlayd.delivery.subscriptions.retry import RETRY_AFTER_MAX_S
from overlayd.delivery.subscriptions.rounds import LINGER_S, Rounds
from overlayd.delivery.subscriptions.settings import SubscriptionSettings
from overlayd.delivery.subscriptions.subscription import Subscription
from overlayd.delivery.subscriptions.tables import AttemptBody
from overlayd.delivery.subscriptions.units import Unit
from overlayd.delivery.subscriptions.usage import SubscriptionUsage
from overlayd.model.clock import Clock
from overlayd.model.cursor import Cursor
from overlayd.model.errors import OverlaydError
from overlayd.model.limits import HOPS_MAX, Limits
from overlayd.model.outlet import AttemptResult, Delivery, DeliveryKind, Outlet

Announce = Callable[[str, dict[str, Any]], Awaitable[None]]
"""Appends an event to the node's own stream: its type and its data."""

UNSEEN_MAX_S = 86_400.0
"""Time between two failures that counts as failing, where the node can't tell how much of it it was down."""

READY_MIN = 32
YIELD_S = 0.2
"""What came for everybody at once is delivered to the others before endpoints that keep failing are tried again."""
_log = structlog.get_logger("delivery.subscriptions")


class Replier(Protocol):
    """Appends what agents reply, and with it the row that settles what was replied to."""

    def too_deep(self, subscription: Subscription, messages: Sequence[Message]) -> bool:
        """Whether a reply to them would be made from others too often in a row."""
        ...

    async def take(self, subscription: Subscription, unit: Unit, messages: Sequence[Message], body: bytes) -> int:
        """Bytes of the packets appended; the caller settles the unit in memory. Checkpoint. Raises OverlaydErrors."""
        ...

    async def take_at(self, subscription: Subscription, cursor: Cursor, message: Message, body: bytes) -> int:
        """The same where everything up to a cursor is settled by it."""
        ...


class Workshop(msgspec.Struct):
    """What all workers share. `frontier`: the entry that the dispatcher looks at; `wait_reached`: until it
    has looked at one. `next_dead_id`: draws an id.
    `stir`: there are too many dead letters, or a lease that will end."""

    finder: Callable[[Subscription], Finder]
    contents: Contents
    rounds: Rounds
    meters: SubscriptionMeters
    places: NodePlaces
    turns: TroubledTurns
    limits: Limits
    settings: SubscriptionSettings
    clock: Clock
    chance: random.Random
    announce: Announce
    frontier: Callable[[], int]
    wait_reached: Callable[[int], Awaitable[None]]
    next_dead_id: Callable[[], int]
    stir: Callable[[], None]
    usage: SubscriptionUsage
    replies: Replier | None = None


class Worker:
    """One subscription's task. Started anew it goes on where the ledger stands."""

    def __init__(self, subscription: Subscription, outlet: Outlet[Message], shop: Workshop) -> None:
        self._subscription = subscription
        self._outlet = outlet
        self._shop = shop
        self._finder = shop.finder(subscription)
        self._active = 0
        self._is_starved = False
        self._service = subscription.serve(shop.clock.now_us())

    async def run(self) -> None:
        """Until nothing is left to do, or the subscription isn't active any more. Checkpoint."""
        subscription = self._subscription
        async with trio.open_nursery() as nursery:
            while True:
                bell = subscription.bell
                if self._service.is_troubled:
                    await self._give_way()
                is_moving = await self._find()
                self._launch(nursery)
                if not self._active and not subscription.has_work:
                    break
                if not is_moving:
                    with trio.move_on_at(self._deadline()):
                        await bell.wait()
        if not subscription.shared_row:
            self._shop.rounds.mark_unhurried(subscription)

    async def _give_way(self) -> None:
        """An endpoint that keeps failing lets others go first, and waits for its turn, whatever comes meanwhile."""
        subscription = self._subscription
        await trio.sleep(YIELD_S * (0.5 + self._shop.chance.random()))
        while subscription.is_served and trio.current_time() < self._service.held_until:
            with trio.move_on_at(self._service.held_until):
                await subscription.bell.wait()

    async def _find(self) -> bool:
        """Looks at one more page if there is use for it; whether there may be more. Checkpoint."""
        subscription, ledger = self._subscription, self._subscription.ledger
        if subscription.is_tracked or not subscription.is_served:
            await trio.lowlevel.checkpoint()
            return False
        if not self._has_room():
            await trio.lowlevel.checkpoint()
            return False
        await self._finder.step()
        if self._finder.caught_up(self._shop.frontier()):
            subscription.is_tracked = True
            return False
        if ledger.outstanding >= self._shop.limits.outstanding_max:
            self._shop.meters.metrics.count_limit_hit("outstanding_max")
        return True

    def _has_room(self) -> bool:
        """Enough is at hand when every place is taken, or there are packets for all of them. Streams that are held
        may hide others behind them, so the search goes on while a place is free. An endpoint that keeps failing needs
        one packet at a time; the others wait in the log, where they cost nothing."""
        ledger, rules = self._subscription.ledger, self._subscription.rules
        if ledger.outstanding >= self._shop.limits.outstanding_max or (self._service.is_troubled and ledger.ready):
            return False
        if ledger.ready >= max(READY_MIN, rules.concurrency * rules.batch_size):
            return False
        return self._active < self._service.window.size or not ledger.ready

    def _launch(self, nursery: trio.Nursery) -> None:
        """Begins what may begin now."""
        subscription, ledger, places = self._subscription, self._subscription.ledger, self._shop.places
        self._is_starved = False
        now = trio.current_time()
        while subscription.is_served and self._active < self._service.window.size:
            if now < self._service.held_until or self._service.pace.ready_at(now) > now or self._is_braked(now):
                return
            is_extra = self._active > 0
            if is_extra and not places.take_extra():
                self._shop.meters.metrics.count_limit_hit("deliveries_in_flight")
                return
            unit = ledger.take(now)
            if unit is None:
                if is_extra:
                    places.give_extra()
                self._is_starved = True
                return
            self._service.pace.take()
            subscription.note_run(self._shop.clock.now_us())
            self._active += 1
            nursery.start_soon(self._attempt, unit, is_extra)

    def _is_braked(self, now: float) -> bool:
        """Whether an agent has used up what it may, and waits."""
        hold = self._subscription.hold(self._shop.clock.now_us())
        if hold is None:
            return False
        count_hold(self._shop.meters.metrics, hold)
        self._service.held_until = now + hold.wait_s
        return True

    def _deadline(self) -> float:
        """When there may be something to begin, unless the bell rings before."""
        if not self._subscription.is_served or self._active >= self._service.window.size:
            return math.inf
        now = trio.current_time()
        allowed = max(self._service.held_until, self._service.pace.ready_at(now))
        if self._is_starved:
            due = self._subscription.ledger.next_due()
            return math.inf if due is None else max(due, allowed)
        return allowed if allowed > now else math.inf

    async def _attempt(self, unit: Unit, is_extra: bool) -> None:
        """One attempt, until what came of it is durable."""
        ledger = self._subscription.ledger
        is_over = False
        try:
            await self._deliver(unit)
            is_over = True
        except trio.Cancelled:
            if unit.state == "flying":
                if (
                    self._subscription.changing
                    and unit.first_us
                    and not unit.is_fixed
                    and unit.items[0].kind == "packets"
                ):
                    ledger.fix(unit)  # it may have arrived, so it keeps its name whatever batches are like from now on
                ledger.give_back(unit, trio.current_time())
            is_over = True
            raise
        finally:
            if not is_over and unit.state == "flying":
                self._shop.meters.attempts["crashed"].inc()
                self._note(unit, AttemptResult("retry", "the node itself failed to make the attempt"))
                self._shop.rounds.mark(self._subscription)
            if unit.state == "done":
                ledger.release(unit)
            self._active -= 1
            if is_extra:
                self._shop.places.give_extra()
            self._subscription.ring()

    async def _deliver(self, unit: Unit) -> None:
        subscription, shop = self._subscription, self._shop
        parcel = await shop.contents.read(subscription, unit)
        drop_deep(shop, subscription, parcel)
        if not parcel.messages and (not parcel.gaps or not subscription.rules.gaps):
            for gap in parcel.gaps:
                note_gap(subscription, gap, shop.clock.now_us())
            self._settle(unit)
            await shop.rounds.mark(subscription).wait()
            return
        unit.first_us = unit.first_us or shop.clock.now_us()
        if subscription.rules.batch_size > 1 and parcel.kind == "packets" and not unit.is_fixed and not unit.dead_id:
            parcel = await self._cut(unit, parcel)
            subscription.ledger.fix(unit)
            await shop.rounds.mark(subscription).wait()
        result = await self._push(unit, parcel)
        shop.usage.note_attempt(subscription, parcel, result)
        shop.meters.tell_stream(unit, result.outcome)
        event = self._note(unit, result)
        is_tried_later = unit.state == "waiting" and unit.due > trio.current_time() + LINGER_S and event is None
        await (shop.rounds.mark_unhurried if is_tried_later else shop.rounds.mark)(subscription).wait()
        if event is not None:
            await self._tell(event)

    async def _cut(self, unit: Unit, parcel: Parcel) -> Parcel:
        """What the unit delivers once it holds no more than can be delivered at once. Checkpoint."""
        subscription, messages = self._subscription, parcel.messages
        if len(messages) < 2:
            await trio.lowlevel.checkpoint()
            return parcel
        count = await self._outlet.fit(self._delivery_of(unit, "", parcel.kind, parcel.stream, messages))
        assert count > 0
        if count >= len(messages):
            return parcel
        self._shop.meters.metrics.count_limit_hit("webhook_body_bytes")
        first_left = messages[count].cursor
        place = next(at for at, item in enumerate(unit.items) if item.after == first_left)
        subscription.ledger.cut(unit, place)
        subscription.ring()
        parcel = await self._shop.contents.read(subscription, unit)
        drop_deep(self._shop, subscription, parcel)
        return parcel

    async def _push(self, unit: Unit, parcel: Parcel) -> AttemptResult:
        """What can't be given any more first, then what can."""
        subscription = self._subscription
        for gap in parcel.gaps:
            if not subscription.rules.gaps:
                note_gap(subscription, gap, self._shop.clock.now_us())
                continue
            message = Message("gap", Cursor(gap.epoch, gap.to_offset), 0, gap)
            result = await self._send(unit, gap_id(subscription.id, gap), "gap", "", [message])
            if result.outcome != "delivered" or not parcel.messages:
                return result
        name = self._name_of(unit)
        return await self._send(unit, name, parcel.kind, parcel.stream, parcel.messages)

    async def _send(
        self, unit: Unit, name: str, kind: DeliveryKind, stream: str, messages: list[Message]
    ) -> AttemptResult:
        subscription = self._subscription
        delivery = self._delivery_of(unit, name, kind, stream, messages)
        started = trio.current_time()
        subscription.note_run_bytes(self._shop.clock.now_us(), body_bytes(messages))
        result = await self._outlet.attempt(delivery)
        if result.outcome == "delivered" and kind == "packets" and result.reply:
            result = await self._reply(unit, messages, result)
        took_s = trio.current_time() - started
        self._shop.meters.attempt_seconds.observe(took_s)
        self._shop.meters.attempts[result.outcome].inc()
        duration_us = result.duration_us or round(took_s * 1e6)
        excerpt = result.response_excerpt.decode("utf-8", "replace")
        subscription.note_attempt(
            AttemptBody(
                self._shop.clock.now_us(), name, unit.attempts + 1, result.outcome, result.reason, result.status,
                duration_us, excerpt, *unit.offsets(),
            )
        )  # fmt: skip
        return result

    def _delivery_of(
        self, unit: Unit, name: str, kind: DeliveryKind, stream: str, messages: list[Message]
    ) -> Delivery[Message]:
        return Delivery(
            subscription_id=self._subscription.id, definition=self._subscription.definition, delivery_id=name, kind=kind,
            stream=stream, messages=tuple(messages), attempt=unit.attempts + 1, first_attempt_us=unit.first_us,
        )  # fmt: skip

    async def _reply(self, unit: Unit, messages: list[Message], result: AttemptResult) -> AttemptResult:
        """Appends what an agent replied; a reply that can't be taken is a failed attempt."""
        subscription = self._subscription
        if self._shop.replies is None:
            return result
        try:
            size = await self._shop.replies.take(subscription, unit, messages, result.reply)
        except OverlaydError as err:
            # What was wrong may quote the reply, which may repeat the packet: it stands where erasure takes it away.
            excerpt = f"{err.detail}: ".encode() + result.response_excerpt
            return msgspec.structs.replace(
                result, outcome="retry", reason=f"the reply wasn't taken: {err.code}", retry_after_s=err.retry_after_s,
                response_excerpt=excerpt,
            )  # fmt: skip
        subscription.note_reply(self._shop.clock.now_us(), size)
        return result

    def _name_of(self, unit: Unit) -> str:
        letter = self._subscription.dead_queued.get(unit.dead_id)
        return delivery_id(self._subscription.id, unit) if letter is None else letter.body.delivery_id

    def _note(self, unit: Unit, result: AttemptResult) -> dict[str, Any] | None:
        """What the attempt changes; gives the event to announce, if there is one."""
        subscription, now_us = self._subscription, self._shop.clock.now_us()
        if result.outcome == "undeliverable":
            unit.attempts += 1
            subscription.change(failed=subscription.rest.failed + 1, last_failure_us=now_us, last_error=result.reason)
            self._bury(unit, result, now_us)
            return None
        self._service.window.note(is_success=result.outcome == "delivered")
        if result.outcome == "delivered":
            self._service.failed_at, self._service.failures = None, 0
            subscription.change(last_success_us=now_us, failing_us=0)
            self._settle(unit)
            return None
        unit.attempts += 1
        self._service.failures += 1
        self._wait_for_turn()
        failing_us = self._failing_us(now_us)
        subscription.change(
            failed=subscription.rest.failed + 1, last_failure_us=now_us, last_error=result.reason, failing_us=failing_us
        )
        if result.outcome == "disable":
            subscription.ledger.fail(unit, trio.current_time(), now_us)
            return self._disable(result.reason, now_us)
        self._retry_or_bury(unit, result, now_us)
        if failing_us >= self._shop.settings.disable_after * 1e6:
            days = f"nothing but failures for {self._shop.settings.disable_after}; the last: {result.reason}"
            return self._disable(days, now_us)
        return None

    def _settle(self, unit: Unit) -> None:
        subscription = self._subscription
        subscription.change(delivered=subscription.rest.delivered + len(unit.items))
        self._shop.meters.delivered.labels(subscription.definition.kind).inc(len(unit.items))
        if unit.dead_id:
            subscription.dead_queued.pop(unit.dead_id, None)
            subscription.dead_gone.append(unit.dead_id)
            subscription.dead_letters -= 1
        subscription.ledger.settle(unit)

    def _failing_us(self, now_us: int) -> int:
        """For how long there were nothing but failures. Wall time counts only from before a restart, and bounded: a
        clock that jumps disables nobody."""
        rest, now = self._subscription.rest, trio.current_time()
        before, self._service.failed_at = self._service.failed_at, now
        if not rest.failing_us:
            return 1
        unseen_s = min(max(0.0, (now_us - rest.last_failure_us) / 1e6), UNSEEN_MAX_S)
        return rest.failing_us + round((now - before if before is not None else unseen_s) * 1e6)

    def _retry_or_bury(self, unit: Unit, result: AttemptResult, now_us: int) -> None:
        subscription, now = self._subscription, trio.current_time()
        asked_s = min(max(0.0, result.retry_after_s or 0.0), RETRY_AFTER_MAX_S)
        if asked_s:
            self._service.held_until = max(self._service.held_until, now + asked_s)
            subscription.change(hold_us=now_us + round(asked_s * 1e6))
        pause_s = subscription.rules.retry.pause_s(unit.tries, self._shop.chance)
        if pause_s is None:
            self._bury(unit, result, now_us)
            return
        pause_s = max(pause_s, asked_s)
        subscription.ledger.fail(unit, now + pause_s, now_us + round(pause_s * 1e6))

    def _bury(self, unit: Unit, result: AttemptResult, now_us: int) -> None:
        """The delivery becomes a dead letter, and the subscription goes on without it."""
        subscription = self._subscription
        letter = letter_of(
            subscription, unit, self._name_of(unit), result.reason, status=result.status,
            excerpt=result.response_excerpt.decode("utf-8", "replace"), died_us=now_us,
            id=unit.dead_id or self._shop.next_dead_id(),
        )  # fmt: skip
        if not unit.dead_id:
            subscription.dead_letters += 1
        subscription.dead_queued.pop(unit.dead_id, None)
        subscription.dead_new.append(letter)
        subscription.ledger.settle(unit)
        self._shop.meters.dead.inc()
        if subscription.dead_letters > self._shop.limits.dead_letters_per_subscription:
            self._shop.stir()

    def _wait_for_turn(self) -> None:
        """An endpoint that keeps failing is tried again when it is its turn."""
        if not self._service.is_troubled:
            return
        now = trio.current_time()
        turn_at = self._shop.turns.next_at(now)
        if turn_at > now:
            self._shop.meters.metrics.count_limit_hit("troubled_attempts_per_s")
            self._service.held_until = max(self._service.held_until, turn_at)

    def _disable(self, reason: str, now_us: int) -> dict[str, Any] | None:
        """The event to announce; None when another attempt that was in flight has disabled it already."""
        subscription = self._subscription
        if subscription.rest.state == "disabled":
            return None
        subscription.set_state("disabled", reason, now_us)
        self._shop.usage.close(subscription, reason)
        self._shop.meters.disabled.inc()
        _log.warning("subscription disabled", subscription=subscription.id, name=subscription.name, reason=reason)
        return {"subscription": subscription.id, "name": subscription.name, "reason": reason}

    async def _tell(self, event: dict[str, Any]) -> None:
        try:
            await self._shop.announce("subscription.disabled", event)
        except OverlaydError as err:
            _log.error("an event couldn't be appended", event_type="subscription.disabled", error=err.detail)


def drop_deep(shop: Workshop, subscription: Subscription, parcel: Parcel) -> None:
    """Packets that nothing may be made from any more aren't given to an agent that replies: it would be run for
    nothing. It stands among its attempts."""
    replies = shop.replies
    if replies is None or subscription.brakes is None or parcel.kind != "packets":
        return
    for message in parcel.messages[:]:
        if replies.too_deep(subscription, [message]):
            parcel.messages.remove(message)
            name = f"msg_{subscription.id}_{str(message.cursor)[1:].replace('-', '_').replace('.', '_')}"
            reason = f"not given: made from another packet {HOPS_MAX} times in a row, which is the limit"
            subscription.note_attempt(AttemptBody(shop.clock.now_us(), name, 0, "hops", reason, None, 0, ""))

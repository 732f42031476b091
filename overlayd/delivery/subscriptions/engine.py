"""The tasks of durable subscriptions: the dispatcher, the rounds, and one worker for each that is behind or busy."""

import random
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import msgspec
import structlog
import trio

from overlayd.delivery.delivery import Delivery
from overlayd.delivery.frames import Message
from overlayd.delivery.subscriptions.content import Contents, MayRead
from overlayd.delivery.subscriptions.deciding import Decision
from overlayd.delivery.subscriptions.dispatcher import Dispatcher
from overlayd.delivery.subscriptions.finding import Finder
from overlayd.delivery.subscriptions.meters import SubscriptionMeters
from overlayd.delivery.subscriptions.pacing import NodePlaces, TroubledTurns
from overlayd.delivery.subscriptions.pull import Desk
from overlayd.delivery.subscriptions.rounds import WRITE_S, Rounds
from overlayd.delivery.subscriptions.subscription import Subscription
from overlayd.delivery.subscriptions.tables import expire_dead, oldest_dead
from overlayd.delivery.subscriptions.usage import SubscriptionUsage
from overlayd.delivery.subscriptions.worker import Announce, Replier, Worker, Workshop
from overlayd.model.errors import IntakeBusy, OverlaydError
from overlayd.model.outlet import Outlet
from overlayd.model.supervise import supervise
from overlayd.model.usage import UsageSink
from overlayd.model.wire_statistics import SubscriptionStats

TICK_S = 1.0
HOUSE_S = 60.0
_log = structlog.get_logger("delivery.subscriptions")


class _Running:
    """A worker's task."""

    __slots__ = ("gone", "scope")

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.gone = trio.Event()


class Engine:
    """Runs what the book of subscriptions holds."""

    def __init__(
        self, delivery: Delivery, *, outlets: Mapping[str, Outlet[Message]], may_read: MayRead, announce: Announce,
        chance: random.Random, usage: Callable[[], UsageSink | None], replies: Replier | None = None,
    ) -> None:  # fmt: skip
        """`outlets`: by the kind of subscription. `usage`: who counts what was delivered, if anybody does."""
        self.delivery = delivery
        self.settings = delivery.settings.subscriptions
        self.outlets = outlets
        self.meters = SubscriptionMeters(delivery.metrics, delivery.tally)
        self.dispatcher = Dispatcher(delivery, self.meters, self.wake)
        self.rounds = Rounds(delivery.log, delivery.metrics, lambda: self.dispatcher.position)
        self.last_dead_id = 0
        self.shop = Workshop(
            finder=lambda subscription: Finder(subscription, delivery, self.meters),
            contents=Contents(delivery, may_read, self.meters), rounds=self.rounds, meters=self.meters,
            places=NodePlaces(delivery.limits.deliveries_in_flight),
            turns=TroubledTurns(delivery.limits.troubled_attempts_per_s), limits=delivery.limits, settings=self.settings,
            clock=delivery.clock, chance=chance, announce=announce, frontier=lambda: self.dispatcher.frontier,
            wait_reached=self.dispatcher.wait_reached,
            next_dead_id=self._next_dead_id, stir=lambda: self._stirred.set(), replies=replies,
            usage=SubscriptionUsage(usage, delivery.clock, lambda: self.dispatcher.position, lambda: delivery.log.head),
        )  # fmt: skip
        self._chance = chance
        self._running: dict[int, _Running] = {}
        self._wanted: dict[int, Subscription] = {}
        self._call = trio.Event()
        self._stirred = trio.Event()
        self._is_draining = False
        self.are_agents_paused = False
        self.desks: dict[int, Desk] = {}
        self.subscriptions: dict[int, Subscription] = {}
        self._watch()

    def __repr__(self) -> str:
        return f"Engine(subscriptions={len(self.subscriptions)}, running={len(self._running)})"

    def _watch(self) -> None:
        """Gauges over all subscriptions, computed when they are asked for."""
        metrics, everybody = self.delivery.metrics, self.subscriptions.values
        working = metrics.gauge("overlayd_delivery_workers", "Durable subscriptions that are behind or busy")
        working.set_function(lambda: len(self._running))
        dead = metrics.gauge("overlayd_dead_letters", "Dead letters of all subscriptions")
        dead.set_function(lambda: sum(one.dead_letters for one in everybody()))
        outstanding = metrics.gauge("overlayd_subscription_outstanding", "Packets found above floors and not settled")
        outstanding.set_function(lambda: sum(one.ledger.unsettled for one in everybody()))
        lag = metrics.gauge("overlayd_subscription_lag_entries", "Entries between head and floor, of whoever is last")
        lag.set_function(lambda: max((self.lag_of(one) for one in everybody() if one.is_served), default=0))
        states = metrics.gauge("overlayd_subscriptions", "Durable subscriptions", "state")
        for state in ("active", "paused", "disabled"):
            states.labels(state).set_function(partial(self._count, state))

    def _count(self, state: str) -> int:
        return sum(one.rest.state == state for one in self.subscriptions.values())

    def show_figures(self) -> SubscriptionStats:
        """All subscriptions, added up."""
        everybody = self.subscriptions.values()
        return SubscriptionStats(
            active=self._count("active"), paused=self._count("paused"), disabled=self._count("disabled"),
            lag_entries_max=max((self.lag_of(one) for one in everybody if one.is_served), default=0),
            outstanding=sum(one.ledger.unsettled for one in everybody),
            dead_letters=sum(one.dead_letters for one in everybody),
        )  # fmt: skip

    def lag_of(self, subscription: Subscription) -> int:
        """Entries of the log behind the subscription's floor."""
        return max(0, self.delivery.log.head - subscription.floor(self.dispatcher.position).offset)

    def wake(self, subscription: Subscription) -> None:
        """There may be something to do for it. Doesn't yield."""
        if not subscription.is_tracked:
            self.rounds.busy[subscription.number] = subscription
        subscription.ring()
        if subscription.definition.reached_by in self.outlets and subscription.has_work:
            self._wanted[subscription.number] = subscription
            self._call.set()

    def hold_agents(self, is_paused: bool) -> None:
        """From now on nothing is begun for any agent, or is again. What is in flight ends as it ends."""
        self.are_agents_paused = is_paused
        for subscription in self.subscriptions.values():
            if subscription.definition.kind == "agent":
                subscription.is_held = is_paused
                self.wake(subscription)

    def desk(self, subscription: Subscription) -> Desk:
        """Where the workers of a pull subscription meet."""
        found = self.desks.get(subscription.number)
        if found is None:
            found = self.desks[subscription.number] = Desk(subscription, self.shop)
        return found

    async def run(self) -> None:
        """Until cancelled. Call `drain` before."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.rounds.run)
            nursery.start_soon(self._supervised, "dispatcher", self.dispatcher.run)
            nursery.start_soon(self._supervised, "subscription housekeeping", self._keep_house)
            nursery.start_soon(self._supervised, "subscription position", self._save_position)
            while True:
                await self._call.wait()
                self._call = trio.Event()
                wanted, self._wanted = self._wanted, {}
                for subscription in wanted.values():
                    if subscription.number not in self._running and not self._is_draining:
                        self._running[subscription.number] = _Running()
                        nursery.start_soon(self._work, subscription)

    async def halt(self, subscription: Subscription) -> None:
        """Ends its worker, attempts in flight included: they are repeated under the same ids. Checkpoint."""
        self._wanted.pop(subscription.number, None)
        running = self._running.get(subscription.number)
        if running is None:
            await trio.lowlevel.checkpoint()
            return
        running.scope.cancel()
        await running.gone.wait()

    async def decide(self, decision: Decision, *, is_still: bool = False) -> None:
        """It happens, or nothing has happened, whether whoever asked stays or not. Checkpoint. `is_still`: nothing is
        being sent for the subscription meanwhile. Raises StorageFull or what else keeps it from being written; IntakeBusy, too,
        where the log takes too long, and then it may happen later."""
        subscription, follow, drop = decision.subscription, decision.follow, decision.drop

        def end(how: Callable[[], None]) -> None:
            subscription.changing -= 1
            how()
            self.wake(subscription)

        ticket = None
        with trio.move_on_after(WRITE_S, shield=True):
            if is_still and subscription.definition.reached_by in self.outlets:
                decision = msgspec.structs.replace(decision, follow=partial(end, follow), drop=partial(end, drop))
                subscription.changing += 1
                await self.halt(subscription)
            ticket = self.rounds.decide(decision)
            await ticket.wait_or_raise()
            return
        if ticket is None:
            decision.drop()
        raise IntakeBusy("what was in flight, or the log, took too long", subject="intake", retry_after_s=WRITE_S)

    async def drain(self) -> None:
        """Before the end: nothing new is begun, attempts in flight are waited for, everything is written down."""
        self._is_draining = True
        for subscription in self.subscriptions.values():
            if subscription.number in self._running:
                subscription.is_draining = True
                subscription.ring()
        with trio.move_on_after(self.settings.drain_timeout):
            for running in list(self._running.values()):
                await running.gone.wait()
        for running in list(self._running.values()):
            running.scope.cancel()
        self.shop.usage.close_all()
        with trio.move_on_after(self.settings.drain_timeout):
            while self.subscriptions:
                await self.rounds.mark_position().wait()
                if self.rounds.is_clean:
                    break

    async def _work(self, subscription: Subscription) -> None:
        number = subscription.number
        running = self._running[number]
        outlet = self.outlets[subscription.definition.reached_by]
        try:
            with running.scope:
                await supervise(
                    f"subscription {subscription.name}", lambda: Worker(subscription, outlet, self.shop).run(),
                    chance=self._chance, on_crash=self._on_crash,
                )  # fmt: skip
        finally:
            del self._running[number]
            running.gone.set()
        if subscription.has_work and not running.scope.cancelled_caught and not self._is_draining:
            self.wake(subscription)

    async def _supervised(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        await supervise(name, run, chance=self._chance, on_crash=self._on_crash)

    def _on_crash(self, name: str) -> None:
        self.meters.crashes.inc()

    async def _save_position(self) -> None:
        """Writes the shared position down when it has moved, not too often."""
        while True:
            stored = self.rounds.stored_position
            if not self.subscriptions or (stored is not None and self.dispatcher.reached <= stored.offset):
                await self.dispatcher.wait_moved()
            await self.rounds.mark_position().wait()
            await trio.sleep(self.settings.position_interval)

    async def _keep_house(self) -> None:
        """Ends leases, and takes dead letters away that are too old or too many."""
        while True:
            self._stirred = trio.Event()
            for desk in list(self.desks.values()):
                desk.expire()
            self.shop.usage.close_old()
            try:
                await self._expire_letters()
                await self._trim_letters()
            except OverlaydError as err:  # a full disk, say; it is tried again
                _log.warning("dead letters wait to be taken away", error=err.detail)
            dues = [desk.next_expiry() for desk in self.desks.values()]
            with trio.move_on_at(min([trio.current_time() + HOUSE_S, *dues])):
                await self._stirred.wait()
            await trio.sleep(TICK_S)  # however often it is stirred

    async def _expire_letters(self) -> None:
        before_us = self.delivery.clock.now_us() - round(self.settings.dead_letter_retention * 1e6)
        while self.subscriptions and any(one.dead_letters for one in self.subscriptions.values()):
            gone = await self.delivery.log.write(lambda connection: expire_dead(connection, before_us))
            for _, number in gone:
                if number in self.subscriptions:
                    self.subscriptions[number].dead_letters -= 1
            self.meters.dead_dropped.labels("age").inc(len(gone))
            if not gone:
                return

    async def _trim_letters(self) -> None:
        most = self.delivery.limits.dead_letters_per_subscription
        for subscription in [one for one in self.subscriptions.values() if one.dead_letters > most]:
            count = subscription.dead_letters - most
            read = partial(oldest_dead, number=subscription.number, count=count)
            ids = await self.delivery.log.read(read)
            subscription.dead_gone += ids
            subscription.dead_letters -= len(ids)
            self.delivery.metrics.count_limit_hit("dead_letters_per_subscription")
            self.meters.dead_dropped.labels("number").inc(len(ids))
            await self.rounds.mark(subscription).wait()

    def _next_dead_id(self) -> int:
        self.last_dead_id += 1
        return self.last_dead_id

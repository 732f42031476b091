"""Durable subscriptions as the daemon puts them together: one object, made before anything runs and run beside it."""

import base64
import random
from collections.abc import Callable, Mapping

import msgspec
import trio

from overlayd.delivery.delivery import Delivery, LeaseFilter
from overlayd.delivery.frames import Message
from overlayd.delivery.subscriptions.book import SubscriptionBook
from overlayd.delivery.subscriptions.definition import CheckWebhook
from overlayd.delivery.subscriptions.engine import Engine
from overlayd.delivery.subscriptions.given import Given, find_given, joined
from overlayd.delivery.subscriptions.letter_box import LetterBox
from overlayd.delivery.subscriptions.named_live import NamedLive
from overlayd.delivery.subscriptions.owners import Owners
from overlayd.delivery.subscriptions.subscription import Subscription
from overlayd.delivery.subscriptions.worker import Announce, Replier
from overlayd.model.clock import Entropy
from overlayd.model.errors import SubscriptionConflict
from overlayd.model.outlet import AttemptResult, HeaderKeeper, Outlet, SecretKeeper
from overlayd.model.outlet import Delivery as OutletDelivery
from overlayd.model.usage import UsageSink
from overlayd.storage import Stream


class DurableSubscriptions:
    """`book` makes and changes them, `letters` are those that died, `live` are those that a connection reads."""

    def __init__(
        self, delivery: Delivery, *, entropy: Entropy, lease_filter: LeaseFilter, outlets: Mapping[str, Outlet[Message]],
        secrets: Mapping[str, SecretKeeper], headers: HeaderKeeper, check_webhook: CheckWebhook, owners: Owners, announce: Announce,
        chance: random.Random, usage: Callable[[], UsageSink | None] = lambda: None,
        replies: Replier | None = None,
    ) -> None:  # fmt: skip
        """`outlets` and `secrets`: by the kind of subscription. `lease_filter`: the filters' book. `replies`: appends what
        agents reply."""
        self.engine = Engine(
            delivery,
            outlets=outlets,
            may_read=owners.may_read,
            announce=announce,
            chance=chance,
            usage=usage,
            replies=replies,
        )
        self.book = SubscriptionBook(
            self.engine,
            entropy=entropy,
            lease_filter=lease_filter,
            check_webhook=check_webhook,
            secrets=secrets,
            headers=headers,
        )
        self.letters = LetterBox(self.engine)
        self.owners = owners
        self.live = NamedLive(self.engine, self.book, owners)
        self._entropy = entropy
        self._scope = trio.CancelScope(shield=True)
        self._is_working = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reads everything back, says started, and works until it is cancelled, which lets deliveries in flight end."""
        await self.book.load()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._work)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                if self._is_working:
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + self._grace_s):
                        await self.engine.drain()
                self._scope.cancel()

    async def _work(self) -> None:
        """The engine outlives the cancellation of `run` until it is drained, which `run` sees to."""
        self._is_working = True
        try:
            with self._scope:
                await self.engine.run()
        finally:
            self._is_working = False

    async def test(self, subscription: Subscription) -> tuple[str, AttemptResult]:
        """Makes one attempt with nothing in it, whatever the subscription's state; it counts nowhere. Gives its id and
        what came of it. Checkpoint. Raises SubscriptionConflict for a kind that nothing is sent to."""
        outlet = self.engine.outlets.get(subscription.definition.reached_by)
        if outlet is None:
            raise SubscriptionConflict(
                f"nothing is sent to a {subscription.definition.reached_by} subscription", subject=subscription.id
            )
        word = base64.b32encode(self._entropy.draw(5)).decode().lower()
        delivery: OutletDelivery[Message] = OutletDelivery(
            subscription_id=subscription.id, definition=subscription.definition, kind="test", stream="", messages=(),
            delivery_id=f"msg_{subscription.id}_test_{word}", attempt=1,
            first_attempt_us=self.engine.delivery.clock.now_us(),
        )  # fmt: skip
        started = trio.current_time()
        result = await outlet.attempt(delivery)
        took_us = result.duration_us or round((trio.current_time() - started) * 1e6)
        return delivery.delivery_id, msgspec.structs.replace(result, duration_us=took_us)

    @property
    def _grace_s(self) -> float:
        return 3 * float(self.engine.settings.drain_timeout)

    def needed_from(self, stream: str) -> int:
        """The first offset that an active subscription may still need of a stream; behind the head if none does. For
        retention, which waits for it."""
        engine = self.engine
        floors = [
            one.floor(engine.dispatcher.position).offset
            for one in engine.subscriptions.values()
            if one.rest.state == "active" and one.matcher.is_name_match(stream)
        ]
        return min(floors, default=engine.delivery.log.head) + 1

    async def given(self, stream: Stream, low: int, high: int) -> list[Given]:
        """Which subscriptions were given which of a stream's packets at offsets from `low` to `high`. Checkpoint. Raises as
        reading the log. Ask before they are erased: afterwards nobody can look into them."""
        engine = self.engine
        everybody = list(engine.subscriptions.values())
        return await find_given(engine.delivery, everybody, engine.dispatcher.reached, stream, low, high)

    async def before_erasure(self, stream: Stream, low: int, high: int) -> list[Given]:
        """As `given`, and notes what subscriptions weren't given because it isn't what they select, so that the erasure
        is told to those alone who had it. Durable when it returns. Checkpoint. Raises StorageFull, too."""
        found = await self.given(stream, low, high)
        tickets = []
        for one in found:
            if not one.unwanted or one.subscription.definition.reached_by == "live":
                continue
            for first, last in joined(one.unwanted):
                one.subscription.note_told(first, last)
            tickets.append(self.engine.rounds.mark(one.subscription))
        for ticket in tickets:
            await ticket.wait_or_raise()
        return found

    def forget(self) -> None:
        """Drops every packet that waits in memory, to be read again. For erasure."""
        for subscription in self.engine.subscriptions.values():
            subscription.ledger.forget_messages()

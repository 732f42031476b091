"""Subscriptions that a live connection reads by their name: what it acknowledged is durable, whoever comes next."""

from collections.abc import Callable

from overlayd.delivery.subscriptions.engine import Engine
from overlayd.delivery.subscriptions.subscription import Subscription
from overlayd.model.cursor import Cursor
from overlayd.model.errors import BadCursor, FutureCursor, SubscriptionConflict


class Attachment:
    """One connection's hold on a named subscription. `start`: where it begins to read."""

    def __init__(self, live: "NamedLive", subscription: Subscription, on_replaced: Callable[[], None]) -> None:
        self._live = live
        self._on_replaced = on_replaced
        self._given: Cursor = subscription.ledger.floor
        self.subscription = subscription
        self.start = subscription.ledger.floor

    @property
    def is_current(self) -> bool:
        """Whether nobody came after it."""
        return self._live.current(self.subscription) is self

    def note_given(self, cursor: Cursor, count: int) -> None:
        """So many messages were sent; the connection may acknowledge up to the cursor."""
        self._given = cursor
        subscription = self.subscription
        subscription.change(delivered=subscription.rest.delivered + count)

    def ack(self, cursor: Cursor, reached: Cursor) -> None:
        """Everything up to the cursor is settled, for whoever attaches next. Doesn't yield; written within moments.

        `reached`: up to where the connection's reader looked; what it acknowledged last covers what nobody wanted.
        Raises BadCursor for another log's, FutureCursor for what wasn't given yet. An older one does nothing.
        """
        if cursor.epoch != self._given.epoch:
            if cursor.epoch == self.start.epoch:
                return
            raise BadCursor("the cursor isn't of this log's epoch", subject="cursor")
        if _place(cursor) > max(_place(self._given), _place(self.start)):
            raise FutureCursor(
                f"the cursor {cursor} wasn't given yet on this connection", subject="cursor",
                hint="acknowledge the cursor of a message that came",
            )  # fmt: skip
        if not self.is_current:
            return
        if _place(cursor) == _place(self._given) and reached.epoch == cursor.epoch:
            cursor = max(cursor, reached, key=_place)
        ledger = self.subscription.ledger
        if cursor.epoch == ledger.floor.epoch and _place(cursor) <= _place(ledger.floor):
            return
        ledger.scanned(cursor)
        now_us = self._live.now_us()
        self.subscription.change(last_success_us=now_us)
        self._live.mark(self.subscription)

    def close(self) -> None:
        """The connection doesn't read it any more. Again does nothing."""
        self._live.leave(self)

    def replace(self) -> None:
        """Somebody else attached."""
        self._on_replaced()


class NamedLive:
    """Who is attached to which subscription of kind live."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._attached: dict[int, Attachment] = {}

    def attach(self, subscription: Subscription, on_replaced: Callable[[], None]) -> Attachment:
        """From now on this connection reads it; one that did before is told through its own `on_replaced`. Doesn't
        yield. Raises SubscriptionConflict for another kind, or one that isn't active."""
        if subscription.definition.kind != "live":
            raise SubscriptionConflict(
                f"{subscription.name} is of kind {subscription.definition.kind}; only kind live can be attached to",
                subject=subscription.name,
            )
        if subscription.rest.state != "active" or subscription.is_gone:
            raise SubscriptionConflict(f"{subscription.name} isn't active", subject=subscription.name)
        before = self._attached.get(subscription.number)
        attachment = self._attached[subscription.number] = Attachment(self, subscription, on_replaced)
        if before is not None:
            before.replace()
        return attachment

    def detach(self, subscription: Subscription) -> None:
        """Whoever reads it is told to go: it is moved, paused or deleted."""
        attachment = self._attached.pop(subscription.number, None)
        if attachment is not None:
            attachment.replace()

    def is_attached(self, subscription: Subscription) -> bool:
        return subscription.number in self._attached

    def current(self, subscription: Subscription) -> Attachment | None:
        return self._attached.get(subscription.number)

    def leave(self, attachment: Attachment) -> None:
        if self.current(attachment.subscription) is attachment:
            del self._attached[attachment.subscription.number]

    def mark(self, subscription: Subscription) -> None:
        self._engine.rounds.mark(subscription)

    def now_us(self) -> int:
        return self._engine.delivery.clock.now_us()

    async def flush(self, subscription: Subscription) -> None:
        """Until what was acknowledged is durable. Checkpoint."""
        await self._engine.rounds.mark(subscription).wait()


def _place(cursor: Cursor) -> tuple[int, float]:
    """Cursors of one epoch in order: inside of an entry comes before behind it."""
    return cursor.offset, float("inf") if cursor.index is None else cursor.index

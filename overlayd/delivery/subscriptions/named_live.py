"""Subscriptions that a live connection reads by their name: what it acknowledged is durable, whoever comes next."""

import trio

from overlayd.access.principal import Principal
from overlayd.delivery.frames import Message
from overlayd.delivery.matching import PacketView
from overlayd.delivery.query import Format, LiveQuery
from overlayd.delivery.session import CLOSE_GOING_AWAY, CLOSE_POLICY, Ending, Session
from overlayd.delivery.subscriptions.book import SubscriptionBook
from overlayd.delivery.subscriptions.engine import Engine
from overlayd.delivery.subscriptions.owners import Owners
from overlayd.delivery.subscriptions.subscription import Subscription
from overlayd.model.cursor import Cursor
from overlayd.model.entry import Kind
from overlayd.model.errors import BadCursor, FutureCursor, SubscriptionConflict

CLOSE_REPLACED = 4009
REPLACED = Ending(CLOSE_REPLACED, "replaced by a newer client of the same name")
WITHDRAWN = Ending(CLOSE_POLICY, "the named subscription was paused or deleted")

CHANGED = Ending(CLOSE_GOING_AWAY, "subscription.changed", 0.0)
"""It is defined in another way now: whoever comes back gets what is defined."""


class Attachment:
    """One connection's hold on a named subscription; `delivery.socket.NamedSubscription`."""

    def __init__(
        self, live: "NamedLive", subscription: Subscription, session: Session, principal: Principal, heartbeat_s: float
    ) -> None:  # fmt: skip
        self._live = live
        self.subscription = subscription
        self.session = session
        self.principal = principal
        self._query = LiveQuery(
            selection=subscription.selection, start=subscription.ledger.floor, heartbeat_s=heartbeat_s,
            format="packet" if subscription.definition.kind == "live" else "agent",
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"Attachment({self.subscription.name!r}, {self.session.id!r})"

    @property
    def query(self) -> LiveQuery:
        """What it selects, from the floor on."""
        return self._query

    async def ack(self, cursor: Cursor, reply: bytes = b"") -> None:
        """Everything up to the cursor is settled for whoever attaches next; durable when it returns. Checkpoint.

        An older cursor, or one of a connection that was replaced, does nothing. Raises BadCursor for another log's,
        FutureCursor, StorageFull. With what an agent replies to the cursor's packet both are durable, or neither is:
        raises what keeps the reply from being taken.
        """
        await self._live.ack(self, cursor, reply)

    def detach(self) -> None:
        """The connection reads it no more. Again does nothing."""
        self._live.leave(self)


class NamedLive:
    """Who is attached to which subscription of kind live."""

    def __init__(self, engine: Engine, book: SubscriptionBook, owners: Owners) -> None:
        self._engine = engine
        self._book = book
        self._owners = owners
        self._attached: dict[int, Attachment] = {}
        self._replying = trio.Lock()
        book.on_redefined = self._redefined

    def __repr__(self) -> str:
        return f"NamedLive(attached={len(self._attached)})"

    async def attach(
        self, name: str, principal: Principal, session: Session, forced: Format | None = None
    ) -> Attachment:
        """From now on this connection reads the subscription; the session of one that did before is ended.

        `delivery.socket.AttachNamed`. Checkpoint. Raises UnknownSubscription, Unauthorized, and SubscriptionConflict
        for another kind, one that isn't active, one that this very connection reads already, or an agent where events
        are demanded, which don't say who a packet is from; Forbidden for a connection that may not see what is selected,
        as one that a narrower ticket opened: it doesn't end another one's.
        """
        await trio.lowlevel.checkpoint()
        subscription = self._book.find(name)
        self._owners.require_use(principal, subscription)
        if subscription.definition.reached_by != "live":
            raise SubscriptionConflict(
                f"{subscription.name} is of kind {subscription.definition.reached_by}; only kind live can be attached to",
                subject=subscription.id,
            )
        if not subscription.is_served:
            raise SubscriptionConflict(f"{subscription.name} is {subscription.rest.state}", subject=subscription.id)
        if forced == "cloudevents" and subscription.definition.kind == "agent":
            raise SubscriptionConflict(
                "events don't say who a packet is from, which agents are told", subject=subscription.id,
                hint="connect with the subprotocol overlayd.v1",
            )  # fmt: skip
        before = self._attached.get(subscription.number)
        if before is not None and before.session is session:
            raise SubscriptionConflict(f"this connection reads {subscription.name} already", subject=subscription.id)
        heartbeat_s = float(self._engine.delivery.settings.heartbeat)
        found = Attachment(self, subscription, session, principal, heartbeat_s)
        self._engine.delivery.see(found.query, principal)
        self._attached[subscription.number] = found
        if before is not None:
            before.session.end(REPLACED)
        return found

    async def ack(self, attachment: Attachment, cursor: Cursor, reply: bytes = b"") -> None:
        """As `Attachment.ack`."""
        subscription, log = attachment.subscription, self._engine.delivery.log
        floor = subscription.ledger.floor
        if cursor.epoch != log.epoch:
            if cursor.epoch == floor.epoch:
                await trio.lowlevel.checkpoint()
                return
            raise BadCursor("the cursor isn't of this log's present epoch", subject="cursor")
        if cursor.offset > log.head:
            raise FutureCursor(
                f"the cursor {cursor} lies beyond the head", subject="cursor",
                hint="acknowledge the cursor of a message that came",
            )  # fmt: skip
        is_newer = cursor.epoch != floor.epoch or _place(cursor) > _place(floor)
        if not is_newer or self._attached.get(subscription.number) is not attachment or subscription.is_gone:
            await trio.lowlevel.checkpoint()
            if reply:
                raise SubscriptionConflict("the cursor is settled already", subject=subscription.id)
            return
        if reply:
            self._owners.require_reply(attachment.principal, subscription)
            await self._reply(subscription, cursor, reply)
            if _place(cursor) <= _place(subscription.ledger.floor):
                return  # a later one was acknowledged meanwhile
        subscription.ledger.scanned(cursor)
        subscription.change(last_success_us=self._engine.delivery.clock.now_us())
        await self._engine.rounds.mark(subscription).wait_or_raise()

    async def _reply(self, subscription: Subscription, cursor: Cursor, reply: bytes) -> None:
        """Raises BadCursor for the cursor of anything but a packet that the subscription gets, and as replying."""
        replies = self._engine.shop.replies
        if replies is None or subscription.brakes is None:
            raise SubscriptionConflict(f"{subscription.name} is no agent, so it can't reply", subject=subscription.id)
        async with self._replying:
            view = await self._packet_at(subscription, cursor)
            if view is None:
                raise BadCursor(
                    "the cursor isn't one of a packet that this subscription gets", subject="cursor",
                    hint="reply with the cursor that came with the packet",
                )  # fmt: skip
            message = Message("packet", cursor, view.entry.appended_us, view)
            size = await replies.take_at(subscription, cursor, message, reply)
        subscription.note_reply(self._engine.delivery.clock.now_us(), size)

    async def _packet_at(self, subscription: Subscription, cursor: Cursor) -> PacketView | None:
        log = self._engine.delivery.log
        entry = await log.read_entry(cursor.offset)
        if entry.kind == Kind.STATUS and entry.target_from:
            offset = entry.target_to if cursor.index is None else entry.target_from + cursor.index - 1
            entry = await log.read_entry(offset)
        if entry.kind != Kind.PACKET or entry.is_reduced:
            return None
        stream = subscription.matcher.find_stream(entry.stream_hash)
        if stream is None or not self._owners.may_read(subscription.reading, stream):
            return None
        return self._engine.delivery.views.view(entry, stream.name)

    def withdraw(self, subscription: Subscription) -> None:
        """Ends the session of whoever reads it: it was paused or deleted."""
        attachment = self._attached.pop(subscription.number, None)
        if attachment is not None:
            attachment.session.end(WITHDRAWN)

    def _redefined(self, subscription: Subscription) -> None:
        """Whoever reads it comes back for what it is now. Until they leave, what they acknowledge counts."""
        attachment = self._attached.get(subscription.number)
        if attachment is not None:
            attachment.session.end(CHANGED)

    def is_attached(self, subscription: Subscription) -> bool:
        return subscription.number in self._attached

    def leave(self, attachment: Attachment) -> None:
        """A connection that was replaced leaves its successor alone."""
        number = attachment.subscription.number
        if self._attached.get(number) is attachment:
            del self._attached[number]


def _place(cursor: Cursor) -> tuple[int, float]:
    """Cursors of one epoch in order: inside of an entry comes before behind it."""
    return cursor.offset, float("inf") if cursor.index is None else cursor.index

"""What somebody asks for about a subscription: it counts once it is durable, and not at all where it can't be written.

What the node does by itself is led by memory, and the database follows however long that takes. What somebody asked for
is answered: told that it failed, they must find it undone, now and behind a restart. So it is written first, in the
transaction of the next round, with everything else about the subscription, and memory follows without a pause.
"""

import sqlite3
from collections.abc import Callable, Sequence

import msgspec
import trio

from overlayd.delivery.subscriptions.subscription import Subscription
from overlayd.model.cursor import Cursor
from overlayd.model.errors import OverlaydError, SubscriptionConflict
from overlayd.model.outlet import Statements
from overlayd.storage.own import OwnPacket


def _nothing() -> None:
    """Nothing is to be put back."""


class Decision(msgspec.Struct):
    """One of them. `draft` is called when its round is put together, with the dispatcher's position, and gives what makes
    it durable; then either `follow`, which brings memory up to it, or `drop`. None of the three yields or fails. `own`:
    packets of the node's own streams that tell of it."""

    subscription: Subscription
    draft: Callable[[Cursor], Statements]
    follow: Callable[[], None]
    drop: Callable[[], None] = _nothing
    own: Sequence[OwnPacket] = ()


class RoundTicket:
    """The end of one round, or of a decision. `trouble`: why it isn't durable yet."""

    __slots__ = ("_changed", "is_durable", "trouble")

    def __init__(self) -> None:
        self.is_durable = False
        self.trouble: OverlaydError | None = None
        self._changed = trio.Event()

    async def wait(self) -> None:
        """Until the round is durable, however long that takes. Checkpoint."""
        while not self.is_durable:
            await self._changed.wait()
        await trio.lowlevel.checkpoint()

    async def wait_or_raise(self) -> None:
        """Until it is durable. Checkpoint. Raises StorageFull or what else keeps it from that; a round is written all
        the same once that is over, a decision isn't."""
        while not self.is_durable:
            if self.trouble is not None:
                error = self.trouble
                raise type(error)(
                    error.detail, subject=error.subject, hint=error.hint, retry_after_s=error.retry_after_s
                )
            await self._changed.wait()
        await trio.lowlevel.checkpoint()

    def tell(self, trouble: OverlaydError | None) -> None:
        """Wakes those who wait: None once it is durable."""
        self.is_durable, self.trouble = trouble is None, trouble
        self._changed.set()
        self._changed = trio.Event()


class RoundDecisions:
    """The decisions of one round."""

    def __init__(self, asked: Sequence[tuple[Decision, RoundTicket]], position: Cursor) -> None:
        """Call this once everything else of the round was gathered."""
        self._asked = [pair for pair in asked if not pair[0].subscription.is_gone]
        self._drafts = [decision.draft(position) for decision, _ in self._asked]
        self.own = [packet for decision, _ in self._asked for packet in decision.own]
        for decision, ticket in asked:
            if decision.subscription.is_gone:
                decision.drop()
                ticket.tell(SubscriptionConflict(f"{decision.subscription.name} was deleted"))

    def write(self, connection: sqlite3.Connection) -> None:
        """In the round's transaction, behind its rows."""
        for draft in self._drafts:
            draft(connection)

    def follow(self) -> None:
        """They are durable."""
        asked, self._asked = self._asked, []
        for decision, ticket in asked:
            decision.follow()
            ticket.tell(None)

    def drop(self, trouble: OverlaydError) -> None:
        """They can't be written. From now on there are none."""
        for decision, ticket in self._asked:
            decision.drop()
            ticket.tell(trouble)
        self._asked, self._drafts, self.own = [], [], []

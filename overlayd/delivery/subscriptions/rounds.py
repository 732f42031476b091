"""Writes down what subscriptions settled: in rounds, each one transaction for everything that changed since the last.

While one round commits, the next one gathers, so a busy node settles hundreds of deliveries with one commit and an
idle one settles each at once. What nobody waits for, above all that an attempt failed, lingers for a moment: however
many endpoints are bad, publishers don't wait behind a commit for each of their failures.
"""

import math
import sqlite3
from collections.abc import Callable, Sequence

import structlog
import trio

from overlayd.delivery.subscriptions.deciding import Decision, RoundDecisions, RoundTicket
from overlayd.delivery.subscriptions.subscription import Subscription
from overlayd.delivery.subscriptions.tables import Round
from overlayd.model.cursor import Cursor
from overlayd.model.errors import IntakeBusy, ShuttingDown, StorageFull
from overlayd.model.metrics import COUNTS, Metrics
from overlayd.storage import Log
from overlayd.storage.own import OwnPacket, Rows

TROUBLE_PAUSE_S = 0.5
LINGER_S = 0.25
"""A failed attempt may wait so long for others to be written with it. A kill meanwhile has it made, and counted, again."""
WRITE_S = 30.0
_log = structlog.get_logger("delivery.rounds")


async def write_told(log: Log, job: Rows, own: Sequence[OwnPacket]) -> None:
    """Writes rows, and what tells about them in the same transaction. Checkpoint. Raises as `Log.write`."""
    if own:
        await log.append_own(own, along=job)
    else:
        await log.write(job)


async def write_whole(log: Log, job: Rows, own: Sequence[OwnPacket] = ()) -> None:
    """As `write_told`, for what memory must follow: a caller who leaves meanwhile would leave the two apart."""
    with trio.move_on_after(WRITE_S, shield=True):
        await write_told(log, job, own)
        return
    raise IntakeBusy("the log took too long", subject="intake", retry_after_s=WRITE_S)


class Rounds:
    """Gathers subscriptions that changed and writes them down."""

    def __init__(self, log: Log, metrics: Metrics, position: Callable[[], Cursor]) -> None:
        """`position`: up to where the dispatcher looked."""
        self._log = log
        self._position = position
        self._dirty: dict[int, Subscription] = {}
        self._asked: list[tuple[Decision, RoundTicket]] = []
        self._is_over = False
        self._wants_position = False
        self._ticket = RoundTicket()
        self._work = trio.Event()
        self._write_at = math.inf
        self.is_writing = False
        self.stored_position: Cursor | None = None
        self.busy: dict[int, Subscription] = {}
        """Those that may hold an older floor than the stored position, though what is written says they share it."""
        self._coalesced = metrics.counter(
            "overlayd_agent_packets_coalesced", "Packets settled because a newer one of their key waited for the agent"
        )
        self._sizes = metrics.histogram(
            "overlayd_subscription_round_subscriptions", "Subscriptions written down in one transaction", buckets=COUNTS
        )

    def mark(self, subscription: Subscription) -> RoundTicket:
        """What changed about it is written in the next round, whose ticket this is. Doesn't yield."""
        self._dirty[subscription.number] = subscription
        self._hurry()
        return self._ticket

    def decide(self, decision: Decision) -> RoundTicket:
        """It is written in the next round; where that can't be written, it is dropped. Doesn't yield. It is the round's
        from now on, whether anybody waits for the ticket or not."""
        ticket = RoundTicket()
        self._asked.append((decision, ticket))
        self.mark(decision.subscription)
        if self._is_over:
            self._drop_asked()
        return ticket

    def mark_unhurried(self, subscription: Subscription) -> RoundTicket:
        """As `mark`, in the next round that is written for somebody else, or after `LINGER_S`. Doesn't yield."""
        self._dirty[subscription.number] = subscription
        if self._write_at == math.inf:
            self._write_at = trio.current_time() + LINGER_S
            self._work.set()
        return self._ticket

    def mark_position(self) -> RoundTicket:
        """The dispatcher's position is written in the next round."""
        self._wants_position = True
        self._hurry()
        return self._ticket

    def _hurry(self) -> None:
        self._write_at = -math.inf
        self._work.set()

    async def flush(self, subscription: Subscription) -> None:
        """Until everything about it is written; nothing has changed since when it returns. Checkpoint. Raises as
        `RoundTicket.wait_or_raise`."""
        while True:
            await self.mark(subscription).wait_or_raise()
            if subscription.number not in self._dirty:
                return

    @property
    def is_clean(self) -> bool:
        return not self._dirty and not self._wants_position and not self.is_writing

    async def run(self) -> None:
        """Writes until it is cancelled. Cancelled while a round commits, that round is still written."""
        try:
            while True:
                await self._wait_for_work()
                self._write_at = math.inf
                await self._write_round()
        finally:
            self._is_over = True
            self._drop_asked()

    def _drop_asked(self) -> None:
        """Nobody writes any more, so nobody waits for it."""
        RoundDecisions(self._asked, self._position()).drop(ShuttingDown("the node is being stopped"))
        self._asked = []

    async def _wait_for_work(self) -> None:
        """Until something is to be written now."""
        while self._write_at > trio.current_time():
            with trio.move_on_at(self._write_at):
                await self._work.wait()
            self._work = trio.Event()

    async def _write_round(self) -> None:
        round, ticket = self._gather(), self._ticket
        decisions = RoundDecisions(self._asked, self._position())
        self._asked = []
        self._ticket = RoundTicket()
        self.is_writing = True

        def write(connection: sqlite3.Connection) -> None:
            round.write(connection)
            decisions.write(connection)

        try:
            while True:
                try:
                    await write_told(self._log, write, decisions.own)
                    decisions.follow()
                    break
                except ShuttingDown:
                    return
                except (StorageFull, IntakeBusy) as err:
                    _log.warning("settlements wait", error=err.detail, subscriptions=len(round.states))
                    decisions.drop(err)
                    ticket.tell(err)
                await trio.sleep(TROUBLE_PAUSE_S)
        finally:
            self.is_writing = False
            decisions.drop(ShuttingDown("the node is being stopped"))
        if round.position is not None:
            self.stored_position = round.position
        self._sizes.observe(len(round.states))
        ticket.tell(None)

    def _gather(self) -> Round:
        """Everything that changed, and the position. Subscriptions that lie behind the position get a floor of their
        own in the same transaction, or a restart would pass over what they still have to do."""
        round, position = Round(), self._position()
        if self._wants_position:
            self._wants_position = False
            round.position = position
            for number in list(self.busy):
                subscription = self.busy[number]
                if subscription.is_tracked and subscription.ledger.is_empty:
                    del self.busy[number]
                elif subscription.shared_row:
                    self._dirty[number] = subscription
        dirty, self._dirty = self._dirty, {}
        for subscription in dirty.values():
            if not subscription.is_gone:
                self._coalesced.inc(subscription.ledger.coalesced)
                subscription.drain(round, position)
        return round

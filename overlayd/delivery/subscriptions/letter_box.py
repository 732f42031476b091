"""Dead letters, for people: look at them, have them tried again, throw them away."""

import sqlite3
from collections.abc import Callable

import trio

from overlayd.delivery.subscriptions import tables
from overlayd.delivery.subscriptions.deciding import Decision
from overlayd.delivery.subscriptions.engine import Engine
from overlayd.delivery.subscriptions.letters import queue_letter, unit_of
from overlayd.delivery.subscriptions.subscription import Subscription
from overlayd.delivery.subscriptions.tables import AttemptBody, DeadRow
from overlayd.model.errors import SubscriptionConflict, UnknownDeadLetter
from overlayd.storage.own import OwnPacket

SLICE = 500
TellCount = Callable[[int], OwnPacket]
"""Makes what the audit is told of so many that were thrown away."""


class LetterBox:
    """Dead letters of all subscriptions, and the attempts that are kept."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._log = engine.delivery.log
        self._changing = trio.Lock()

    async def attempts(self, subscription: Subscription) -> list[AttemptBody]:
        """The attempts that are kept, newest first. Checkpoint."""
        waiting = [body for _, body in subscription.attempts_new]
        stored = await self._log.read(lambda connection: tables.read_attempts(connection, subscription.number))
        return [*reversed(waiting), *stored]

    async def read(self, subscription: Subscription, after: int, limit: int) -> list[DeadRow]:
        """Dead letters by id, behind one. Checkpoint."""
        number = subscription.number
        return await self._log.read(lambda connection: tables.read_dead(connection, number, after=after, limit=limit))

    async def show(self, subscription: Subscription, id: int) -> DeadRow:
        """One dead letter. Checkpoint. Raises UnknownDeadLetter."""
        number = subscription.number
        found = await self._log.read(lambda connection: tables.read_dead(connection, number, after=id - 1, upto=id))
        if not found:
            raise UnknownDeadLetter(f"{subscription.name} has no dead letter {id}", subject=str(id))
        return found[0]

    async def redeliver(self, subscription: Subscription, first: int, last: int) -> int:
        """Has the dead letters with these ids (inclusive) tried again, under their old delivery ids; gives how many.

        Checkpoint. Raises SubscriptionConflict for one that isn't active, StorageFull.
        """
        count = 0
        after: int | None = max(0, first - 1)
        async with self._changing:
            if subscription.rest.state != "active":
                raise SubscriptionConflict(
                    f"{subscription.name} is {subscription.rest.state}", subject=subscription.id, hint="resume it first"
                )
            while after is not None:
                letters, after = await self._slice(subscription, after, last)
                parked = [one for one in letters if not one.is_queued and one.id not in subscription.dead_queued]
                count += await self._queue(subscription, parked)
        return count

    async def delete(
        self, subscription: Subscription, first: int, last: int, *, tell: TellCount | None = None
    ) -> int:  # fmt: skip
        """Throws parked dead letters away, by id (inclusive); gives how many. A slice at a time, each told in its own
        transaction. Checkpoint. Raises StorageFull."""
        count = 0
        after: int | None = max(0, first - 1)
        async with self._changing:
            while after is not None:
                letters, after = await self._slice(subscription, after, last)
                gone = [letter.id for letter in letters if letter.id not in subscription.dead_queued]
                count += await self._discard(subscription, gone, [] if tell is None else [tell(len(gone))])
        return count

    async def _queue(self, subscription: Subscription, letters: list[DeadRow]) -> int:
        """How many are tried again now: the others were taken away meanwhile. Checkpoint."""
        if not letters:
            await trio.lowlevel.checkpoint()
            return 0
        ids: list[int] = []

        def write(connection: sqlite3.Connection) -> None:
            ids[:] = tables.queue_dead(connection, [letter.id for letter in letters])

        def follow() -> None:
            now = trio.current_time()
            for letter in letters:
                if letter.id in ids:
                    queued = subscription.dead_queued[letter.id] = queue_letter(letter)
                    subscription.ledger.add_dead(unit_of(queued), now)
            self._engine.wake(subscription)

        await self._engine.decide(Decision(subscription, lambda position: write, follow))
        return len(ids)

    async def _discard(self, subscription: Subscription, ids: list[int], own: list[OwnPacket]) -> int:
        """How many were thrown away. Checkpoint."""
        if not ids:
            await trio.lowlevel.checkpoint()
            return 0
        counts: list[int] = []

        def write(connection: sqlite3.Connection) -> None:
            counts[:] = [tables.discard_dead(connection, ids)]

        def follow() -> None:
            subscription.dead_letters -= sum(counts)

        await self._engine.decide(Decision(subscription, lambda position: write, follow, own=own))
        return sum(counts)

    async def _slice(
        self, subscription: Subscription, after: int | None, last: int
    ) -> tuple[list[DeadRow], int | None]:
        """Some of the letters that are there, without those that were delivered while this looked; and behind which to
        go on, None at the end."""
        number = subscription.number
        await self._engine.rounds.flush(subscription)
        tried = set(subscription.dead_queued)
        letters = await self._log.read(
            lambda connection: tables.read_dead(connection, number, after=after or 0, upto=last, limit=SLICE)
        )
        delivered = tried.difference(subscription.dead_queued)
        left = [letter for letter in letters if letter.id not in delivered]
        return left, letters[-1].id if len(letters) == SLICE else None

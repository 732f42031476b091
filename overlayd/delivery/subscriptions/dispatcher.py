"""Follows the head for every subscription that has caught up, and wakes those that an entry is for.

A caught-up subscription costs nothing per entry: it isn't looked at until an index names it.
"""

from collections.abc import Callable, Iterable

import trio

from overlayd.delivery.delivery import Delivery
from overlayd.delivery.frames import state_at_append
from overlayd.delivery.subscriptions.interests import Interest, InterestIndex, StreamInterests
from overlayd.delivery.subscriptions.meters import SubscriptionMeters
from overlayd.delivery.subscriptions.subscription import Subscription
from overlayd.model.bodies import decode_removal_body
from overlayd.model.cursor import Cursor
from overlayd.model.entry import Z32, Kind, StoredEntry
from overlayd.model.errors import VerificationFailed
from overlayd.storage import Page


class Dispatcher:
    """One position for everybody who is tracked. `reached`: everything up to it was looked at and its subscriptions
    woken. `frontier`: the entry that is being looked at; who joins must stand there or beyond."""

    def __init__(self, delivery: Delivery, meters: SubscriptionMeters, wake: Callable[[Subscription], None]) -> None:
        """`wake`: called for a subscription that is no longer tracked, because something may be for it."""
        self._log = delivery.log
        self._delivery = delivery
        self._meters = meters
        self._wake = wake
        self._arrived = trio.Event()
        self._moved = trio.Event()
        self.index = InterestIndex()
        self.reached = self._log.head
        self.frontier = self.reached

    def __repr__(self) -> str:
        return f"Dispatcher(reached={self.reached}, head={self._log.head}, interests={len(self.index)})"

    @property
    def position(self) -> Cursor:
        return Cursor(self._log.epoch, self.reached)

    async def wait_moved(self) -> None:
        """Returns once it has looked at another page. A checkpoint."""
        await self._moved.wait()

    async def wait_reached(self, offset: int) -> None:
        """Returns once everything up to the offset was looked at. A checkpoint."""
        await trio.lowlevel.checkpoint()
        while self.reached < offset:
            await self._moved.wait()

    def begin_at(self, offset: int) -> None:
        """Before it runs: where the stored position stands."""
        self.reached = self.frontier = offset

    def add(self, subscription: Subscription) -> None:
        """From now on it is looked out for, as soon as it is tracked."""
        if not len(self.index):
            self.reached = self.frontier = max(self.reached, self._log.head)
        self.index.add(subscription)
        self._arrived.set()

    def remove(self, subscription: Subscription) -> None:
        self.index.remove(subscription)

    async def run(self) -> None:
        """Until cancelled. Started anew it goes on where it stood."""
        while True:
            if not len(self.index):
                self._arrived = trio.Event()
                await self._arrived.wait()
            await self._log.wait_beyond(self.reached)
            await self._look(await self._log.read_page(self.reached))

    async def _look(self, page: Page) -> None:
        damaged = list(page.damaged)
        for entry in page.entries:
            while damaged and damaged[0][0] < entry.offset:
                self._wake_at(damaged.pop(0)[0], self.index.all())
            self.frontier = entry.offset
            await self._look_at(entry)
            self.reached = entry.offset
        for low, _ in damaged:
            self._wake_at(low, self.index.all())
        self._meters.looked.inc(len(page.entries))
        self.reached = self.frontier = max(self.reached, page.after)
        self._moved.set()
        self._moved = trio.Event()

    async def _look_at(self, entry: StoredEntry) -> None:
        if entry.kind == Kind.PACKET:
            interests = self._interests_of(entry)
            if interests is None:
                return
            if entry.is_reduced:
                self._wake_at(entry.offset, interests.all)
            else:
                await self._look_at_packet(entry, interests)
        elif entry.kind == Kind.STATUS:
            self._look_at_status(entry)
        elif entry.kind == Kind.REMOVAL:
            self._look_at_removal(entry)

    async def _look_at_packet(self, entry: StoredEntry, interests: StreamInterests) -> None:
        stream = self._log.find_stream_by_hash(entry.stream_hash)
        assert stream is not None
        try:
            view = self._delivery.views.view(entry, stream.name)
        except VerificationFailed:
            self._wake_at(entry.offset, interests.all)
            return
        state = state_at_append(stream.definition)
        wanted = []
        for interest in dict.fromkeys(interests.candidates(view)):
            self._meters.judged.inc()
            if not interest.matcher.is_view_match(view):
                continue
            judge = interest.judge
            if judge is None or await judge(view, state) is not False:
                wanted.append(interest)
        self._wake_at(entry.offset, wanted)

    def _look_at_status(self, entry: StoredEntry) -> None:
        if entry.stream_hash == Z32:
            everybody: Iterable[Interest] = self.index.all()
        else:
            interests = self._interests_of(entry)
            everybody = () if interests is None else interests.all
        self._wake_at(entry.offset, [interest for interest in everybody if interest.wants_status])

    def _look_at_removal(self, entry: StoredEntry) -> None:
        """What was taken away mustn't be delivered from memory, whatever the cause."""
        interests = self._interests_of(entry)
        if interests is None:
            return
        for interest in interests.all:
            for member in interest.members.values():
                member.ledger.forget_messages()
        if entry.is_reduced or decode_removal_body(entry.body).cause != "retention":
            self._wake_at(entry.offset, interests.all)

    def _interests_of(self, entry: StoredEntry) -> StreamInterests | None:
        """None when nobody wants anything of the entry's stream."""
        found = self.index.find(entry.stream_hash)
        if found is None:
            stream = self._log.find_stream_by_hash(entry.stream_hash)
            if stream is None:
                return None
            found = self.index.of_stream(entry.stream_hash, stream.name)
        return found if found.all else None

    def _wake_at(self, offset: int, interests: Iterable[Interest]) -> None:
        """Those that are tracked and didn't look at the entry themselves go on by themselves from in front of it."""
        for interest in interests:
            for member in interest.members.values():
                if not member.is_tracked or member.ledger.position.offset >= offset:
                    continue
                member.is_tracked = False
                member.ledger.scanned(Cursor(self._log.epoch, offset - 1))
                self._meters.woken.inc()
                self._wake(member)

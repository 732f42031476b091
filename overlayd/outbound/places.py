"""Places for calls: so many on the node, so many to a host, and to each owner as many as its calls have earned.

An owner (a subscription, say) begins with one call at a time and gains one with each call that went well. One that was
slow and failed puts it back to one. So an endpoint that hangs holds one place for each of its owners, not as many as it
likes, and leaves the rest to those that answer.
"""

from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics

SLOW_S = 1.0
"""A failure that took longer has held a place in vain; quicker ones cost next to nothing."""
OWNERS_MAX = 100_000
"""Owners that are remembered. A forgotten one begins with one place again."""


class _Places:
    """A count of places, given out in the order of asking."""

    __slots__ = ("limit", "taken", "waiting")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self.waiting: deque[trio.Event] = deque()

    @property
    def is_idle(self) -> bool:
        return not self.taken and not self.waiting

    async def take(self) -> None:
        """Waits for a place: a checkpoint if there is none. Cancelled, it holds none."""
        if self.taken < self.limit and not self.waiting:
            self.taken += 1
            return
        mine = trio.Event()
        self.waiting.append(mine)
        try:
            await mine.wait()  # whoever sets it has counted the place as taken
        except trio.Cancelled:
            if mine.is_set():
                self.give()
            else:
                self.waiting.remove(mine)
            raise

    def give(self) -> None:
        self.taken -= 1
        self.pass_on()

    def pass_on(self) -> None:
        """Gives free places to those who wait."""
        while self.waiting and self.taken < self.limit:
            self.taken += 1
            self.waiting.popleft().set()


class Place:
    """A place that is held. `is_good` says how the call went; who doesn't say had no luck."""

    __slots__ = ("is_good",)

    def __init__(self) -> None:
        self.is_good = False


class PlaceBook:
    """Who holds places and who waits for them."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._node = _Places(limits.outbound_requests)
        self._hosts: dict[str, _Places] = {}
        self._owners: OrderedDict[str, _Places] = OrderedDict()
        metrics.gauge("overlayd_outbound_requests_open", "Calls to other servers in flight").set_function(
            lambda: self._node.taken
        )

    def __repr__(self) -> str:
        return f"PlaceBook(taken={self._node.taken}, hosts={len(self._hosts)}, owners={len(self._owners)})"

    @asynccontextmanager
    async def hold(self, host: str, owner: str) -> AsyncIterator[Place]:
        """A place to call `host`, waited for as long as it takes. "" as owner: bound by host and node alone.

        A checkpoint only where it has to wait, because the call that follows is one anyway. Taken in one order (owner,
        host, node), so that nobody waits in a circle.
        """
        mine = self._owner(owner) if owner else None
        if mine is not None:
            await mine.take()
        place = Place()
        started: float | None = None
        try:
            host_places = self._hosts.get(host)
            if host_places is None:
                host_places = self._hosts[host] = _Places(self._limits.outbound_requests_per_host)
            self._count_full(host_places, "outbound_requests_per_host")
            try:
                await host_places.take()
                try:
                    self._count_full(self._node, "outbound_requests")
                    await self._node.take()
                    try:
                        started = trio.current_time()
                        yield place
                    finally:
                        self._node.give()
                finally:
                    host_places.give()
            finally:
                if host_places.is_idle and self._hosts.get(host) is host_places:
                    del self._hosts[host]
        finally:
            if mine is not None:
                self._settle(mine, place, started)

    def _owner(self, owner: str) -> _Places:
        places = self._owners.get(owner)
        if places is None:
            places = self._owners[owner] = _Places(1)
            if len(self._owners) > OWNERS_MAX:
                self._forget_one()
        else:
            self._owners.move_to_end(owner)
        return places

    def _forget_one(self) -> None:
        """The owner that called least recently, unless it calls right now."""
        oldest, places = next(iter(self._owners.items()))
        if places.is_idle:
            del self._owners[oldest]

    def _settle(self, mine: _Places, place: Place, started: float | None) -> None:
        if place.is_good:
            mine.limit = min(mine.limit + 1, self._limits.outbound_requests_per_host)
        elif started is not None and trio.current_time() - started > SLOW_S:
            mine.limit = 1
        mine.give()
        mine.pass_on()

    def _count_full(self, places: _Places, limit: str) -> None:
        if places.taken >= places.limit:
            self._metrics.count_limit_hit(limit)

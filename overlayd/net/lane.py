"""The lane of requests that run on Quart: a few at a time, so that they can't starve publishers and readers.

A request holds a place from its first line of Python until its answer begins. What only waits (for bytes of
a body, for a commit, for the head to move) steps out and gives its place to another.
"""

from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Protocol

import trio

from overlayd.model.errors import IntakeBusy
from overlayd.model.metrics import Metrics
from overlayd.net.courtesy import Courtesy


class AnyLane(Protocol):
    """What a request that may hold a place needs to know."""

    @property
    def courtesy(self) -> Courtesy: ...

    def step_out(self) -> AbstractAsyncContextManager[None]: ...


class NoLane:
    """For requests that run beside the lane: they hold no place, so there is none to step out of."""

    def __init__(self, courtesy: Courtesy | None = None) -> None:
        self.courtesy = courtesy or Courtesy()

    def step_out(self) -> AbstractAsyncContextManager[None]:
        """A block around which nothing happens. No checkpoint."""
        return self

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


NO_LANE = NoLane()


class Place:
    """One request's hold on the lane."""

    __slots__ = ("is_held", "since")

    def __init__(self) -> None:
        self.is_held = False
        self.since = 0.0


class Lane:
    """At most `concurrency` requests run; at most `queue_max` wait to begin. Those that step back in go first."""

    def __init__(self, concurrency: int, queue_max: int, metrics: Metrics) -> None:
        self.courtesy = Courtesy()
        self._free = concurrency
        self._queue_max = queue_max
        self._metrics = metrics
        self._beginning: deque[trio.Event] = deque()
        self._returning: deque[trio.Event] = deque()
        self._place: ContextVar[Place | None] = ContextVar("place", default=None)
        waiting = metrics.gauge("overlayd_lane_waiting", "Requests that wait for a place in the Quart lane")
        waiting.set_function(lambda: len(self._beginning) + len(self._returning))
        running = metrics.gauge("overlayd_lane_running", "Requests that hold a place in the Quart lane")
        running.set_function(lambda: concurrency - self._free)

    def __repr__(self) -> str:
        return f"Lane(free={self._free}, beginning={len(self._beginning)}, returning={len(self._returning)})"

    async def enter(self) -> Place:
        """A place, for this task and the tasks it starts. Checkpoint. Raises IntakeBusy when the queue is full."""
        if len(self._beginning) >= self._queue_max:
            self._metrics.count_limit_hit("other_lane_queue")
            raise IntakeBusy(f"{self._queue_max} requests are waiting already", subject="other_lane_queue")
        place = Place()
        await self._acquire(place, self._beginning)
        self._place.set(place)
        return place

    def leave(self, place: Place) -> None:
        """Gives the place back, once."""
        if not place.is_held:
            return
        place.is_held = False
        self._free += 1
        self.courtesy.end(trio.current_time() - place.since)
        self._wake()

    @asynccontextmanager
    async def step_out(self) -> AsyncIterator[None]:
        """Inside the block the request holds no place. A checkpoint at its end. Without a place (a test, or an
        answer that has begun) it does nothing."""
        place = self._place.get()
        if place is None or not place.is_held:
            yield
            return
        self.leave(place)
        try:
            yield
        finally:
            await self._acquire(place, self._returning)

    async def _acquire(self, place: Place, queue: deque[trio.Event]) -> None:
        await self._take_turn(place, queue)
        try:
            await self.courtesy.begin()
        except trio.Cancelled:
            place.is_held = False
            self._free += 1
            self._wake()
            raise
        place.since = trio.current_time()

    async def _take_turn(self, place: Place, queue: deque[trio.Event]) -> None:
        await trio.lowlevel.checkpoint()
        if self._free > 0 and not queue and not self._returning:
            self._free -= 1
            place.is_held = True
            return
        self._metrics.count_limit_hit("other_lane_concurrency")
        turn = trio.Event()
        queue.append(turn)
        self._wake()
        try:
            await turn.wait()
        except trio.Cancelled:
            if turn.is_set():
                self._free += 1
                self._wake()
            else:
                queue.remove(turn)
            raise
        place.is_held = True

    def _wake(self) -> None:
        """Hands free places on. A woken waiter owns its place already, so nobody can overtake it."""
        while self._free > 0 and (self._returning or self._beginning):
            turn = (self._returning or self._beginning).popleft()
            self._free -= 1
            turn.set()

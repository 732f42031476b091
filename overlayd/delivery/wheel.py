"""One timer for all live sessions: a wheel of short ticks, in each those that want to be looked at then."""

import heapq
import math
from typing import Protocol

import trio

TICKS_PER_S = 128
SLICE_S = 0.002
LOOKS_PER_SLICE = 128


class Timed(Protocol):
    """What is looked at. `tick` belongs to the wheel; it begins with NEVER."""

    tick: int

    def look(self, now: float) -> float:
        """Does what is due; gives when to look again, `math.inf` for never. Doesn't wait."""
        ...


NEVER = -1
_NOBODY: set[Timed] = set()


class TimerWheel:
    """Looks at everything in its time, at most a tick late."""

    def __init__(self) -> None:
        self._buckets: dict[int, set[Timed]] = {}
        self._ticks: list[int] = []
        self._sleeping: trio.CancelScope | None = None

    def __repr__(self) -> str:
        return f"TimerWheel(ticks={len(self._ticks)}, waiting={sum(map(len, self._buckets.values()))})"

    def schedule(self, one: Timed, at: float) -> None:
        """Looks at it then, unless that would be later than planned already."""
        if at == math.inf:
            return
        tick = math.ceil(at * TICKS_PER_S)
        if one.tick != NEVER:
            if one.tick <= tick:
                return
            self.forget(one)
        one.tick = tick
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = set()
            heapq.heappush(self._ticks, tick)
            if self._ticks[0] == tick and self._sleeping is not None:
                self._sleeping.cancel()
        bucket.add(one)

    def forget(self, one: Timed) -> None:
        """It isn't looked at any more. Again does nothing."""
        if one.tick != NEVER:
            self._buckets.get(one.tick, _NOBODY).discard(one)
            one.tick = NEVER

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            due = self._ticks[0] / TICKS_PER_S if self._ticks else math.inf
            if due <= trio.current_time():
                await self._turn()
                continue
            with trio.CancelScope(deadline=due) as self._sleeping:
                await trio.sleep_forever()
            self._sleeping = None

    async def _turn(self) -> None:
        """Looks at what is due first. A checkpoint at the end, and every few milliseconds."""
        tick = heapq.heappop(self._ticks)
        bucket = self._buckets.pop(tick)
        slice_end, looks = trio.current_time() + SLICE_S, 0
        while bucket:
            one = bucket.pop()
            if one.tick != tick:
                continue  # forgotten, or planned anew, since this turn began
            one.tick = NEVER
            now = trio.current_time()
            self.schedule(one, max(one.look(now), now + 1 / TICKS_PER_S))
            looks += 1
            if looks >= LOOKS_PER_SLICE or now > slice_end:
                await trio.lowlevel.checkpoint()
                slice_end, looks = trio.current_time() + SLICE_S, 0
        await trio.lowlevel.checkpoint()

"""The timer wheel: everything in its time, nothing twice, nothing for what was forgotten."""

import math
import random

import trio
from trio.testing import MockClock

from overlayd.delivery.wheel import NEVER, TICKS_PER_S, TimerWheel

TICK_S = 1 / TICKS_PER_S


class Watched:
    """Notes when it is looked at; wants to be looked at again after so long."""

    def __init__(self, pause_s: float) -> None:
        self.tick = NEVER
        self.pause_s = pause_s
        self.looks: list[float] = []

    def look(self, now: float) -> float:
        self.looks.append(now)
        return now + self.pause_s


async def test_each_in_its_time(autojump_clock: MockClock) -> None:
    """A thousand things with pauses of their own are looked at as often as they want, at most a tick late."""
    chance = random.Random(5)
    wheel = TimerWheel()
    watched = [Watched(chance.uniform(0.5, 9)) for _ in range(1000)]
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wheel.run)
        for one in watched:
            wheel.schedule(one, began + one.pause_s)
        await trio.sleep(30)
        nursery.cancel_scope.cancel()
    for one in watched:
        before = began
        for look in one.looks:
            assert 0 <= look - before - one.pause_s <= TICK_S + 1e-9
            before = look
        assert trio.current_time() - before <= one.pause_s + TICK_S
    assert f"waiting={len(watched)}" in repr(wheel)


async def test_earlier_counts_later_does_not(autojump_clock: MockClock) -> None:
    """What is planned is brought forward, never put off; the sleeping wheel notices."""
    wheel, one = TimerWheel(), Watched(math.inf)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wheel.run)
        wheel.schedule(one, began + 20)
        await trio.sleep(1)
        wheel.schedule(one, began + 30)
        wheel.schedule(one, began + 5)
        await trio.sleep(40)
        nursery.cancel_scope.cancel()
    assert [round(look - began, 1) for look in one.looks] == [5.0]


async def test_forgotten_while_it_turns(autojump_clock: MockClock) -> None:
    """Something that another one's turn forgets, or plans anew, isn't looked at in this one."""
    wheel = TimerWheel()
    others = [Watched(math.inf) for _ in range(50)]

    class Remover(Watched):
        def look(self, now: float) -> float:
            for other in others:
                wheel.forget(other)
            wheel.schedule(others[0], now + 3)
            return super().look(now)

    began = trio.current_time()
    removers = [Remover(math.inf) for _ in range(50)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wheel.run)
        for one in (*removers, *others):
            wheel.schedule(one, began + 1)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    late = [look for other in others[1:] for look in other.looks]
    assert all(look - began < 1 + 2 * TICK_S for look in late)
    assert others[0].looks[-1] - began > 3
    assert "waiting=0" in repr(wheel)
    wheel.schedule(others[1], math.inf)
    assert others[1].tick == NEVER


async def test_many_at_once_let_others_work(autojump_clock: MockClock) -> None:
    """A thousand that are due in the same moment don't hold the event loop."""
    wheel = TimerWheel()
    watched = [Watched(math.inf) for _ in range(1000)]
    turns = 0
    async with trio.open_nursery() as nursery:
        for one in watched:
            wheel.schedule(one, trio.current_time())
        nursery.start_soon(wheel.run)
        while not all(one.looks for one in watched):
            await trio.lowlevel.checkpoint()
            turns += 1
        nursery.cancel_scope.cancel()
    assert turns >= 1000 // 128

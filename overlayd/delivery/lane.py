"""The live lane: everything that runs for live sessions beside their connections' own tasks."""

import random
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

from overlayd.delivery.catching_up import CatchUp
from overlayd.delivery.delivery import Delivery
from overlayd.delivery.fan_out import FanOut
from overlayd.delivery.line import Line
from overlayd.delivery.session import CLOSE_FAULT, Ending
from overlayd.model.supervise import contain, supervise


class LiveLane:
    """Fan-out, timers, and a task for each session that is behind or busy. One for the node."""

    def __init__(self, delivery: Delivery, chance: random.Random) -> None:
        self.delivery = delivery
        self.fan_out = FanOut(delivery, self.start_soon)
        self.fan_out.catch_up = self.catch_up
        self.catching_up = CatchUp(self.fan_out)
        self._chance = chance
        self._wanted: deque[Callable[[], Awaitable[None]]] = deque()
        self._news = trio.Event()
        self._crashes = delivery.metrics.counter(
            "overlayd_live_crashes", "Tasks of live sessions that were ended by an unforeseen error", "task"
        )

    def __repr__(self) -> str:
        return f"LiveLane({self.fan_out!r}, wanted={len(self._wanted)})"

    def start_soon(self, run: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Runs it beside the others. What it raises is logged and counted, and ends nothing else. Those who ask are
        few: at most one task for each session and channel."""
        self._wanted.append(partial(run, *args))
        self._news.set()

    def catch_up(self, line: Line) -> None:
        """Has somebody bring the line to the head, unless somebody does."""
        if not line.is_catching_up and not line.is_closing:
            line.is_catching_up = True
            self.start_soon(self._catch_up, line)

    async def run(self) -> None:
        """Until cancelled."""
        fan_out = self.fan_out
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                partial(supervise, "fan-out", fan_out.follow, chance=self._chance, on_crash=self._abandon)
            )
            nursery.start_soon(
                partial(supervise, "timers", fan_out.wheel.run, chance=self._chance, on_crash=self._count_crash)
            )
            while True:
                while self._wanted:
                    nursery.start_soon(partial(contain, "live", self._wanted.popleft(), on_crash=self._count_crash))
                self._news = trio.Event()
                await self._news.wait()

    async def _catch_up(self, line: Line) -> None:
        is_done = False
        try:
            await self.catching_up.run(line)
            is_done = True
        finally:
            if not is_done:
                line.session.end(Ending(CLOSE_FAULT, "server fault"))

    def _abandon(self, name: str) -> None:
        self._count_crash(name)
        self.fan_out.abandon()

    def _count_crash(self, name: str) -> None:
        self._crashes.labels(name).inc()

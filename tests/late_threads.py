"""Threads that begin late and answer late, as on a machine that is busy with other things.

With `OVERLAYD_LATE_THREADS=0.05` (seconds) every other function that tests hand to a thread waits up to that long before
it begins, and up to that long before its result arrives. A test that takes a waiting task for a sign that the task's
thread has done something fails under it nearly always, without it once in a thousand runs.
"""

import random
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import aiosqlite.core
import pytest
from outcome import Outcome
from real_waiting import pause
from trio._core import _thread_cache

from overlayd.storage.writer_thread import WriterThread

SHARE = 0.5


def make_late(monkeypatch: pytest.MonkeyPatch, most_s: float) -> None:
    """Threads of trio, of the writer and of aiosqlite are late from here on, by at most `most_s`."""
    chance = random.Random()

    def dawdle() -> None:
        if chance.random() < SHARE:
            pause(chance.uniform(0, most_s))

    def late(function: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            dawdle()
            try:
                return function()
            finally:
                dawdle()

        return run

    start, write = _thread_cache.ThreadCache.start_thread_soon, WriterThread.run_in_shield

    def start_late(
        self: _thread_cache.ThreadCache,
        function: Callable[[], Any],
        deliver: Callable[[Outcome[Any]], object],
        name: str | None = None,
    ) -> None:
        start(self, late(function), deliver, name)

    async def write_late(self: WriterThread, function: Callable[[], Any]) -> Any:
        return await write(self, late(function))

    class LateQueue(SimpleQueue[Any]):
        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            found = super().get(block, timeout)
            dawdle()
            return found

    monkeypatch.setattr(_thread_cache.ThreadCache, "start_thread_soon", start_late)
    monkeypatch.setattr(WriterThread, "run_in_shield", write_late)
    monkeypatch.setattr(aiosqlite.core, "SimpleQueue", LateQueue)

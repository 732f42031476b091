"""A clock for tests whose time jumps when everybody waits, but not while a thread is at work.

Trio's own `MockClock` sees a task that waits for a thread as idle. Where the thread then takes longer than the jump's
threshold, because its disk or its core is busy, time jumps ahead of it, and whatever has a timeout fails for no reason.
Tests take it as `autojump_clock`, or as `patient_clock` where bytes travel through the kernel (tests/conftest.py).
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import aiosqlite
import trio
from trio.testing import MockClock

from overlayd.storage.writer_thread import WriterThread

HELD_S = 20.0
"""How long a thread at work holds the clock, in real time: one that hangs, or was left to itself, may not hold it for ever."""


@contextmanager
def patient_clock(threshold_s: float = 0.02) -> Iterator[MockClock]:
    """The clock; inside, threads of trio, of the writer and of readers hold it. `threshold_s`: what bytes may take on
    their way through the kernel."""
    clock = MockClock(autojump_threshold=threshold_s)
    at_work = 0

    def holding(wait: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def run(*arguments: Any, **options: Any) -> Any:
            nonlocal at_work
            at_work += 1
            clock.autojump_threshold = HELD_S
            try:
                return await wait(*arguments, **options)
            finally:
                at_work -= 1
                if not at_work:
                    clock.autojump_threshold = threshold_s

        return run

    with (
        mock.patch.object(trio.to_thread, "run_sync", holding(trio.to_thread.run_sync)),
        mock.patch.object(WriterThread, "run_in_shield", holding(WriterThread.run_in_shield)),
        mock.patch.object(aiosqlite.Connection, "_execute", holding(aiosqlite.Connection._execute)),
        mock.patch.object(aiosqlite.Connection, "_connect", holding(aiosqlite.Connection._connect)),
        mock.patch.object(aiosqlite.Connection, "close", holding(aiosqlite.Connection.close)),
    ):
        yield clock

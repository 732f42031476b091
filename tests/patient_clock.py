"""A clock for tests whose time jumps when everybody waits, but not while a thread is at work.

Trio's own `MockClock` sees a task that waits for a thread as idle. Where the thread then takes longer than the jump's
threshold, because its disk or its core is busy, time jumps ahead of it, and whatever has a timeout fails for no reason.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import trio
from trio.testing import MockClock


@contextmanager
def patient_clock(threshold_s: float = 0.02) -> Iterator[MockClock]:
    """The clock; inside, threads hold it. `threshold_s`: what bytes may take on their way through the kernel."""
    clock = MockClock(autojump_threshold=threshold_s)
    run_sync, at_work = trio.to_thread.run_sync, 0

    async def run(*arguments: Any, **options: Any) -> Any:
        nonlocal at_work
        at_work += 1
        clock.autojump_threshold = math.inf
        try:
            return await run_sync(*arguments, **options)
        finally:
            at_work -= 1
            if not at_work:
                clock.autojump_threshold = threshold_s

    with mock.patch.object(trio.to_thread, "run_sync", run):
        yield clock

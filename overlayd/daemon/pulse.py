"""What the service manager hears of a running node: that it lives, and how much it does."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import trio

from overlayd.model.errors import ShuttingDown
from overlayd.model.systemd import Notifier, watchdog_interval_s
from overlayd.storage import Log

STATUS_S = 10.0
"""A new line for `systemctl status` so often."""

START_STEP_S, START_GRACE_S = 20.0, 120.0
"""A node that isn't ready yet asks so often for so much more time."""


@asynccontextmanager
async def asking_for_time(notifier: Notifier) -> AsyncIterator[None]:
    """Around the node's life: until it is ready the service manager waits. Mending a long log, or bringing it up to date,
    takes minutes; a node that is killed over that would begin again from the start, each time."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_ask_for_time, notifier)
        yield
        nursery.cancel_scope.cancel()


async def _ask_for_time(notifier: Notifier) -> None:
    started = trio.current_time()
    while notifier.is_wanted and not notifier.is_ready:
        notifier.starting(f"starting: the log is opened, {trio.current_time() - started:.0f} s", START_GRACE_S)
        await trio.sleep(START_STEP_S)


class Pulse:
    """Feeds the watchdog by way of the writer, so that a node whose disk is stuck is ended and started anew, and one
    that is idle, or refuses packets for lack of space, isn't."""

    def __init__(
        self, notifier: Notifier, log: Log, *, count_sent: Callable[[], int], count_sessions: Callable[[], int]
    ) -> None:
        """`count_sent`: messages to live sessions since the start."""
        self._notifier = notifier
        self._log = log
        self._count_sent = count_sent
        self._count_sessions = count_sessions
        self._told_at = trio.current_time()
        self._head = log.head
        self._sent = count_sent()

    async def run(self, environ: Mapping[str, str], pid: int) -> None:
        """Until cancelled; returns at once where nobody listens."""
        if not self._notifier.is_wanted:
            return
        interval_s = min(STATUS_S, watchdog_interval_s(environ, pid) or STATUS_S)
        while True:
            try:
                await self._log.ping()
            except ShuttingDown:
                await trio.lowlevel.checkpoint()  # draining takes its time, which the service manager bounds
            self._notifier.alive()
            await trio.sleep(interval_s)
            self._notifier.status(self.describe())

    def describe(self) -> str:
        """Rates since it was asked last, and where the log stands."""
        now, head, sent = trio.current_time(), self._log.head, self._count_sent()
        seconds = max(now - self._told_at, 1e-3)
        entries, messages = (head - self._head) / seconds, (sent - self._sent) / seconds
        self._told_at, self._head, self._sent = now, head, sent
        state = "refusing packets, the disk is nearly full" if self._log.stats().is_full else "taking packets"
        return (
            f"{state}: {entries:.3g} entries/s in, {messages:.3g} messages/s out, {self._count_sessions()} sessions, "
            f"head {head}"
        )

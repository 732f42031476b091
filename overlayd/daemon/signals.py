"""What the outside says to the process: stop, and read the configuration anew."""

import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
import trio

from overlayd.daemon.reloading import Reloader
from overlayd.model.errors import OverlaydError
from overlayd.model.systemd import Notifier

_log = structlog.get_logger("daemon")


@asynccontextmanager
async def stopping_on_signals() -> AsyncIterator[trio.Event]:
    """An event that a TERM or INT sets; from here on they don't end the process in any other way."""
    asked = trio.Event()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                async for number in signals:
                    _log.info("stopping", signal=signal.Signals(number).name)
                    asked.set()

            nursery.start_soon(receive)
            yield asked
            nursery.cancel_scope.cancel()


async def stop_when_asked(asked: trio.Event, stop: trio.Event, notifier: Notifier) -> None:
    """Sets `stop` once `asked` is, and tells the service manager. Checkpoint."""
    await asked.wait()
    notifier.stopping("telling clients, then closing the log")
    stop.set()


async def reload_on_hangup(reloader: Reloader, notifier: Notifier) -> None:
    """Reads the configuration anew on SIGHUP; what is wrong with it is logged, and changes nothing."""
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        async for _ in signals:
            notifier.reloading(time.monotonic_ns() // 1000)
            try:
                report = await reloader.reload(None, False)
            except OverlaydError as error:
                _log.error("not reloaded", subject=error.subject, reason=error.detail, hint=error.hint)
                notifier.ready(f"not reloaded: {error.detail}")
            else:
                notifier.ready(f"read anew: {len(report.changes)} changes; {reloader.describe()}")

"""The line of each request, in its JSON form, written past the chain that other log lines take.

That chain looks for secrets in everything and costs more than a request; these lines hold only what the node chose
to put there. Lines of one moment are written together.
"""

from collections.abc import Callable, Mapping
from typing import TextIO

import msgspec
import structlog
import trio

from overlayd.model.clock import Clock, format_time_us
from overlayd.model.logs import ACCESS_LOGGER, LogSettings, is_terminal

BUFFERED_BYTES_MAX = 64 << 10
MOMENT_S = 0.0002
_encode = msgspec.json.Encoder().encode


class AccessLine(msgspec.Struct, gc=False):
    """One request. The order of the members is that of every log line."""

    method: str
    path: str
    status: int
    bytes: int
    duration_ms: float
    principal: str
    request_id: str


WriteAccessLine = Callable[[AccessLine], None]


def access_writer(
    settings: LogSettings, *, clock: Clock, environ: Mapping[str, str], stream: TextIO
) -> WriteAccessLine | None:
    """What writes the lines; None when they aren't wanted. After `configure_logs`."""
    if not settings.access or settings.level in ("warning", "error"):
        return None
    if settings.format == "json" or (settings.format == "auto" and not is_terminal(stream, environ)):
        return JsonLines(clock, stream).write
    return write_as_log_line


def write_as_log_line(line: AccessLine) -> None:
    """Writes a line the way all others go: readable on a terminal."""
    structlog.get_logger(ACCESS_LOGGER).info("request", **msgspec.structs.asdict(line))


class JsonLines:
    """Writes lines as JSON to a stream, those of one moment at once. For use in Trio."""

    def __init__(self, clock: Clock, stream: TextIO) -> None:
        self._clock = clock
        self._stream = stream
        self._waiting: list[str] = []
        self._waiting_bytes = 0
        self._written_at = float("-inf")

    def write(self, line: AccessLine) -> None:
        """Writes the line now or, when others come at the same time, within the event loop's next round."""
        text = (
            f'{{"timestamp": "{format_time_us(self._clock.now_us())}", "level": "info", "event": "request", '
            f'{_encode(line)[1:-1].decode()}, "logger": "{ACCESS_LOGGER}"}}\n'
        )
        self._waiting.append(text)
        self._waiting_bytes += len(text)
        if len(self._waiting) > 1 and self._waiting_bytes < BUFFERED_BYTES_MAX:
            return
        if len(self._waiting) > 1 or trio.current_time() - self._written_at > MOMENT_S:
            self.flush()
        else:
            trio.lowlevel.current_trio_token().run_sync_soon(self.flush, idempotent=True)

    def flush(self) -> None:
        """Writes what waits. A stream whose reader is gone must not stop the node."""
        text, self._waiting, self._waiting_bytes = "".join(self._waiting), [], 0
        self._written_at = trio.current_time()
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            pass

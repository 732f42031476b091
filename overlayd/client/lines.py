"""Live reading over NDJSON, for the blocking client; it resumes by itself where it was."""

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self

import httpx

from overlayd.client import calls, transport
from overlayd.client.address import Address
from overlayd.client.resume import HEARTBEAT_S, Resume
from overlayd.model.errors import OverlaydError, UnexpectedAnswer
from overlayd.model.wire import LogMessage

IDLE_S = 3 * HEARTBEAT_S
LINE_BYTES_MAX = 64 << 20
_ENDED = "the node ended the answer"


def split_lines(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their LF, empty ones left out; what follows the last LF isn't whole and is dropped.

    httpx's own splitter also cuts at U+2028 and the like, which JSON may hold. Raises UnexpectedAnswer.
    """
    pending: list[bytes] = []
    pending_bytes = 0
    for part in parts:
        *whole, rest = part.split(b"\n")
        for line in whole:
            full = b"".join((*pending, line))
            pending, pending_bytes = [], 0
            if full.strip():
                yield full
        pending.append(rest)
        pending_bytes += len(rest)
        if pending_bytes > LINE_BYTES_MAX:
            raise UnexpectedAnswer(f"a line is over {LINE_BYTES_MAX} bytes")


class LiveLines:
    """An iterator of packet, status, gap and erased messages, which lasts over the node's restarts."""

    def __init__(
        self,
        client: httpx.Client,
        address: Address,
        resume: Resume,
        *,
        check: Callable[[LogMessage], None],
        on_pause: Callable[[float, str], None] | None,
        sleep: Callable[[float], None],
    ) -> None:
        self._client = client
        self._address = address
        self._resume = resume
        self._check = check
        self._on_pause = on_pause
        self._sleep = sleep
        self._response: httpx.Response | None = None
        self._lines: Iterator[bytes] = iter(())

    @property
    def cursor(self) -> str:
        """Behind everything that was handed out; give it as `after` to go on from here."""
        return self._resume.cursor

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> LogMessage:
        """Blocks until there is a message. Raises what makes going on senseless, as `Live.receive`."""
        while True:
            line = self._read_line()
            message = self._resume.take(self._resume.decode(line)) if line else None
            if message is not None:
                self._check(message)
                return message

    def _read_line(self) -> bytes:
        """A line; empty after a pause, when the connection has to be made again."""
        try:
            with transport.translated_errors(self._address):
                if self._response is None:
                    self._connect()
                return next(self._lines)
        except StopIteration:
            pause_s, reason = self._resume.judge_end(_ENDED), _ENDED
        except OverlaydError as error:
            pause_s, reason = self._resume.judge_error(error), error.detail
        self.close()
        if self._on_pause is not None:
            self._on_pause(pause_s, reason)
        self._sleep(pause_s)
        return b""

    def _connect(self) -> None:
        transport.check_socket(self._address)
        call = calls.live_lines(self._resume.params())
        arguments: dict[str, Any] = transport.request_arguments(self._address, call)
        arguments["timeout"] = httpx.Timeout(connect=transport.CONNECT_S, read=IDLE_S, write=IDLE_S, pool=IDLE_S)
        self._response = self._client.send(self._client.build_request(**arguments), stream=True)
        if self._response.status_code != 200:
            answer = transport.AnswerReader(self._response.status_code, self._response.headers)
            answer.feed(self._response.read())
            call.read(answer.finish())
        self._lines = split_lines(self._response.iter_bytes())

    def close(self) -> None:
        """Ends the reading. The node hears of it when the connection closes."""
        response, self._response = self._response, None
        self._lines = iter(())
        if response is not None:
            response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

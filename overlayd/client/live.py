"""Live reading over a WebSocket, which resumes by itself where it was."""

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import trio

from overlayd.client.resume import HEARTBEAT_S, Resume
from overlayd.client.websocket import WebSocketClosed, WebSocketReader
from overlayd.model.errors import NodeUnreachable, OverlaydError, UnexpectedAnswer
from overlayd.model.wire import LogMessage, WelcomeMessage

CONNECT_S = 10.0
IDLE_S = 3 * HEARTBEAT_S
"""A node that sends nothing for so long, not even heartbeats, is taken for gone."""
_ABNORMAL = 1006

Connect = Callable[[list[tuple[str, str]]], Awaitable[WebSocketReader]]


class Live:
    """An async iterator of packet, status, gap and erased messages, which lasts over the node's restarts.

    Iterate, or call `receive`, in one task at a time. Close it (or use it as a context manager) when done;
    the client that made it closes it otherwise. A consumer that is busy for longer than the node's pong timeout
    is disconnected and resumes at its next `receive`, without losing anything.
    """

    def __init__(
        self,
        connect: Connect,
        resume: Resume,
        *,
        check: Callable[[LogMessage], None] | None = None,
        prepare: Callable[[], Awaitable[None]] | None = None,
        on_pause: Callable[[float, str], None] | None = None,
        on_close: Callable[["Live"], None] | None = None,
    ) -> None:
        """`on_pause` hears of each reconnection: in how many seconds, and why. `prepare` is awaited before each."""
        self._connect = connect
        self._resume = resume
        self._check = check
        self._prepare = prepare
        self._on_pause = on_pause
        self._on_close = on_close
        self._reader: WebSocketReader | None = None
        self._is_closed = False

    @property
    def cursor(self) -> str:
        """Behind everything that was handed out; give it as `after` to go on from here. Empty before the first."""
        return self._resume.cursor

    @property
    def welcome(self) -> WelcomeMessage | None:
        """What the node said when the present connection was opened."""
        return self._resume.welcome

    async def open(self) -> None:
        """Connects and waits for the node's welcome, so that nothing appended from now on is missed. Checkpoint."""
        while self._resume.welcome is None:
            if self._take(await self._read_text()) is not None:
                raise UnexpectedAnswer("the node sent a packet before its welcome")

    async def receive(self) -> LogMessage:
        """The next message. Checkpoint; cancelling it loses nothing.

        Raises what makes going on senseless: a query that the node refuses, SessionClosed, CursorExpired,
        UnknownEpoch, NodeUnreachable (only for the very first connection), VerificationFailed.
        """
        while True:
            message = self._take(await self._read_text())
            if message is not None:
                return message

    def _take(self, text: str | None) -> LogMessage | None:
        if text is None:
            return None
        message = self._resume.take(self._resume.decode(text))
        if message is not None and self._check is not None:
            self._check(message)
        return message

    async def _read_text(self) -> str | None:
        """A message's text, or None after a pause, when the connection has to be made again. Checkpoint."""
        if self._is_closed:
            raise trio.ClosedResourceError
        if self._reader is None and not await self._try_connect():
            return None
        assert self._reader is not None
        try:
            with trio.fail_after(IDLE_S):
                return await self._reader.receive()
        except WebSocketClosed as closed:
            code, reason = closed.code, closed.reason
        except trio.TooSlowError:
            code, reason = _ABNORMAL, f"nothing came for {IDLE_S:g} s"
        await self._drop()
        await self._pause(self._resume.judge_close(code, reason), reason or f"close code {code}")
        return None

    async def _try_connect(self) -> bool:
        try:
            if self._prepare is not None:
                await self._prepare()
            with trio.fail_after(CONNECT_S):
                self._reader = await self._connect(self._resume.params())
            return True
        except trio.TooSlowError:
            error: OverlaydError = NodeUnreachable(f"no answer within {CONNECT_S:g} s", is_sent=True)
        except OverlaydError as err:
            error = err
        await self._pause(self._resume.judge_error(error), error.detail)
        return False

    async def _pause(self, seconds: float, reason: str) -> None:
        if self._on_pause is not None:
            self._on_pause(seconds, reason)
        await trio.sleep(seconds)

    async def _drop(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            await reader.aclose()

    async def aclose(self) -> None:
        """Ends the reading. The node hears of it."""
        self._is_closed = True
        if self._on_close is not None:
            self._on_close(self)
        await self._drop()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> LogMessage:
        return await self.receive()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

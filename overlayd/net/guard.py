"""One request through Hypercorn, so that no request can bring the node down and no reader can hold it up.

Hypercorn's own server loop ends whole when one connection's handler fails, can't drop a client that stopped
reading, speaks HTTP/2 to whoever asks, and lets bodies pile up. So only its HTTP/1.1 protocol and its
translation to ASGI are used, one object per request, between the door (which finds heads and owns the
connection) and the application. What fails here ends one connection.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import h11
import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.events import Body, EndBody, Response
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState

from overlayd.model.errors import BadRequest, HeadTooLarge
from overlayd.model.limits import Limits
from overlayd.net.connection import Connection
from overlayd.net.head import Head, rebuild_head
from overlayd.net.problem import plain_answer

INBOX_BYTES = 64 << 10
INBOX_EVENTS = 64
HALF_CLOSE_GRACE_S = 1.0
_log = structlog.get_logger("net.guard")
_Message = dict[str, Any]


def hypercorn_config(limits: Limits) -> Config:
    """Every setting that Hypercorn would otherwise choose for us."""
    config = Config()
    config.accesslog = None
    config.errorlog = None
    config.alpn_protocols = ["http/1.1"]
    config.h11_max_incomplete_size = limits.head_bytes + INBOX_BYTES
    config.include_server_header = False
    config.include_date_header = True
    config.keep_alive_timeout = limits.keep_alive_timeout
    config.keep_alive_max_requests = limits.requests_per_connection
    config.max_app_queue_size = INBOX_EVENTS
    config.read_timeout = None
    config.websocket_max_message_size = limits.message_bytes
    return config


class Inbox:
    """Messages on their way to the application, bounded in bytes and count. That the client left always fits."""

    def __init__(self) -> None:
        self._messages: deque[_Message] = deque()
        self._bytes = 0
        self._is_closed = False
        self._changed = trio.Event()

    async def put(self, message: _Message) -> None:
        """Waits while full. After `close` or a disconnect, messages are dropped. A checkpoint but for a
        disconnect, which must get through while the task is being cancelled."""
        if message["type"] == "http.disconnect":
            self.close()
            return
        await trio.lowlevel.checkpoint()
        while not self._is_closed and (self._bytes >= INBOX_BYTES or len(self._messages) >= INBOX_EVENTS):
            await self._changed.wait()
        if not self._is_closed:
            self._messages.append(message)
            self._bytes += len(message.get("body", b""))
            self._notify()

    async def receive(self) -> _Message:
        """The next message. A disconnect overtakes what waits, because nobody will read an answer."""
        await trio.lowlevel.checkpoint()
        while not self._messages and not self._is_closed:
            await self._changed.wait()
        if self._is_closed:
            return {"type": "http.disconnect"}
        message = self._messages.popleft()
        self._bytes -= len(message.get("body", b""))
        self._notify()
        return message

    def close(self) -> None:
        """No more messages."""
        self._is_closed = True
        self._messages.clear()
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class OneRequest(H11Protocol):
    """Hypercorn's HTTP/1.1 protocol for a single request and its answer."""

    on_answered: Callable[[], None]
    is_last: Callable[[], bool]
    request_id = ""

    @property
    def is_message_read(self) -> bool:
        """Whether the request's last byte came."""
        return self.connection.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED, h11.ERROR)

    @property
    def is_answer_begun(self) -> bool:
        return self.connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE)

    @property
    def is_reusable(self) -> bool:
        """Whether both sides finished a message and neither asked for the connection's end."""
        return self.connection.our_state is h11.DONE and self.connection.their_state is h11.DONE

    def take_rest(self) -> bytes:
        """Bytes behind the request: the beginning of the next one."""
        return bytes(self.connection.trailing_data[0])

    async def want_body(self) -> None:
        """Sends 100 Continue to a client that waits for it. Asked for by the route that reads the body, so that a
        request that is refused by its head costs no upload."""
        if self.connection.they_are_waiting_for_100_continue:
            await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=[]))

    async def stream_send(self, event: StreamEvent) -> None:
        if isinstance(event, Response) and event.status_code >= 200 and (self.is_last() or not self.is_message_read):
            # What is left of the request's body would have to be read out before the next request.
            event = Response(
                stream_id=event.stream_id,
                headers=[*event.headers, (b"connection", b"close")],
                status_code=event.status_code,
            )
        await super().stream_send(event)

    async def _check_protocol(self, event: h11.Request) -> None:
        """HTTP/1.1 is all there is; the door took out what asks for another protocol."""

    async def _handle_events(self) -> None:
        # Behind a request that ends the connection h11 takes any byte for a mistake; it is to be ignored.
        while not self.is_message_read:
            try:
                event = self.connection.next_event()
            except h11.RemoteProtocolError as error:
                await self._refuse_rest(error)
                return
            if isinstance(event, h11.Request):
                await self._create_stream(event)
            elif self.stream is None or event is h11.PAUSED or event is h11.NEED_DATA:
                return
            elif isinstance(event, h11.Data):
                await self.stream.handle(Body(stream_id=1, data=bytes(event.data)))
            elif isinstance(event, h11.EndOfMessage):
                await self.stream.handle(EndBody(stream_id=1))
            else:
                return

    async def _refuse_rest(self, error: h11.RemoteProtocolError) -> None:
        """The body's chunks make no sense. Nobody can tell where the next request would begin."""
        if not self.is_answer_begun:
            if error.error_status_hint == 431:
                problem = plain_answer(HeadTooLarge("a chunk's head or the trailers are too long"), self.request_id)
            else:
                words = "the request's body can't be read: a chunk's size or end isn't where it should be"
                problem = plain_answer(BadRequest(words), self.request_id)
            assert isinstance(self.connection, h11.Connection)
            self.connection.send_failed()
            await self.send(RawData(data=problem))
        await self.send(Closed())
        self.on_answered()

    async def _maybe_recycle(self) -> None:
        await self._close_stream()
        self.on_answered()


class Exchange:
    """A request's way to the application and its answer's way back. Hypercorn's `TaskGroup` for one request."""

    def __init__(
        self,
        app: ASGIFramework,
        config: Config,
        context: WorkerContext,
        connection: Connection,
        state: dict[str, Any],
        *,
        is_last: Callable[[], bool],
    ) -> None:
        """`state` becomes the ASGI scope's; it holds the principal and the request's id. `is_last`: whether an
        answer that begins now ends the connection."""
        peer = connection.peer
        self._connection = connection
        self._reading = trio.CancelScope()
        self._nursery: trio.Nursery
        self._protocol = OneRequest(
            ASGIWrapper(app), config, context, self,  # type: ignore[arg-type]  # it offers what is used of TaskGroup
            ConnectionState(state), peer.is_tls, (peer.address, peer.port) if peer.family == "tcp" else None,
            (peer.local, peer.local_port) if peer.family == "tcp" else None, self._send,
        )  # fmt: skip
        self._protocol.on_answered = self._reading.cancel
        self._protocol.is_last = is_last
        self._protocol.request_id = state["request_id"]
        state["want_body"] = self._protocol.want_body

    async def run(self, head: Head) -> bool:
        """Whether the connection can take another request. Returns once the application has ended."""
        try:
            async with trio.open_nursery() as self._nursery:
                with self._reading:
                    await self._feed(head)
            return self._protocol.is_reusable
        finally:
            vars(self._protocol).clear()  # else it and this hold each other, and buffers, until a collector comes by

    async def spawn_app(
        self,
        app: ASGIWrapper,
        config: Config,
        scope: Any,
        send: Callable[[Any], Awaitable[None]],
    ) -> Callable[[Any], Awaitable[None]]:
        """Starts the application for the request that Hypercorn just read."""
        inbox = Inbox()
        self._nursery.start_soon(self._run_app, app.app, scope, inbox, send)
        return inbox.put

    def spawn(self, func: Callable[..., Awaitable[Any]], *args: Any) -> None:
        self._nursery.start_soon(func, *args)

    async def _run_app(
        self, app: ASGIFramework, scope: Any, inbox: Inbox, send: Callable[[Any], Awaitable[None]]
    ) -> None:
        try:
            await app(scope, inbox.receive, send)  # type: ignore[arg-type]  # plain dictionaries are ASGI messages
        finally:
            inbox.close()
            await send(None)

    async def _feed(self, head: Head) -> None:
        """Gives the request to the protocol as it arrives, then watches for the client to leave."""
        protocol, connection = self._protocol, self._connection
        await protocol.handle(RawData(rebuild_head(head)))
        try:
            while not protocol.is_message_read:
                data = connection.take_unread() or await connection.receive()
                if not data:
                    await protocol.handle(Closed())
                    return
                await protocol.handle(RawData(data))
            connection.unread += protocol.take_rest()
            if not connection.unread:
                await self._watch()
        except trio.BrokenResourceError:
            await protocol.handle(Closed())

    async def _watch(self) -> None:
        """A client that half-closes may be waiting for its answer (`nc -N`), or may be gone: it gets a moment.
        One that sends its next request early is left alone; its bytes wait."""
        data = await self._connection.receive()
        if data:
            self._connection.unread += data
            return
        await trio.sleep(HALF_CLOSE_GRACE_S)
        await self._protocol.handle(Closed())

    async def _send(self, event: Event) -> None:
        if isinstance(event, Closed):
            await self._protocol.handle(Closed())
            return
        if not isinstance(event, RawData):
            return  # Updated: idle time is the door's business
        try:
            await self._connection.send(event.data)
        except trio.BrokenResourceError:
            # A send after the end must stay a checkpoint, or a loop that only sends would freeze the process.
            await trio.lowlevel.checkpoint()
            await self._protocol.handle(Closed())

"""A WebSocket to read from, on any Trio stream. Pings are answered while a message is waited for.

It has no task of its own: a consumer that is busy for long doesn't read, and the node then sees a peer that
doesn't move, as it should. (trio-websocket's client wants a nursery, hands a rejected handshake out through it,
and waits for ever when the peer hangs up in the middle of one.)
"""

import ssl

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from overlayd.client.address import Address
from overlayd.client.problems import error_of_answer
from overlayd.client.transport import words_of
from overlayd.model.errors import NodeUnreachable, UnexpectedAnswer

SUBPROTOCOL = "overlayd.v1"
MESSAGE_BYTES_MAX = 64 << 20
"""A longer message is refused. Frames hold one packet, whose limit the node sets."""
CLOSE_S = 1.0
SEND_S = 1.0
_RECEIVE_BYTES = 64 << 10
_REJECTION_BYTES_MAX = 64 << 10
_ABNORMAL = 1006


class WebSocketClosed(Exception):
    """The peer closed, or the connection broke (code 1006)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}".rstrip())
        self.code = code
        self.reason = reason


class WebSocketReader:
    """One connection. `receive` gives text messages; nothing is sent but what the protocol itself asks for."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._parts: list[str] = []
        self._part_chars = 0

    async def handshake(self, host: str, target: str, headers: list[tuple[str, str]]) -> None:
        """Checkpoint. Raises the error that the node answered with, WebSocketClosed or UnexpectedAnswer."""
        extra = [(name.encode(), value.encode()) for name, value in headers]
        request = Request(host=host, target=target, subprotocols=[SUBPROTOCOL], extra_headers=extra)
        await self._send(request)
        status, answer_headers, body = 0, {}, b""
        while True:
            for event in self._protocol.events():
                if isinstance(event, AcceptConnection):
                    return
                if isinstance(event, RejectConnection):
                    status = event.status_code
                    answer_headers = {name.decode().lower(): value.decode("latin-1") for name, value in event.headers}
                    if not event.has_body:
                        raise error_of_answer(status, answer_headers, b"")
                elif isinstance(event, RejectData):
                    body += event.data
                    if event.body_finished or len(body) > _REJECTION_BYTES_MAX:
                        raise error_of_answer(status, answer_headers, body)
            await self._feed()

    async def receive(self) -> str:
        """The next message. Checkpoint. Raises WebSocketClosed or UnexpectedAnswer."""
        await trio.lowlevel.checkpoint()
        while True:
            for event in self._protocol.events():
                if isinstance(event, TextMessage):
                    message = self._take_part(event)
                    if message is not None:
                        return message
                elif isinstance(event, Ping):
                    await self._send(event.response())
                elif isinstance(event, CloseConnection):
                    await self._send_last(event.response())
                    raise WebSocketClosed(event.code, event.reason or "")
                elif isinstance(event, BytesMessage):
                    raise UnexpectedAnswer("a binary message came where only text is spoken")
            await self._feed()

    def _take_part(self, event: TextMessage) -> str | None:
        self._part_chars += len(event.data)
        if self._part_chars > MESSAGE_BYTES_MAX:
            raise UnexpectedAnswer(f"a message is over {MESSAGE_BYTES_MAX} characters")
        self._parts.append(event.data)
        if not event.message_finished:
            return None
        message, self._parts, self._part_chars = "".join(self._parts), [], 0
        return message

    async def _feed(self) -> None:
        try:
            data = await self._stream.receive_some(_RECEIVE_BYTES)
            if not data:
                raise WebSocketClosed(_ABNORMAL, "the connection ended")
            self._protocol.receive_data(bytes(data))
        except trio.BrokenResourceError as err:
            raise WebSocketClosed(_ABNORMAL, str(err) or "the connection broke") from err
        except RemoteProtocolError as err:
            raise UnexpectedAnswer(f"not a WebSocket: {err}") from err

    async def _send(self, event: Event) -> None:
        """Sends a whole small frame: a cancelled half would spoil the connection for the next caller."""
        try:
            with trio.move_on_after(SEND_S, shield=True) as scope:
                await self._stream.send_all(self._protocol.send(event))
        except trio.BrokenResourceError as err:
            raise WebSocketClosed(_ABNORMAL, str(err) or "the connection broke") from err
        if scope.cancelled_caught:
            raise WebSocketClosed(_ABNORMAL, f"the peer took no byte for {SEND_S:g} s")

    async def _send_last(self, event: Event) -> None:
        """Sends what the peer may or may not wait for."""
        try:
            await self._send(event)
        except (WebSocketClosed, LocalProtocolError):
            return

    async def aclose(self) -> None:
        """Says goodbye if the peer still listens, for at most a second, then closes."""
        try:
            with trio.move_on_after(CLOSE_S):
                await self._send_last(CloseConnection(code=1000))
                while True:
                    await self.receive()
        except (WebSocketClosed, UnexpectedAnswer, LocalProtocolError):
            return
        finally:
            await trio.aclose_forcefully(self._stream)


async def open_websocket(
    address: Address, target: str, headers: list[tuple[str, str]], ssl_context: ssl.SSLContext | None
) -> WebSocketReader:
    """Connects and shakes hands. Checkpoint; the deadline is the caller's.

    Raises NodeUnreachable, or the error that the node answered with.
    """
    try:
        stream = await _open_stream(address, ssl_context)
    except (OSError, trio.BrokenResourceError) as err:
        raise NodeUnreachable(
            f"no connection to {address}: {words_of(err)}", is_sent=False, subject=str(address)
        ) from err
    reader = WebSocketReader(stream)
    try:
        await reader.handshake(address.host_header, address.prefix + target, headers)
    except BaseException as error:
        await trio.aclose_forcefully(stream)
        if isinstance(error, WebSocketClosed):
            raise NodeUnreachable(
                f"{address} hung up during the handshake: {error.reason}", is_sent=True, subject=str(address)
            ) from error
        raise
    return reader


async def _open_stream(address: Address, ssl_context: ssl.SSLContext | None) -> trio.abc.Stream:
    if address.socket_path:
        return await trio.open_unix_socket(address.socket_path)
    plain = await trio.open_tcp_stream(address.host, address.port)
    if not address.is_tls:
        return plain
    context = ssl_context or ssl.create_default_context()
    secure = trio.SSLStream(plain, context, server_hostname=address.host, https_compatible=True)
    try:
        await secure.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(plain)
        raise
    return secure

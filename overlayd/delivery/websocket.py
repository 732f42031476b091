"""The server's side of one WebSocket, on trio-websocket's protocol engine.

The small pinned subclass bounds what a client can make the node hold, answers broken frames with a close
frame, and writes frames that were made ready before: one write for a page of them.
"""

import fcntl
import struct
import termios
from contextlib import suppress

import h11
import trio
import wsproto
from trio_websocket import CloseReason, ConnectionClosed, WebSocketConnection, WebSocketRequest
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, Request, TextMessage
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from overlayd.delivery.session import CLOSE_POLICY
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics

PIECE_BYTES = 64 << 10
_RECEIVE_BYTES = 4 << 10
_PARTS_MAX = 8192
_TOO_BIG = 1009
_TEXT_FRAME = 0x81
_REASON_BYTES_MAX = 120
_WAITED_S = 0.05
"""A piece that took longer waited for the peer, so the peer is there. The kernel takes others from anybody."""


def encode_text_frame(text: bytes) -> bytes:
    """A whole text message as one unmasked frame (RFC 6455, 5.2)."""
    length = len(text)
    if length < 126:
        return bytes((_TEXT_FRAME, length)) + text
    if length < 1 << 16:
        return struct.pack(">BBH", _TEXT_FRAME, 126, length) + text
    return struct.pack(">BBQ", _TEXT_FRAME, 127, length) + text


class InputBudget:
    """Bytes of client messages that the node holds for all WebSockets together, until they are dealt with."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._bytes = 0
        self._released = trio.lowlevel.ParkingLot()
        self.unfinished: set[LiveSocket] = set()

    def __repr__(self) -> str:
        return f"InputBudget({self._bytes} of {self._capacity_bytes})"

    def try_take(self, count: int) -> bool:
        if self._bytes + count > self._capacity_bytes:
            return False
        self._bytes += count
        return True

    def release(self, count: int) -> None:
        self._bytes -= count
        self._released.unpark_all()

    def make_room(self, count: int) -> bool:
        """Gives up the largest message that has begun and doesn't end, if it is larger than what wants room: a few
        clients that stop in the middle would keep everybody else out."""
        waiting = (socket for socket in self.unfinished if socket.is_waiting)
        largest = max(waiting, key=lambda socket: socket.unfinished_size, default=None)
        if largest is None or largest.unfinished_size <= count:
            return False
        largest.give_up()
        return True

    async def wait_released(self) -> None:
        """Until somebody gave something back. Checkpoint."""
        await self._released.park()


class PacedStream(trio.abc.Stream):
    """Writes piece by piece, each with a deadline, and finishes a piece that was begun even when cancelled:
    half a frame would spoil the stream. `is_stalled` tells that a piece didn't go out in time."""

    def __init__(self, stream: trio.abc.Stream, stall_s: float) -> None:
        self._stream = stream
        self._stall_s = stall_s
        self.is_stalled = False
        self.moved_at = trio.current_time()
        self._unsent_bytes = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        for at in range(0, len(view), PIECE_BYTES):
            await self._send_piece(view[at : at + PIECE_BYTES])

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = await self._stream.receive_some(max_bytes)
        self.moved_at = trio.current_time()
        return bytes(data)

    async def aclose(self) -> None:
        await self._stream.aclose()

    def has_moved_since(self, time_s: float) -> bool:
        """Whether a byte went either way since then, or the peer took some that the kernel still held."""
        unsent_bytes = _unsent_bytes_of(self._stream)
        if unsent_bytes < self._unsent_bytes:
            self.moved_at = trio.current_time()
        self._unsent_bytes = unsent_bytes
        return self.moved_at > time_s

    async def _send_piece(self, piece: memoryview) -> None:
        started = trio.current_time()
        deadline = started + self._stall_s
        try:
            with trio.CancelScope(deadline=deadline, shield=True) as scope:
                await self._stream.send_all(piece)
        except trio.BrokenResourceError:
            self.is_stalled = self.is_stalled or trio.current_time() >= deadline
            raise
        if scope.cancelled_caught:
            self.is_stalled = True
            await trio.aclose_forcefully(self._stream)
            raise trio.BrokenResourceError("the peer stopped reading")
        if trio.current_time() - started > _WAITED_S:
            self.moved_at = trio.current_time()


class LiveSocket(WebSocketConnection):
    """One accepted or proposed WebSocket. Run `run` from the handshake to the close."""

    def __init__(self, stream: PacedStream, *, limits: Limits, budget: InputBudget, metrics: Metrics) -> None:
        super().__init__(
            stream,
            wsproto.WSConnection(wsproto.ConnectionType.SERVER),
            message_queue_size=limits.unread_messages,
            max_message_size=limits.message_bytes,
            receive_buffer_size=_RECEIVE_BYTES,
        )
        self.paced = stream
        self._limits = limits
        self._budget = budget
        self._metrics = metrics
        self._held_bytes = 0
        self._waiting: trio.CancelScope | None = None
        self._is_given_up = False
        self.unfinished_size = 0

    async def run(self) -> None:
        """Reads until the connection ends. What it held of the budget is given back at the end. Checkpoint."""
        try:
            async with self._send_channel:
                await self._read()
        except ConnectionClosed:
            pass
        except UnicodeError:  # a Host in the handshake that isn't IDNA
            await self._close_stream()
        finally:
            self._budget.unfinished.discard(self)
            self._budget.release(self._held_bytes)
            self._held_bytes = 0

    async def read_handshake(self) -> WebSocketRequest:
        """The client's handshake. Waits for ever when none comes; `run` ends then. Checkpoint."""
        return await self._get_request()

    async def send_frames(self, frames: bytes) -> None:
        """Writes frames that are ready. A checkpoint. Raises ConnectionClosed."""
        if self._close_reason is not None:
            await trio.lowlevel.checkpoint()
            raise ConnectionClosed(self._close_reason)
        try:
            self._stream_lock.acquire_nowait()
        except trio.WouldBlock:
            await self._stream_lock.acquire()
        try:
            await self._stream.send_all(frames)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self._abort_web_socket()
            assert self._close_reason is not None
            raise ConnectionClosed(self._close_reason) from None
        finally:
            self._stream_lock.release()

    async def close(self, code: int, reason: str, timeout_s: float) -> None:
        """Sends a close frame and waits for the peer's, both at most for the timeout, then cuts. Shielded.
        Checkpoint."""
        with trio.move_on_after(timeout_s, shield=True):
            await self.aclose(code, reason.encode()[:_REASON_BYTES_MAX].decode(errors="ignore"))
            await self._close_stream()
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self._stream)

    async def cut(self) -> None:
        """Ends the connection at once, whatever is being written. Checkpoint."""
        await trio.aclose_forcefully(self._stream)

    def give_back(self, count: int) -> None:
        """A message of so many characters or bytes was dealt with. After `run` has ended it does nothing."""
        count = min(count, self._held_bytes)
        self._held_bytes -= count
        self._budget.release(count)

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for the client's bytes."""
        return self._waiting is not None

    def give_up(self) -> None:
        """Forgets the message that has begun, and ends the connection: others need the room. Only while it waits."""
        assert self._waiting is not None
        self._is_given_up = True
        self._message_parts = []
        self._budget.unfinished.discard(self)
        self.give_back(self.unfinished_size)
        self.unfinished_size = 0
        self._waiting.cancel()

    async def _read(self) -> None:
        """As the base class does, but it stops at once when it is told to: a read that is left waiting would turn
        our close into a reset, and the peer would miss why."""
        handlers = {
            BytesMessage: self._handle_message_event,
            TextMessage: self._handle_message_event,
            CloseConnection: self._handle_close_connection_event,
            Ping: self._handle_ping_event,
            Pong: self._handle_pong_event,
            Request: self._handle_request_event,
        }
        while True:
            for event in self._wsproto.events():
                handler = handlers.get(type(event))
                if handler is not None:  # a server gets no others
                    await handler(event)  # type: ignore[operator]  # each takes its own kind
                if not self._reader_running:
                    return
            data: bytes | bytearray = b""
            with trio.CancelScope() as self._waiting, suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                data = await self._stream.receive_some(_RECEIVE_BYTES)
            self._waiting = None
            if self._is_given_up:
                self._metrics.count_limit_hit("sockets_unread_bytes")
                await self._refuse_input(CLOSE_POLICY, "the message took too long and others need the room")
                return
            if not data:
                if self._wsproto.state != ConnectionState.CLOSED:
                    await self._abort_web_socket()
                return
            if self._wsproto.state != ConnectionState.CLOSED and not await self._receive(bytes(data)):
                return

    async def _receive(self, data: bytes) -> bool:
        """Feeds the protocol engine. Whether the connection can go on; only a handshake can't."""
        try:
            self._wsproto.receive_data(data)
        except RemoteProtocolError as err:
            if err.event_hint is not None:
                await self._send(err.event_hint)
            await self._close_stream()
            return False
        return True

    async def _send(self, event: Event) -> None:
        try:
            await super()._send(event)
        except (LocalProtocolError, h11.LocalProtocolError):  # the state changed while this waited for its turn
            raise ConnectionClosed(self._close_reason) from None

    async def _handle_message_event(self, event: BytesMessage | TextMessage) -> None:
        count = len(event.data)
        if not count and not event.message_finished:
            return  # an endless row of empty fragments would pile up otherwise
        size = _size_of(event.data)
        if len(self._message_parts) >= _PARTS_MAX or self._message_size + size > self._max_message_size:
            self._metrics.count_limit_hit("message_bytes")
            await self._refuse_input(_TOO_BIG, f"a message may have {self._max_message_size} bytes")
        elif not await self._admit(count):
            self._metrics.count_limit_hit("unread_bytes")
            await self._refuse_input(CLOSE_POLICY, "too many bytes wait to be looked at")
        else:
            self._message_size += size
            self.unfinished_size += count
            self._budget.unfinished.add(self)
            self._message_parts.append(event.data if isinstance(event.data, str) else bytes(event.data))
            if event.message_finished:
                await self._queue_message(is_text=isinstance(event, TextMessage))

    async def _queue_message(self, *, is_text: bool) -> None:
        self._budget.unfinished.discard(self)
        self.unfinished_size = 0
        message = ("" if is_text else b"").join(self._message_parts)  # type: ignore[arg-type]  # all are of one kind
        self._message_size = 0
        self._message_parts = []
        try:
            with trio.move_on_after(self._limits.admit_timeout) as scope:
                await self._send_channel.send(message)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            return  # this side is closing
        if scope.cancelled_caught:
            self._metrics.count_limit_hit("unread_messages")
            await self._refuse_input(CLOSE_POLICY, "too many messages wait to be looked at")

    async def _admit(self, count: int) -> bool:
        """Whether there is room for so much more input, now or within a while."""
        with trio.move_on_after(self._limits.admit_timeout):
            most = max(self._limits.unread_bytes, self._limits.message_bytes)
            while self._held_bytes + count > most or not self._budget.try_take(count):
                if self._held_bytes + count > most or not self._budget.make_room(self.unfinished_size + count):
                    await self._budget.wait_released()
            self._held_bytes += count
            return True
        return False

    async def _refuse_input(self, code: int, reason: str) -> None:
        """Closes because of what the client sends; what it sent before is forgotten."""
        self._message_size = 0
        self._message_parts = []
        self._close_reason = CloseReason(code, reason)
        await self._send(CloseConnection(code=code, reason=reason))
        await self._recv_channel.aclose()
        self._reader_running = False

    async def _handle_close_connection_event(self, event: CloseConnection) -> None:
        if self._wsproto.state == ConnectionState.OPEN:  # the peer's frames can't be read: tell it why
            self._close_reason = CloseReason(event.code, event.reason or None)
            await self._send(CloseConnection(code=event.code, reason=event.reason))
        await super()._handle_close_connection_event(event)


def _size_of(data: str | bytes | bytearray) -> int:
    """Bytes as they were sent."""
    return len(data.encode()) if isinstance(data, str) and not data.isascii() else len(data)


def _unsent_bytes_of(stream: trio.abc.Stream) -> int:
    """What the kernel still holds for the peer; 0 where that can't be asked."""
    socket = getattr(stream, "socket", None)
    if not isinstance(socket, trio.socket.SocketType) or socket.fileno() < 0:
        return 0
    answer = fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    return int(struct.unpack("=i", answer)[0])

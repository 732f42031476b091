"""One accepted connection: bytes read ahead, writes with a deadline, and a close that lets the last answer through."""

from typing import Any, Protocol

import trio

from overlayd.access import Peer
from overlayd.access.gate import Remembered, Seal
from overlayd.model.errors import Rate
from overlayd.model.push_stream import PushStream
from overlayd.net.problem import rate_headers

PIECE_BYTES = 64 << 10
LOOKS = 4
"""How often within the time for a stall it is looked whether the peer has taken something."""
LINGER_S = 2.0
LINGER_BYTES = 64 << 20


class Link(PushStream, Protocol):
    """A PushStream over a socket of ours, clear or encrypted."""

    @property
    def socket(self) -> trio.socket.SocketType: ...

    @property
    def has_bytes(self) -> bool:
        """Whether the peer's next bytes are here already. It may ask the kernel."""
        ...

    @property
    def holds_bytes(self) -> bool:
        """Whether a read might give something of which the kernel knows nothing."""
        ...

    def read_now(self, max_bytes: int) -> bytes | None:
        """The peer's bytes that are here; b"" once it sends no more, None while there are none. Fewer than were asked
        for, and no `holds_bytes` afterwards, say that the kernel has none left. Raises BrokenResourceError."""
        ...

    async def send_eof(self) -> None:
        """Says that nothing more comes. Checkpoint. Raises BrokenResourceError."""
        ...


class Connection:
    """A stream with its peer. One task reads; writes of several tasks are put one behind the other.

    A write is finished piece by piece even when its task is cancelled, because half an answer would spoil the
    connection; but a peer that takes nothing for `stall_s` is cut, so one that stopped reading holds nobody up.
    """

    def __init__(self, link: Link, peer: Peer, stall_s: float, unread: bytes = b"") -> None:
        """`unread`: what was read from the peer already."""
        self.link = link
        self.peer = peer
        self.unread = bytearray(unread)
        self.sent_bytes = 0
        self.is_stalled = False
        self.remembered = Remembered()
        """Who the last request came from."""
        self.answer_headers: tuple[tuple[bytes, bytes], ...] = ()
        """What every answer to the request at hand carries because of where it comes from and over what (CORS, HSTS), and
        because of its rate.
        The door sets it, whoever writes a head adds it."""
        self.seal: Seal | None = None
        """What signs the answer to the request at hand. The door sets it, whoever writes the answer uses it."""
        self.requests_left = 0
        """How many requests it may still bring; the door counts."""
        self.memo: Any = None
        """What quick publishing remembers of the last request's headers."""
        self._stall_s = stall_s
        self._send_lock = trio.Lock()

    def tell_rate(self, rate: Rate | None) -> None:
        """The answer to the request at hand tells what is left of a rate, if one is counted."""
        if rate is not None:
            self.answer_headers += tuple((name.encode(), value.encode()) for name, value in rate_headers(rate))

    @property
    def socket(self) -> trio.socket.SocketType:
        return self.link.socket

    @property
    def is_readable(self) -> bool:
        """Whether `receive` would give something at once."""
        return bool(self.unread) or self.link.has_bytes

    async def receive(self) -> bytes:
        """More bytes from the peer; b"" once it sends no more. Checkpoint. Raises BrokenResourceError."""
        return await self.link.receive_some(PIECE_BYTES)

    def take_unread(self) -> bytes:
        """The bytes read ahead, which then count as read."""
        data = bytes(self.unread)
        self.unread.clear()
        return data

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Writes all of it. Checkpoint. Raises BrokenResourceError when the peer is gone or has stalled."""
        async with self._send_lock:
            if len(data) <= PIECE_BYTES:
                await self._send_piece(bytes(data))
                return
            view = memoryview(data)
            for at in range(0, len(view), PIECE_BYTES):
                await self._send_piece(bytes(view[at : at + PIECE_BYTES]))

    async def send_soon(self, data: bytes) -> None:
        """Writes all of it. A checkpoint only when the socket doesn't take it at once. Raises as `send`."""
        if self.link.unsent or self._send_lock.locked() or len(data) > PIECE_BYTES:
            await self.send(data)
            return
        self.sent_bytes += len(data)
        if self.link.write_now(data):
            async with self._send_lock:
                await self._flush_in_time()

    async def flush(self) -> None:
        """Until nothing that was written is left in the link. A checkpoint only when something is. Raises as `send`."""
        if self.link.unsent:
            async with self._send_lock:
                await self._flush_in_time()

    async def wait_writable(self) -> None:
        """Until a write might be taken at once. Checkpoint. Raises BrokenResourceError."""
        await self.link.wait_send_all_might_not_block()

    async def close_politely(self) -> None:
        """Ends the connection so that the peer gets what was sent: half close, read out what it still
        sends for a moment (unread bytes would turn the close into a reset), close. Checkpoint."""
        await close_politely(self.link)

    def abort(self) -> None:
        """Closes at once. Tasks that read or write on it get BrokenResourceError."""
        self.link.abort()

    async def _send_piece(self, piece: bytes) -> None:
        await self._flush_in_time()
        self.link.write_now(piece)
        self.sent_bytes += len(piece)
        await self._flush_in_time()

    async def _flush_in_time(self) -> None:
        """Until there is no tail, as long as the peer takes some of it now and then. Checkpoint."""
        moved, moved_at = self.link.wire_bytes_moved, trio.current_time()
        while True:
            with trio.move_on_after(self._stall_s / LOOKS, shield=True) as scope:
                await self.link.flush()
            if not scope.cancelled_caught:
                return
            if self.link.wire_bytes_moved != moved:
                moved, moved_at = self.link.wire_bytes_moved, trio.current_time()
            elif trio.current_time() - moved_at >= self._stall_s:
                self.is_stalled = True
                self.abort()
                raise trio.BrokenResourceError("the peer stopped reading")


async def close_politely(link: Link) -> None:
    """As the connection's. Also ends a link that never became one."""
    try:
        with trio.move_on_after(LINGER_S):
            await link.send_eof()
            for _ in range(LINGER_BYTES // PIECE_BYTES):
                if not await link.receive_some(PIECE_BYTES):
                    break
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
        pass
    finally:
        link.abort()

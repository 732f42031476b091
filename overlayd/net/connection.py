"""One accepted connection: bytes read ahead, writes with a deadline, and a close that lets the last answer through."""

import os

import trio

from overlayd.access import Peer

PIECE_BYTES = 64 << 10
LINGER_S = 2.0
LINGER_BYTES = 64 << 20


class Connection:
    """A stream with its peer. One task reads; writes of several tasks are put one behind the other.

    A write is finished piece by piece even when its task is cancelled, because half a piece would spoil
    the stream; but each piece of 64 KiB has `stall_s`, so a peer that stopped reading holds nobody up.
    """

    def __init__(self, stream: trio.SocketStream, peer: Peer, stall_s: float) -> None:
        self.peer = peer
        self.unread = bytearray()
        self.sent_bytes = 0
        self.is_stalled = False
        self._stream = stream
        self._stall_s = stall_s
        self._send_lock = trio.Lock()

    @property
    def socket(self) -> trio.socket.SocketType:
        return self._stream.socket

    async def receive(self) -> bytes:
        """More bytes from the peer; b"" once it sends no more. Checkpoint. Raises BrokenResourceError."""
        number = self._stream.socket.fileno()
        while number >= 0:
            try:
                await trio.lowlevel.wait_readable(number)
                return os.read(number, PIECE_BYTES)
            except BlockingIOError:
                continue  # the kernel's mistake
            except (trio.ClosedResourceError, OSError) as err:
                raise trio.BrokenResourceError("the peer is gone, or the connection was cut on this side") from err
        await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError("the connection was cut on this side")

    def take_unread(self) -> bytes:
        """The bytes read ahead, which then count as read."""
        data = bytes(self.unread)
        self.unread.clear()
        return data

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Writes all of it. Checkpoint. Raises BrokenResourceError when the peer is gone or has stalled."""
        view = memoryview(data)
        async with self._send_lock:
            for at in range(0, len(view), PIECE_BYTES):
                await self._send_piece(view[at : at + PIECE_BYTES])

    async def send_soon(self, data: bytes) -> None:
        """Writes all of it. A checkpoint only when the socket doesn't take it at once. Raises as `send`."""
        sent = 0
        if not self._send_lock.locked():
            try:
                sent = os.write(self._stream.socket.fileno(), data)
            except BlockingIOError:
                pass
            except OSError as err:
                raise trio.BrokenResourceError("the peer is gone, or the connection was cut on this side") from err
            self.sent_bytes += sent
        if sent < len(data):
            await self.send(memoryview(data)[sent:])

    async def wait_writable(self) -> None:
        """Until a write might be taken at once. Checkpoint. Raises BrokenResourceError."""
        try:
            await self._stream.wait_send_all_might_not_block()
        except trio.ClosedResourceError as err:
            raise trio.BrokenResourceError("the connection was cut on this side") from err

    async def close_politely(self) -> None:
        """Ends the connection so that the peer gets what was sent: half close, read out what it still
        sends for a moment (unread bytes would turn the close into a reset), close. Checkpoint."""
        try:
            with trio.move_on_after(LINGER_S):
                await self._stream.send_eof()
                for _ in range(LINGER_BYTES // PIECE_BYTES):
                    if not await self._stream.receive_some(PIECE_BYTES):
                        break
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            pass
        finally:
            self.abort()

    def abort(self) -> None:
        """Closes at once. Tasks that read or write on it get BrokenResourceError or ClosedResourceError."""
        self._stream.socket.close()

    async def _send_piece(self, piece: memoryview) -> None:
        try:
            with trio.move_on_after(self._stall_s, shield=True) as scope:
                await self._stream.send_all(piece)
        except trio.ClosedResourceError as err:
            raise trio.BrokenResourceError("the connection was cut on this side") from err
        if scope.cancelled_caught:
            self.is_stalled = True
            self.abort()
            raise trio.BrokenResourceError("the peer stopped reading")
        self.sent_bytes += len(piece)

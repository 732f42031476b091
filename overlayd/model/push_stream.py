"""Streams that can be written without waiting: what fan-out needs to write to thousands of connections in turn.

A write hands the kernel what it takes at once; the rest stays in the stream as its *tail*, at most one buffer, and
goes out before anything else. Nobody is ever half way through a write, so a cancelled task spoils nothing: whoever
writes next finds the tail and finishes it.
"""

import fcntl
import os
import select
import struct
import termios
from typing import Any, Protocol

import trio

READ_BYTES = 4 << 10
"""Read at once unless asked otherwise. A compressed message can't grow beyond about a thousand times of it."""


class PushStream(Protocol):
    """A byte stream to one peer, clear or encrypted. Also a `trio.abc.Stream`.

    One task reads. Any number of tasks may write; each write goes out whole and in the order in which they began.
    Everything but `unsent` and `wire_bytes_moved` raises BrokenResourceError once the peer is gone, or the stream was
    closed on this side.
    """

    @property
    def unsent(self) -> int:
        """Bytes of the tail: given to the stream, not yet to the kernel. 0 means that `write_now` may be called."""
        ...

    @property
    def wire_bytes_moved(self) -> int:
        """A number that changes when bytes come from the peer, or the peer takes some. For deadlines, so it may ask
        the kernel."""
        ...

    def write_now(self, data: bytes) -> int:
        """Hands the kernel as much as it takes (encrypted, where the stream is) and keeps the rest as the tail;
        gives `unsent`. Never blocks, isn't a checkpoint, copies nothing unless it must. Only without a tail."""
        ...

    async def flush(self) -> None:
        """Returns once there is no tail. Checkpoint. Any number of tasks may wait; cancelled, the tail stays."""
        ...

    async def send_all(self, data: bytes) -> None:
        """Behind the tail, all of it. Checkpoint. Cancelled while it waits for its turn, nothing of it was written;
        later, the rest of it is the tail, so that the stream stays whole."""
        ...

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Bytes of the peer as they come; b"" once it sends no more. Checkpoint."""
        ...

    async def wait_send_all_might_not_block(self) -> None:
        """As `flush`."""
        ...

    def abort(self) -> None:
        """Closes at once, tail or not. Tasks that wait get BrokenResourceError. Again does nothing."""
        ...

    async def aclose(self) -> None:
        """As `abort`. Checkpoint."""
        ...


class TailTurns:
    """Who writes next: the waiting and waking that every PushStream needs around its tail. Not a stream itself."""

    __slots__ = ("_is_flushing", "_waiting")

    def __init__(self) -> None:
        self._is_flushing = False
        self._waiting: trio.lowlevel.ParkingLot | None = None

    async def flush(self, stream: "FlushedByTurns") -> None:
        """Has one task push the tail out, while others wait for it. Checkpoint."""
        if not stream.unsent:
            await trio.lowlevel.checkpoint()
        while stream.unsent:
            if self._is_flushing:
                if self._waiting is None:
                    self._waiting = trio.lowlevel.ParkingLot()
                await self._waiting.park()
                continue
            self._is_flushing = True
            try:
                await stream.push_tail()
            finally:
                self._is_flushing = False
                self.wake()

    def wake(self) -> None:
        """Has those who wait look again."""
        if self._waiting is not None:
            self._waiting.unpark_all()
            self._waiting = None


class FlushedByTurns(Protocol):
    """What TailTurns needs to know of a stream."""

    @property
    def unsent(self) -> int: ...

    async def push_tail(self) -> None:
        """Waits until the kernel takes more, and hands it some. Checkpoint."""
        ...


class SocketPushStream(trio.abc.HalfCloseableStream):
    """A PushStream in clear text over a connected socket, TCP or Unix."""

    __slots__ = ("_moved_bytes", "_socket", "_tail", "_turns")

    def __init__(self, socket: trio.socket.SocketType) -> None:
        """Takes the socket over."""
        self._socket = socket
        self._tail = memoryview(b"")
        self._turns = TailTurns()
        self._moved_bytes = 0

    def __repr__(self) -> str:
        return f"SocketPushStream(fd={self._socket.fileno()}, unsent={self.unsent})"

    @property
    def socket(self) -> trio.socket.SocketType:
        return self._socket

    @property
    def has_bytes(self) -> bool:
        """Whether the kernel has something for us, or the peer's end."""
        if self._socket.fileno() < 0:
            return False
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    @property
    def unsent(self) -> int:
        return len(self._tail)

    @property
    def wire_bytes_moved(self) -> int:
        return self._moved_bytes - _unsent_bytes_of(self._socket.fileno())

    def write_now(self, data: bytes) -> int:
        assert not self._tail, "a tail goes out first"
        sent = self._write(data)
        if sent < len(data):
            self._tail = memoryview(data)[sent:]
        return len(self._tail)

    async def flush(self) -> None:
        await self._turns.flush(self)
        if self._socket.fileno() < 0:
            raise trio.BrokenResourceError("the connection was cut on this side")

    async def push_tail(self) -> None:
        """Waits until the kernel takes more, and hands it some. Checkpoint."""
        try:
            await trio.lowlevel.wait_writable(self._number())
        except (trio.ClosedResourceError, OSError, ValueError) as err:
            raise trio.BrokenResourceError("the connection was cut on this side") from err
        self._tail = self._tail[self._write(self._tail) :]
        if not self._tail:
            self._tail = memoryview(b"")  # lets go of the buffer

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with memoryview(data):
            if self._tail:
                await self.flush()
            while self._tail:
                await self.flush()  # others came first
            if self.write_now(bytes(data)):
                await self.flush()
            else:
                await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        await self.flush()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        while True:
            try:
                await trio.lowlevel.wait_readable(self._number())
                data = os.read(self._socket.fileno(), max_bytes or READ_BYTES)
            except BlockingIOError:
                continue  # the kernel's mistake
            except (trio.ClosedResourceError, OSError, ValueError) as err:
                raise trio.BrokenResourceError("the peer is gone, or the connection was cut on this side") from err
            self._moved_bytes += len(data)
            return data

    @property
    def holds_bytes(self) -> bool:
        """Whether bytes of the peer are on this side of the kernel already."""
        return False

    def read_now(self, max_bytes: int) -> bytes | None:
        """The peer's bytes that are here; b"" once it sends no more, None while there are none. Raises
        BrokenResourceError."""
        try:
            data = os.read(self._socket.fileno(), max_bytes)
        except BlockingIOError:
            return None
        except OSError as err:
            raise trio.BrokenResourceError("the peer is gone, or the connection was cut on this side") from err
        self._moved_bytes += len(data)
        return data

    async def send_eof(self) -> None:
        await self.flush()
        try:
            self._socket.shutdown(trio.socket.SHUT_WR)
        except OSError as err:
            raise trio.BrokenResourceError("the peer is gone") from err

    def abort(self) -> None:
        self._tail = memoryview(b"")
        self._socket.close()
        self._turns.wake()

    async def aclose(self) -> None:
        self.abort()
        await trio.lowlevel.checkpoint()

    def _number(self) -> int:
        """The descriptor. Raises ClosedResourceError: Trio, asked to wait for -1, would take the next one that asks
        for a second reader of it."""
        number = self._socket.fileno()
        if number < 0:
            raise trio.ClosedResourceError
        return number

    def _write(self, data: Any) -> int:
        """How much of it the kernel took."""
        try:
            sent = os.write(self._socket.fileno(), data)
        except BlockingIOError:
            return 0
        except OSError as err:
            raise trio.BrokenResourceError("the peer is gone, or the connection was cut on this side") from err
        self._moved_bytes += sent
        return sent


def _unsent_bytes_of(fd: int) -> int:
    """What the kernel still holds for the peer; for Unix sockets roughly."""
    if fd < 0:
        return 0
    return int(struct.unpack("=i", fcntl.ioctl(fd, termios.TIOCOUTQ, b"\0\0\0\0"))[0])

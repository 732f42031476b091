"""A PushStream in memory, for sessions whose time is a mock's."""

import trio

from overlayd.model.push_stream import TailTurns

ROOM = 64 << 10


class _Pipe:
    """Bytes one way: so many fit, the rest waits at the writer's."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.data = bytearray()
        self.is_ended = False
        self.is_broken = False
        self.taken = 0
        self.changed = trio.lowlevel.ParkingLot()

    def put(self, data: bytes | memoryview) -> int:
        """How much of it fits."""
        if self.is_broken or self.is_ended:
            raise trio.BrokenResourceError
        count = min(len(data), self.room - len(self.data))
        self.data += data[:count]
        self.changed.unpark_all()
        return count

    async def wait_room(self) -> None:
        while len(self.data) >= self.room and not self.is_broken:
            await self.changed.park()
        await trio.lowlevel.checkpoint()

    async def get(self, count: int) -> bytes:
        while not self.data and not self.is_ended and not self.is_broken:
            await self.changed.park()
        await trio.lowlevel.checkpoint()
        if self.is_broken and not self.data:
            raise trio.BrokenResourceError
        data = bytes(self.data[:count])
        del self.data[:count]
        self.taken += len(data)
        self.changed.unpark_all()
        return data

    def end(self) -> None:
        self.is_ended = True
        self.changed.unpark_all()

    def cut(self) -> None:
        self.is_broken = self.is_ended = True
        self.changed.unpark_all()


class MemoryPushStream:
    """The node's end."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._tail = b""
        self._turns = TailTurns()
        self._is_closed = False
        self.writes = 0

    @property
    def unsent(self) -> int:
        return len(self._tail)

    @property
    def wire_bytes_moved(self) -> int:
        return self._incoming.taken + self._outgoing.taken

    def write_now(self, data: bytes) -> int:
        assert not self._tail
        self._check()
        self.writes += 1
        self._tail = data[self._outgoing.put(data) :]
        return len(self._tail)

    async def flush(self) -> None:
        await self._turns.flush(self)
        self._check()

    async def push_tail(self) -> None:
        await self._outgoing.wait_room()
        self._check()
        self._tail = self._tail[self._outgoing.put(self._tail) :]

    async def send_all(self, data: bytes) -> None:
        while self._tail:
            await self.flush()
        if self.write_now(data):
            await self.flush()
        else:
            await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        self._check()
        data = await self._incoming.get(max_bytes or 4096)
        self._check()
        return data

    async def wait_send_all_might_not_block(self) -> None:
        await self.flush()

    def abort(self) -> None:
        self._is_closed = True
        self._tail = b""
        self._incoming.cut()
        self._outgoing.end()
        self._turns.wake()

    async def aclose(self) -> None:
        self.abort()
        await trio.lowlevel.checkpoint()

    def _check(self) -> None:
        if self._is_closed:
            raise trio.BrokenResourceError


class MemoryPeer(trio.abc.HalfCloseableStream):
    """The client's end."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self._incoming.get(max_bytes or 65536)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        rest = bytes(data)
        while rest:
            rest = rest[self._outgoing.put(rest) :]
            await self._outgoing.wait_room()
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        self._outgoing.end()
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        await self._outgoing.wait_room()

    async def aclose(self) -> None:
        self._outgoing.end()
        self._incoming.cut()
        await trio.lowlevel.checkpoint()


def push_pair(room: int = ROOM) -> tuple[MemoryPeer, MemoryPushStream]:
    """A client's end and the node's. So many bytes fit in between, each way."""
    there, back = _Pipe(room), _Pipe(room)
    return MemoryPeer(back, there), MemoryPushStream(there, back)

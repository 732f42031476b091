"""A connection as a Trio stream that first gives back the bytes that the door took."""

import trio

from overlayd.net.connection import PIECE_BYTES, Connection


class ReplayingStream(trio.abc.Stream):
    """Reads begin with `replayed`, byte for byte; writes are bounded as the connection's are."""

    def __init__(self, connection: Connection, replayed: bytes) -> None:
        self._connection = connection
        self._replayed = bytearray(replayed)
        self.status = 0
        """Status of the answer that was sent, 0 before."""

    @property
    def socket(self) -> trio.socket.SocketType:
        return self._connection.socket

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if not self._replayed:
            self._replayed += await self._connection.receive()
        else:
            await trio.lowlevel.checkpoint()
        count = PIECE_BYTES if max_bytes is None else max_bytes
        data = bytes(self._replayed[:count])
        del self._replayed[:count]
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if not self.status and data[:9] == b"HTTP/1.1 ":
            self.status = int(data[9:12])
        await self._connection.send(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._connection.wait_writable()

    async def aclose(self) -> None:
        await self._connection.close_politely()

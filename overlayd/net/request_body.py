"""A request's body as the door itself reads it from the connection, never a byte beyond its end."""

from contextlib import suppress

import trio

from overlayd.model.errors import OverlaydError
from overlayd.model.limits import Limits
from overlayd.net.chunks import ChunkDecoder
from overlayd.net.connection import Connection
from overlayd.net.head import Head

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class ClientLeft(Exception):
    """The connection ended within a body: nobody waits for an answer."""


class RequestBody:
    """The bytes behind a head, by its length or in chunks. What follows them stays unread on the connection."""

    def __init__(self, connection: Connection, head: Head, limits: Limits) -> None:
        self._connection = connection
        self._left = head.content_length or 0
        self._chunks = ChunkDecoder(int(limits.head_bytes)) if head.is_chunked else None
        self._is_broken = False
        self._is_awaited = head.has_body and head.version == "1.1" and head.has_token(b"expect", "100-continue")

    @property
    def is_whole(self) -> bool:
        """Whether the body's end was read."""
        return self._left == 0 if self._chunks is None else self._chunks.is_done

    @property
    def is_ready(self) -> bool:
        """Whether `receive` would give something, or the end, at once."""
        return self.is_whole or self._connection.is_readable

    def receive_nowait(self) -> bytes | None:
        """The next bytes from those read ahead; b"" at the end; None when more must come from the client. Raises as
        `receive`."""
        while not self.is_whole and self._connection.unread:
            data = self._take(self._connection.take_unread())
            if data:
                return data
        return b"" if self.is_whole else None

    async def receive(self) -> bytes:
        """The next bytes; b"" at the end. A checkpoint when it waits for the client.

        Raises ClientLeft, and for chunks that make no sense BadRequest and HeadTooLarge.
        """
        while not self.is_whole:
            data = self._take(self._connection.take_unread() or await self._receive_more())
            if data:
                return data
        return b""

    def skip_rest(self) -> bool:
        """Takes what is left of the body from what was read ahead, without waiting. Whether that was all: else
        nobody can tell where the next request begins."""
        with suppress(OverlaydError):
            while not self.is_whole and not self._is_broken and self._connection.unread:
                self._take(self._connection.take_unread())
        return self.is_whole and not self._is_broken

    def _take(self, data: bytes) -> bytes:
        connection = self._connection
        if self._chunks is not None:
            self._is_broken = True
            taken = self._chunks.feed(data)
            self._is_broken = False
            connection.unread += self._chunks.rest
            return taken
        if len(data) > self._left:
            connection.unread += data[self._left :]
            data = data[: self._left]
        self._left -= len(data)
        return data

    async def _receive_more(self) -> bytes:
        """Waits for the client, who may be waiting to be asked: that is done only now, when a route wants the body."""
        try:
            if self._is_awaited:
                self._is_awaited = False
                await self._connection.send(_CONTINUE)
            data = await self._connection.receive()
        except trio.BrokenResourceError as err:
            raise ClientLeft from err
        if not data:
            raise ClientLeft
        return data

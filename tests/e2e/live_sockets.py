"""WebSockets to a node as a process, closed for good whatever the node does with them."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import trio
from trio_websocket import ConnectionRejected, HandshakeError, WebSocketConnection, wrap_client_stream

CLOSE_S = 1.0


class Refused(Exception):
    """The node refused the handshake. `status`: of its answer, 0 without one."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@asynccontextmanager
async def open_socket(url: str, headers: Mapping[str, str]) -> AsyncIterator[WebSocketConnection]:
    """A WebSocket to `http://HOST:PORT/…`. Raises Refused.

    trio-websocket's own way to open one leaves the socket of a refused connection to the garbage collector, and puts
    what the block raises into groups.
    """
    host, _, resource = url.removeprefix("http://").partition("/")
    name, port = host.split(":")
    named = [(key.encode(), value.encode()) for key, value in headers.items()]
    try:
        async with await trio.open_tcp_stream(name, int(port)) as stream, trio.open_nursery() as nursery:
            connection = await wrap_client_stream(nursery, stream, host, f"/{resource}", extra_headers=named)
            try:
                yield connection
            finally:
                with trio.move_on_after(CLOSE_S):
                    await connection.aclose()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        trouble: BaseException = group
        while isinstance(trouble, BaseExceptionGroup):
            trouble = trouble.exceptions[0]
        if isinstance(trouble, HandshakeError):
            trouble = Refused(trouble.status_code if isinstance(trouble, ConnectionRejected) else 0)
        raise trouble from None

"""An edge that speaks TLS, and clients for it."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from net_rig import Edge, RawClient, open_edge
from tls_authority import Authority

from overlayd.net.settings import ListenSettings, TlsListener


class TlsEdge:
    """A running edge with its authority. `settings` are those of its only TCP listener."""

    def __init__(self, edge: Edge, authority: Authority, settings: TlsListener) -> None:
        self.edge = edge
        self.authority = authority
        self.settings = settings
        self._streams: list[trio.SocketStream] = []

    async def connect_raw(self) -> trio.SocketStream:
        """A connection that has said nothing yet."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.edge.tls_port)
        self._streams.append(stream)
        return stream

    async def shake_hands(self, context: ssl.SSLContext | None = None) -> "trio.SSLStream[trio.SocketStream]":
        """A connection after its handshake."""
        stream = trio.SSLStream(
            await self.connect_raw(), context or self.authority.client_context(), server_hostname="localhost",
            https_compatible=True,
        )  # fmt: skip
        await stream.do_handshake()
        return stream

    async def connect(self, context: ssl.SSLContext | None = None) -> RawClient:
        """A client that sends what it is told to, encrypted."""
        return RawClient(await self.shake_hands(context))  # type: ignore[arg-type]

    def failures(self, reason: str) -> float:
        return self.edge.count("overlayd_net_opening_failures_total", reason=reason)

    def close(self) -> None:
        for stream in self._streams:
            stream.socket.close()


@asynccontextmanager
async def open_tls_edge(
    directory: Path, *, tls: dict[str, Any] | None = None, listen: dict[str, Any] | None = None, is_rsa: bool = False,
    **options: Any,
) -> AsyncIterator[TlsEdge]:  # fmt: skip
    """`tls`: settings of the listener; `listen`: of all of them."""
    authority = Authority(directory)
    certificate = authority.issue("node", is_rsa=is_rsa)
    settings = TlsListener(address="127.0.0.1:0", cert=str(certificate), **(tls or {}))
    async with open_edge(
        directory, settings=ListenSettings(tcp=(), tls=(settings,), **(listen or {})), **options
    ) as edge:
        tls_edge = TlsEdge(edge, authority, settings)
        try:
            yield tls_edge
        finally:
            tls_edge.close()

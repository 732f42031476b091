"""The wire tests over TLS: with OVERLAYD_TESTS_TLS=1 their nodes speak it, and their clients too.

`OVERLAYD_TESTS_TLS=1 make test`, or pytest on tests/net and tests/hostile. Tests about clear text itself skip then.
"""

import os
import ssl
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import msgspec
import pytest
import trio
import trio_websocket
from tls_authority import Authority

from overlayd.net.settings import ListenSettings, TlsListener

IS_WANTED = os.environ.get("OVERLAYD_TESTS_TLS") == "1"
in_clear_text = pytest.mark.skipif(IS_WANTED, reason="about clear text")
"""Marks a test that makes no sense over TLS."""


@cache
def files() -> tuple[Authority, str]:
    """One authority for the whole run, and the node's certificate."""
    authority = Authority(Path(mkdtemp(prefix="overlayd-tls-")))
    return authority, str(authority.issue("node"))


def secured(settings: ListenSettings) -> ListenSettings:
    """The same listeners, with TLS in place of clear text, when that is wanted."""
    if not IS_WANTED or settings.tls or settings.plain or settings.tcp != ("127.0.0.1:0",):
        return settings
    listener = TlsListener(address="127.0.0.1:0", cert=files()[1])
    return msgspec.structs.replace(settings, tcp=(), tls=(listener,))


class SecureStream(trio.abc.HalfCloseableStream):
    """A client's TLS that looks like the socket stream under it."""

    def __init__(self, stream: "trio.SSLStream[trio.SocketStream]") -> None:
        self._stream = stream

    @property
    def socket(self) -> trio.socket.SocketType:
        return self._stream.transport_stream.socket

    def setsockopt(self, *arguments: Any) -> None:
        self.socket.setsockopt(*arguments)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    async def send_eof(self) -> None:
        """Says goodbye in TLS and goes on reading."""
        with suppress(ssl.SSLError):
            self._stream._ssl_object.unwrap()
        await self._stream.transport_stream.send_all(self._stream._outgoing.read())
        await self._stream.transport_stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.transport_stream.aclose()


async def connect(port: int) -> trio.SocketStream:
    """A connection as a client of the run has it."""
    plain = await trio.open_tcp_stream("127.0.0.1", port)
    if not IS_WANTED:
        return plain
    context = files()[0].client_context()
    stream = trio.SSLStream(plain, context, server_hostname="localhost", https_compatible=True)
    try:
        await stream.do_handshake()
    except trio.BrokenResourceError:
        plain.socket.close()
        raise
    return SecureStream(stream)  # type: ignore[return-value]  # looks like one


def open_websocket(url: str, **options: Any) -> Any:
    """As trio-websocket's `open_websocket_url`, by the run's transport. `url` begins with ws://."""
    if not IS_WANTED:
        return trio_websocket.open_websocket_url(url, **options)
    context = files()[0].client_context()
    return trio_websocket.open_websocket_url(url.replace("ws://", "wss://"), ssl_context=context, **options)

"""Bytes that brought servers down, against the real port. After each one a healthy client still works."""

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing
from net_rig import Edge, RawClient, open_edge
from real_waiting import PATIENCE_S

WAYS = ("lane", "Unix", "TLS")

UPGRADE = b"Host: localhost\r\nConnection: Upgrade\r\nUpgrade: "
WEBSOCKET = UPGRADE + b"websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
POST_CHUNKED = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"

RAW = {
    "a stray byte behind a WebSocket handshake": b"GET /v1/live HTTP/1.1\r\n" + WEBSOCKET + b"X",
    "a stray byte behind a handshake elsewhere": b"GET /healthz HTTP/1.1\r\n" + WEBSOCKET + b"X",
    "HTTP/2 with a path that isn't ASCII": (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
        b"\x00\x00\x0b\x01\x05\x00\x00\x00\x01\x82\x86\x44\x06/\xff\xfe\xfd\xfc\xfb"
    ),
    "an h2c upgrade with settings that aren't base64": (
        b"GET /healthz HTTP/1.1\r\n" + UPGRADE + b"h2c\r\nHTTP2-Settings: !!!\r\n\r\n"
    ),
    "a path that isn't ASCII": b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a path with a broken percent code": b"GET /%zz%f HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a target without a path": b"GET ?a HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an empty target": b"GET  HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
    "zero bytes": b"\x00" * 10_000,
    "line ends": b"\r\n" * 5_000,
    "a chunk size that isn't one": POST_CHUNKED + b"zz\r\nabc\r\n0\r\n\r\n",
    "a negative chunk size": POST_CHUNKED + b"-1\r\nabc\r\n0\r\n\r\n",
    "a chunk size without end": POST_CHUNKED + b"f" * 100_000,
    "a chunk that is longer than it says": POST_CHUNKED + b"2\r\nabcdef\r\n0\r\n\r\n",
    "endless trailers": POST_CHUNKED + b"0\r\n" + b"X: y\r\n" * 50_000,
    "a chunk extension without end": POST_CHUNKED + b"1;" + b"x" * 100_000,
    "a body that ends early": b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc",
    "a second request in the first one's body": (
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\nGET /crash HTTP/1.1\r\nHost: localhost\r\n\r\n"
    ),
    "a thousand headers": b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 1000 + b"\r\n",
    "a header of a megabyte": b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"b" * 1_000_000,
    "a megabyte of request line": b"GET /" + b"a" * 1_000_000,
    "a thousand pipelined requests": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000,
    "a binary cookie": b"GET /echo HTTP/1.1\r\nHost: localhost\r\nCookie: \xff\xfe\xfd; a=\x80\r\n\r\n",
    "a content type from outer space": (
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: \xe9/;;;=\"\r\nContent-Length: 1\r\n\r\nx"
    ),
    "a content length of 2^64": b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 18446744073709551616\r\n\r\n",
    "an expectation nobody knows": b"GET /echo HTTP/1.1\r\nHost: localhost\r\nExpect: the-unexpected\r\n\r\n",
    "CONNECT": b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
}  # fmt: skip


async def assert_healthy(edge: Edge) -> None:
    """A client with good manners gets its answers, and no connection has crashed."""
    async with await edge.connect() as client:
        assert (await client.request("GET", "/healthz")).status == 200
        assert (await client.request("POST", "/echo", b"abc")).json["body"] == "abc"
    assert edge.count("overlayd_net_connection_crashes_total") == 0


@pytest.mark.parametrize("raw", RAW.values(), ids=RAW.keys())
async def test_hostile_bytes(edge: Edge, raw: bytes) -> None:
    """The connection is answered or ends; nobody else notices."""
    async with await edge.connect() as client:
        with suppress(trio.BrokenResourceError):
            await client.send(raw)
            await client.stream.send_eof()
        with trio.fail_after(PATIENCE_S):
            await client.read_rest()
    await assert_healthy(edge)
    with trio.fail_after(PATIENCE_S):
        await edge.wait_connections()


@pytest.mark.parametrize("raw", RAW.values(), ids=RAW.keys())
async def test_hostile_bytes_and_reset(edge: Edge, raw: bytes) -> None:
    """The same bytes from a client that resets the connection at once."""
    client = await edge.connect()
    with suppress(trio.BrokenResourceError):
        await client.send(raw)
    client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await trio.aclose_forcefully(client.stream)
    await assert_healthy(edge)
    with trio.fail_after(PATIENCE_S):
        await edge.wait_connections()


async def test_all_at_once(edge: Edge) -> None:
    """All of them together, while a healthy client goes on."""
    clients: list[RawClient] = []

    async def attack(raw: bytes) -> None:
        client = await edge.connect()
        clients.append(client)
        with suppress(trio.BrokenResourceError):
            await client.send(raw)
            await client.read_rest()

    async with trio.open_nursery() as nursery:
        for raw in RAW.values():
            nursery.start_soon(attack, raw)
        for _ in range(20):
            await assert_healthy(edge)
        nursery.cancel_scope.cancel()


async def never_reads(edge: Edge, path: bytes) -> None:
    """A client that asks for an endless or large answer and reads nothing of it."""
    client = await edge.connect()
    client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await client.send(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")


async def never_ends_its_head(edge: Edge, path: bytes) -> None:
    """A client that sends half a head."""
    client = await edge.connect()
    await client.send(b"GET " + path + b" HTTP/1.1\r\nHost: loc")


async def never_sends_its_body(edge: Edge, path: bytes) -> None:
    """A client that announces a body and sends a part."""
    client = await edge.connect()
    await client.send(b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")


async def never_says_anything(edge: Edge, path: bytes) -> None:
    """A client that connects."""
    await edge.connect()


@pytest.mark.parametrize(
    ("attack", "path"),
    [(never_reads, b"/flood"), (never_reads, b"/big?bytes=30000000"), (never_ends_its_head, b"/echo"),
     (never_sends_its_body, b"/timed"), (never_says_anything, b"")],
)  # fmt: skip
async def test_slowness(
    tmp_path: Path, patient_clock: trio.testing.MockClock, attack: Callable[[Edge, bytes], Awaitable[None]], path: bytes
) -> None:
    """Slow clients by the dozen hold no place, and are all gone after their time."""
    async with open_edge(tmp_path) as edge:
        for _ in range(12):
            await attack(edge, path)
        await assert_healthy(edge)
        await edge.wait_connections()
        await assert_healthy(edge)
        assert trio.current_time() < 200

"""TLS as a PushStream: nothing is lost, repeated or reordered, whoever is cancelled when."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from tls_authority import Authority
from trio.testing import wait_all_tasks_blocked

from overlayd.model.clock import SystemClock
from overlayd.model.push_stream import PushStream, SocketPushStream
from overlayd.net.connection import Link
from overlayd.net.settings import TlsListener
from overlayd.net.tls import make_context
from overlayd.net.tls_stream import TlsStream

CHUNK = bytes(range(256)) * 1024
Client = trio.SSLStream[trio.SocketStream]


@asynccontextmanager
async def open_pair(
    directory: Path, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> AsyncIterator[tuple[TlsStream, Client]]:
    """The stream under test over a socket with small buffers, and its peer, after the handshake."""
    authority = Authority(directory)
    context, _ = make_context(TlsListener(address="", cert=str(authority.issue("node"))), SystemClock())
    ours, theirs = trio.socket.socketpair()
    for sock in (ours, theirs):
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, 16 << 10)
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 16 << 10)
    theirs_context = authority.client_context()
    theirs_context.maximum_version = version
    client = trio.SSLStream(trio.SocketStream(theirs), theirs_context, server_hostname="localhost")
    stream = TlsStream(SocketPushStream(ours), context, b"")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.do_handshake)
        while not stream.step():
            await stream.exchange()
        await stream.send_produced()
    try:
        yield stream, client
    finally:
        stream.abort()
        theirs.close()


async def receive_exactly(peer: Client, count: int) -> bytes:
    """So many bytes, or what came before the end."""
    data = b""
    while len(data) < count:
        more = await peer.receive_some(count - len(data))
        if not more:
            break
        data += bytes(more)
    return data


async def test_what_the_kernel_does_not_take_is_the_tail(tmp_path: Path) -> None:
    """A write takes no time; its rest goes out with `flush`, byte for byte, behind it what comes later."""
    async with open_pair(tmp_path) as (stream, client):
        checked: PushStream = stream
        also: Link = stream
        assert checked.write_now(b"first") == 0
        assert also.write_now(CHUNK) == stream.unsent > 0
        with pytest.raises(AssertionError, match="tail"):
            stream.write_now(b"x")
        moved = stream.wire_bytes_moved
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.flush)
            assert await receive_exactly(client, 5 + len(CHUNK)) == b"first" + CHUNK
        assert stream.unsent == 0
        assert stream.wire_bytes_moved > moved
        assert stream.write_now(b"") == 0
        await stream.send_all(b"last")
        assert await receive_exactly(client, 4) == b"last"


async def test_writers_keep_their_order(tmp_path: Path) -> None:
    """Writes that wait go out whole, behind the tail and one behind the other."""
    async with open_pair(tmp_path) as (stream, client):
        stream.write_now(CHUNK)
        async with trio.open_nursery() as nursery:
            for letter in b"abc":
                nursery.start_soon(stream.send_all, bytes((letter,)) * 50_000)
            await wait_all_tasks_blocked()
            assert await receive_exactly(client, len(CHUNK)) == CHUNK
            rest = await receive_exactly(client, 150_000)
        letters = [rest[at : at + 50_000] for at in range(0, 150_000, 50_000)]
        assert sorted(letters) == [bytes((letter,)) * 50_000 for letter in b"abc"]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_cancelled_send_leaves_whole_records(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """A send that was begun is finished by whoever writes next: the peer can decrypt all of it."""
    async with open_pair(tmp_path, version) as (stream, client):
        with trio.move_on_after(0):
            await stream.send_all(CHUNK)
        assert stream.unsent
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, b"end")
            assert await receive_exactly(client, len(CHUNK) + 3) == CHUNK + b"end"


async def test_reads_give_what_was_written(tmp_path: Path) -> None:
    """In pieces of any size, with a look at what is there already, to the peer's goodbye."""
    async with open_pair(tmp_path) as (stream, client):
        assert not stream.has_bytes
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, CHUNK)
            data = b""
            while len(data) < len(CHUNK):
                piece = await stream.receive_some(1000)
                assert 0 < len(piece) <= 1000
                data += piece
                if not len(data) % 7:
                    assert stream.has_bytes in (True, False)
        assert data == CHUNK
        await client.send_all(b"abc")
        assert stream.has_bytes
        assert stream.has_bytes
        assert await stream.receive_some(2) == b"ab"
        assert await stream.receive_some(2) == b"c"
        with trio.move_on_after(0.01):
            await client.aclose()
        assert stream.has_bytes
        assert await stream.receive_some(10) == b""
        assert await stream.receive_some(10) == b""


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_reads_that_do_not_wait_find_all_that_is_here(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """A read gives None while no whole record is here, however its bytes are split; as long as it `holds_bytes`, or gave
    all that was asked for, there may be more; then the kernel tells. The peer's goodbye is b""."""
    async with open_pair(tmp_path, version) as (stream, client):
        link: Link = stream
        while link.read_now(100) is not None:
            pass
        records = seal(client, b"abc") + seal(client, b"defg") + seal(client, CHUNK[:40_000])
        raw = client.transport_stream
        data = b""
        for at in (*range(60), *range(60, len(records), 7_777)):
            step = 1 if at < 60 else 7_777
            await raw.send_all(records[at : at + step])
            data += drain(link)
        assert data == b"abcdefg" + CHUNK[:40_000]
        await raw.send_all(seal(client, b"xyz"))
        assert link.read_now(2) == b"xy"
        assert link.holds_bytes
        assert link.has_bytes
        assert link.read_now(2) == b"z"
        assert not link.holds_bytes
        await raw.send_all(seal(client, b"one") + seal(client, b"two"))
        assert link.read_now(10) == b"one"
        assert link.holds_bytes, "the kernel won't tell of what was read along"
        assert link.read_now(10) == b"two"
        await raw.send_all(seal(client, b"last"))
        await raw.send_eof()
        assert drain(link) == b"last"
        assert link.read_now(10) == b""
        stream.abort()
        with pytest.raises(trio.BrokenResourceError):
            link.read_now(10)


async def test_what_came_along_with_the_handshake_is_not_forgotten(tmp_path: Path) -> None:
    """A client's first request may lie in the same segment as the end of its handshake: nobody else tells of it."""
    authority = Authority(tmp_path)
    context, _ = make_context(TlsListener(address="", cert=str(authority.issue("node"))), SystemClock())
    ours, theirs = trio.socket.socketpair()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = authority.client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    stream = TlsStream(SocketPushStream(ours), context, b"")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    await theirs.send(outgoing.read())
    assert not stream.step()
    assert await stream.exchange()
    assert not stream.step()
    await stream.send_produced()
    incoming.write(await theirs.recv(1 << 16))
    client.do_handshake()
    client.write(b"GET / HTTP/1.1")
    await theirs.send(outgoing.read())
    assert await stream.exchange()
    assert stream.step()
    assert stream.holds_bytes
    assert stream.read_now(100) == b"GET / HTTP/1.1"
    assert stream.read_now(100) is None
    stream.abort()
    theirs.close()


async def test_a_read_that_does_not_wait_refuses_what_is_not_tls(tmp_path: Path) -> None:
    """Clear text in the middle of a session breaks it, here as in a read that waits."""
    async with open_pair(tmp_path) as (stream, client):
        drain(stream)
        await client.transport_stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(trio.BrokenResourceError):
            drain(stream)


def seal(client: Client, data: bytes) -> bytes:
    """One record from the client."""
    client._ssl_object.write(data)
    return client._outgoing.read()


def drain(link: Link) -> bytes:
    """As the turnstile reads: until nothing says that there may be more."""
    data = b""
    while piece := link.read_now(1000):
        data += piece
        if len(piece) < 1000 and not link.holds_bytes:
            break
    return data


async def test_both_ways_at_once(tmp_path: Path) -> None:
    """A stream that is written while it is read mixes nothing up."""
    async with open_pair(tmp_path) as (stream, client):

        async def read_all(from_: TlsStream | Client, count: int) -> None:
            data = b""
            while len(data) < count:
                data += bytes(await from_.receive_some(65536))
            assert data == CHUNK * 4

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, CHUNK * 4)
            nursery.start_soon(client.send_all, CHUNK * 4)
            nursery.start_soon(read_all, stream, len(CHUNK) * 4)
            nursery.start_soon(read_all, client, len(CHUNK) * 4)


async def test_an_abort_wakes_everybody(tmp_path: Path) -> None:
    """Closing on this side ends reads, flushes and sends with BrokenResourceError; so does every call after it."""
    async with open_pair(tmp_path) as (stream, _):
        stream.write_now(CHUNK)
        ended = []

        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "read": stream.receive_some, "flush": stream.flush, "send": partial(stream.send_all, b"x"),
        }  # fmt: skip

        async def expect_end(name: str) -> None:
            with pytest.raises(trio.BrokenResourceError):
                await calls[name]()
            ended.append(name)

        async with trio.open_nursery() as nursery:
            for name in ("read", "flush", "flush", "send"):
                nursery.start_soon(expect_end, name)
            await wait_all_tasks_blocked()
            stream.abort()
            stream.abort()
        assert sorted(ended) == ["flush", "flush", "read", "send"]
        with pytest.raises(trio.BrokenResourceError):
            stream.write_now(b"x")
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert stream.unsent == 0


async def test_after_our_goodbye(tmp_path: Path) -> None:
    """Nothing can be written any more; the peer's bytes still come."""
    async with open_pair(tmp_path) as (stream, client):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_eof)
            assert await receive_exactly(client, 1) == b""
        with pytest.raises(trio.BrokenResourceError):
            stream.write_now(b"x")


async def test_every_public_call_is_a_checkpoint(tmp_path: Path) -> None:
    """Also those that find everything done already: a loop of them can't freeze the process."""
    async with open_pair(tmp_path) as (stream, client):
        with trio.testing.assert_checkpoints():
            await stream.flush()
        with trio.testing.assert_checkpoints():
            await stream.send_all(b"x")
        await client.send_all(b"ab")
        await stream.receive_some(1)
        with trio.testing.assert_checkpoints():
            await stream.receive_some(1)
        with trio.testing.assert_checkpoints():
            await stream.aclose()

"""Streams that are written without waiting: nothing is lost, repeated or reordered, whoever is cancelled when."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from overlayd.model.push_stream import PushStream, SocketPushStream

CHUNK = bytes(range(256)) * 1024


@asynccontextmanager
async def open_pair(family: str = "unix") -> AsyncIterator[tuple[SocketPushStream, trio.SocketStream]]:
    """The stream under test with small buffers, and its peer."""
    if family == "unix":
        ours, theirs = trio.socket.socketpair()
    else:
        with trio.socket.socket() as listener:
            await listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            theirs = trio.socket.socket()
            await theirs.connect(listener.getsockname())
            ours, _ = await listener.accept()
    for sock in (ours, theirs):
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, 16 << 10)
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 16 << 10)
    stream = SocketPushStream(ours)
    try:
        yield stream, trio.SocketStream(theirs)
    finally:
        stream.abort()
        theirs.close()


async def receive_exactly(peer: trio.SocketStream, count: int) -> bytes:
    """So many bytes, or what came before the end."""
    data = b""
    while len(data) < count:
        more = await peer.receive_some(count - len(data))
        if not more:
            break
        data += bytes(more)
    return data


@pytest.mark.parametrize("family", ["unix", "tcp"])
async def test_what_the_kernel_does_not_take_is_the_tail(family: str) -> None:
    """A write takes no time; its rest goes out with `flush`, byte for byte."""
    async with open_pair(family) as (stream, peer):
        checked: PushStream = stream
        unsent = checked.write_now(CHUNK)
        assert 0 < unsent < len(CHUNK)
        assert stream.unsent == unsent
        with pytest.raises(AssertionError, match="tail"):
            stream.write_now(b"x")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.flush)
            assert await receive_exactly(peer, len(CHUNK)) == CHUNK
        assert stream.unsent == 0
        assert stream.write_now(b"x") == 0


async def test_writers_keep_their_order() -> None:
    """Writes that wait go out whole, behind the tail and one behind the other."""
    async with open_pair() as (stream, peer):
        stream.write_now(CHUNK)
        async with trio.open_nursery() as nursery:
            for letter in b"abc":
                nursery.start_soon(stream.send_all, bytes((letter,)) * 50_000)
            await wait_all_tasks_blocked()
            assert await receive_exactly(peer, len(CHUNK)) == CHUNK
            rest = await receive_exactly(peer, 150_000)
        letters = [rest[at : at + 50_000] for at in range(0, 150_000, 50_000)]
        assert sorted(letters) == [bytes((letter,)) * 50_000 for letter in b"abc"]


async def test_a_cancelled_flush_hands_over() -> None:
    """The task that pushes the tail may be cancelled: another one that waits goes on, and no byte is lost."""
    async with open_pair() as (stream, peer):
        stream.write_now(CHUNK)
        first = trio.CancelScope()

        async def impatient() -> None:
            with first:
                await stream.flush()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(impatient)
            await wait_all_tasks_blocked()
            nursery.start_soon(stream.flush)
            await wait_all_tasks_blocked()
            first.cancel()
            await wait_all_tasks_blocked()
            assert await receive_exactly(peer, len(CHUNK)) == CHUNK
        assert stream.unsent == 0


async def test_a_cancelled_send_leaves_a_tail() -> None:
    """A send that was begun is finished by whoever writes next."""
    async with open_pair() as (stream, peer):
        with trio.move_on_after(0):
            await stream.send_all(CHUNK)
        assert stream.unsent
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, b"end")
            assert await receive_exactly(peer, len(CHUNK) + 3) == CHUNK + b"end"


async def test_an_abort_wakes_everybody() -> None:
    """Closing on this side ends reads, flushes and sends with BrokenResourceError; so does every call after it."""
    async with open_pair() as (stream, _):
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
        assert stream.unsent == 0


async def test_a_peer_that_left() -> None:
    """A peer that is gone shows as the end of input, then as BrokenResourceError."""
    async with open_pair() as (stream, peer):
        await peer.aclose()
        assert await stream.receive_some() == b""
        with pytest.raises(trio.BrokenResourceError):
            stream.write_now(CHUNK)


@pytest.mark.parametrize("family", ["unix", "tcp"])
async def test_moved_bytes_tell_who_is_alive(family: str) -> None:
    """The counter stands still while the peer takes and sends nothing, and changes when it does either."""
    async with open_pair(family) as (stream, peer):
        stream.write_now(CHUNK)
        before = stream.wire_bytes_moved
        assert stream.wire_bytes_moved == before
        await peer.send_all(b"hello")
        assert await stream.receive_some() == b"hello"
        after = stream.wire_bytes_moved
        assert after != before
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.flush)
            await receive_exactly(peer, 100_000)
            nursery.cancel_scope.cancel()
        assert stream.wire_bytes_moved != after

"""Compression: what is negotiated, that frames are compressed once for all, and that nothing inflates without end."""

import gzip
import zlib
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from push_pair import MemoryPeer, push_pair
from socket_harness import ANYBODY, Node
from test_delivery_socket_limits import handshake, hits
from trio.testing import MockClock, wait_all_tasks_blocked

from overlayd.delivery import frames
from overlayd.delivery.deflate import GZIP_HEAD, deflate_message, gzip_end, gzip_part, negotiate
from overlayd.model.limits import Limits
from overlayd.model.units import Size
from overlayd.net.head import parse_head

AGREED = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
SYNC = b"\x00\x00\xff\xff"


@pytest.mark.parametrize(
    ("offers", "answer"),
    [
        ("permessage-deflate", AGREED),
        ("permessage-deflate; client_max_window_bits", AGREED),
        ("permessage-deflate; client_max_window_bits=10", AGREED),
        ("permessage-deflate;server_no_context_takeover ; client_no_context_takeover", AGREED),
        ("permessage-deflate; server_max_window_bits=15", AGREED + "; server_max_window_bits=15"),
        ('permessage-deflate; server_max_window_bits="15"', AGREED + "; server_max_window_bits=15"),
        ("permessage-deflate; server_max_window_bits=10", None),
        ("permessage-deflate; server_max_window_bits=10, permessage-deflate", AGREED),
        ("permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; client_max_window_bits=7", None),
        ("permessage-deflate; client_max_window_bits=16", None),
        ("permessage-deflate; client_max_window_bits=ten", None),
        ("permessage-deflate; server_no_context_takeover=1", None),
        ("permessage-deflate; server_no_context_takeover; server_no_context_takeover", None),
        ("permessage-deflate; unknown", None),
        ("permessage-deflate; ", None),
        ("x-webkit-deflate-frame", None),
        ("permessage-bzip2, permessage-deflate", AGREED),
        ("", None),
    ],
)
def test_negotiation(offers: str, answer: str | None) -> None:
    """The first offer that can be honored is taken, in the one form that lets frames be shared; others are declined."""
    assert negotiate(offers) == answer


@given(st.lists(st.binary(max_size=3000) | st.integers(0, 200_000).map(lambda n: b"ab" * n), max_size=6))
def test_parts_of_gzip_are_a_whole(parts: list[bytes]) -> None:
    """Parts that were compressed each by itself, short, long or empty, decode as one file with the right sum."""
    plain = b"".join(parts)
    packed = GZIP_HEAD + b"".join(map(gzip_part, parts)) + gzip_end(zlib.crc32(plain), len(plain))
    assert gzip.decompress(packed) == plain


@given(st.binary(min_size=512, max_size=5000))
def test_a_message_inflates_by_itself(text: bytes) -> None:
    """Each compressed message needs nothing of those before it."""
    packed = deflate_message(text)
    assert packed is not None
    assert zlib.decompressobj(-15).decompress(packed + SYNC) == text


def test_short_and_long_messages_go_as_they_are() -> None:
    """What hardly shrinks, or would hold up the event loop, isn't compressed."""
    assert deflate_message(b"x" * 511) is None
    assert deflate_message(b"x" * (129 << 10)) is None


class Deflating:
    """A client that agreed on compression and inflates with zlib."""

    def __init__(self, peer: MemoryPeer) -> None:
        self.peer = peer
        self.data = bytearray()
        self.compressed = 0

    async def exactly(self, count: int) -> bytes:
        while len(self.data) < count:
            more = await self.peer.receive_some(65536)
            assert more
            self.data += more
        data = bytes(self.data[:count])
        del self.data[:count]
        return data

    async def begin(self, node: Node, nursery: trio.Nursery, query: str, offer: str = "permessage-deflate") -> None:
        head = handshake(query)[:-2] + f"sec-websocket-extensions: {offer}\r\n\r\n".encode()
        await self.peer.send_all(head)
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += await self.exactly(1)
        assert f"sec-websocket-extensions: {AGREED}\r\n".encode() in answer

    async def frame(self) -> tuple[int, bytes]:
        first, size = await self.exactly(2)
        if size > 125:
            size = int.from_bytes(await self.exactly(2 if size == 126 else 8), "big")
        return first, await self.exactly(size)

    async def message(self) -> Any:
        first, text = await self.frame()
        if first & 0x40:
            self.compressed += 1
            text = zlib.decompressobj(-15).decompress(text + SYNC)
        return msgspec.json.decode(text)

    async def send(self, payload: bytes, first: int = 0xC1) -> None:
        size = len(payload)
        head = bytes((first, 0x80 | size)) if size < 126 else bytes((first, 0xFE)) + size.to_bytes(2, "big")
        await self.peer.send_all(head + bytes(4) + payload)


def pack(text: bytes, bits: int = 15) -> bytes:
    """As a client compresses a message."""
    compressor = zlib.compressobj(wbits=-bits)
    return (compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(SYNC)


async def open_deflating(node: Node, nursery: trio.Nursery, query: str = "") -> Deflating:
    """A client that has agreed."""
    theirs, ours = push_pair(1 << 20)
    nursery.start_soon(node.serve, ours)
    client = Deflating(theirs)
    await client.begin(node, nursery, query)
    assert (await client.message())["type"] == "welcome"
    return client


async def test_frames_are_compressed_once(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty clients inflate the same compressed frame; short messages come as they are; live and replay alike."""
    node, counted = Node(), []

    def counting(text: bytes) -> bytes | None:
        counted.append(text)
        return deflate_message(text)

    monkeypatch.setattr(frames, "deflate_message", counting)
    node.log.add("a", "old" * 300)
    async with node.run(), trio.open_nursery() as nursery:
        clients = [await open_deflating(node, nursery, "stream=a&from=beginning") for _ in range(20)]
        for client in clients:
            assert (await client.message())["type"] == "subscribed"
            assert (await client.message())["packet"]["data_payload"] == "old" * 300
        node.log.add("a", "new" * 300)
        node.log.add("a", 1)
        for client in clients:
            assert (await client.message())["packet"]["data_payload"] == "new" * 300
            assert (await client.message())["packet"]["data_payload"] == 1
            assert client.compressed == 3 - (len(counted[-1]) < 512)
        nursery.cancel_scope.cancel()
    assert len(counted) == 3


async def test_compressed_input(autojump_clock: MockClock) -> None:
    """Messages of the client are inflated, whole or in fragments, between others that aren't compressed."""
    node = Node()
    node.log.define("s")
    async with node.run(), trio.open_nursery() as nursery:
        client = await open_deflating(node, nursery)
        text = b'{"type":"publish","ref":1,"stream":"s","packets":[{"data":"' + b"x" * 5000 + b'"}]}'
        for bits in (15, 9):
            await client.send(pack(text, bits))
            assert (await client.message())["type"] == "receipt"
        packed = pack(text)
        await client.send(packed[:7], 0x41)
        await client.send(b"", 0x89)
        await client.send(packed[7:20], 0x00)
        await client.send(packed[20:], 0x80)
        assert (await client.frame())[0] == 0x8A
        assert (await client.message())["type"] == "receipt"
        await client.send(b'{"type":"ping"}', 0x81)
        assert (await client.message())["type"] == "heartbeat"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("payload", "first", "code"),
    [
        (pack(b"x" * 100_000_000), 0xC1, 1009),
        (b"\xff\xff\xff", 0xC1, 1007),
        (pack(b"x"), 0xC0, 1002),
        (b"x", 0xC9, 1002),
        (b"x", 0xA1, 1002),
        (pack(b"\xff\xfe"), 0xC1, 1007),
    ],
    ids=["a bomb", "no deflate", "a compressed continuation", "a compressed ping", "another bit", "no UTF-8"],
)
async def test_bad_compressed_input(autojump_clock: MockClock, payload: bytes, first: int, code: int) -> None:
    """A message that inflates beyond its limit, or isn't what its head says, closes that connection only."""
    node = Node(limits=Limits(message_bytes=Size(1 << 20)))
    async with node.run(), trio.open_nursery() as nursery:
        client = await open_deflating(node, nursery)
        for at in range(0, len(payload), 60_000):
            rest = payload[at : at + 60_000]
            is_last = at + 60_000 >= len(payload)
            await client.send(rest, (first if at == 0 else first & 0x30) & (0xFF if is_last else 0x7F))
        opcode, close = await client.frame()
        assert (opcode, int.from_bytes(close[:2], "big")) == (0x88, code)
        nursery.cancel_scope.cancel()
    assert (hits(node, "message_bytes") or 0) == (code == 1009)


async def test_without_agreement_nothing_is_compressed(autojump_clock: MockClock) -> None:
    """A client whose offer can't be honored is served without compression, and may not send any."""
    node = Node()
    theirs, ours = push_pair(1 << 20)
    async with node.run(), trio.open_nursery() as nursery:
        nursery.start_soon(node.serve, ours)
        offer = b"sec-websocket-extensions: permessage-deflate; server_max_window_bits=10\r\n\r\n"
        await theirs.send_all(handshake("stream=a")[:-2] + offer)
        node.log.add("a", "x" * 2000)
        await wait_all_tasks_blocked()
        answer = await theirs.receive_some(65536)
        assert b"sec-websocket-extensions" not in answer
        client = Deflating(theirs)
        await client.send(pack(b"{}"))
        answer = b""
        while b"\x88" not in answer:
            answer += await theirs.receive_some(65536)
        nursery.cancel_scope.cancel()


def test_the_key_is_answered() -> None:
    """The value that RFC 6455 gives as its example."""
    node = Node()
    accepted = node.sockets.accept(parse_head(handshake(), node.limits), ANYBODY)
    assert b"\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in accepted.answer

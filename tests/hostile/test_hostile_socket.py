"""WebSocket clients that break the framing, flood, or ask for what makes no sense, against the whole node."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from hostile_rig import HostileNode, open_hostile_node
from real_waiting import SOON_S

WAYS = ("lane", "Quart", "Unix", "TLS")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[HostileNode]:
    """A node with default limits."""
    async with open_hostile_node(tmp_path) as running:
        yield running


FRAMES = {
    "no mask": (b"\x81\x02{}", 1002),
    "a reserved bit": (b"\xc1\x80\0\0\0\0", 1002),
    "an unknown opcode": (b"\x83\x80\0\0\0\0", 1002),
    "a ping of 126 bytes": (b"\x89\xfe\x00\x7e\0\0\0\0" + b"x" * 126, 1002),
    "a ping in fragments": (b"\x09\x81\0\0\0\0x", 1002),
    "a continuation of nothing": (b"\x80\x81\0\0\0\0x", 1002),
    "a message inside a message": (b"\x01\x81\0\0\0\0x\x81\x81\0\0\0\0y", 1002),
    "bytes that aren't UTF-8": (b"\x81\x81\0\0\0\0\xff", 1007),
    "half a character at the end": (b"\x81\x82\0\0\0\0\xe2\x82", 1007),
    "half a surrogate pair": (b"\x81\x83\0\0\0\0\xed\xa0\x80", 1007),
    "a length over 2^63": (b"\x81\xff\x80" + bytes(7) + b"\0\0\0\0x", 1002),
    "a length longer than needed": (b"\x81\xfe\x00\x01\0\0\0\0x", 1002),
    "a close with half a code": (b"\x88\x81\0\0\0\0\x03", 1002),
    "a close with a code of its own": (b"\x88\x82\0\0\0\0\x03\xed", 1002),
    "a megabyte and more": (b"\x81\xff" + (1 << 21).to_bytes(8, "big") + b"\0\0\0\0" + b"x" * (1 << 21), 1009),
    "nine thousand fragments": (b"\x01\x81\0\0\0\0x" + b"\x00\x81\0\0\0\0x" * 9000, 1009),
}


async def test_frames_that_break_the_protocol(node: HostileNode) -> None:
    """Each is answered by a close frame that says why, and only that connection ends."""
    for name, (raw, code) in FRAMES.items():
        async with node.open_socket() as socket:
            with trio.fail_after(SOON_S):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_send_what_it_takes, socket.client.stream, raw)
                    assert await socket.read() == code, name
                    nursery.cancel_scope.cancel()
    await node.assert_healthy()


async def _send_what_it_takes(stream: trio.SocketStream, raw: bytes) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        await stream.send_all(raw)


MESSAGES = (
    b"", b"hello", b"[]", b"NaN", b'{"type":1}', b'{"type":"\\ud800"}', b'{"type":"zzz","ref":1180591620717411303424}',
    b'{"type":"ping","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b'{"type":"unsubscribe","id":"nothing"}',
    b'{"type":"subscribe","id":"a","streams":[["x"]]}', b'{"type":"subscribe","id":"a","after":1}',
    b'{"type":"subscribe","id":"a","heartbeat":1' + b"0" * 400 + b"}", b'{"type":"subscribe","id":""}',
    b'{"type":"publish","stream":"../x","packets":[]}', b'{"type":"publish","stream":"s","packets":[{"data":1e999}]}',
    b'{"type":"publish","stream":"s","packets":[{"data":{"a":1,"a":2}}]}',
    b'{"type":"publish","stream":"s","packets":[{"data":1}],"expected_sequence":' + str(1 << 200).encode() + b"}",
    b'{"type":"publish","stream":"s","packets":[' + b"[" * 100_000 + b"]" * 100_000 + b"]}",
)  # fmt: skip


async def test_messages_that_make_no_sense(node: HostileNode) -> None:
    """Each gets an error in its turn, on a session that goes on; nothing is appended."""
    async with node.open_socket() as socket:
        for message in MESSAGES:
            await socket.say(message)
            assert (await socket.read())["type"] == "error", message[:80]
        await socket.say({"type": "ping"})
        assert (await socket.read())["type"] == "heartbeat"
    assert node.parts.log.find_stream("s") is None
    await node.assert_healthy()


@pytest.mark.parametrize(
    "frame",
    [b"\x89\xfd\0\0\0\0" + b"x" * 125, b"\x8a\xfd\0\0\0\0" + b"x" * 125, b'\x81\x8f\0\0\0\0{"type":"ping"}', b"\x00\x80\0\0\0\0"],
    ids=["pings", "pongs", "questions", "empty fragments"],
)  # fmt: skip
async def test_floods(node: HostileNode, frame: bytes) -> None:
    """A client that sends without end and reads nothing holds up itself only."""
    async with node.open_socket() as socket:
        if frame[0] == 0:
            await socket.send_frame(1, b"", is_last=False)
        with trio.move_on_after(0.3):
            while True:
                await socket.client.send(frame * 500)
        await node.assert_healthy()


async def test_subscribing_and_unsubscribing_without_end(node: HostileNode) -> None:
    """Subscriptions that come and go leave nothing behind, and the limit on them holds meanwhile."""
    async with node.open_socket() as socket:
        for number in range(300):
            await socket.say({"type": "subscribe", "id": f"a{number % 70}", "streams": [f"x{number}"]})
            await socket.say({"type": "unsubscribe", "id": f"a{number % 70}"})
        for number in range(70):
            await socket.say({"type": "subscribe", "id": f"b{number}"})
        await socket.say({"type": "ping"})
        codes = []
        while (message := await socket.read())["type"] != "heartbeat":
            codes.append(message.get("code"))
        assert codes.count("limit.reached") >= 6
        assert len(node.parts.registry._by_pattern) <= 1
    await node.assert_healthy()

"""Bytes that brought servers down, where packets are posted: on the publish lane and on Quart, over every transport."""

import socket
import struct
from contextlib import suppress
from pathlib import Path

import trio
from hostile_rig import open_hostile_node
from net_rig import RawClient
from real_waiting import PATIENCE_S
from test_hostile_wire import RAW

WAYS = ("lane", "Quart", "Unix", "TLS")
PACKETS = b"/v1/streams/hostile/packets HTTP/1.1\r\nContent-Type: application/json"
PACKET = b'{"data":1}'
POST = b"POST " + PACKETS + b"\r\nHost: localhost\r\n"
OWN = {
    "a packet, then bytes of no request": POST + b"Content-Length: 10\r\n\r\n" + PACKET + b"\x00\xff" * 500,
    "a length that is shorter than the packet": POST + b"Content-Length: 9\r\n\r\n" + PACKET,
    "two lengths": POST + b"Content-Length: 10\r\nContent-Length: 11\r\n\r\n" + PACKET,
    "a length with a sign": POST + b"Content-Length: +10\r\n\r\n" + PACKET,
    "digits of another script": POST + "Content-Length: \u0661\u0660\r\n\r\n".encode() + PACKET,
    "a gzip bomb's beginning": POST + b"Content-Encoding: gzip\r\nContent-Length: 10\r\n\r\n\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03",
    "an encoding nobody knows": POST + b"Content-Encoding: x-evil\r\nContent-Length: 10\r\n\r\n" + PACKET,
    "nesting": POST + b"Content-Length: 200000\r\n\r\n" + b"[" * 200_000,
    "half a surrogate": POST + b"Content-Length: 17\r\n\r\n" + b'{"data":"\\ud800"}',
    "packets in a row": (POST + b"Content-Length: 10\r\n\r\n" + PACKET) * 50,
}  # fmt: skip
ALL = OWN | {
    name: raw.replace(b"/echo HTTP/1.1", PACKETS).replace(b"/healthz HTTP/1.1", PACKETS)
    for name, raw in RAW.items()
    if not name.startswith("a thousand pipelined")
}


def reset(client: RawClient) -> None:
    """Hangs up so that the peer is told of a reset."""
    client.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.stream.socket.close()


async def test_hostile_bytes_to_where_packets_are_posted(tmp_path: Path) -> None:
    """Whatever is sent, behind a packet that was taken or on a new connection, nothing crashes and others are served."""
    async with open_hostile_node(tmp_path) as node:
        for name, raw in ALL.items():
            for before in (b"", POST + b"Content-Length: 10\r\n\r\n" + PACKET):
                with trio.fail_after(PATIENCE_S):
                    async with await node.connect() as client:
                        with suppress(trio.BrokenResourceError):
                            await client.send(before + raw)
                            await client.stream.send_eof()
                            await client.read_rest()
            assert node.count("overlayd_net_connection_crashes_total") == 0, name
            assert node.count("overlayd_net_turnstile_crashes_total") == 0, name
        await node.assert_healthy()


async def test_hostile_bytes_and_resets_where_packets_are_posted(tmp_path: Path) -> None:
    """The same from clients that are gone before they could be answered, all at once."""
    async with open_hostile_node(tmp_path) as node:

        async def attack(raw: bytes) -> None:
            client = await node.connect()
            with trio.move_on_after(2), suppress(trio.BrokenResourceError):
                await client.send(raw)
            reset(client)

        async with trio.open_nursery() as nursery:
            for raw in ALL.values():
                nursery.start_soon(attack, raw)
        await node.assert_healthy()
        assert node.count("overlayd_net_turnstile_crashes_total") == 0

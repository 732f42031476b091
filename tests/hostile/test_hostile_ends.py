"""Clients that leave at every moment or don't let go, and directories that aren't what they should be."""

import socket
from pathlib import Path

import pytest
import trio
from hostile_rig import JSON, UPGRADE, HostileNode, open_hostile_node
from real_waiting import PATIENCE_S

from overlayd.model.errors import ConfigInvalid

WAYS = ("lane", "Quart", "TLS")

SHUTDOWN_S = 9.0
"""Less than `head_timeout`, which would end some of them as well."""
HOST = b"Host: localhost\r\n"


async def reset(node: HostileNode, raw: bytes, pauses: int) -> None:
    """Sends, lets the node take some steps, and cuts the connection."""
    client = await node.connect()
    await client.send(raw)
    for _ in range(pauses):
        await trio.lowlevel.checkpoint()
    client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await trio.aclose_forcefully(client.stream)


async def test_leaving_at_every_moment_of_a_publish(tmp_path: Path) -> None:
    """Whenever the client is cut off, its batch is in the log as a whole and once, or not at all; a repeat makes it
    so for all of them."""
    async with open_hostile_node(tmp_path) as node:
        batches = [b"[" + b",".join(b'{"id":"%d-%d","data":1}' % (at, n) for n in range(5)) + b"]" for at in range(80)]
        for at, body in enumerate(batches):
            head = b"POST /v1/streams/s/packets HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
            raw = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
            await reset(node, raw[: len(raw) - (at % 3 == 0)], at)
        known = await ids_of(node)
        assert all(count == 1 for count in known.values())
        assert all(sum(f"{at}-{n}" in known for n in range(5)) in (0, 5) for at in range(80))
        for body in batches:
            assert (await node.ask("POST", "/v1/streams/s/packets", body, Content_Type=JSON)).status in (200, 201)
        assert await ids_of(node) == {f"{at}-{n}": 1 for at in range(80) for n in range(5)}
        await node.assert_healthy()


async def ids_of(node: HostileNode) -> dict[str, int]:
    """How often each id is in the stream, whose sequences have no hole."""
    answer = await node.ask("GET", "/v1/streams/s/packets?limit=1000")
    packets = answer.json.get("packets", [])
    assert [packet["packet_sequence"] for packet in packets] == list(range(1, len(packets) + 1))
    ids = [packet["packet_id"] for packet in packets]
    return {one: ids.count(one) for one in ids}


async def test_shutdown_while_nobody_lets_go(tmp_path: Path) -> None:
    """Clients that read nothing, stop in the middle or never begin hold shutdown up for its grace and no longer."""
    held = []
    with trio.fail_after(PATIENCE_S) as scope:
        async with open_hostile_node(tmp_path, drain_timeout=0.3) as node:
            for number in range(20):
                body = b'{"data":"%s"}' % (b"x" * 50_000)
                assert (await node.ask("POST", "/v1/streams/s/packets", body, Content_Type=JSON)).status == 201, number
            for raw in (
                b"GET /v1/live?from=beginning HTTP/1.1\r\n" + HOST + b"Accept: text/event-stream\r\n\r\n",
                b"GET /v1/live?from=beginning HTTP/1.1\r\n" + HOST + b"Accept: application/x-ndjson\r\n\r\n",
                b"GET /v1/live?from=beginning HTTP/1.1\r\n" + UPGRADE + b"\r\n",
                b"GET /v1/streams/s/packets?limit=1000 HTTP/1.1\r\n" + HOST + b"\r\n",
                b"POST /v1/streams/s/packets HTTP/1.1\r\n" + HOST + b"Content-Length: 9\r\n\r\n{",
                b"POST /v1/streams/s/packets HTTP/1.1\r\n" + HOST + b"Content-Type: application/x-ndjson\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n5\r\n",
                b"GET / HT", b"",
            ):  # fmt: skip
                stream = socket.socket()
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                stream.connect(("127.0.0.1", node.port))
                stream.sendall(raw)
                held.append(stream)
            await node.assert_healthy()
            scope.deadline = trio.current_time() + SHUTDOWN_S
    for stream in held:
        stream.close()


@pytest.mark.parametrize("place", ["file", "file/below", "loop", "dangling", "lock", "keys/log.ed25519", "reserve"])
async def test_places_that_are_no_data_directory(tmp_path: Path, place: str) -> None:
    """A file, a broken link, or a directory where a file should be is told in one line that names it."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    directory = tmp_path / place
    if place in ("lock", "keys/log.ed25519", "reserve"):
        directory = tmp_path / "data"
        (directory / place).mkdir(parents=True)
    with pytest.raises(ConfigInvalid) as caught:
        async with open_hostile_node(directory):
            raise AssertionError
    assert str(tmp_path) in caught.value.detail

"""Clients that make the node hold much for little, or keep the room from others, against the whole node."""

import gc
import gzip
from pathlib import Path
from typing import Any

import pytest
import trio
from hostile_rig import JSON, open_hostile_node
from real_waiting import SOON_S

from overlayd.model.units import Size
from overlayd.pipeline.json_text import parse_json

WAYS = ("lane", "Quart", "TLS")

POST = b"POST /v1/streams/s/packets HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
NESTS = 40_000


@pytest.mark.parametrize("is_event", [False, True])
async def test_small_bodies_with_much_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_event: bool) -> None:
    """A kilobyte of gzip that decodes to a million little lists never has more than one packet of them in memory."""
    data = b'{"data":[' + b",".join([b"[]"] * NESTS) + b"]}"
    content_type = JSON
    if is_event:
        data = data[:-1] + b',"specversion":"1.0","id":"%d","source":"a","type":"b"}'
        content_type = "application/cloudevents-batch+json"
    packets = [data % at if is_event else data for at in range(12)]
    body = gzip.compress(b"[" + b",".join(packets) + b"]")
    most = 0

    def watching(raw: bytes, depth_max: int) -> Any:
        nonlocal most
        most = max(most, sum(type(one) is list and not one for one in gc.get_objects()))
        return parse_json(raw, depth_max)

    monkeypatch.setattr("overlayd.pipeline.decode.parse_json", watching)
    monkeypatch.setattr("overlayd.pipeline.cloudevents.parse_json", watching)
    async with open_hostile_node(tmp_path) as node:
        answer = await node.ask(
            "POST", "/v1/streams/s/packets", body, Content_Type=content_type, Content_Encoding="gzip"
        )
        assert (answer.status, answer.json["accepted"]) == (201, 12)
        assert most < 2 * NESTS
        await node.assert_healthy()


async def test_bodies_that_stop_keep_nobody_out(tmp_path: Path) -> None:
    """A few clients that stop in the middle of large bodies fill the common room; smaller bodies get in all the same,
    and the largest of the others is told why it was given up."""
    async with open_hostile_node(tmp_path, bodies_in_flight_bytes=Size(200_000)) as node:
        attackers = [await node.connect() for _ in range(4)]
        for at, client in enumerate(attackers):
            content_type = b"Content-Encoding: identity\r\n" if at % 2 else b""
            await client.send(POST + content_type + b"Content-Length: 900000\r\n\r\n" + b" " * (49_000 + at * 100))
        with trio.fail_after(SOON_S):
            while node.count("overlayd_bodies_in_flight_bytes") < 190_000:  # noqa: ASYNC110 - real sockets
                await trio.sleep(0.002)
            packet = b'{"data":"%s"}' % (b"x" * 20_000)
            answer = await node.ask("POST", "/v1/streams/s/packets", packet, Content_Type=JSON)
            assert answer.status == 201
            refused = await attackers[3].read_answer()
        assert (refused.status, refused.json["code"]) == (503, "intake.busy")
        assert node.count("overlayd_limit_hits_total", limit="bodies_in_flight_bytes") == 1
        await node.assert_healthy()
        for client in attackers:
            await trio.aclose_forcefully(client.stream)


async def test_uploads_that_stop_keep_nobody_out(tmp_path: Path) -> None:
    """The same with NDJSON lines that don't end."""
    async with open_hostile_node(tmp_path, bodies_in_flight_bytes=Size(200_000)) as node:
        attackers = [await node.connect() for _ in range(4)]
        for client in attackers:
            head = POST.replace(b"application/json", b"application/x-ndjson") + b"Transfer-Encoding: chunked\r\n\r\n"
            await client.send(head + b"%x\r\n" % 49_500 + b"x" * 49_500 + b"\r\n")
        with trio.fail_after(SOON_S):
            while node.count("overlayd_bodies_in_flight_bytes") < 190_000:  # noqa: ASYNC110 - real sockets
                await trio.sleep(0.002)
            packet = b'{"data":"%s"}' % (b"x" * 20_000)
            answer = await node.ask("POST", "/v1/streams/s/packets", packet, Content_Type=JSON)
        assert answer.status == 201
        for client in attackers:
            await trio.aclose_forcefully(client.stream)


async def test_a_chunk_that_never_comes(tmp_path: Path) -> None:
    """A chunk's head that comes along with the request's, and then nothing, is a stall like any other."""
    async with open_hostile_node(tmp_path, stall_timeout=0.2) as node:
        async with await node.connect() as client:
            await client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\n")
            with trio.fail_after(SOON_S):
                answer = await client.read_answer()
            assert (answer.status, answer.json["code"]) == (408, "request.timeout")
        await node.assert_healthy()


async def test_messages_that_stop_keep_nobody_out(tmp_path: Path) -> None:
    """WebSocket messages that begin and don't end fill the common room; others get in, and the largest is closed."""
    async with open_hostile_node(tmp_path, sockets_unread_bytes=Size(100_000), message_bytes=Size(60_000)) as node:
        async with node.open_socket() as one, node.open_socket() as two, node.open_socket() as healthy:
            await one.send_frame(1, b"x" * 49_500, length=59_000)
            await two.send_frame(1, b"x" * 48_500, length=59_000)
            with trio.fail_after(SOON_S):
                while node.parts.live_sockets._parts.budget._bytes < 98_000:  # noqa: ASYNC110
                    await trio.sleep(0.002)
                packet = {"data": "x" * 5000}
                await healthy.say({"type": "publish", "stream": "s", "packets": [packet]})
                assert (await healthy.read())["accepted"] == 1
                assert await one.read() == 1008
            sample = node.parts.metrics.registry.get_sample_value
            assert sample("overlayd_limit_hits_total", {"limit": "sockets_unread_bytes"}) == 1
        await node.assert_healthy()


async def test_batches_of_messages_are_bounded(tmp_path: Path) -> None:
    """One WebSocket message takes no more packets than one request."""
    async with open_hostile_node(tmp_path, batch_packets_max=10) as node:
        async with node.open_socket() as socket:
            for count in (11, 10):
                await socket.say({"type": "publish", "ref": 1, "stream": "s", "packets": [{"data": 1}] * count})
            assert (await socket.read())["code"] == "batch.too_large"
            assert (await socket.read())["accepted"] == 10
        await node.assert_healthy()


async def test_messages_are_measured_in_bytes(tmp_path: Path) -> None:
    """The bound on a message is one of bytes, whatever characters it is made of."""
    async with open_hostile_node(tmp_path, message_bytes=Size(40_000)) as node:
        async with node.open_socket() as socket:
            await socket.say(('"' + "\U0001f600" * 11_000 + '"').encode())
            assert await socket.read() == 1009
        await node.assert_healthy()

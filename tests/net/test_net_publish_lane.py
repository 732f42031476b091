"""The publish lane on the wire: what connections do between, beside and in the middle of its requests."""

import gzip
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from net_rig import Edge
from publish_rig import HEAD, chunk, open_publishing, packets_in

from overlayd.model.limits import Limits
from overlayd.model.units import Duration, Size
from overlayd.storage import Log

JSON = HEAD + b"Content-Type: application/json\r\n"
PACKET = b'{"data":1}'
POST = JSON + b"Content-Length: 10\r\n\r\n" + PACKET
DATA = b"POST /v1/streams/a/data HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n7"
ECHO = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc"


@pytest.fixture(params=["lane", "Quart"])
async def publishing(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[tuple[Edge, Log]]:
    """An edge and its log, with and without the lane."""
    limits = Limits(body_bytes=Size(100_000), requests_per_connection=400)
    async with open_publishing(tmp_path, limits, is_fast=request.param == "lane") as opened:
        yield opened


async def test_the_lane_stays_out_of_the_framework(tmp_path: Path) -> None:
    """With the lane the application sees no publish request; without it, all of them. Both count alike."""
    for name, is_fast, called in (("a", True, ["/echo"]), ("b", False, ["/v1/streams/a/packets", "/echo"])):
        (tmp_path / name).mkdir()
        async with open_publishing(tmp_path / name, Limits(), is_fast=is_fast) as (edge, _):
            async with await edge.connect() as client:
                await client.send(POST + ECHO)
                assert (await client.read_answer()).status == 201
                assert (await client.read_answer()).status == 200
            await edge.wait_connections()
            assert edge.calls == called
            route = "/v1/streams/<stream>/packets"
            assert edge.count("overlayd_http_requests_total", method="POST", route=route, status="201") == 1
            assert edge.count("overlayd_http_request_seconds_count", route=route) == 1


async def test_pipelining_in_order(publishing: tuple[Edge, Log]) -> None:
    """Many requests in one go, for the lane and for Quart in any order, are answered one by one in theirs."""
    edge, log = publishing
    async with await edge.connect() as client:
        await client.send((POST + ECHO + DATA + b"\r\n" + ECHO) * 40)
        for number in range(40):
            assert (await client.read_answer()).json["sequence"] == 2 * number + 1
            assert (await client.read_answer()).json["body"] == "abc"
            assert (await client.read_answer()).json["sequence"] == 2 * number + 2
            assert (await client.read_answer()).json["body"] == "abc"
    assert packets_in(log) == 80


async def test_byte_by_byte(publishing: tuple[Edge, Log]) -> None:
    """Requests that trickle in a byte at a time mean what they mean at once."""
    edge, log = publishing
    raw = POST + JSON + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(PACKET[:4]) + chunk(PACKET[4:])
    async with await edge.connect() as client:
        for byte in raw + b"0\r\nX-Trailer: x\r\n\r\n" + ECHO:
            await client.send(bytes((byte,)))
        assert [(await client.read_answer()).status for _ in range(3)] == [201, 201, 200]
    assert packets_in(log) == 2


async def test_a_client_that_waits_to_be_asked(publishing: tuple[Edge, Log]) -> None:
    """100 Continue comes when the body is wanted, and not before a refusal."""
    edge, log = publishing
    expecting = b"Content-Length: 10\r\nExpect: 100-continue\r\n\r\n"
    async with await edge.connect() as client:
        await client.send(JSON + expecting)
        assert (await client._read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        await client.send(PACKET)
        assert (await client.read_answer()).status == 201
        await client.send(HEAD + b"Content-Type: application/json\r\nIdempotency-Key:\r\n" + expecting)
        head = await client._read_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400")
        assert b"connection: close" in head.lower()
    assert packets_in(log) == 1


async def test_endings(publishing: tuple[Edge, Log]) -> None:
    """Connection: close, HTTP/1.0 and a half close each get their answer, and then the end."""
    edge, log = publishing
    for raw, is_half_closed in (
        (POST.replace(b"\r\nHost", b"\r\nConnection: close\r\nHost"), False),
        (POST.replace(b"HTTP/1.1", b"HTTP/1.0"), False),
        (POST, True),
    ):
        async with await edge.connect() as client:
            await client.send(raw)
            if is_half_closed:
                await client.stream.send_eof()
            answer = await client.read_answer()
            assert answer.status == 201
            assert is_half_closed or answer.headers["connection"] == "close"
            assert await client.is_closed_by_peer()
    assert packets_in(log) == 3


async def test_a_client_that_leaves(publishing: tuple[Edge, Log]) -> None:
    """A request that was read is committed, whether or not anybody waits for its answer."""
    edge, log = publishing
    client = await edge.connect()
    await client.send(POST)
    await edge.wait_until(lambda: packets_in(log) == 1)
    for _ in range(20):
        client = await edge.connect()
        await client.send(POST)
        await trio.aclose_forcefully(client.stream)
    await edge.wait_until(lambda: packets_in(log) == 21)


async def test_upgrades_are_ignored(publishing: tuple[Edge, Log]) -> None:
    """`Upgrade: h2c`, as Java's client sends it with every request, is served as HTTP/1.1, body and all."""
    edge, log = publishing
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
    async with await edge.connect() as client:
        for _ in range(2):
            await client.send(JSON + upgrade + b"Content-Length: 10\r\n\r\n" + PACKET)
            assert (await client.read_answer()).status == 201
    assert packets_in(log) == 2


async def test_a_refusal_with_the_body_at_hand(publishing: tuple[Edge, Log]) -> None:
    """What was refused by its head is skipped when it is here already: the next request is served."""
    edge, _ = publishing
    async with await edge.connect() as client:
        await client.send(POST.replace(b"packets HTTP", b"packets?x=1 HTTP") + POST)
        assert (await client.read_answer()).status == 400
        assert (await client.read_answer()).status == 201


async def test_broken_bodies(publishing: tuple[Edge, Log]) -> None:
    """Chunks that make no sense are 400 and end the connection; gzip that isn't is 400, too."""
    edge, log = publishing
    chunked = JSON + b"Transfer-Encoding: chunked\r\n"
    for raw in (b"\r\nzz\r\nabc", b"\r\n" + chunk(PACKET) + b"x\r\n", b"\r\n3\r\n{}abcd"):
        async with await edge.connect() as client:
            await client.send(chunked + raw + b"\r\n0\r\n\r\n" + ECHO)
            answer = await client.read_answer()
            assert (answer.status, answer.json["code"]) == (400, "request.malformed")
            assert answer.headers["connection"] == "close"
            assert await client.is_closed_by_peer()
    for body in (gzip.compress(PACKET)[:-3], b"not gzip"):
        answer = await edge.say(chunked + b"Content-Encoding: gzip\r\n\r\n" + chunk(body) + b"0\r\n\r\n")
        assert answer.status == 400
    assert packets_in(log) == 0
    assert edge.count("overlayd_net_connection_crashes_total") == 0


async def test_the_last_request_of_a_connection(publishing: tuple[Edge, Log]) -> None:
    """The request that exhausts the connection says so; requests behind it aren't looked at."""
    edge, log = publishing
    async with await edge.connect() as client:
        await client.send(POST * 402)
        answers = [await client.read_answer() for _ in range(400)]
        assert [answer.headers.get("connection") for answer in answers] == [None] * 399 + ["close"]
        assert await client.is_closed_by_peer()
    assert packets_in(log) == 400


async def test_bodies_that_stop(tmp_path: Path, patient_clock: trio.testing.MockClock) -> None:
    """A body that stays away is 408 after the stall timeout, named; the connection ends."""
    limits = Limits(stall_timeout=Duration(3))
    async with open_publishing(tmp_path, limits, is_fast=True) as (edge, log):
        answer = await edge.say(JSON + b"Content-Length: 10\r\n\r\n{")
        assert (answer.status, answer.json["subject"]) == (408, "stall_timeout")
        assert answer.headers["connection"] == "close"
        assert packets_in(log) == 0


async def test_bodies_together(tmp_path: Path) -> None:
    """Bodies in the lane are on the node's common budget: one that doesn't fit is 503, and later ones pass."""
    limits = Limits(bodies_in_flight_bytes=Size(50_000), packet_bytes=Size(200_000))
    async with open_publishing(tmp_path, limits, is_fast=True) as (edge, log):
        body = b'{"data":"' + b"x" * 60_000 + b'"}'
        answer = await edge.say(JSON + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert (answer.status, answer.json["subject"]) == (503, "bodies_in_flight_bytes")
        assert (await edge.say(POST)).status == 201
        assert packets_in(log) == 1


async def test_shutdown_between_requests(tmp_path: Path) -> None:
    """While the node stops, the answer to a request that was begun ends the connection."""
    async with open_publishing(tmp_path, Limits(), is_fast=True) as (edge, log), await edge.connect() as client:
        await client.send(POST)
        assert "connection" not in (await client.read_answer()).headers
        await client.send(POST[:-2])
        await trio.testing.wait_all_tasks_blocked(0.02)
        edge.stop.set()
        await client.send(POST[-2:])
        answer = await client.read_answer()
        assert (answer.status, answer.headers["connection"]) == (201, "close")
    assert packets_in(log) == 2

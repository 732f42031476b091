"""Publishing on real sockets over a real log: uploads that stay open, break off, or are refused half way."""

import gzip
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from net_rig import Edge, RawClient
from publish_rig import UPLOAD, chunk, open_publishing, packets_in

from overlayd.model.limits import Limits
from overlayd.model.units import Size
from overlayd.storage import Log


@pytest.fixture(params=["Quart", "lane", "Quart, Unix", "lane, Unix"])
async def publishing(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[tuple[Edge, Log]]:
    """An edge and its log, with and without the publish lane, over TCP and a Unix socket."""
    limits = Limits(body_bytes=Size(100_000), upload_bytes=Size(3_000_000))
    async with open_publishing(
        tmp_path, limits, is_fast="lane" in request.param, is_unix="Unix" in request.param
    ) as opened:
        yield opened


async def upload(client: RawClient, *lines: bytes) -> None:
    """Sends lines as one chunk."""
    await client.send(chunk(b"".join(lines)))


async def test_lines_are_durable_before_the_upload_ends(publishing: tuple[Edge, Log]) -> None:
    """An upload that stays open for ever has its lines in the log all the same; the answer comes with its end."""
    edge, log = publishing
    async with await edge.connect() as client:
        await client.send(UPLOAD)
        for round_number in range(1, 4):
            await upload(client, b'{"data":1}\n', b'{"data":2}\n', b'{"da')
            await edge.wait_until(lambda wanted=3 * round_number - 1: packets_in(log) == wanted)  # type: ignore[misc]
            await upload(client, b'ta":3}\n')
            await edge.wait_until(lambda wanted=3 * round_number: packets_in(log) == wanted)  # type: ignore[misc]
        await client.send(b"0\r\n\r\n")
        answer = await client.read_answer()
        assert (answer.status, answer.json["accepted"]) == (201, 9)
        assert (await client.request("POST", "/v1/streams/a/data", b"10")).json["sequence"] == 10


async def test_an_upload_that_breaks_off(publishing: tuple[Edge, Log]) -> None:
    """What was committed before the client vanished stays; its last, unfinished line never was a packet."""
    edge, log = publishing
    client = await edge.connect()
    await client.send(UPLOAD)
    await upload(client, b'{"data":1}\n', b'{"data":2}\n', b'{"data":3')
    await edge.wait_until(lambda: packets_in(log) == 2)
    await trio.aclose_forcefully(client.stream)
    await edge.wait_connections()
    assert packets_in(log) == 2


async def test_an_upload_over_its_limit(publishing: tuple[Edge, Log]) -> None:
    """413 counts what was taken before, although the client is still sending; the connection ends."""
    edge, log = publishing
    line = b'{"data":"' + b"x" * 900 + b'"}\n'
    async with await edge.connect() as client, trio.open_nursery() as nursery:

        async def send_until_cut() -> None:
            with suppress(trio.BrokenResourceError):
                await client.send(UPLOAD)
                while True:
                    await upload(client, line * 64)

        nursery.start_soon(send_until_cut)
        answer = await client.read_answer()
        nursery.cancel_scope.cancel()
    assert (answer.status, answer.json["subject"], answer.headers["connection"]) == (413, "upload_bytes", "close")
    assert 0 < answer.json["accepted"] == packets_in(log)


async def test_announced_lengths(publishing: tuple[Edge, Log]) -> None:
    """A body with a length over the limit is refused while it comes, compressed or not, chunked or not."""
    edge, log = publishing
    body = b'{"data":"' + b"x" * 150_000 + b'"}'
    packed = gzip.compress(body)
    head = b"POST /v1/streams/a/packets HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for raw in (
        head + b"Content-Length: %d\r\n\r\n" % len(body) + body,
        head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(body) + b"0\r\n\r\n",
        head + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed,
    ):
        answer = await edge.say(raw)
        assert (answer.status, answer.json["code"]) == (413, "body.too_large")
    assert packets_in(log) == 0


async def test_truncated_body(publishing: tuple[Edge, Log]) -> None:
    """A body that ends before its length is never published."""
    edge, log = publishing
    async with await edge.connect() as client:
        await client.send(
            b"POST /v1/streams/a/data HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n" + b'{"t":21}'
        )
        await client.stream.send_eof()
        assert await client.is_closed_by_peer()
    await edge.wait_connections()
    assert packets_in(log) == 0


async def test_curl_as_it_is_typed(publishing: tuple[Edge, Log]) -> None:
    """The first line of every README: curl -d to …/data."""
    edge, log = publishing
    async with await edge.connect() as client:
        answer = await client.request(
            "POST", "/v1/streams/weather-001/data", b'{"t":21}', Content_Type="application/x-www-form-urlencoded",
            Accept="*/*", User_Agent="curl/7.88.1",
        )  # fmt: skip
        assert (answer.status, answer.json["sequence"]) == (201, 1)
    stream = log.find_stream("weather-001")
    assert stream is not None
    assert (await log.read_packets(stream, 0, 1))[0].body == b'{"t":21}'

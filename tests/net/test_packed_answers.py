"""Compressed answers: reads, and live answers on both ways that they are given."""

import gzip
import json
import zlib
from pathlib import Path

import pytest
import trio
from live_rig import open_live, open_live_edge, wait_until
from net_rig import RawClient
from real_waiting import SOON_S

from overlayd.net.encoding import takes_gzip


@pytest.mark.parametrize(
    ("accepted", "takes"),
    [
        ("gzip", True), ("gzip, deflate, br, zstd", True), ("br;q=1, gzip;q=0.8", True), ("*", True),
        ("", False), ("gzip;q=0", False), ("identity", False), ("br", False), ("gzip;q=0.5, identity", False),
    ],
)  # fmt: skip
def test_who_takes_gzip(accepted: str, takes: bool) -> None:
    """Those who say so and don't like it less than no compression."""
    assert takes_gzip(accepted) is takes


@pytest.mark.parametrize("count", [1, 30, 200])
async def test_reads_are_compressed_for_who_asks(tmp_path: Path, count: int) -> None:
    """The same bytes as without, where they are worth it; caches are told what it depends on."""
    async with open_live(tmp_path) as live:
        await live.append("s", *[b'"%s"' % (b"x" * 100) for _ in range(count)])
        for path in ("/v1/streams/s/packets?limit=200", "/v1/read?stream=s&limit=200"):
            plain = await live.ask("GET", path)
            packed = await live.ask("GET", path, Accept_Encoding="gzip")
            assert plain.headers["vary"] == packed.headers["vary"] == "Accept-Encoding"
            assert "content-encoding" not in plain.headers
            if count == 1:
                assert "content-encoding" not in packed.headers
                assert packed.body == plain.body
            else:
                assert packed.headers["content-encoding"] == "gzip"
                assert len(packed.body) < len(plain.body) // 4
                assert gzip.decompress(packed.body) == plain.body


async def read_answer(client: RawClient) -> tuple[dict[str, str], bytes]:
    """Headers and the whole body of an answer that ends."""
    with trio.fail_after(SOON_S):
        head = (await client._read_until(b"\r\n\r\n")).decode()
        headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        if headers.get("transfer-encoding") == "chunked":
            return headers, await client._read_chunks()
        return headers, await client.read_rest()


@pytest.mark.parametrize("is_fast", [True, False], ids=["lane", "application"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
async def test_live_answers_are_compressed(tmp_path: Path, is_fast: bool, version: str, accept: str) -> None:
    """Replay, live packets, bye and the sum at the end are one good gzip file, and the same text as without; in chunks,
    or for a client of HTTP/1.0 up to the connection's end."""
    async with open_live_edge(tmp_path, is_fast=is_fast) as (live, edge):
        await live.append("s", *[b'"%s"' % (b"x" * 600) for _ in range(60)], b'"%s"' % (b"y" * 30_000))
        clients = [await edge.connect() for _ in range(2)]
        for client, encoding in zip(clients, (b"Accept-Encoding: gzip\r\n", b""), strict=True):
            await client.send(
                b"GET /v1/live?stream=s&from=beginning HTTP/%s\r\nHost: localhost\r\nAccept: %s\r\n%s\r\n"
                % (version.encode(), accept.encode(), encoding)
            )
        await wait_until(lambda: len(live.registry) == 2)
        await wait_until(lambda: all(b.messages_sent == 61 for b in live.registry.bodies(live.log.head)))
        await live.append("s", b'"live"')
        await wait_until(lambda: all(b.messages_sent == 62 for b in live.registry.bodies(live.log.head)))
        texts: list[bytes] = []

        async def read(client: RawClient) -> None:
            headers, body = await read_answer(client)
            assert headers["vary"] == "accept, accept-encoding"
            assert ("transfer-encoding" in headers) is (version == "1.1")
            if "content-encoding" in headers:
                body = gzip.decompress(body)
            texts.append(body)

        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(read, client)
            edge.stop.set()
    first, second = (text.split(b'"session"')[1].split(b"\n", 1)[1] for text in texts)
    assert first == second
    assert first.count(b'"type":"packet"') == 62
    assert b'"type":"bye"' in first


async def test_compressed_events_can_be_read_as_they_come(tmp_path: Path) -> None:
    """Nothing of a packet waits in the compressor for the next one."""
    async with open_live_edge(tmp_path) as (live, edge):
        client = await edge.connect()
        head = b"GET /v1/live?stream=s HTTP/1.1\r\nHost: localhost\r\nAccept: application/x-ndjson\r\n"
        await client.send(head + b"Accept-Encoding: gzip\r\n\r\n")
        with trio.fail_after(SOON_S):
            assert b"content-encoding: gzip" in await client._read_until(b"\r\n\r\n")
            inflater, text = zlib.decompressobj(31), b""

            async def read_until(word: bytes) -> None:
                nonlocal text
                while word not in text:
                    size = int(await client._read_until(b"\r\n"), 16)
                    text += inflater.decompress((await client._read_exactly(size + 2))[:-2])

            await read_until(b'"subscribed"')
            for number in range(3):
                await live.append("s", b'{"n":%d,"pad":"%s"}' % (number, b"x" * 600))
                await read_until(b'"n":%d' % number)
        lines = [json.loads(line) for line in text.splitlines()]
        assert [line["type"] for line in lines] == ["welcome", "subscribed", *["packet"] * 3]


async def test_the_connection_outlives_an_answer_that_the_node_ended(tmp_path: Path) -> None:
    """After bye and the last chunk the next request on the connection is answered; not after bytes that nobody asked
    for, which can't be told from a request."""
    async with open_live_edge(tmp_path) as (live, edge):
        for extra, goes_on in ((b"", True), (b"GET / HTTP/1.1\r\n", False)):
            client = await edge.connect()
            await client.send(b"GET /v1/live?stream=s HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await wait_until(lambda: len(live.registry) == 1)
            with trio.fail_after(SOON_S):
                await client._read_until(b'"never":[]}')
                await client.send(extra)
                await trio.sleep(0.02)
                async with await edge.connect_unix() as admin:
                    session = (await admin.request("GET", "/v1/sessions")).json["sessions"][0]["id"]
                    assert (await admin.request("DELETE", f"/v1/sessions/{session}")).status == 204
                await client._read_until(b"0\r\n\r\n")
                if goes_on:
                    assert (await client.request("GET", "/v1/read?limit=1")).status == 200
                else:
                    assert await client.is_closed_by_peer()

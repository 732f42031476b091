"""Requests that mean one thing to one reader and another to the next, against the whole node."""

import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hostile_rig import JSON, UPGRADE, HostileNode, open_hostile_node

WAYS = ("lane", "Quart", "Unix", "TLS")

HOST = b"Host: localhost\r\n"
HIDDEN = b"POST /v1/streams/hidden/packets HTTP/1.1\r\n" + HOST + b"Content-Length: 10\r\n\r\n" + b'{"data":1}'


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[HostileNode]:
    """A node with default limits."""
    async with open_hostile_node(tmp_path) as running:
        yield running


def statuses(raw: bytes) -> list[int]:
    """Of all answers on a connection."""
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", raw)]


@pytest.mark.parametrize("framing", [b"Content-Length: %d" % len(HIDDEN), b"Transfer-Encoding: chunked"])
async def test_body_behind_an_asterisk_is_no_request(node: HostileNode, framing: bytes) -> None:
    """`OPTIONS *` answers without reading a body, so what a proxy passed on as one must not become a request."""
    said = await node.say(b"OPTIONS * HTTP/1.1\r\n" + HOST + framing + b"\r\n\r\n" + HIDDEN)
    assert statuses(said) == [400]
    assert node.parts.log.find_stream("hidden") is None
    await node.assert_healthy()


@pytest.mark.parametrize("method", ["get", "head", "Head", "post", "options", "trace"])
async def test_methods_in_lower_case(node: HostileNode, method: str) -> None:
    """A method that differs in case is another method; the parts behind the door would take it for the usual one."""
    body = b"" if method in ("head", "Head") else HIDDEN
    head = f"{method} /v1/streams/hidden/packets HTTP/1.1\r\nContent-Length: {len(body)}\r\n".encode()
    said = await node.say(head + HOST + b"\r\n" + body)
    assert statuses(said) == [405]
    assert node.parts.log.find_stream("hidden") is None
    await node.assert_healthy()


@pytest.mark.parametrize("host", [".localhost", "a..localhost", "a" * 64 + ".localhost"])
async def test_host_with_impossible_labels(node: HostileNode, host: str) -> None:
    """A Host that no name can be is refused by the door, on every path, and makes no server fault."""
    for target in ("/healthz", "/v1/node", "/v1/live"):
        answer = await node.ask("GET", target, host=host)
        assert (answer.status, answer.json["code"]) == (400, "request.malformed")
    said = await node.say(b"GET /v1/live HTTP/1.1\r\n" + UPGRADE.replace(b"localhost", host.encode()) + b"\r\n")
    assert statuses(said) == [400]
    await node.assert_healthy()


async def test_fetch_metadata_twice(node: HostileNode) -> None:
    """Any of several Sec-Fetch-Site headers counts, not the last one."""
    for first, last in (("cross-site", "none"), ("none", "cross-site")):
        fetch = f"Sec-Fetch-Site: {first}\r\nSec-Fetch-Site: {last}\r\n\r\n".encode()
        assert statuses(await node.say(b"GET /v1/node HTTP/1.1\r\n" + HOST + fetch)) == [403]


@pytest.mark.parametrize(
    "header", ["CF-Connecting-IP", "True-Client-IP", "X-Forwarded-Port", "CDN-Loop", "X-Client-IP"]
)
async def test_headers_of_tunnels(node: HostileNode, header: str) -> None:
    """Tunnels and content networks that announce themselves in other words are proxies too."""
    answer = await node.ask("GET", "/v1/node", **{header: "203.0.113.5"})
    assert (answer.status, answer.json["code"]) == (403, "access.proxied")


@pytest.mark.parametrize("query", ["id=%ff", "id=%ed%a0%80", "key=%fe", "%ff=1"])
async def test_ids_in_the_query_are_utf8(node: HostileNode, query: str) -> None:
    """Percent codes that aren't UTF-8 are refused; put as something else, different ids would become the same."""
    answer = await node.ask("POST", f"/v1/streams/s/data?{query}", b"1")
    assert (answer.status, answer.json["code"]) == (400, "parameter.invalid")
    assert (await node.ask("GET", f"/v1/packets?{query}")).status == 400
    assert node.parts.log.find_stream("s") is None


async def test_idempotency_keys_are_utf8(node: HostileNode) -> None:
    """A key is an id, so it is read as one: UTF-8, or refused."""
    head = (
        b"POST /v1/streams/s/packets HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\nConnection: close\r\n"
    )
    packet = '{"data":1,"id":"é"}'.encode()
    for key, status in (("é".encode(), 201), (b"\xff\xfe", 400)):
        said = await node.say(
            head + b"Idempotency-Key: %s\r\nContent-Length: %d\r\n\r\n%s" % (key, len(packet), packet)
        )
        assert statuses(said) == [status]


async def test_parameters_of_a_read_stand_once(node: HostileNode) -> None:
    """Two limits, or two waits, are two opinions."""
    for query in ("limit=1&limit=2", "wait=0s&wait=1s"):
        answer = await node.ask("GET", f"/v1/read?{query}")
        assert (answer.status, answer.json["code"]) == (400, "parameter.invalid")


EXTREMES = (
    "/v1/read?after=e{epoch}-9223372036854775808", "/v1/read?after=e{epoch}-%D9%A1", "/v1/read?after=e{epoch}--1",
    "/v1/read?after=e99999999999999999999aaaaaaaa-1", "/v1/read?after=e1aaaaaaaa-1", "/v1/read?wait=1e400s",
    "/v1/read?wait=99999999999999999999999d&limit=1", "/v1/read?limit=%C2%B2", "/v1/read?seen=9999999999999999999:" + "a" * 64,
    "/v1/read?from=9999-12-31T23:59:59.999999-23:59", "/v1/read?from=0001-01-01T00:00:00%2B23:59",
    "/v1/read?topic=" + "*." * 60 + "*", "/v1/read?" + "&".join(f"stream=a{i}" for i in range(300)),
    "/v1/streams/healthy/packets?after=9223372036854775807", "/v1/streams/healthy/packets?after=9223372036854775808",
    "/v1/streams/healthy/packets/9223372036854775807", "/v1/streams/healthy/packets/%D9%A1",
    "/v1/log/{epoch}/tile/99/x999/x999/x999/x999/x999/999.p/255", "/v1/log/{epoch}/tile/0/%2e%2e/%2e%2e/etc/passwd",
    "/v1/log/consistency?from=1&to=9223372036854775807", "/docs/..%2f..%2fetc/passwd", "/v1/streams/a%00b", "/%f0%9f",
    "/v1/packets?id={epoch}-99999999999999999999999", "/v1/streams?after=%f4%8f%bf%bf",
)  # fmt: skip


async def test_numbers_and_paths_at_their_ends(node: HostileNode) -> None:
    """Offsets, times, sizes and paths beyond every bound get an answer of their own, never a fault of the server."""
    await node.assert_healthy()
    epoch = (await node.ask("GET", "/v1/node")).json["epoch"]
    for target in EXTREMES:
        answer = await node.ask("GET", target.replace("{epoch}", epoch))
        assert answer.status in (200, 400, 404, 409, 410), (target, answer)
        assert b"Traceback" not in answer.body
        assert b"site-packages" not in answer.body
    await node.assert_healthy()


async def test_headers_that_are_costly_to_read(node: HostileNode) -> None:
    """Headers full of separators and quotes are read in a moment."""
    await node.assert_healthy()
    for name, value in (
        ("Accept", "a/b;q=0.1," * 1400), ("Accept", ";" * 15_000), ("If-None-Match", '"' * 15_000),
        ("Cookie", "a=b;" * 3700), ("Content-Type", "a/b;" + 'a="' * 4000), ("Range", "bytes=" + "1-," * 4000),
    ):  # fmt: skip
        started = time.thread_time()  # of the loop, on which headers are read; a held-up machine adds nothing to it
        answer = await node.ask("GET", "/v1/streams/healthy/packets/1", **{name: value})
        assert answer.status == 200
        assert time.thread_time() - started < 1
    await node.assert_healthy()


async def test_odd_handshakes(node: HostileNode) -> None:
    """Handshakes that the WebSocket library would drop without a word get one."""
    for head in (
        b"GET /v1/live HTTP/1.0\r\n" + UPGRADE,
        b"GET /v1/live HTTP/1.1\r\n" + UPGRADE + b"Sec-WebSocket-Protocol: \xff\xfe\r\n",
        b"GET /v1/live HTTP/1.1\r\n" + UPGRADE + b"Sec-WebSocket-Extensions: \xff;;,\r\n",
    ):
        assert statuses(await node.say(head + b"\r\n")) == [400]
    said = await node.say(b"GET /v1/%6cive HTTP/1.1\r\n" + UPGRADE + b"\r\n")
    assert statuses(said) == [426]
    await node.assert_healthy()


async def test_pretty_data_in_every_frame(node: HostileNode) -> None:
    """Line ends inside a payload, kept verbatim in the log, break no frame of any transport."""
    body = b'{"data":{\r\n"a":\n\r1},"metadata":{\n"b":1},"topics":[\n"x"\n]}'
    assert (await node.ask("POST", "/v1/streams/pretty/packets", body, Content_Type=JSON)).status == 201
    for accept, mark in (("text/event-stream", b"\ndata: "), ("application/x-ndjson", b"\n")):
        async with await node.connect() as client:
            await client.send(
                b"GET /v1/live?stream=pretty&from=beginning HTTP/1.1\r\n"
                + HOST
                + b"Accept: %s\r\n\r\n" % accept.encode()
            )
            text = await client._read_until(b"data_payload")
            lines = (text + await client._read_until(b"\n\r\n")).split(b"\r\n")
            assert any(mark in line + b"\n" for line in lines)
            assert not any(b"\r" in line for line in lines)

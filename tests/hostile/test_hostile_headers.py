"""Whatever stands in a header that some route reads, the answer is the caller's fault or none at all, never the node's."""

import random
from pathlib import Path

import pytest
import trio
from hostile_rig import HostileNode, open_hostile_node
from real_waiting import SOON_S

HEADERS = (
    "Accept", "Accept-Encoding", "Content-Encoding", "Content-Type", "Last-Event-ID", "If-Match", "If-None-Match",
    "Idempotency-Key", "X-Receipt-Id", "X-Request-Id", "traceparent", "tracestate", "Range", "Expect", "Content-Length",
    "Transfer-Encoding", "Connection", "Upgrade", "Authorization", "Origin", "Forwarded", "X-Forwarded-For",
    "X-Identity-Key", "X-Nonce", "X-Signature", "x-bsv-auth-version", "Sec-WebSocket-Key", "Sec-WebSocket-Version",
    "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "Cookie", "ce-specversion", "ce-id", "ce-time", "ce-type",
    "ce-source", "ce-subject", "ce-datacontenttype", "ce-traceparent", "ce-dataschema",
)  # fmt: skip
REQUESTS = (
    ("POST", "/v1/streams/h/packets", b'{"data":1}'), ("POST", "/v1/streams/h/data", b"x"),
    ("GET", "/v1/live?stream=h", b""), ("GET", "/v1/read?stream=h", b""), ("GET", "/v1/streams/h/packets", b""),
    ("PUT", "/v1/streams/h", b'{"title":"t"}'), ("GET", "/v1/node", b""), ("GET", "/docs", b""),
)  # fmt: skip
PIECES = (
    b"", b" ", b"\t", b"*", b"*/*", b"q=", b";q=1.1", b",", b";", b'"', b"W/", b"bytes=0-", b"-1", b"1e999", b"9" * 40, b"%00",
    b"\xff\xfe", b"\xc3\xa9", b"\x80", b"00-" + b"0" * 32 + b"-" + b"f" * 16 + b"-01", b"e1aebagbaf-1", b"gzip", b"chunked",
    b"websocket", b"text/event-stream", b"application/x-ndjson", b"application/cloudevents+json", b"Bearer ovl_live_", b"=",
    b"permessage-deflate;server_max_window_bits=", b"2026-11-21T00:00:00Z", b"0001-01-01T00:00:00+23:59", b"a" * 2000, b"{", b"null",
)  # fmt: skip


def raw_request(chance: random.Random) -> bytes:
    """A request with a few of the headers, put together of pieces; its connection ends with it."""
    method, target, body = chance.choice(REQUESTS)
    lines = [f"{method} {target} HTTP/1.1".encode(), b"Host: localhost", b"Connection: close"]
    for name in chance.sample(HEADERS, chance.randint(1, 4)):
        pieces = chance.choices(PIECES, k=chance.randint(1, 4))
        lines.append(name.encode() + b": " + b"".join(pieces))
    if body and not any(line.lower().startswith((b"content-length", b"transfer-encoding")) for line in lines):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def status_of(node: HostileNode, raw: bytes) -> int:
    """Of the answer's first line, 0 where the connection just ended or an open-ended answer began."""
    async with await node.connect() as client:
        said = b""
        try:
            await client.send(raw)
            with trio.move_on_after(SOON_S):
                while b"\r\n" not in said:
                    more = await client.stream.receive_some(4096)
                    if not more:
                        break
                    said += bytes(more)
        except trio.BrokenResourceError:
            return 0
    return int(said[9:12]) if said.startswith(b"HTTP/1.") else 0


@pytest.mark.parametrize("seed", range(4))
async def test_no_header_is_a_fault_of_the_node(tmp_path: Path, seed: int) -> None:
    """Each of a hundred requests is answered, if at all, with something else than a server's error but 501 and 505,
    which say what the node doesn't do; afterwards it serves as before."""
    chance, statuses = random.Random(seed), set()
    async with open_hostile_node(tmp_path) as node:
        for _ in range(100):
            raw = raw_request(chance)
            status = await status_of(node, raw)
            assert status < 500 or status in (501, 505), (status, raw)
            statuses.add(status)
        await node.assert_healthy()
    assert len(statuses) > 3, statuses

"""The publish lane and Quart side by side: whatever is sent, the same is answered."""

import gzip
import itertools
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from publish_rig import open_publishing

from overlayd.model.limits import Limits
from overlayd.model.units import Size

LAST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
OWN_HEADERS = ("date", "x-request-id", "content-length")
OWN_MEMBERS = ("cursor", "leaf_hash", "appended_at", "instance", "offset")
EVENT = {"specversion": "1.0", "id": "e-1", "source": "/s", "type": "t", "data": {"t": 21}}

Answers = list[tuple[int, dict[str, str], Any]]


class Pair:
    """Two edges, one with the lane, each on a log of its own, in a thread."""

    def __init__(self, directory: Path) -> None:
        self.ports: list[int] = []
        self.count = itertools.count()  # each example has a stream of its own
        self._directory = directory
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._serve,))
        self._thread.start()
        assert self._ready.wait(20)

    async def _serve(self) -> None:
        limits = Limits(
            packet_bytes=Size(300),
            body_bytes=Size(2000),
            errors_max=5,
            batch_packets_max=6,
            auto_create_per_minute=100_000,
        )
        (self._directory / "lane").mkdir()
        (self._directory / "quart").mkdir()
        async with (
            open_publishing(self._directory / "lane", limits, is_fast=True) as (fast, _),
            open_publishing(self._directory / "quart", limits, is_fast=False) as (slow, _),
        ):
            self.ports = [fast.port, slow.port]
            self._token, self._over = trio.lowlevel.current_trio_token(), trio.Event()
            self._ready.set()
            await self._over.wait()

    def close(self) -> None:
        self._token.run_sync_soon(self._over.set)
        self._thread.join(20)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The two edges, for all examples."""
    running = Pair(tmp_path_factory.mktemp("parity"))
    yield running
    running.close()


def ask(port: int, raw: bytes) -> Answers:
    """Everything that is answered to these bytes, made comparable."""
    with socket.create_connection(("127.0.0.1", port), 20) as client:
        client.sendall(raw)
        received = b""
        while data := client.recv(1 << 16):
            received += data
    answers: Answers = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ")[1])
        if status == 100:
            continue
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(received.partition(b"\r\n")[0], 16):
                received = received.partition(b"\r\n")[2]
                body, received = body + received[:size], received[size + 2 :]
            received = received.partition(b"\r\n\r\n")[2]
        elif "content-length" in headers:
            length = int(headers["content-length"])
            body, received = received[:length], received[length:]
        else:
            body, received = received, b""
        for name in OWN_HEADERS:
            headers.pop(name, None)
        answers.append((status, headers, [comparable(json.loads(line)) for line in body.splitlines()]))
    return answers


def comparable(value: Any) -> Any:
    """Without what is each node's own: times, ids that it made, hashes with salts."""
    if isinstance(value, list):
        return [comparable(one) for one in value]
    if isinstance(value, str):  # the sample of a body that is shown back is what had arrived
        return re.sub(r"[a-z0-9]{8,14}-[0-9]+|-d '[^']*'", "…", value)
    if not isinstance(value, dict):
        return value
    return {name: comparable(one) for name, one in value.items() if name not in OWN_MEMBERS}


VALUES = st.one_of(st.integers(-5, 5), st.text(max_size=5), st.just({"t": 21.5}), st.just("x" * 400), st.none())
PACKETS = st.one_of(
    st.fixed_dictionaries({"data": VALUES}, optional={"id": st.sampled_from(["a", "b", "c"]), "key": st.just("k")}),
    st.fixed_dictionaries({}, optional={"data": VALUES, "dat": VALUES, "id": st.integers()}), VALUES, st.just(EVENT),
)  # fmt: skip
BODIES = st.one_of(
    PACKETS.map(lambda one: json.dumps(one).encode()),
    st.lists(PACKETS, max_size=8).map(lambda many: json.dumps(many).encode()),
    st.lists(PACKETS, max_size=8).map(lambda many: b"\n".join(json.dumps(one).encode() for one in many)),
    st.binary(max_size=20), st.just(b""), st.just(b'{"data":"' + b"x" * 3000 + b'"}'), st.just(b'{"data":'),
)  # fmt: skip
QUERIES = st.sampled_from(
    [""] * 6
    + ["?atomic=true", "?atomic=false", "?atomic=maybe", "?expected_sequence=0", "?expected_sequence=x", "?receipts=all",
       "?stop_on_error=true", "?unknown=1", "?id=q-1&type=t", "?id=%C3%A4", "?id=%ff", "?atomic=1&atomic=1", "?", "?atomic"]
)  # fmt: skip
PATHS = st.sampled_from(
    ["a/packets"] * 6 + ["a/data"] * 3 + ["b.c/packets", "Not%20Me/packets", ".x/data", "a/packets/", "a"]
)
TYPES = st.sampled_from(
    [""] + ["application/json"] * 4
    + ["application/x-ndjson", "application/cloudevents+json", "application/cloudevents-batch+json", "text/plain",
       "application/json; charset=utf-8", "application/octet-stream", "nonsense", "\xe9/;;="]
)  # fmt: skip
EXTRA = st.lists(
    st.sampled_from(
        ["Idempotency-Key: k-1", "Idempotency-Key:", "Idempotency-Key: \xc3\xa4", "Expect: 100-continue", "Connection: close",
         "Connection: keep-alive, Upgrade", "Upgrade: h2c", "ce-specversion: 1.0", "ce-id: e-9", "ce-type: t", "ce-source: /s",
         "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "Content-Type: text/plain",
         "Content-Encoding: br", "Origin: http://elsewhere.example"]
    ), max_size=3,
)  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One request, with a length or in chunks."""
    body = draw(BODIES)
    method = draw(st.sampled_from(["POST"] * 12 + ["PUT", "DELETE", "post"]))
    lines = [f"{method} /v1/streams/{draw(PATHS)}{draw(QUERIES)} HTTP/{draw(st.sampled_from(['1.1'] * 9 + ['1.0']))}"]
    lines += ["Host: localhost", *draw(EXTRA)]
    if content_type := draw(TYPES):
        lines.append(f"Content-Type: {content_type}")
    if draw(st.integers(0, 5)) == 0:
        lines.append("Content-Encoding: gzip")
        body = gzip.compress(body)[: draw(st.sampled_from([None, None, -2]))]
    if lines[0].endswith("1.1") and draw(st.booleans()):
        lines.append("Transfer-Encoding: chunked")
        cut = draw(st.integers(1, 50))
        parts = [body[at : at + cut] for at in range(0, len(body), cut)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    else:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(requests(), min_size=1, max_size=3))
def test_the_same_is_answered(pair: Pair, raws: list[bytes]) -> None:
    """Random requests behind one another: the same statuses, headers, bodies, and the same end of the connection."""
    raw = b"".join(raws).replace(b"/streams/a/", b"/streams/a%d/" % next(pair.count)) + LAST
    fast, slow = (ask(port, raw) for port in pair.ports)
    for ours, theirs in zip(fast, slow, strict=False):
        if ours[1].get("connection") == theirs[1].get("connection"):
            assert ours == theirs, raw
            continue
        # A refusal ends the connection when the body's end wasn't read by then, which is a matter of turns on Quart.
        assert ours[0] >= 400
        ours[1]["connection"] = theirs[1]["connection"] = "close"
        assert ours == theirs, raw
        return
    assert len(fast) == len(slow)

"""Schemes that sign the body: it is read whole and proven before anything is done, on the publish lane and on Quart."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from net_rig import Edge
from publish_rig import open_publishing

from overlayd.access import Peer, Principal
from overlayd.access.failures import FailureBook
from overlayd.access.gate import Claim, Gate, RequestHead
from overlayd.access.origin import AccessRules, Origin
from overlayd.access.principal import EVERYDAY
from overlayd.access.settings import AccessSettings
from overlayd.model.audit import ignore_record
from overlayd.model.clock import SystemClock
from overlayd.model.errors import Unauthorized
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.storage import Log

BODY = b'{"data":{"t":21}}'


class LengthScheme:
    """Signs nothing but the body's length: enough to see what the proof gets, and when."""

    name = "length"
    headers = frozenset((b"x-length",))
    is_ambient = False
    is_costly = True
    is_configured = True

    def __init__(self) -> None:
        self.proven: list[bytes] = []

    def is_brought(self, head: RequestHead, peer: Peer) -> bool:
        return head.get(b"x-length") is not None

    async def claim(self, head: RequestHead, peer: Peer, origin: Origin) -> Claim:
        length = int(head.get(b"x-length") or "0")

        async def prove(body: bytes) -> None:
            await trio.lowlevel.checkpoint()
            self.proven.append(body)
            if len(body) != length:
                raise Unauthorized("the body isn't the signed one", subject="signature")

        who = Principal("signer", "identity", EVERYDAY, origin.address, may_create=True, owner="signer")
        return Claim(who, is_lasting=False, prove=prove)


class Proving:
    """An edge that lets in whoever signs, and its log."""

    def __init__(self, edge: Edge, log: Log, scheme: LengthScheme) -> None:
        self.edge, self.log, self.scheme = edge, log, scheme

    @property
    def packets(self) -> int:
        stream = self.log.find_stream("a")
        return 0 if stream is None else stream.head_sequence


@pytest.fixture(params=[True, False], ids=["lane", "quart"])
async def proving(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Proving]:
    """With the publish lane and without."""
    limits, metrics, scheme = Limits(), Metrics(), LengthScheme()
    failures = FailureBook(AccessSettings(), metrics, trio.current_time)
    gate = Gate(
        rules=AccessRules(service_uid=0), schemes=(scheme,), failures=failures, audit=ignore_record,
        clock=SystemClock(), metrics=metrics,
    )  # fmt: skip
    gate.refresh()
    async with open_publishing(tmp_path, limits, is_fast=request.param, gate=gate, metrics=metrics) as (edge, log):
        yield Proving(edge, log, scheme)


def head(path: str, length: int, *lines: str) -> bytes:
    """A signed POST up to its own header lines."""
    named = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        f"X-Length: {length}",
        "Content-Type: application/json",
        *lines,
    ]
    return ("\r\n".join(named) + "\r\n\r\n").encode()


async def test_a_proven_body_is_published(proving: Proving) -> None:
    """In one piece, in chunks, and several on one connection; the proof gets it as it was sent."""
    chunked = head("/v1/streams/a/packets", len(BODY), "Transfer-Encoding: chunked")
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[:5], BODY[5:])) + b"0\r\n\r\n"
    whole = head("/v1/streams/a/packets", len(BODY), f"Content-Length: {len(BODY)}") + BODY
    async with await proving.edge.connect() as client:
        for raw in (whole, chunked + pieces, whole):
            await client.send(raw)
            assert (await client.read_answer()).status == 201
    assert proving.scheme.proven == [BODY] * 3
    assert proving.packets == 3


async def test_a_body_that_isnt_the_signed_one(proving: Proving) -> None:
    """Nothing is done, and the connection ends."""
    async with await proving.edge.connect() as client:
        await client.send(head("/v1/streams/a/packets", 3, f"Content-Length: {len(BODY)}") + BODY)
        answer = await client.read_answer()
        assert (answer.status, answer.json["subject"]) == (401, "signature")
        assert await client.is_closed_by_peer()
    assert proving.packets == 0


async def test_a_signed_body_is_bounded(proving: Proving) -> None:
    """By `signed_body_max`, told or counted, with a hit of its limit."""
    size = (1 << 20) + 1
    async with await proving.edge.connect() as client:
        await client.send(head("/v1/streams/a/packets", size, f"Content-Length: {size}") + b"x" * size)
        assert (await client.read_answer()).status == 413
    assert proving.edge.count("overlayd_limit_hits_total", limit="signed_body_max") == 1
    assert proving.scheme.proven == []


async def test_a_client_that_waits_to_be_asked(proving: Proving) -> None:
    """Gets its 100 Continue once, before the proof."""
    async with await proving.edge.connect() as client:
        await client.send(
            head("/v1/streams/a/packets", len(BODY), f"Content-Length: {len(BODY)}", "Expect: 100-continue")
        )
        assert (await client._read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        await client.send(BODY)
        assert (await client.read_answer()).status == 201
    assert proving.packets == 1


async def test_other_routes_get_the_body_too(proving: Proving) -> None:
    """And a request without a body proves an empty one."""
    async with await proving.edge.connect() as client:
        await client.send(head("/echo", len(BODY), f"Content-Length: {len(BODY)}") + BODY)
        answer = await client.read_answer()
        assert (answer.status, BODY in answer.body or str(len(BODY)).encode() in answer.body) == (200, True)
        await client.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Length: 0\r\n\r\n")
        assert (await client.read_answer()).status == 200
    assert proving.scheme.proven == [BODY, b""]


async def test_without_a_signature_nobody_gets_in(proving: Proving) -> None:
    """A further scheme is a credential like a key."""
    async with await proving.edge.connect() as client:
        await client.send(b"GET /echo HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await client.read_answer()).status == 401

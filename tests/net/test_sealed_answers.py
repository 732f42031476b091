"""Answers that the node signs: whole, never empty, never compressed, bounded; on the publish lane and on Quart."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from mutual_client import MutualClient, Pairs, SignedHead
from net_rig import Answer, Edge, RawClient, limits_with
from publish_rig import open_publishing
from quart import Response
from quart_trio import QuartTrio

from overlayd.access.failures import FailureBook
from overlayd.access.gate import Gate
from overlayd.access.identity.book import IdentityBook
from overlayd.access.identity.settings import KnownIdentitySettings
from overlayd.access.mutual.peer import MutualPeer
from overlayd.access.mutual.scheme import MutualScheme
from overlayd.access.mutual.sessions import SessionBook
from overlayd.access.mutual.settings import MutualSettings
from overlayd.access.origin import AccessRules
from overlayd.access.roles import RoleBook
from overlayd.access.settings import AccessSettings
from overlayd.bsv.curve_key import MemoryCurveKey
from overlayd.bsv.keys import PrivateKey
from overlayd.model.audit import ignore_record
from overlayd.model.clock import Entropy, SystemClock
from overlayd.model.errors import SignatureInvalid
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.units import Size
from overlayd.net.app import answer
from overlayd.net.content import Bodies
from overlayd.net.lane import Lane
from overlayd.net.mutual_routes import add_mutual_routes
from overlayd.net.sealed_answer import SealedApp, asking_plainly

KEY, NODE = PrivateKey(b"\x21" * 32), PrivateKey(b"\x22" * 32)
SETTINGS = MutualSettings(signed_answer_bytes=Size(20_000))
JSON: Pairs = ((b"content-type", b"application/json"),)


class Sealing:
    """An edge that knows one identity, and a client of it that has a session."""

    def __init__(self, edge: Edge, peer: MutualPeer, metrics: Metrics) -> None:
        self.edge = edge
        self.metrics = metrics
        self.client = MutualClient(KEY)
        self.client.meet(peer.shake(self.client.hello()))

    async def ask(
        self, wire: RawClient, method: str, path: str, body: bytes = b"", headers: Pairs = JSON, query: str = ""
    ) -> Answer:
        """A signed request whose answer verifies."""
        head = self.client.sign(method, path, query, body, headers)
        await wire.send(head.raw(body))
        got = await wire.read_answer()
        self.verify(head, got)
        return got

    def limit_hits(self, limit: str) -> float:
        return self.metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": limit}) or 0.0

    def verify(self, head: SignedHead, got: Answer) -> None:
        """Raises SignatureInvalid."""
        pairs = tuple((name.encode(), value.encode()) for name, value in got.headers.items())
        self.client.verify(head, got.status, pairs, got.body)


def add_odd_routes(app: QuartTrio) -> None:
    """Answers of every kind."""

    @app.route("/nothing", methods=["GET", "DELETE"])
    async def nothing() -> Response:
        return Response(b"", status=204)

    @app.get("/empty")
    async def empty() -> Response:
        return answer(b"", content_type="text/plain")

    @app.get("/payment")
    async def payment() -> Response:
        return answer(b"{}", 402, x_bsv_payment_version="1.0", x_bsv_payment_satoshis_required="5")


@pytest.fixture(params=[True, False], ids=["lane", "quart"])
async def sealing(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Sealing]:
    """With the publish lane and without."""
    limits, metrics = Limits(), Metrics()
    access = AccessSettings(
        identities=(KnownIdentitySettings(name="a", key=KEY.public_key.hex(), scopes=("publish", "read")),)
    )
    peer = MutualPeer(
        MemoryCurveKey(NODE), identities=IdentityBook(access, RoleBook()), entropy=Entropy(),
        sessions=SessionBook(SETTINGS, metrics, trio.current_time),
    )  # fmt: skip
    gate = Gate(
        rules=AccessRules(service_uid=0), schemes=(MutualScheme(peer, SETTINGS, metrics, may_create=True),),
        failures=FailureBook(access, metrics, trio.current_time), audit=ignore_record, clock=SystemClock(), metrics=metrics,
    )  # fmt: skip
    gate.refresh()

    def add_more(app: QuartTrio, bodies: Bodies) -> None:
        add_odd_routes(app)
        add_mutual_routes(app, peer=peer, gate=gate, bodies=bodies, bytes_max=400)

    async with open_publishing(
        tmp_path, limits, is_fast=request.param, gate=gate, metrics=metrics, add_more=add_more
    ) as (edge, _):
        yield Sealing(edge, peer, metrics)


async def test_receipts_and_problems_are_signed(sealing: Sealing) -> None:
    """Several on one connection: durable, a repeat, refused by the schema of things, not allowed."""
    async with await sealing.edge.connect() as wire:
        for path, body, status in (
            ("/v1/streams/a/packets", b'{"id":"1","data":1}', 201), ("/v1/streams/a/packets", b'{"id":"1","data":1}', 200),
            ("/v1/streams/a/packets", b"{", 400), ("/v1/streams/a/packets", b'[{"data":1},{"data":2}]', 201),
            ("/v1/streams/a/data", b"7", 201), ("/v1/streams/overlayd.x/packets", b'{"data":1}', 403), ("/nowhere", b"{}", 404),
        ):  # fmt: skip
            got = await sealing.ask(wire, "POST", path, body)
            assert got.status == status, got


async def test_lines_are_answered_whole(sealing: Sealing) -> None:
    """Also where receipts would be streamed; what is too large to be signed is done and told."""
    ndjson: Pairs = ((b"content-type", b"application/x-ndjson"),)
    async with await sealing.edge.connect() as wire:
        for query in ("", "receipts=all"):
            got = await sealing.ask(wire, "POST", "/v1/streams/a/packets", b'{"data":1}\n' * 20, ndjson, query)
            assert (got.status, "transfer-encoding" in got.headers) == (201, False)
        assert got.body.count(b"\n") >= 20
        got = await sealing.ask(wire, "POST", "/v1/streams/b/packets", b'{"data":1}\n' * 200, ndjson, "receipts=all")
        assert (got.status, got.json["code"]) == (403, "access.answer_too_large")
        assert "is done" in got.json["detail"]
        got = await sealing.ask(wire, "POST", "/v1/streams/b/packets", b'{"data":1}')
        assert got.json["sequence"] == 201
    assert sealing.limit_hits("signed_answer_bytes") == 1


async def test_no_answer_is_empty(sealing: Sealing) -> None:
    """An empty object stands for nothing, and 200 for 204; headers of the protocol's own are signed."""
    async with await sealing.edge.connect() as wire:
        for method, path in (("GET", "/nothing"), ("DELETE", "/nothing"), ("GET", "/empty")):
            got = await sealing.ask(wire, method, path, headers=())
            assert (got.status, got.body, got.headers["content-type"]) == (200, b"{}", "application/json")
            assert got.headers["content-length"] == "2"
        got = await sealing.ask(wire, "GET", "/payment", headers=())
        assert (got.status, got.headers["x-bsv-payment-satoshis-required"]) == (402, "5")


async def test_other_requests_on_the_connection_are_not_signed(sealing: Sealing) -> None:
    """The seal is one request's."""
    async with await sealing.edge.connect() as wire:
        await sealing.ask(wire, "POST", "/v1/streams/a/packets", b'{"data":1}')
        await wire.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        got = await wire.read_answer()
        assert got.status == 200
        assert not any(name.startswith("x-bsv-") for name in got.headers)


async def test_what_has_no_end_is_refused_in_signed_words(sealing: Sealing) -> None:
    """Live paths; a ticket is the way."""
    async with await sealing.edge.connect() as wire:
        got = await sealing.ask(wire, "GET", "/v1/live", headers=())
        assert (got.status, "ticket" in got.json["hint"]) == (403, True)


async def test_a_wrong_signature_is_answered_without_one(sealing: Sealing) -> None:
    """Nobody knows who that is."""
    async with await sealing.edge.connect() as wire:
        head = sealing.client.sign("POST", "/v1/streams/a/packets", "", b"signed", JSON)
        await wire.send(head.raw(b"other!"))
        got = await wire.read_answer()
        assert (got.status, "x-bsv-auth-signature" in got.headers) == (401, False)
        with pytest.raises(KeyError):
            sealing.verify(head, got)


async def test_handshakes_over_the_wire(sealing: Sealing) -> None:
    """Bounded, and told what is wrong with them; a wrong one counts against its address."""

    async def shake(body: bytes) -> Answer:
        head = b"POST /.well-known/auth HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        return await sealing.edge.say(head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))

    for body, status in ((b"", 400), (b"[]", 400), (b"{}", 400), (b'{"version":"0.1","messageType":"x"}', 400),
                         (b"{" * 300, 400), (b" " * 500, 413)):  # fmt: skip
        assert (await shake(body)).status == status
    assert sealing.limit_hits("handshake_bytes") == 1
    hello = b'{"version":"0.1","messageType":"initialRequest","identityKey":"%b","initialNonce":"%b"}'
    stranger = PrivateKey(b"\x23" * 32).public_key.hex().encode()
    for _ in range(10):
        assert (await shake(hello % (stranger, sealing.client.nonce.encode()))).status == 401
    assert (await shake(hello % (KEY.public_key.hex().encode(), sealing.client.nonce.encode()))).status == 429


def test_a_signed_request_asks_plainly() -> None:
    """Nothing compressed; a GET gets a body. Others keep what they depend on."""
    from overlayd.net.head import parse_head

    lines = b"Host: x\r\nAccept-Encoding: gzip\r\nIf-None-Match: a\r\nIf-Match: b\r\nRange: bytes=0-1\r\nX: y\r\n\r\n"
    get = asking_plainly(parse_head(b"GET / HTTP/1.1\r\n" + lines, Limits()))
    assert [name for name, _ in get.headers] == [b"host", b"x"]
    put = asking_plainly(parse_head(b"PUT / HTTP/1.1\r\n" + lines, Limits()))
    assert [name for name, _ in put.headers] == [b"host", b"if-none-match", b"if-match", b"range", b"x"]
    plain = parse_head(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", Limits())
    assert asking_plainly(plain) is plain


class LoudSeal:
    """Signs by telling the length."""

    bytes_max = 1000

    def __init__(self) -> None:
        self.hits = 0

    def count_hit(self) -> None:
        self.hits += 1

    def headers(self, status: int, headers: Any, body: bytes) -> list[tuple[bytes, bytes]]:
        return [(b"seal", b"%d %d" % (status, len(body)))]


Send = Callable[[dict[str, Any]], Awaitable[None]]


async def sealed(
    app: Callable[[Any, Any, Send], Awaitable[None]], seal: LoudSeal, limits: Limits
) -> list[dict[str, Any]]:
    """What an application's answer becomes."""
    metrics, sent = Metrics(), []
    bodies = Bodies(limits, Lane(2, 2, metrics), metrics)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await SealedApp(app, seal, bodies)({"state": {"request_id": "r"}}, None, send)  # type: ignore[arg-type]
    assert repr(bodies.budget).startswith("BodyBudget(0 of")
    return sent


async def test_pieces_become_one() -> None:
    """Nothing is sent before the last one came."""

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        for number in range(5):
            await send({"type": "http.response.body", "body": b"x" * number, "more_body": True})
        await send({"type": "http.response.body"})

    start, body = await sealed(app, LoudSeal(), Limits())
    assert (start["status"], start["headers"]) == (
        200,
        [(b"a", b"b"), (b"content-length", b"10"), (b"seal", b"200 10")],
    )
    assert body == {"type": "http.response.body", "body": b"x" * 10, "more_body": False}


@pytest.mark.parametrize(("pieces", "budget", "status"), [(20, 1 << 20, 403), (9, 500, 503)])
async def test_an_answer_has_its_bounds(pieces: int, budget: int, status: int) -> None:
    """Its own, and that of all bodies together; the rest of it is passed over."""

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
        for number in range(pieces):
            await send({"type": "http.response.body", "body": b"x" * 100, "more_body": number < pieces - 1})

    seal = LoudSeal()
    start, body = await sealed(app, seal, limits_with(bodies_in_flight_bytes=Size(budget)))
    headers = dict(start["headers"])
    assert (start["status"], headers[b"seal"]) == (status, b"%d %d" % (status, len(body["body"])))
    assert headers[b"content-length"] == str(len(body["body"])).encode()
    assert seal.hits == (status == 403)


async def test_an_answer_that_breaks_off_is_not_signed() -> None:
    """As it would be sent without a seal: not whole."""

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    assert await sealed(app, LoudSeal(), Limits()) == []


def test_a_seal_of_another_answer_is_none() -> None:
    """The client that these tests trust can tell."""
    client = MutualClient(KEY)
    head = client.sign("GET", "/")
    pairs = tuple(
        (b"x-bsv-auth-" + name, value)
        for name, value in (
            (b"version", b"0.1"), (b"identity-key", KEY.public_key.hex().encode()), (b"your-nonce", client.nonce.encode()),
            (b"nonce", b"AA=="), (b"request-id", (head.get(b"x-bsv-auth-request-id") or "").encode()),
            (b"signature", KEY.sign(b"x").hex().encode()),
        )
    )  # fmt: skip
    with pytest.raises(SignatureInvalid):
        client.verify(head, 200, pairs, b"{}")

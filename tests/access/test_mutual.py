"""Mutual authentication: handshakes, requests that count once, answers that verify, sessions within bounds."""

from base64 import b64decode, b64encode
from contextlib import suppress
from typing import Any

import pytest
from access_rig import THERE, FakeHead, GateRig, TurnedClock
from hypothesis import given
from hypothesis import strategies as st
from mutual_client import MutualClient, SignedHead

from overlayd.access.gate import Claim, Remembered
from overlayd.access.identity.book import IdentityBook
from overlayd.access.identity.settings import IdentitySettings, KnownIdentitySettings
from overlayd.access.mutual.messages import AUTH_PATH, HEADERS, parse_general_head
from overlayd.access.mutual.peer import MutualPeer
from overlayd.access.mutual.scheme import MutualScheme
from overlayd.access.mutual.sessions import SessionBook
from overlayd.access.mutual.settings import MutualSettings
from overlayd.access.origin import Origin
from overlayd.access.roles import RoleBook
from overlayd.access.settings import AccessSettings
from overlayd.bsv.curve_key import MemoryCurveKey
from overlayd.bsv.keys import PrivateKey
from overlayd.model.clock import Entropy
from overlayd.model.errors import (
    BadRequest,
    ConfigInvalid,
    LimitReached,
    MethodNotAllowed,
    SignatureInvalid,
    Unauthorized,
)
from overlayd.model.metrics import Metrics
from overlayd.model.units import Duration
from overlayd.model.wire_mutual import HandshakeIn

ALICE, BOB, NODE = (PrivateKey(bytes([number]) * 32) for number in (3, 4, 5))
ORIGIN = Origin("192.0.2.9")


class Rig:
    """A peer that knows Alice and Bob."""

    def __init__(self, *, is_open: bool = False, **changed: Any) -> None:
        self.clock = TurnedClock()
        self.metrics = Metrics()
        self.settings = MutualSettings(**changed)
        access = AccessSettings(
            identities=tuple(
                KnownIdentitySettings(name=name, key=key.public_key.hex(), scopes=("publish",))
                for name, key in (("alice", ALICE), ("bob", BOB))
            ),
            identity=IdentitySettings(anyone=("read",) if is_open else ()),
        )  # fmt: skip
        self.peer = MutualPeer(
            MemoryCurveKey(NODE), identities=IdentityBook(access, RoleBook()), entropy=Entropy(),
            sessions=SessionBook(self.settings, self.metrics, self.clock.now_s),
        )  # fmt: skip
        self.scheme = MutualScheme(self.peer, self.settings, self.metrics, may_create=True)

    def client(self, key: PrivateKey = ALICE) -> MutualClient:
        """One that has shaken hands."""
        client = MutualClient(key)
        client.meet(self.peer.shake(client.hello()))
        return client

    async def ask(self, head: SignedHead | FakeHead, body: bytes = b"") -> Claim:
        """Both steps of the gate's."""
        claim = await self.scheme.claim(head, THERE, ORIGIN)
        assert claim.prove is not None
        await claim.prove(body)
        return claim

    def limit_hits(self, limit: str) -> float:
        return self.metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": limit}) or 0.0


async def test_both_sides_prove_who_they_are() -> None:
    """A GET with a query, a POST of JSON, a POST of octets with a header of the protocol's own; each answer verifies."""
    rig = Rig()
    client = rig.client()
    for method, query, body, headers in (
        ("GET", "after=0&x=%20", b"", ()),
        ("POST", "", b'{"data":1}', ((b"content-type", b"application/json; charset=utf-8"),)),
        ("POST", "", bytes(range(256)) * 300, ((b"content-type", b"application/octet-stream"), (b"x-bsv-topic", b"t"))),
        ("DELETE", "", b"", ((b"accept", b"*/*"),)),
    ):  # fmt: skip
        head = client.sign(method, "/v1/streams/a", query, body, headers)
        assert rig.scheme.is_brought(head, THERE)
        claim = await rig.ask(head, body)
        assert (claim.principal.name, claim.principal.kind) == ("identity:alice", "identity")
        assert claim.principal.identity_key == ALICE.public_key.hex()
        assert not claim.is_lasting
        assert claim.seal is not None
        for status, answer, more in (
            (200, b"{}", ()),
            (201, b"x" * 70_000, ((b"x-bsv-payment-version", b"1.0"),)),
            (503, b"no", ()),
        ):
            sealed = tuple(claim.seal.headers(status, more, answer))
            client.verify(head, status, (*more, *sealed), answer)
            for wrong in (
                (status + 1, more, answer),
                (status, ((b"x-bsv-a", b"b"),), answer),
                (status, more, answer + b" "),
            ):
                with pytest.raises(SignatureInvalid):
                    client.verify(head, wrong[0], (*wrong[1], *sealed), wrong[2])


async def test_a_request_counts_once() -> None:
    """Also when it comes twice at the same time; a new nonce is a new request."""
    rig = Rig()
    client = rig.client()
    head = client.sign("GET", "/v1/node")
    first, second = [await rig.scheme.claim(head, THERE, ORIGIN) for _ in range(2)]
    assert first.prove is not None
    assert second.prove is not None
    await first.prove(b"")
    with pytest.raises(Unauthorized, match="used before"):
        await second.prove(b"")
    with pytest.raises(Unauthorized, match="used before"):
        await rig.scheme.claim(head, THERE, ORIGIN)
    await rig.ask(client.sign("GET", "/v1/node"))


async def test_a_nonce_that_failed_still_counts() -> None:
    """Somebody who saw it can't use it up with a wrong signature."""
    rig = Rig()
    client = rig.client()
    head = client.sign("POST", "/x", "", b"body")
    with pytest.raises(Unauthorized, match="verify"):
        await rig.ask(head, b"other")
    await rig.ask(head, b"body")


@pytest.mark.parametrize("where", ["method", "path", "query", "body", "type", "own", "authorization", "more"])
async def test_everything_that_matters_is_signed(where: str) -> None:
    """Changed on the way, the request doesn't count."""
    rig = Rig()
    client = rig.client()
    headers = ((b"content-type", b"text/plain"), (b"x-bsv-topic", b"t"), (b"authorization", b"x"))
    head, body = client.sign("POST", "/a", "q=1", b"body", headers), b"body"

    def with_header(name: bytes, value: bytes) -> FakeHead:
        return FakeHead(
            head.method,
            head.path,
            head.query,
            tuple((known, value if known == name else old) for known, old in head.headers),
        )

    changed: dict[str, FakeHead | SignedHead] = {
        "method": FakeHead("PUT", "/a", "q=1", head.headers), "path": FakeHead("POST", "/b", "q=1", head.headers),
        "query": FakeHead("POST", "/a", "q=2", head.headers), "body": head, "type": with_header(b"content-type", b"text/html"),
        "own": with_header(b"x-bsv-topic", b"u"), "authorization": with_header(b"authorization", b"y"),
        "more": FakeHead("POST", "/a", "q=1", (*head.headers, (b"x-bsv-more", b"1"))),
    }  # fmt: skip
    with pytest.raises(Unauthorized, match="verify"):
        await rig.ask(changed[where], b"bodY" if where == "body" else body)
    await rig.ask(head, body)


@pytest.mark.parametrize("name", sorted(HEADERS - {b"x-bsv-auth-message-type"}))
async def test_every_changed_character_of_a_header_is_found(name: bytes) -> None:
    """One at a time, in each of the headers; the header left out; the header twice."""
    rig = Rig()
    head = rig.client().sign("GET", "/v1/node", nonce=b64encode(b"n" * 32).decode(), request_id=b"i" * 32)
    at = [known for known, _ in head.headers].index(name)
    value = head.headers[at][1]

    def having(*values: bytes) -> FakeHead:
        others = [pair for pair in head.headers if pair[0] != name]
        return FakeHead(head.method, head.path, head.query, (*others, *((name, one) for one in values)))

    for place in range(len(value)):
        other = value[:place] + bytes([value[place] ^ 1]) + value[place + 1 :]
        with pytest.raises(Unauthorized):
            await rig.ask(having(other))
    for values in ((), (value, value), (b"",), (value + value,), (b"\xff\xfe",)):
        with pytest.raises(Unauthorized):
            await rig.ask(having(*values))
    await rig.ask(having(value))


async def test_a_session_is_its_clients_own() -> None:
    """Bob can't use Alice's, nor can a node's answer to one be shown to the other."""
    rig = Rig()
    alice, bob = rig.client(), rig.client(BOB)
    bob.session = alice.session
    with pytest.raises(Unauthorized, match="somebody else's"):
        await rig.ask(bob.sign("GET", "/"))
    bob.session = b64encode(bytes(48)).decode()
    with pytest.raises(Unauthorized, match="no such session"):
        await rig.ask(bob.sign("GET", "/"))


async def test_only_those_who_are_known_may_shake_hands() -> None:
    """Unless strangers are let in."""
    stranger = MutualClient(PrivateKey(b"\x09" * 32))
    with pytest.raises(Unauthorized, match="known"):
        Rig().peer.shake(stranger.hello())
    rig = Rig(is_open=True)
    stranger.meet(rig.peer.shake(stranger.hello()))
    claim = await rig.ask(stranger.sign("GET", "/"))
    assert claim.principal.name == f"identity:{stranger.key.public_key.hex()}"
    assert claim.principal.grants.scopes == ("read",)


@pytest.mark.parametrize("count", [16, 32, 48, 64])
async def test_clients_choose_the_length_of_their_nonce(count: int) -> None:
    """Within reason, padded or not."""
    rig = Rig()
    client = MutualClient(ALICE, b"c" * count)
    client.meet(rig.peer.shake(client.hello()))
    head = client.sign("GET", "/")
    claim = await rig.ask(head)
    assert claim.seal is not None
    client.verify(head, 200, tuple(claim.seal.headers(200, (), b"x")), b"x")


@pytest.mark.parametrize(
    "changed",
    [
        {"version": "1.0"}, {"message_type": "certificateRequest"}, {"message_type": "certificateResponse"},
        {"message_type": "general"}, {"initial_nonce": ""}, {"initial_nonce": "AAAA"}, {"initial_nonce": "!" * 64},
        {"initial_nonce": b64encode(b"x" * 65).decode()}, {"initial_nonce": " " + b64encode(b"x" * 48).decode()},
        {"identity_key": ""}, {"identity_key": "02" * 33},
    ],
)  # fmt: skip
def test_other_first_messages_are_refused_in_words(changed: dict[str, str]) -> None:
    """Requests for certificates too: the node has none, and asks for none."""
    rig = Rig()
    hello = MutualClient(ALICE).hello()
    members = {name: getattr(hello, name) for name in hello.__struct_fields__} | changed
    with pytest.raises((BadRequest, Unauthorized)) as caught:
        rig.peer.shake(HandshakeIn(**members))
    if "certificate" in changed.get("message_type", ""):
        assert "certificates" in caught.value.hint
    assert len(rig.peer.sessions) == 0


def test_a_key_that_cant_agree_is_no_use() -> None:
    """Such as one on a token; told at start."""

    class Token(MemoryCurveKey):
        can_derive = False

    with pytest.raises(ConfigInvalid, match="can't"):
        MutualPeer(
            Token(NODE), identities=IdentityBook(AccessSettings(), RoleBook()), entropy=Entropy(),
            sessions=SessionBook(MutualSettings(), Metrics(), TurnedClock().now_s),
        )  # fmt: skip


async def test_a_head_is_not_answered() -> None:
    """It would have no body to verify."""
    rig = Rig()
    with pytest.raises(MethodNotAllowed):
        await rig.scheme.claim(rig.client().sign("HEAD", "/"), THERE, ORIGIN)


async def test_where_nobody_may_come_in_so_the_headers_mean_nothing() -> None:
    """And handshakes are ordinary requests."""
    rig = Rig()
    off = MutualScheme(None, rig.settings, rig.metrics, may_create=True)
    assert not off.is_configured
    assert not off.is_brought(rig.client().sign("GET", "/"), THERE)
    assert not off.is_brought(FakeHead("POST", AUTH_PATH), THERE)


# Sessions.


async def test_handshakes_that_nothing_proves_pass_away() -> None:
    """Soon, and the oldest first when there are many; anybody can make them in anybody's name."""
    rig = Rig(handshake_ttl=Duration(10), handshakes_max=3)
    proven, late = rig.client(), rig.client()
    await rig.ask(proven.sign("GET", "/"))
    rig.clock.advance(11)
    with pytest.raises(Unauthorized, match="over"):
        await rig.ask(late.sign("GET", "/"))
    others = [rig.client() for _ in range(5)]
    assert rig.limit_hits("handshakes_max") == 2
    await rig.ask(proven.sign("GET", "/"))
    for client in others[:2]:
        with pytest.raises(Unauthorized, match="no such session"):
            await rig.ask(client.sign("GET", "/"))
    for client in others[2:]:
        await rig.ask(client.sign("GET", "/"))


async def test_sessions_end() -> None:
    """By their age, and when nothing was asked for a while."""
    rig = Rig(session_ttl=Duration(100), session_idle=Duration(20))
    client = rig.client()
    for _ in range(9):
        await rig.ask(client.sign("GET", "/"))
        rig.clock.advance(11)
    rig.clock.advance(2)
    with pytest.raises(Unauthorized, match="over"):
        await rig.ask(client.sign("GET", "/"))
    idle = rig.client()
    await rig.ask(idle.sign("GET", "/"))
    rig.clock.advance(21)
    with pytest.raises(Unauthorized, match="over"):
        await rig.ask(idle.sign("GET", "/"))


async def test_one_identity_has_so_many_sessions() -> None:
    """The one that it used longest ago gives way; another identity's stay."""
    rig = Rig(peer_sessions_each=2)
    other = rig.client(BOB)
    await rig.ask(other.sign("GET", "/"))
    clients = [rig.client() for _ in range(3)]
    for number in (0, 1, 0, 2):
        await rig.ask(clients[number].sign("GET", "/"))
    assert rig.limit_hits("peer_sessions_each") == 1
    for client in (clients[0], clients[2], other):
        await rig.ask(client.sign("GET", "/"))
    with pytest.raises(Unauthorized):
        await rig.ask(clients[1].sign("GET", "/"))


async def test_all_together_have_so_many_sessions() -> None:
    """The one used longest ago gives way."""
    rig = Rig(peer_sessions_max=2)
    clients = [rig.client(ALICE), rig.client(BOB), rig.client(ALICE)]
    for client in clients:
        await rig.ask(client.sign("GET", "/"))
    assert rig.limit_hits("peer_sessions_max") == 1
    with pytest.raises(Unauthorized):
        await rig.ask(clients[0].sign("GET", "/"))
    await rig.ask(clients[1].sign("GET", "/"))


async def test_a_session_has_so_many_requests() -> None:
    """Then the client shakes hands again; nothing that it sent before counts in the new one."""
    rig = Rig(requests_per_session=3)
    client = rig.client()
    heads = [client.sign("GET", "/") for _ in range(4)]
    for head in heads[:3]:
        claim = await rig.ask(head)
    assert rig.limit_hits("requests_per_session") == 1
    assert claim.seal is not None
    client.verify(heads[2], 200, tuple(claim.seal.headers(200, (), b"x")), b"x")
    for head in heads:
        with pytest.raises(Unauthorized, match="over"):
            await rig.ask(head)
    client.meet(rig.peer.shake(client.hello()))
    for head in heads:
        with pytest.raises(Unauthorized):
            await rig.ask(head)
    await rig.ask(client.sign("GET", "/"))


async def test_nonces_are_bounded() -> None:
    """The session used longest ago ends and takes its nonces along; a lone session isn't ended by itself."""
    rig = Rig(peer_nonces_max=5)
    one, two = rig.client(), rig.client(BOB)
    for client in (one, one, one, two, two, two):
        await rig.ask(client.sign("GET", "/"))
    assert rig.limit_hits("peer_nonces_max") == 1
    with pytest.raises(Unauthorized):
        await rig.ask(one.sign("GET", "/"))
    for _ in range(10):
        await rig.ask(two.sign("GET", "/"))


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(("shake", "ask", "wait"))), max_size=40))
async def test_the_books_of_sessions_agree(steps: list[tuple[int, str]]) -> None:
    """Whatever happens, in any order, within bounds."""
    rig = Rig(
        peer_sessions_max=3, peer_sessions_each=2, handshakes_max=2, peer_nonces_max=6, requests_per_session=4,
        handshake_ttl=Duration(5), session_idle=Duration(9), session_ttl=Duration(30),
    )  # fmt: skip
    book = rig.peer.sessions
    clients = [MutualClient((ALICE, BOB)[number % 2]) for number in range(6)]
    for number, step in steps:
        client = clients[number]
        if step == "shake":
            client.meet(rig.peer.shake(client.hello()))
        elif step == "wait":
            rig.clock.advance(number)
        elif client.session:
            with suppress(Unauthorized):  # of a session that gave way
                await rig.ask(client.sign("GET", "/"))
        assert len(book._proven) <= 3
        assert len(book._fresh) <= 2
        assert book._nonces == sum(len(session.seen) for session in book._proven.values())
        assert book._nonces <= 6 or len(book._proven) == 1
        held = {own for sessions in book._of.values() for own in sessions}
        assert held == book._proven.keys()
        assert all(0 < len(sessions) <= 2 for sessions in book._of.values())


# At the gate.


async def test_handshakes_get_in_and_have_no_rights() -> None:
    """On a node that wants a credential for everything else."""
    rig = Rig()
    gate = GateRig(schemes=(rig.scheme,))
    gate.gate.refresh()
    claim = await gate.gate.claim(Remembered(), THERE, FakeHead("POST", AUTH_PATH))
    assert (claim.principal.name, claim.principal.rights, claim.principal.owner) == ("handshake", frozenset(), "")
    with pytest.raises(Unauthorized):
        await gate.gate.claim(Remembered(), THERE, FakeHead("GET", AUTH_PATH))


async def test_wrong_signatures_are_counted_and_slowed_down() -> None:
    """Failing in the second step counts like failing in the first; then even a right request waits."""
    rig = Rig()
    gate = GateRig(schemes=(rig.scheme,))
    client = rig.client()
    for _ in range(gate.settings.failures_per_address):
        claim = await gate.gate.claim(Remembered(), THERE, client.sign("GET", "/", "", b""))
        assert claim.prove is not None
        with pytest.raises(Unauthorized):
            await claim.prove(b"another body")
    assert [record.action for record in gate.records] == ["access.failed"] * gate.settings.failures_per_address
    with pytest.raises(LimitReached):
        await gate.gate.claim(Remembered(), THERE, client.sign("GET", "/"))
    gate.clock.advance(7)
    claim = await gate.gate.claim(Remembered(), THERE, client.sign("GET", "/"))
    assert claim.prove is not None
    await claim.prove(b"")


header_values = st.binary(max_size=120).filter(lambda value: b"\r" not in value and b"\n" not in value)


@given(st.dictionaries(st.sampled_from(sorted(HEADERS)), header_values, max_size=7), st.booleans())
def test_nothing_but_refusals_comes_of_any_headers(changed: dict[bytes, bytes], is_whole: bool) -> None:
    """Whatever bytes they hold, alone or among right ones."""
    right = dict(MutualClient(ALICE).sign("GET", "/").headers) if is_whole else {}
    head = FakeHead(headers=tuple((right | changed).items()))
    try:
        general = parse_general_head(head)
    except Unauthorized:
        return
    assert len(general.request_id) == 32
    assert len(general.key) == 66
    assert 16 <= len(b64decode(general.nonce)) <= 64

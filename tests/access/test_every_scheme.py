"""All schemes at one gate: which one a request is judged by, what guessing costs, and whatever bytes may come."""

from pathlib import Path
from typing import Any

import pytest
from access_rig import HERE, THERE, FakeHead, GateRig, head_with
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutual_client import MutualClient
from token_maker import TokenRig, make_token, part, settings_of

from overlayd.access.certificates import CertificateScheme
from overlayd.access.gate import Remembered
from overlayd.access.identity.book import IdentityBook
from overlayd.access.identity.headers import signed_digest
from overlayd.access.identity.nonces import ClockNonces
from overlayd.access.identity.scheme import IdentityScheme
from overlayd.access.identity.settings import KnownIdentitySettings
from overlayd.access.mutual.messages import HEADERS as MUTUAL_HEADERS
from overlayd.access.mutual.peer import MutualPeer
from overlayd.access.mutual.scheme import MutualScheme
from overlayd.access.mutual.sessions import SessionBook
from overlayd.access.origin import Peer, PeerCertificate
from overlayd.access.roles import RoleBook
from overlayd.access.settings import AccessSettings, CertificateSettings
from overlayd.bsv.curve_key import MemoryCurveKey
from overlayd.bsv.keys import PrivateKey
from overlayd.model.clock import Entropy
from overlayd.model.errors import BadRequest, LimitReached, OverlaydError, Unauthorized

KEY, NODE = PrivateKey(b"\x31" * 32), PrivateKey(b"\x32" * 32)
HELD = Peer(
    "tcp", "192.0.2.9", 40000, "192.0.2.1", 7878, is_tls=True,
    certificate=PeerCertificate("CN=press-7,O=Example", (), "sha256:" + "0" * 64),
)  # fmt: skip


class NoStore:
    """A database that takes everything."""

    async def read(self, function: Any) -> Any:
        return {}

    async def write(self, job: Any) -> Any:
        return True


class AllSchemes(GateRig):
    """A gate that somebody may pass in every way."""

    def __init__(self, directory: Path) -> None:
        settings = AccessSettings(
            identities=(
                KnownIdentitySettings(name="farm", key=KEY.public_key.hex(), scheme="preimage-v1", scopes=("publish",)),
            )
        )
        self.tokens = TokenRig(settings_of(), directory=directory)
        book = IdentityBook(settings, RoleBook())
        certificates = CertificateScheme([CertificateSettings(name="p", subject="CN=*,O=Example")], is_asked=True)
        nonces = ClockNonces(
            settings, store=NoStore(), clock=self.tokens.clock, entropy=Entropy(), metrics=self.tokens.metrics
        )
        self.peer = MutualPeer(
            MemoryCurveKey(NODE), identities=book, entropy=Entropy(),
            sessions=SessionBook(settings.mutual, self.tokens.metrics, self.tokens.clock.now_s),
        )  # fmt: skip
        mutual = MutualScheme(self.peer, settings.mutual, self.tokens.metrics, may_create=True)
        identity = IdentityScheme(book, nonces, may_create=True)
        super().__init__(schemes=(self.tokens.scheme, identity, mutual, certificates), settings=settings)
        self.gate.refresh()

    def signed(self, number: int = 0, key: PrivateKey = KEY) -> dict[str, str]:
        """Headers that are signed for an empty body."""
        nonce = str(self.tokens.clock.us + number)
        signature = key.sign_digest(signed_digest("preimage-v1", nonce, b""))
        return {"x_identity_key": key.public_key.hex(), "x_nonce": nonce, "x_signature": signature.hex()}

    async def ask(self, head: FakeHead, peer: Peer = THERE) -> str:
        """Who it is, after both steps."""
        claim = await self.gate.claim(Remembered(), peer, head)
        if claim.prove is not None:
            await claim.prove(b"")
        return claim.principal.name


@pytest.fixture
def rig(tmp_path: Path) -> AllSchemes:
    """A new gate."""
    return AllSchemes(tmp_path)


async def test_each_credential_finds_its_scheme(rig: AllSchemes) -> None:
    """One that the request brings beats one that the connection has."""
    client = MutualClient(KEY)
    client.meet(rig.peer.shake(client.hello()))
    _, secret = rig.add_key()
    signed = client.sign("GET", "/")
    mutual = FakeHead("GET", "/", "", signed.headers)
    for peer in (THERE, HELD):
        assert await rig.ask(head_with(secret), peer) == "key:k1"
        assert await rig.ask(head_with(make_token()), peer) == "jwt:login/alice"
        assert await rig.ask(head_with(**rig.signed(peer is HELD)), peer) == "identity:farm"
    assert await rig.ask(mutual, HELD) == "identity:farm"
    assert await rig.ask(head_with(), HELD) == "certificate:p/press-7"
    with pytest.raises(Unauthorized):
        await rig.ask(head_with())


async def test_two_credentials_are_one_too_many(rig: AllSchemes) -> None:
    """Nobody should have to guess which one counts."""
    _, secret = rig.add_key()
    for token in (secret, make_token()):
        with pytest.raises(BadRequest, match="more than one"):
            await rig.ask(head_with(token, **rig.signed()))


async def test_a_known_connection_costs_a_token_nothing_more(rig: AllSchemes) -> None:
    """As with keys: equal headers are recognized without the gate's asking; headers that are signed never are."""
    memory, head = Remembered(), head_with(make_token())
    await rig.gate.claim(memory, THERE, head)
    assert rig.gate.recall(memory, head) is not None
    assert rig.gate.recall(memory, head_with(make_token(sub="bob"))) is None
    rig.clock.advance(700)
    assert rig.gate.recall(memory, head) is None
    signed = head_with(**rig.signed())
    await rig.gate.claim(memory, THERE, signed)
    assert rig.gate.recall(memory, signed) is None


def wrong_heads(rig: AllSchemes) -> dict[str, list[FakeHead]]:
    """Wrong credentials of each kind, all different."""
    stranger = PrivateKey(b"\x33" * 32)
    client = MutualClient(KEY)
    return {
        "key": [head_with(f"ovl_live_{number:032}") for number in range(12)],
        "jwt": [head_with(f"{part({'alg': 'EdDSA'})}.{part({'iss': 'x', 'n': number})}.AA") for number in range(12)],
        "identity": [head_with(**rig.signed(number, stranger)) for number in range(12)],
        "mutual": [FakeHead("GET", "/", "", client.sign("GET", "/").headers) for _ in range(12)],
        "ticket": [FakeHead("GET", "/v1/live", f"ticket=ovl_ticket_{number:032}") for number in range(12)],
    }


@pytest.mark.parametrize("kind", ["key", "jwt", "identity", "mutual", "ticket"])
async def test_guessing_is_slowed_down(rig: AllSchemes, kind: str) -> None:
    """Of whatever kind; the address waits, others don't, and the audit has each failure."""
    heads = wrong_heads(rig)[kind]
    most = rig.settings.failures_per_address
    for head in heads[:most]:
        with pytest.raises(Unauthorized):
            await rig.ask(head)
    for head in heads[most:]:
        with pytest.raises(LimitReached) as caught:
            await rig.ask(head)
        assert caught.value.retry_after_s
        assert caught.value.status == 429
    with pytest.raises(Unauthorized):
        await rig.ask(heads[0], HERE)
    assert [(record.action, record.detail["scheme"]) for record in rig.records] == [("access.failed", kind)] * (
        most + 1
    )
    assert rig.limit_hits("failures_per_address") == len(heads) - most


async def test_a_slow_address_may_still_bring_what_is_quickly_looked_up(rig: AllSchemes) -> None:
    """A right key or token gets in beside a neighbor's mistakes; what takes arithmetic over a body waits."""
    _, secret = rig.add_key()
    for head in wrong_heads(rig)["key"][: rig.settings.failures_per_address]:
        with pytest.raises(Unauthorized):
            await rig.ask(head)
    assert await rig.ask(head_with(secret)) == "key:k1"
    assert await rig.ask(head_with(make_token())) == "jwt:login/alice"
    with pytest.raises(LimitReached):
        await rig.ask(head_with(**rig.signed()))


names = st.sampled_from(
    (
        b"authorization",
        b"x-identity-key",
        b"x-nonce",
        b"x-signature",
        b"host",
        b"origin",
        b"forwarded",
        *sorted(MUTUAL_HEADERS),
    )
)
values = st.one_of(
    st.binary(max_size=90).map(lambda raw: raw.replace(b"\r", b"").replace(b"\n", b"")),
    st.sampled_from((b"Bearer ", b"Bearer a.b.c", b"bearer ovl_live_", b"Basic x", b"0.1", b"1700000000", b"02" * 33)),
    st.text(alphabet="abcdef0123456789", max_size=150).map(str.encode),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(
    pairs=st.lists(st.tuples(names, values), max_size=8), method=st.sampled_from(("GET", "POST", "HEAD")),
    path=st.sampled_from(("/", "/v1/live", "/.well-known/auth")), query=st.sampled_from(("", "ticket=", "ticket=%ff", "a=b")),
    is_local=st.booleans(),
)  # fmt: skip
async def test_nothing_but_refusals_comes_of_any_headers(
    tmp_path: Path, pairs: list[tuple[bytes, bytes]], method: str, path: str, query: str, is_local: bool
) -> None:
    """Through the whole gate, in any number and order: nobody gets in, and nothing breaks."""
    rig, status = AllSchemes(tmp_path), 0
    head = FakeHead(method, path, query, tuple(pairs))
    try:
        claim = await rig.gate.claim(Remembered(), HERE if is_local else THERE, head)
    except OverlaydError as error:
        status = error.status
    if status:
        assert 400 <= status < 500
    else:
        assert (claim.principal.name, path, method) == ("handshake", "/.well-known/auth", "POST")

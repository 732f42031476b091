"""The gate: who gets in by what, what a connection is remembered by, and how failing is answered."""

from collections.abc import Sequence

import msgspec
import pytest
from access_rig import HERE, OTHER_USER, SERVICE, THERE, FakeHead, GateRig, head_with, record_of
from hypothesis import given
from hypothesis import strategies as st

from overlayd.access.gate import OPEN_PATHS, Claim, Remembered, RequestHead
from overlayd.access.networks import Networks, parse_network
from overlayd.access.origin import AccessRules, Origin, Peer
from overlayd.access.principal import EVERYDAY, EVERYTHING, Principal
from overlayd.access.scopes import parse_scope
from overlayd.access.secret_text import draw_key
from overlayd.access.settings import AccessSettings, UnixUserSettings
from overlayd.access.unix_users import UnixUsers
from overlayd.model.clock import Entropy
from overlayd.model.errors import (
    BadRequest,
    ConfigInvalid,
    Forbidden,
    ForeignHost,
    ForeignOrigin,
    KeyInUrl,
    LimitReached,
    OverlaydError,
    Unauthorized,
)

WRONG = "ovl_live_" + "A" * 32


async def claimed(rig: GateRig, head: FakeHead, peer: Peer = THERE, *, is_websocket: bool = False) -> Principal:
    """Who the gate takes it for."""
    return (await rig.gate.claim(Remembered(), peer, head, is_websocket=is_websocket)).principal


async def test_a_key_lets_in_from_anywhere() -> None:
    """With its scopes and nothing else; by whatever name the node was called."""
    rig = GateRig()
    _, secret = rig.add_key("k1", "publish:a")
    who = await claimed(rig, head_with(secret, host="node.example"))
    assert (who.name, who.kind, who.address, who.rights) == ("key:k1", "key", "192.0.2.9", frozenset())
    assert who.grants.is_over("publish", "a")
    assert not who.may_create
    assert (await claimed(rig, head_with(secret), HERE)).may_create


@pytest.mark.parametrize("header", ["bearer {}", "BEARER  {}", "Bearer {}  "])
async def test_the_scheme_is_told_in_any_case(header: str) -> None:
    """As RFC 9110 wants it."""
    rig = GateRig()
    _, secret = rig.add_key()
    head = FakeHead(headers=((b"authorization", header.format(secret).encode()),))
    assert (await claimed(rig, head)).name == "key:k1"


async def test_without_credentials_the_node_is_for_local_clients() -> None:
    """As before there were any keys."""
    rig = GateRig()
    assert (await claimed(rig, head_with(), HERE)).rights == EVERYDAY
    assert (await claimed(rig, head_with(), SERVICE)).rights == EVERYTHING
    assert (await claimed(rig, head_with(), OTHER_USER)).rights == EVERYDAY
    with pytest.raises(ForeignHost):
        await claimed(rig, head_with(host="evil.example"), HERE)
    with pytest.raises(Forbidden):
        await claimed(rig, head_with())


async def test_with_a_key_everybody_needs_one() -> None:
    """But for the service's own user and root on the Unix socket."""
    rig = GateRig(rules=AccessRules(service_uid=1000, insecure=True))
    before = await claimed(rig, head_with(), HERE)
    rig.add_key()
    assert before.standing.ended == "changed"
    for peer in (HERE, THERE, OTHER_USER):
        with pytest.raises(Unauthorized):
            await claimed(rig, head_with(), peer)
    assert (await claimed(rig, head_with(), SERVICE)).rights == EVERYTHING
    assert (await claimed(rig, head_with(), Peer("unix", uid=0))).rights == EVERYTHING


async def test_the_last_key_gone_the_node_is_keyless_again() -> None:
    """Whether by revoking or by expiring."""
    rig = GateRig()
    rig.add_key("k1", expires_us=rig.clock.us + 5)
    with pytest.raises(Unauthorized):
        await claimed(rig, head_with(), HERE)
    rig.keys.end_expired(rig.clock.us + 5)
    assert rig.gate.refresh()
    assert not rig.gate.refresh()
    assert (await claimed(rig, head_with(), HERE)).name == "loopback"


async def test_loopback_free_lets_local_clients_in_without_a_key() -> None:
    """And nobody else."""
    rig = GateRig(is_loopback_free=True)
    rig.add_key()
    assert (await claimed(rig, head_with(), HERE)).name == "loopback"
    assert (await claimed(rig, head_with(), OTHER_USER)).rights == EVERYDAY
    with pytest.raises(Unauthorized):
        await claimed(rig, head_with())


async def test_probes_need_no_credential() -> None:
    """They get no right with it."""
    rig = GateRig()
    rig.add_key()
    for path in OPEN_PATHS:
        who = await claimed(rig, head_with(method="GET", path=path))
        assert (who.name, who.rights, who.grants.rights) == ("nobody", frozenset(), frozenset())
        with pytest.raises(Unauthorized):
            await claimed(rig, head_with(method="POST", path=path))
        with pytest.raises(Unauthorized):
            await claimed(rig, head_with(WRONG, method="GET", path=path))


async def test_users_of_this_machine_by_what_the_kernel_says() -> None:
    """By uid, or by a group; the first entry that fits counts, keys or not."""
    users = UnixUsers(
        [
            UnixUserSettings("collectd", uid=1234, scopes=("publish:host.*",)),
            UnixUserSettings("staff", gid=7, roles=("operator",)),
        ]
    )
    rig = GateRig(unix_users=users)
    rig.add_key()
    who = await claimed(rig, head_with(), OTHER_USER)
    assert (who.name, who.grants.scopes) == ("unix:1234", ("publish:host.*",))
    assert "manage" in (await claimed(rig, head_with(), Peer("unix", uid=9, gid=1, groups=(7,)))).rights
    with pytest.raises(Unauthorized):
        await claimed(rig, head_with(), Peer("unix", uid=9, gid=1))
    with pytest.raises(ConfigInvalid):
        UnixUsers([UnixUserSettings("x", uid=1, roles=("nosuch",))])


@pytest.mark.parametrize(
    "token",
    [WRONG, "x", "", "ovl_live_", "ap_live_" + "A" * 32, "ovl_live_" + "A" * 31 + "é", "ovl_ticket_" + "A" * 32],
)
async def test_all_wrong_keys_are_told_the_same(token: str) -> None:
    """So that nobody learns which keys there are, or were."""
    rig = GateRig()
    _, revoked = rig.add_key("gone")
    rig.keys.remove("gone")
    _, expired = rig.add_key("old", expires_us=rig.clock.us + 5)
    rig.clock.advance(1)
    told = set()
    for text in (token, revoked, expired):
        head = FakeHead(headers=((b"authorization", f"Bearer {text}".encode("latin-1")),))
        with pytest.raises(Unauthorized) as refused:
            await claimed(rig, head)
        error = refused.value
        told.add((error.detail, error.subject, error.hint, error.status))
    assert len(told) == 1


async def test_a_wrong_key_is_refused_where_none_is_needed() -> None:
    """Whoever sends one means to be somebody."""
    with pytest.raises(Unauthorized):
        await claimed(GateRig(), head_with(WRONG), HERE)
    with pytest.raises(Unauthorized, match="nothing that this node knows"):
        await claimed(GateRig(), head_with(authorization="Basic YTpi"), HERE)


async def test_a_key_in_the_url_is_refused() -> None:
    """Right or wrong, it stands in logs by now; a stream may be called almost like one."""
    rig = GateRig()
    _, secret = rig.add_key()
    for head in (
        head_with(method="GET", path="/v1/live", query=f"key={secret}"), head_with(secret, query=f"a=1&token={WRONG}"),
        head_with(method="GET", path=f"/v1/streams/{secret}"),
    ):  # fmt: skip
        with pytest.raises(KeyInUrl) as refused:
            await claimed(rig, head)
        assert secret not in refused.value.detail + refused.value.hint
    await claimed(rig, head_with(secret, path="/v1/streams/front_live_view/packets"))


async def test_pages_of_other_sites_are_refused_with_and_without_a_key() -> None:
    """A key doesn't make up for a foreign origin."""
    rig = GateRig()
    _, secret = rig.add_key()
    for key in (secret, ""):
        with pytest.raises(ForeignOrigin):
            await claimed(rig, head_with(key, origin="https://evil.example"))


async def test_an_untrusted_proxy_takes_the_loopback_privilege_only() -> None:
    """Whoever has a key may come through any proxy, and counts by the proxy's address."""
    rig = GateRig(is_loopback_free=True)
    _, secret = rig.add_key()
    with pytest.raises(OverlaydError) as refused:
        await claimed(rig, head_with(x_forwarded_for="203.0.113.5"), HERE)
    assert refused.value.code == "access.proxied"
    who = await claimed(rig, head_with(secret, x_forwarded_for="203.0.113.5"), HERE)
    assert (who.address, who.may_create) == ("127.0.0.1", False)
    trusting = GateRig(rules=AccessRules(service_uid=0, trusted=Networks([parse_network("127.0.0.1", "", "")])))
    _, secret = trusting.add_key()
    assert (await claimed(trusting, head_with(secret, x_forwarded_for="203.0.113.5"), HERE)).address == "203.0.113.5"


async def test_a_connection_is_recalled_by_its_headers() -> None:
    """As long as they say the same and the key counts."""
    rig = GateRig()
    key, secret = rig.add_key()
    memory, head = Remembered(), head_with(secret, user_agent="a")
    who = (await rig.gate.claim(memory, THERE, head)).principal
    standing = who.standing
    standing.is_used = False
    assert rig.gate.recall(memory, head) is who
    assert standing.is_used
    assert rig.gate.recall(memory, head_with(secret, user_agent="b", content_length="7")) is who
    for other in (
        head_with(WRONG), head_with(), head_with(secret, origin="https://evil.example"), head_with(secret, host="b.example"),
        head_with(secret, x_forwarded_for="1.2.3.4"), head_with(secret, method="GET"),
        head_with(secret, query="ticket=x"), head_with(secret, query=f"a={secret}"),
    ):  # fmt: skip
        assert rig.gate.recall(memory, other) is None
    rig.keys.remove(key.record.id)
    assert rig.gate.recall(memory, head) is None


async def test_a_connection_is_forgotten_when_its_key_expires_or_the_rules_change() -> None:
    """The time is looked at with each request."""
    rig = GateRig()
    _, secret = rig.add_key("k1", expires_us=rig.clock.us + 2_000_000)
    memory, head = Remembered(), head_with(secret)
    await rig.gate.claim(memory, THERE, head)
    assert rig.gate.recall(memory, head) is not None
    assert rig.gate.next_end_us == rig.clock.us + 2_000_000
    rig.clock.advance(2)
    assert rig.gate.recall(memory, head) is None
    with pytest.raises(Unauthorized):
        await rig.gate.claim(memory, THERE, head)
    keyless = GateRig()
    await keyless.gate.claim(memory, HERE, head_with())
    assert keyless.gate.recall(memory, head_with()) is not None
    keyless.add_key()
    assert keyless.gate.recall(memory, head_with()) is None


async def test_a_failed_claim_forgets_who_the_connection_was() -> None:
    """So that nobody goes on under an earlier name."""
    rig = GateRig()
    _, secret = rig.add_key()
    memory = Remembered()
    await rig.gate.claim(memory, THERE, head_with(secret))
    with pytest.raises(Unauthorized):
        await rig.gate.claim(memory, THERE, head_with(WRONG))
    assert memory.principal is None


async def test_tickets_open_live_connections_once() -> None:
    """In the query of the live path; for whoever asked for them, from wherever they are used."""
    rig = GateRig()
    _, secret = rig.add_key("k1", "subscribe:a", "publish:a")
    owner = await claimed(rig, head_with(secret))
    text, ttl_s = rig.tickets.issue(owner, [parse_scope("subscribe:a")], None)
    assert ttl_s == 60
    head = head_with(method="GET", path="/v1/live", query=f"stream=a&ticket={text}")
    who = await claimed(rig, head, Peer("tcp", "198.51.100.7"), is_websocket=True)
    assert (who.name, who.address, who.grants.scopes) == ("key:k1", "198.51.100.7", ("subscribe:a",))
    with pytest.raises(Unauthorized, match="ticket isn't valid"):
        await claimed(rig, head)
    rig.keys.remove("k1")
    assert who.standing.ended == "revoked"


async def test_tickets_open_nothing_else() -> None:
    """Neither another path nor another method, nor beside a key; and they don't count in the header."""
    rig = GateRig()
    _, secret = rig.add_key()
    owner = await claimed(rig, head_with(secret))
    text, _ = rig.tickets.issue(owner, None, None)
    for method, path in (("GET", "/v1/node"), ("POST", "/v1/live")):
        with pytest.raises(Unauthorized, match="live connections only"):
            await claimed(rig, head_with(method=method, path=path, query=f"ticket={text}"))
    with pytest.raises(BadRequest, match="more than one credential"):
        await claimed(rig, head_with(secret, method="GET", path="/v1/live", query=f"ticket={text}"))
    with pytest.raises(Unauthorized):
        await claimed(rig, head_with(text))
    assert (await claimed(rig, head_with(method="GET", path="/v1/live", query=f"ticket={text}"))).name == "key:k1"


async def test_brute_force_is_slowed_down() -> None:
    """After ten wrong keys the address waits; a right one still gets in, others aren't concerned."""
    rig = GateRig()
    _, secret = rig.add_key()
    for _ in range(10):
        with pytest.raises(Unauthorized):
            await claimed(rig, head_with(WRONG))
    for _ in range(3):
        with pytest.raises(LimitReached) as refused:
            await claimed(rig, head_with(WRONG))
    assert refused.value.retry_after_s == pytest.approx(6.0)
    assert rig.limit_hits("failures_per_address") == 3
    assert (await claimed(rig, head_with(secret))).name == "key:k1"
    with pytest.raises(Unauthorized):
        await claimed(rig, head_with(WRONG), Peer("tcp", "192.0.2.10"))
    rig.clock.advance(6.1)
    with pytest.raises(Unauthorized):
        await claimed(rig, head_with(WRONG))
    with pytest.raises(LimitReached):
        await claimed(rig, head_with(WRONG))


async def test_failures_are_told_to_the_audit_without_the_secret() -> None:
    """With the address, the scheme and what was wrong."""
    rig = GateRig()
    with pytest.raises(Unauthorized):
        await claimed(rig, head_with(WRONG))
    (record,) = rig.records
    assert (record.action, record.result, record.address) == ("access.failed", "refused", "192.0.2.9")
    assert record.detail == {"scheme": "key", "reason": "key"}
    assert WRONG not in repr(record)


class SignedScheme:
    """A scheme that signs the body: whatever `x-signed` says is what the body must be."""

    name = "signed"
    headers = frozenset((b"x-signed",))
    is_ambient = False
    is_costly = True
    is_configured = True

    def __init__(self) -> None:
        self.asked = 0

    def is_brought(self, head: RequestHead, peer: Peer) -> bool:
        return head.get(b"x-signed") is not None

    async def claim(self, head: RequestHead, peer: Peer, origin: Origin) -> Claim:
        self.asked += 1
        wanted = head.get(b"x-signed") or ""
        if wanted == "bad":
            raise Unauthorized("badly signed", subject="signature")

        async def prove(body: bytes) -> None:
            if body != wanted.encode():
                raise Unauthorized("the body isn't the signed one", subject="signature")

        return Claim(
            Principal("signer", "identity", EVERYDAY, origin.address, owner="signer"), is_lasting=False, prove=prove
        )


class AmbientScheme(SignedScheme):
    """A credential of the connection, as a client certificate is."""

    name = "ambient"
    headers = frozenset()
    is_ambient = True

    def is_brought(self, head: RequestHead, peer: Peer) -> bool:
        return peer.is_tls

    async def claim(self, head: RequestHead, peer: Peer, origin: Origin) -> Claim:
        return Claim(Principal("machine", "certificate", EVERYDAY, origin.address, owner="machine"))


async def test_a_further_scheme_plugs_in() -> None:
    """It claims by the head, proves by the body, and is asked for each request."""
    scheme = SignedScheme()
    rig = GateRig(schemes=[scheme])
    assert rig.gate.refresh()
    memory = Remembered()
    claim = await rig.gate.claim(memory, THERE, head_with(x_signed="body"))
    assert claim.prove is not None
    assert claim.principal.name == "signer"
    await claim.prove(b"body")
    with pytest.raises(Unauthorized):
        await claim.prove(b"other")
    assert [record.detail["scheme"] for record in rig.records] == ["signed"]
    assert rig.failures.wait_s("192.0.2.9") == 0
    for _ in range(9):
        with pytest.raises(Unauthorized):
            await claim.prove(b"other")
    assert rig.failures.wait_s("192.0.2.9") > 0
    rig.clock.advance(100)
    assert rig.gate.recall(memory, head_with(x_signed="body")) is None
    _, secret = rig.add_key()
    with pytest.raises(BadRequest, match="key, signed"):
        await claimed(rig, head_with(secret, x_signed="body"))


async def test_a_costly_scheme_isnt_even_asked_while_slowed_down() -> None:
    """Its look at a wrong credential is what would be attacked."""
    scheme = SignedScheme()
    rig = GateRig(schemes=[scheme], settings=AccessSettings(failures_per_address=2))
    for _ in range(2):
        with pytest.raises(Unauthorized):
            await claimed(rig, head_with(x_signed="bad"))
    with pytest.raises(LimitReached):
        await claimed(rig, head_with(x_signed="bad"))
    assert scheme.asked == 2


async def test_a_credential_of_the_connection_stands_back() -> None:
    """Behind one of the request; and the Host is looked at, because a browser might be made to use it."""
    rig = GateRig(schemes=[AmbientScheme()])
    _, secret = rig.add_key()
    encrypted = msgspec.structs.replace(THERE, is_tls=True)
    assert (await claimed(rig, head_with(host="192.0.2.1"), encrypted)).name == "machine"
    assert (await claimed(rig, head_with(secret), encrypted)).name == "key:k1"
    with pytest.raises(ForeignHost):
        await claimed(rig, head_with(host="evil.example"), encrypted)


HEADER_NAMES = st.sampled_from(
    ["authorization", "host", "origin", "x-forwarded-for", "forwarded", "via", "sec-fetch-site", "x-real-ip", "cookie"]
)
PARTS = [
    "Bearer ",
    "bearer",
    "ovl_live_",
    "ap_live_",
    "A" * 32,
    "ovl_ticket_",
    "ticket=",
    "&",
    "%",
    "\xff",
    " ",
    ".",
    ",",
]


@given(
    st.lists(st.tuples(HEADER_NAMES, st.text(st.characters(max_codepoint=255), max_size=60)), max_size=6),
    st.lists(st.sampled_from(PARTS), max_size=8).map("".join),
    st.sampled_from(["GET", "POST", "OPTIONS"]),
)
async def test_no_head_raises_anything_else(headers: Sequence[tuple[str, str]], text: str, method: str) -> None:
    """Whatever stands in the headers and the query that the gate looks at."""
    rig = GateRig()
    named = tuple((name.encode(), value.encode("latin-1")) for name, value in headers)
    named += ((b"authorization", text.encode("latin-1")),)
    head = FakeHead(method, "/v1/live", text, named)
    memory = Remembered()
    try:
        await rig.gate.claim(memory, HERE, head)
    except OverlaydError:
        assert memory.principal is None
    rig.gate.recall(memory, head)


async def test_two_secrets_of_one_key_are_told_apart() -> None:
    """What came in by a rotated one ends with it."""
    rig = GateRig()
    old, new = draw_key("ovl", Entropy()), draw_key("ovl", Entropy())
    record = record_of("k1", old)
    rig.keys.put(record)
    first = await claimed(rig, head_with(old.text))
    both = (*record_of("k1", new).secrets, msgspec.structs.replace(record.secrets[0], expires_us=rig.clock.us + 5))
    rig.keys.put(msgspec.structs.replace(record, secrets=both))
    second = await claimed(rig, head_with(new.text))
    assert first.name == second.name
    rig.keys.end_expired(rig.clock.us + 5)
    assert (first.standing.ended, second.standing.ended) == ("expired", "")

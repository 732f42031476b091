"""Signed headers: what they may hold, what is signed, and that nothing else verifies."""

import json
from pathlib import Path
from typing import Any

import pytest
from access_rig import THERE, FakeHead, TurnedClock, head_with
from hypothesis import given
from hypothesis import strategies as st

from overlayd.access.gate import Claim
from overlayd.access.identity.book import IdentityBook
from overlayd.access.identity.headers import parse_clock_nonce, parse_identity_headers, signed_digest
from overlayd.access.identity.nonces import ClockNonces, DurableNonces
from overlayd.access.identity.scheme import IdentityScheme
from overlayd.access.identity.settings import IdentitySettings, KnownIdentitySettings, SchemeName
from overlayd.access.origin import Origin
from overlayd.access.roles import RoleBook
from overlayd.access.settings import AccessSettings
from overlayd.bsv.keys import CURVE_ORDER, PrivateKey
from overlayd.model.clock import Entropy
from overlayd.model.errors import ConfigInvalid, Unauthorized
from overlayd.model.metrics import Metrics

VECTORS = Path(__file__).parents[1] / "data" / "gitdata"
SCHEMES: tuple[SchemeName, ...] = ("preimage-v1", "body-nonce")
ORIGIN = Origin("192.0.2.9")
KEY = PrivateKey(b"\x07" * 32)


def vectors() -> list[tuple[SchemeName, dict[str, Any]]]:
    """All of both schemes."""
    return [
        (scheme, vector)
        for scheme in SCHEMES
        for vector in json.loads((VECTORS / f"identity-vectors-{scheme}.json").read_text())["vectors"]
    ]


class NoStore:
    """A database that takes everything and holds nothing."""

    async def read(self, function: Any) -> Any:
        return {}

    async def write(self, job: Any) -> Any:
        return True


def scheme_of(
    key: str, scheme: SchemeName = "preimage-v1", *, is_durable: bool = False, clock: TurnedClock | None = None
) -> IdentityScheme:
    """One that knows one identity."""
    settings = AccessSettings(
        identities=(KnownIdentitySettings(name="farm", key=key, scheme=scheme, scopes=("publish",), policy="standard"),)
    )
    nonces = (
        DurableNonces(settings, store=NoStore(), metrics=Metrics())
        if is_durable
        else ClockNonces(settings, store=NoStore(), clock=clock or TurnedClock(), entropy=Entropy(), metrics=Metrics())
    )
    return IdentityScheme(IdentityBook(settings, RoleBook()), nonces, may_create=True)


def signed_head(key: str, nonce: str, signature: str) -> FakeHead:
    """A request with the three headers."""
    return head_with(x_identity_key=key, x_nonce=nonce, x_signature=signature)


async def prove(scheme: IdentityScheme, head: FakeHead, body: bytes) -> Claim:
    """Both steps."""
    claim = await scheme.claim(head, THERE, ORIGIN)
    assert claim.prove is not None
    await claim.prove(body)
    return claim


@pytest.mark.parametrize(("scheme", "vector"), vectors())
async def test_every_vector_verifies(scheme: SchemeName, vector: dict[str, Any]) -> None:
    """What gitdata's own signers made, with all of their nonces where they are stored for good."""
    head = signed_head(vector["identity_key"], vector["nonce"], vector["signature"])
    claim = await prove(scheme_of(vector["identity_key"], scheme, is_durable=True), head, vector["body"].encode())
    assert claim.principal.name == "identity:farm"
    assert claim.principal.identity_key == vector["identity_key"]
    assert claim.principal.policy == "standard"
    assert not claim.is_lasting


@pytest.mark.parametrize(("scheme", "vector"), vectors())
async def test_by_the_clock_only_times_count(scheme: SchemeName, vector: dict[str, Any]) -> None:
    """Of the vectors' nonces those that are times, while they are new."""
    clock = TurnedClock()
    clock.us = 1_705_314_600_000_000
    head = signed_head(vector["identity_key"], vector["nonce"], vector["signature"])
    asked = prove(scheme_of(vector["identity_key"], scheme, clock=clock), head, vector["body"].encode())
    if vector["nonce"].isdecimal():
        await asked
    else:
        with pytest.raises(Unauthorized, match="decimal"):
            await asked


@pytest.mark.parametrize(("scheme", "vector"), vectors())
async def test_every_changed_byte_is_found(scheme: SchemeName, vector: dict[str, Any]) -> None:
    """One byte of body, nonce, signature or key at a time; one more at the body's end; the other scheme."""
    key, nonce, signature = vector["identity_key"], vector["nonce"], vector["signature"]
    body = vector["body"].encode()
    bodies = [body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :] for at in range(len(body))] + [body + b" "]
    nonces = [nonce[:at] + chr(ord(nonce[at]) ^ 1) + nonce[at + 1 :] for at in range(len(nonce))]
    signatures = [
        signature[:at] + f"{int(signature[at], 16) ^ 1:x}" + signature[at + 1 :] for at in range(len(signature))
    ]
    keys = [key[:at] + f"{int(key[at], 16) ^ 1:x}" + key[at + 1 :] for at in range(len(key))]
    tried = 0
    for changed in (
        *((key, nonce, signature, other) for other in bodies), *((key, other, signature, body) for other in nonces),
        *((key, nonce, other, body) for other in signatures), *((other, nonce, signature, body) for other in keys),
    ):  # fmt: skip
        try:
            known = scheme_of(changed[0], scheme, is_durable=True)
        except (ConfigInvalid, ValueError):
            continue  # no key at all
        tried += 1
        with pytest.raises(Unauthorized):
            await prove(known, signed_head(*changed[:3]), changed[3])
    assert tried > len(body) + len(signature)
    other: SchemeName = "body-nonce" if scheme == "preimage-v1" else "preimage-v1"
    with pytest.raises(Unauthorized, match="verify"):
        await prove(scheme_of(key, other, is_durable=True), signed_head(key, nonce, signature), body)


async def test_a_high_s_is_refused() -> None:
    """Otherwise there would be two signatures of every request."""
    nonce = "1700000000"
    signature = KEY.sign_digest(signed_digest("preimage-v1", nonce, b"x"))
    r_bytes = signature[3]
    high = (CURVE_ORDER - int.from_bytes(signature[6 + r_bytes :], "big")).to_bytes(33, "big")
    number = signature[2 : 4 + r_bytes] + b"\x02\x21" + high
    other = b"\x30" + bytes([len(number)]) + number
    known = scheme_of(KEY.public_key.hex())
    with pytest.raises(Unauthorized, match="verify"):
        await prove(known, signed_head(KEY.public_key.hex(), nonce, other.hex()), b"x")
    await prove(known, signed_head(KEY.public_key.hex(), nonce, signature.hex()), b"x")


@pytest.mark.parametrize("missing", ["X-Identity-Key", "X-Nonce", "X-Signature"])
async def test_the_headers_belong_together(missing: str) -> None:
    """One alone is a mistake that is told."""
    named = {
        "x_identity_key": KEY.public_key.hex(),
        "x_nonce": "1700000000",
        "x_signature": KEY.sign_digest(bytes(32)).hex(),
    }
    del named[missing.lower().replace("-", "_")]
    known = scheme_of(KEY.public_key.hex())
    assert known.is_brought(head_with(**named), THERE)
    with pytest.raises(Unauthorized, match="missing"):
        await known.claim(head_with(**named), THERE, ORIGIN)


@pytest.mark.parametrize(
    ("key", "nonce", "signature", "words"),
    [
        ("04" * 33, "1700000000", "30", "X-Identity-Key"),
        ("zz" * 33, "1700000000", "30", "X-Identity-Key"),
        ("02" * 33, "17 0", "30", "X-Nonce"),
        ("02" * 33, "", "30", "X-Nonce"),
        ("02" * 33, "1" * 129, "30", "X-Nonce"),
        ("02" * 33, "1700000000", "30 06", "X-Signature"),
        ("02" * 33, "1700000000", "3006020101020101" + "00", "X-Signature"),
        ("02" * 33, "1700000000", "3" * 300, "X-Signature"),
    ],
)
def test_what_is_no_header_is_told(key: str, nonce: str, signature: str, words: str) -> None:
    """By name."""
    with pytest.raises(Unauthorized, match=words):
        parse_identity_headers(signed_head(key, nonce, signature))


def test_a_header_that_stands_twice_is_refused() -> None:
    """Two parsers could take different ones."""
    head = signed_head("02" * 33, "1700000000", "3006020101020101")
    parse_identity_headers(head)
    with pytest.raises(Unauthorized, match="twice"):
        parse_identity_headers(FakeHead(headers=(*head.headers, (b"x-nonce", b"1700000001"))))


async def test_unknown_identities_are_refused() -> None:
    """Unless strangers are let in, each of whom is somebody."""
    head = signed_head(KEY.public_key.hex(), "1700000000", KEY.sign_digest(bytes(32)).hex())
    with pytest.raises(Unauthorized, match="known"):
        await scheme_of(PrivateKey(b"\x01" * 32).public_key.hex()).claim(head, THERE, ORIGIN)
    settings = AccessSettings(
        identity=IdentitySettings(scheme="body-nonce", anyone=("read:a",), anyone_policy="standard")
    )
    book = IdentityBook(settings, RoleBook())
    found = book.find(KEY.public_key.hex().upper())
    who = found.principal(ORIGIN, may_create=True)
    assert (who.name, who.owner) == (f"identity:{KEY.public_key.hex()}",) * 2
    assert (who.grants.scopes, who.policy, who.kind) == (("read:a",), "standard", "identity")
    assert book.find_grants(KEY.public_key.hex()) == who.grants
    for text in ("", "02", "05" + "11" * 32, "02" + "ff" * 32):
        with pytest.raises(Unauthorized):
            book.find(text)


async def test_where_nobody_signs_headers_they_mean_nothing() -> None:
    """And an identity that comes by mutual authentication alone is told so."""
    head = signed_head(KEY.public_key.hex(), "1700000000", KEY.sign_digest(bytes(32)).hex())
    nobody = scheme_of(KEY.public_key.hex(), "")
    assert not nobody.is_configured
    assert not nobody.is_brought(head, THERE)
    settings = AccessSettings(
        identities=(
            KnownIdentitySettings(name="a", key=KEY.public_key.hex()),
            KnownIdentitySettings(name="b", key=PrivateKey(b"\x01" * 32).public_key.hex(), scheme="body-nonce"),
        )
    )
    nonces = DurableNonces(settings, store=NoStore(), metrics=Metrics())
    some = IdentityScheme(IdentityBook(settings, RoleBook()), nonces, may_create=True)
    assert some.is_brought(head, THERE)
    with pytest.raises(Unauthorized, match="mutual"):
        await some.claim(head, THERE, ORIGIN)


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ([{"name": "a", "key": "02" + "ff" * 32}], "curve"),
        ([{"name": "a", "key": KEY.public_key.hex(), "roles": ("x",)}], "role"),
        ([{"name": "a", "key": KEY.public_key.hex()}] * 2, "twice"),
    ],
)
def test_settings_that_make_no_sense_are_told_at_start(known: list[dict[str, Any]], words: str) -> None:
    """By the identity's name."""
    with pytest.raises(ConfigInvalid, match=words) as caught:
        IdentityBook(AccessSettings(identities=tuple(KnownIdentitySettings(**one) for one in known)), RoleBook())
    assert caught.value.subject == "access.identities a"


@pytest.mark.parametrize("key", ["", "02", "04" + "ab" * 64, "02" + "AB" * 32])
def test_a_key_is_written_one_way(key: str) -> None:
    """66 digits of lower-case hex."""
    with pytest.raises(ValueError, match="66 digits"):
        KnownIdentitySettings(name="a", key=key)


@pytest.mark.parametrize(
    ("nonce", "time_us"),
    [
        ("1705314600", 1_705_314_600_000_000), ("1705314600123", 1_705_314_600_123_000),
        ("1705314600123456", 1_705_314_600_123_456), ("1705314600123456789", 1_705_314_600_123_456), ("9", 9_000_000),
        ("0", None), ("01705314600", None), ("-1", None), ("+1", None), ("1e9", None), ("1.5", None), ("", None),
        ("\uff11\uff17", None), ("17053146001234567890", None), ("deadbeef", None), ("1_700_000_000", None),
    ],
)  # fmt: skip
def test_units_are_told_by_magnitude(nonce: str, time_us: int | None) -> None:
    """Seconds, milliseconds, microseconds, nanoseconds; nothing but plain digits."""
    assert parse_clock_nonce(nonce) == time_us


@given(st.integers(min_value=10**9, max_value=4 * 10**9 - 1), st.sampled_from((0, 3, 6, 9)), st.integers(min_value=0))
def test_a_time_reads_the_same_in_every_unit(second: int, digits: int, part: int) -> None:
    """From 2001 to 2096, to the microsecond."""
    below = part % 10**digits
    time_us = parse_clock_nonce(str(second * 10**digits + below))
    assert time_us is not None
    assert time_us == second * 10**6 + below * 10**6 // 10**digits


header_texts = st.binary(max_size=200).filter(lambda value: b"\r" not in value and b"\n" not in value)


@given(
    st.lists(
        st.tuples(st.sampled_from((b"x-identity-key", b"x-nonce", b"x-signature", b"x-other")), header_texts),
        max_size=6,
    )
)
def test_nothing_but_refusals_comes_of_any_headers(pairs: list[tuple[bytes, bytes]]) -> None:
    """Whatever bytes they hold."""
    try:
        signed = parse_identity_headers(FakeHead(headers=tuple(pairs)))
    except Unauthorized:
        return
    assert len(signed.key) == 66

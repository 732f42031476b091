"""Tokens: which count, for whom, with which rights; and that nothing in them chooses how they are checked."""

import json
from pathlib import Path
from typing import Any

import pytest
from access_rig import HERE, THERE, head_with
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from token_maker import (
    ISSUER,
    KEYS,
    NOW_S,
    SECRET,
    TokenRig,
    bearing,
    by_hand,
    claims_of,
    grant,
    make_token,
    part,
    public_pem,
    settings_of,
)

from overlayd.access.jwt.claims import find_claim
from overlayd.access.jwt.keys import parse_key_set, read_key_file
from overlayd.access.jwt.settings import Algorithm, JwtGrantSettings
from overlayd.access.origin import Origin, Peer
from overlayd.access.principal import Principal
from overlayd.model.errors import ConfigInvalid, Unauthorized
from overlayd.model.units import Duration, Size

ALGORITHMS: tuple[Algorithm, ...] = ("HS256", "EdDSA", "ES256")


async def claimed(rig: TokenRig, token: str, peer: Peer = THERE) -> Principal:
    """Who the token lets in."""
    return (await rig.scheme.claim(bearing(token), peer, Origin(peer.address))).principal


async def refused(rig: TokenRig, token: str) -> str:
    """Why it doesn't."""
    with pytest.raises(Unauthorized) as caught:
        await claimed(rig, token)
    assert token not in caught.value.detail + caught.value.hint + caught.value.subject
    return caught.value.detail


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_token_lets_in(tmp_path: Path, algorithm: Algorithm) -> None:
    """As the subject, with the issuer's scopes, until it expires."""
    rig = TokenRig(settings_of(algorithm, policy="standard"), directory=tmp_path)
    who = await claimed(rig, make_token(algorithm))
    assert (who.name, who.kind, who.owner) == ("jwt:login/alice", "jwt", "jwt:login/alice")
    assert who.grants.scopes == ("read",)
    assert who.expires_us == (NOW_S + 600 + 60) * 1_000_000
    assert who.policy == "standard"
    assert not who.may_create
    assert (await claimed(rig, make_token(algorithm), HERE)).may_create


@pytest.mark.parametrize("named", ALGORITHMS)
@pytest.mark.parametrize("used", ALGORITHMS)
async def test_the_issuers_algorithm_is_the_only_one(tmp_path: Path, named: Algorithm, used: Algorithm) -> None:
    """A token signed in another way, or that says so, is refused; also where the secret is a public key's text."""
    rig = TokenRig(settings_of(named), directory=tmp_path)
    if named != used:
        assert "signed with" in await refused(rig, make_token(used))
    for header in ({"alg": used, "typ": "JWT"}, {"alg": "none"}, {"alg": "HS512"}, {"alg": ["EdDSA"]}, {}):
        secrets = (
            [b"", b"x" * 32] if named == "HS256" else [b"", b"x" * 32, public_pem(named), public_pem(named).strip()]
        )
        for secret in secrets:
            assert await refused(rig, by_hand(header, claims_of(), secret))


async def test_the_algorithm_goes_with_the_issuer(tmp_path: Path) -> None:
    """Of two issuers, each has its own; one's key doesn't count for the other."""
    other = settings_of("HS256", name="other", issuer="https://other.example")
    rig = TokenRig(settings_of("EdDSA"), other, directory=tmp_path)
    assert (await claimed(rig, make_token("HS256", iss="https://other.example"))).name == "jwt:other/alice"
    assert "signed with EdDSA" in await refused(rig, make_token("HS256"))
    assert "signed with HS256" in await refused(rig, make_token("EdDSA", iss="https://other.example"))
    assert "issuer" in await refused(rig, make_token("EdDSA", iss="https://third.example"))


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"crit": ["exp"]}, "crit"), ({"crit": []}, "crit"), ({"crit": ["b64"], "b64": False}, "read"),
        ({"b64": False}, "read"), ({"b64": True}, "crit"), ({"typ": "logout+jwt"}, "typ"), ({"typ": 1}, "typ"), ({"kid": 1}, "kid"),
    ],
)  # fmt: skip
async def test_headers_that_ask_for_more_are_refused(tmp_path: Path, header: dict[str, Any], words: str) -> None:
    """Although the signature is right."""
    rig = TokenRig(settings_of("HS256"), directory=tmp_path)
    assert words in await refused(rig, by_hand({"alg": "HS256", **header}, claims_of(), SECRET.raw_value))


@pytest.mark.parametrize("header", [{"typ": "at+JWT"}, {"typ": "jwt"}, {"x-odd": 1}, {"kid": "whatever"}])
async def test_ordinary_headers_count(tmp_path: Path, header: dict[str, Any]) -> None:
    """Access tokens of OAuth, members that nobody knows, and a kid where the file has one key."""
    rig = TokenRig(settings_of("HS256"), directory=tmp_path)
    assert (await claimed(rig, by_hand({"alg": "HS256", **header}, claims_of(), SECRET.raw_value))).name


async def test_keys_in_the_token_are_not_looked_at(tmp_path: Path) -> None:
    """Neither one that it brings nor one that it points at."""
    rig = TokenRig(settings_of(), directory=tmp_path)
    mine = OKPKey.generate_key("Ed25519")
    for header in ({"jwk": mine.as_dict(private=False)}, {"jku": "https://evil.example"}, {"x5c": ["AA=="]}):
        assert "verify" in await refused(rig, make_token(key=mine, header=header))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"exp": None}, "lacks the claim exp"), ({"exp": NOW_S - 61}, "expired"), ({"exp": "soon"}, "claim exp"),
        ({"exp": True}, "claim exp"), ({"exp": 1e999}, "claim exp"), ({"nbf": NOW_S + 61}, "doesn't count yet"),
        ({"nbf": "x"}, "count yet"), ({"iat": NOW_S + 61}, "claim iat"), ({"aud": None}, "lacks the claim aud"),
        ({"aud": "other"}, "claim aud"), ({"aud": ["other"]}, "claim aud"), ({"aud": []}, "claim aud"),
        ({"aud": {"overlayd": 1}}, "claim aud"), ({"iss": None}, "issuer"), ({"iss": [ISSUER]}, "issuer"),
        ({"iss": ISSUER + "/"}, "issuer"), ({"sub": None}, "name"), ({"sub": ""}, "name"), ({"sub": 7}, "claim sub"),
        ({"sub": "a b"}, "name"), ({"sub": "x" * 129}, "name"), ({"sub": "a\n"}, "name"), ({"sub": "\ud800"}, "name"),
    ],
)  # fmt: skip
async def test_claims_must_be_right(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    """Time, audience, issuer and name."""
    rig = TokenRig(settings_of("HS256"), directory=tmp_path)
    assert words in await refused(rig, by_hand({"alg": "HS256"}, claims_of(**changed), SECRET.raw_value))


@pytest.mark.parametrize(
    "changed",
    [{"exp": NOW_S - 59}, {"nbf": NOW_S + 59}, {"aud": ["x", "overlayd"]}, {"exp": 1e300}, {"exp": NOW_S + 0.5}],
)
async def test_claims_may_be_a_little_off(tmp_path: Path, changed: dict[str, Any]) -> None:
    """By the clock's skew; one of several audiences is enough."""
    rig = TokenRig(settings_of("HS256"), directory=tmp_path)
    await claimed(rig, by_hand({"alg": "HS256"}, claims_of(**changed), SECRET.raw_value))


async def test_without_skew_the_second_counts(tmp_path: Path) -> None:
    """0s is a setting."""
    rig = TokenRig(settings_of("HS256", clock_skew=Duration(0)), directory=tmp_path)
    await claimed(rig, make_token("HS256", exp=NOW_S + 1))
    assert "expired" in await refused(rig, make_token("HS256", exp=NOW_S))


async def test_a_token_that_was_seen_is_judged_by_the_clock_again(tmp_path: Path) -> None:
    """It is checked once; it expires all the same, and one that didn't count yet comes to count."""
    rig = TokenRig(settings_of(), directory=tmp_path)
    token = make_token()
    await claimed(rig, token)
    rig.clock.advance(659)
    await claimed(rig, token)
    rig.clock.advance(2)
    assert "expired" in await refused(rig, token)
    early = make_token(exp=NOW_S + 5000, nbf=NOW_S + 1000, iat=None)
    assert "yet" in await refused(rig, early)
    rig.clock.advance(400)
    await claimed(rig, early)
    rig.clock.advance(-400)
    assert "yet" in await refused(rig, early)


async def test_checked_tokens_are_kept_within_bounds(tmp_path: Path) -> None:
    """The one used longest ago gives way, and is simply checked again."""
    rig = TokenRig(settings_of("HS256"), directory=tmp_path, jwt_tokens_kept=2)
    tokens = [make_token("HS256", sub=name) for name in ("a", "b", "c")]
    for token in (tokens[0], tokens[1], tokens[0], tokens[2], tokens[1]):
        await claimed(rig, token)
    assert repr(rig.scheme) == "JwtScheme(issuers=1, known=2)"
    assert rig.limit_hits("jwt_tokens_kept") == 2


async def test_long_tokens_are_not_looked_at(tmp_path: Path) -> None:
    """Their length is enough."""
    rig = TokenRig(settings_of("HS256"), directory=tmp_path, jwt_bytes=Size(300))
    await claimed(rig, make_token("HS256"))
    assert "over 300 bytes" in await refused(rig, make_token("HS256", more="x" * 300))
    assert rig.limit_hits("jwt_bytes") == 1


async def test_claims_become_scopes(tmp_path: Path) -> None:
    """A text with spaces, a list, objects within; a text counts where it fits."""
    grants = (
        grant("scope", "{scope}"), grant("sites", "publish:site.{token}.>", "read:site.{token}.*"),
        grant("realm.groups", "manage", value="ops", roles=("auditor",)), grant("https://x.example/p", "read:{pattern}"),
    )  # fmt: skip
    rig = TokenRig(settings_of(scopes=(), grants=grants), directory=tmp_path)
    who = await claimed(
        rig, make_token(scope="openid publish:a.b profile subscribe:@own", sites=["s1", "s2", "a.b", "*", "S"])
    )
    assert who.grants.scopes == (
        "publish:a.b", "publish:site.s1.>", "publish:site.s2.>", "read:site.s1.*", "read:site.s2.*", "subscribe:@own",
    )  # fmt: skip
    patterns: dict[str, Any] = {"https://x.example/p": ["w.>", "@own", ""]}
    who = await claimed(rig, make_token(realm={"groups": ["dev", "ops"]}, **patterns))
    assert who.grants.scopes == ("audit", "manage", "read", "read:w.>", "subscribe")
    odd_ones: tuple[dict[str, Any], ...] = (
        {"scope": 7},
        {"scope": None},
        {"scope": [7, None, {}]},
        {"realm": "ops"},
        {"realm": {"groups": {"ops": 1}}},
    )
    for odd in odd_ones:
        assert (await claimed(rig, make_token(**odd))).grants.scopes == ()


@given(st.text(max_size=40))
def test_a_text_never_leaves_its_place(text: str) -> None:
    """What is put in for a token gives rights below it and nowhere else, whatever it is."""
    from overlayd.access.jwt.claims import _fill

    scope = _fill("publish:site.{token}.>", text)
    if scope is not None:
        assert scope.pattern == f"site.{text}.>"
        assert not set(text) & set(".*>@ ")
    pattern = _fill("read:{pattern}", text)
    assert pattern is None or (pattern.right, pattern.pattern) == ("read", text)


async def test_a_claim_names_the_policy_and_the_person(tmp_path: Path) -> None:
    """Where the settings say so; else the issuer's."""
    issuer = settings_of(policy="standard", policy_claim="plan", name_claim="user.id")
    rig = TokenRig(issuer, directory=tmp_path)
    who = await claimed(rig, make_token(plan="premium", user={"id": "bob"}))
    assert (who.policy, who.name) == ("premium", "jwt:login/bob")
    assert (await claimed(rig, make_token(plan=7, user={"id": "bob"}))).policy == "standard"
    assert "user.id" in await refused(rig, make_token())


def test_claims_are_found_by_name_or_by_the_way() -> None:
    """A name with dots in it comes first."""
    claims = {"a.b": 1, "a": {"b": 2, "c": {"d": 3}}}
    assert [find_claim(claims, name) for name in ("a.b", "a.c.d", "a.c.x", "x", "a.b.c")] == [1, 3, None, None, None]


@pytest.mark.parametrize(
    "members",
    [
        {"claim": "x"}, {"claim": "", "scopes": ("read",)}, {"claim": "x", "scopes": ("nope",)},
        {"claim": "x", "scopes": ("read:{name}",)}, {"claim": "x", "scopes": ("{scope}:a",)},
        {"claim": "x", "scopes": ("read:{token",)}, {"claim": "x", "scopes": ("read:token}",)},
        {"claim": "x", "scopes": ("{token}",)}, {"claim": "x", "scopes": ("read:a..{token}",)},
    ],
)  # fmt: skip
def test_templates_are_checked_with_the_settings(members: dict[str, Any]) -> None:
    """Before any token comes."""
    with pytest.raises(ValueError, match=r"x|claim"):
        JwtGrantSettings(**members)


@pytest.mark.parametrize(
    "changed",
    [
        {"issuer": ""}, {"audience": ()}, {"audience": ("",)}, {"file": ""}, {"credential": "x"}, {"name": "A"},
        {"scopes": ()}, {"scopes": ("x",)}, {"name_claim": ""}, {"file": "", "jwks_url": "http://login.example/jwks"},
        {"file": "", "jwks_url": "ftp://login.example"}, {"file": "", "jwks_url": "https://u:p@login.example"},
        {"file": "", "jwks_url": "https://["}, {"algorithm": "HS256", "file": "", "jwks_url": "https://login.example"},
    ],
)  # fmt: skip
def test_issuers_are_checked_with_the_settings(changed: dict[str, Any]) -> None:
    """What could never work, or never safely."""
    with pytest.raises(ValueError, match=r"\w"):
        settings_of(**changed)


def test_a_url_on_this_machine_may_be_plain() -> None:
    """Nobody stands in between."""
    assert settings_of(file="", jwks_url="http://127.0.0.1:8080/jwks").jwks_url


# Files.


def write(path: Path, content: bytes, mode: int = 0o600) -> str:
    """A key file."""
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256"])
async def test_public_keys_come_in_every_form(tmp_path: Path, algorithm: Algorithm) -> None:
    """PEM, one JWK, a set of them; a public key may be readable by all."""
    key = KEYS[algorithm]
    member = {**key.as_dict(private=False), "kid": "k1", "use": "sig", "alg": algorithm}
    contents = (public_pem(algorithm), json.dumps(member).encode(), json.dumps({"keys": [member]}).encode())
    for number, octets in enumerate(contents):
        file = write(tmp_path / f"{number}", octets, 0o644)
        keys = read_key_file(settings_of(algorithm, file=file), {}, 32)
        rig = TokenRig(settings_of(algorithm), directory=tmp_path, keys={"login": keys})
        await claimed(rig, make_token(algorithm, header={"kid": "k1"}))
        await claimed(rig, make_token(algorithm))
        if number:
            assert "doesn't have" in await refused(rig, make_token(algorithm, header={"kid": "k2"}))


async def test_secrets_come_from_files_and_credentials(tmp_path: Path) -> None:
    """Their bytes, or a JWK; a line's end isn't part of them."""
    jwk = json.dumps(SECRET.as_dict(private=True)).encode()
    for content in (SECRET.raw_value, SECRET.raw_value + b"\r\n", jwk):
        file = write(tmp_path / "secret", content)
        for changed, environ in (
            ({"file": file}, {}),
            ({"file": "", "credential": "secret"}, {"CREDENTIALS_DIRECTORY": str(tmp_path)}),
        ):
            keys = read_key_file(settings_of("HS256", **changed), environ, 32)
            rig = TokenRig(settings_of("HS256"), directory=tmp_path, keys={"login": keys})
            await claimed(rig, make_token("HS256"))


@pytest.mark.parametrize(
    ("algorithm", "content", "mode", "words"),
    [
        ("HS256", b"short", 0o600, "32 bytes"), ("HS256", b"s" * 32, 0o640, "others may read"),
        ("HS256", public_pem("EdDSA"), 0o600, "PEM"), ("HS256", b"", 0o600, "32 bytes"),
        ("HS256", json.dumps(OctKey.import_key(b"s" * 16).as_dict(private=True)).encode(), 0o600, "32 bytes"),
        ("EdDSA", KEYS["EdDSA"].as_pem(private=True), 0o600, "private key"),  # type: ignore[union-attr]
        ("EdDSA", json.dumps(KEYS["EdDSA"].as_dict(private=True)).encode(), 0o600, "private key"),
        ("EdDSA", OKPKey.generate_key("Ed448").as_pem(private=False), 0o600, "Ed25519"),
        ("EdDSA", OKPKey.generate_key("X25519").as_pem(private=False), 0o600, "Ed25519"),
        ("EdDSA", public_pem("ES256"), 0o600, "key"), ("ES256", public_pem("EdDSA"), 0o600, "key"),
        ("ES256", ECKey.generate_key("P-384").as_pem(private=False), 0o600, "P-256"),
        ("ES256", ECKey.generate_key("secp256k1").as_pem(private=False), 0o600, "P-256"),
        ("ES256", RSAKey.generate_key(2048).as_pem(private=False), 0o600, "key"),
        ("HS256", b'{"kty": "oct", "k": "AAAA"}', 0o600, "32 bytes"), ("EdDSA", b"nonsense", 0o600, "neither"), ("EdDSA", b"", 0o600, "neither"), ("EdDSA", b"{}", 0o600, "no key"),
        ("EdDSA", b'{"keys": 7}', 0o600, "no key"), ("EdDSA", b"x" * 70_000, 0o600, "64 KiB"),
    ],
)  # fmt: skip
def test_files_that_are_no_use_are_told_at_start(
    tmp_path: Path, algorithm: Algorithm, content: bytes, mode: int, words: str
) -> None:
    """By the issuer's name, with nothing of what is in them."""
    file = write(tmp_path / "key", content, mode)
    with pytest.raises(ConfigInvalid, match=words) as caught:
        read_key_file(settings_of(algorithm, file=file), {}, 32)
    assert caught.value.subject == "access.jwt login"
    assert content.decode("latin-1").strip()[:20] not in str(caught.value) or not content


def test_a_file_that_isnt_there_is_told(tmp_path: Path) -> None:
    """And a credential."""
    with pytest.raises(ConfigInvalid, match="can't be read"):
        read_key_file(settings_of(file=str(tmp_path / "x")), {}, 32)
    with pytest.raises(ConfigInvalid, match="no credential"):
        read_key_file(settings_of(file="", credential="x"), {}, 32)


def test_only_fitting_keys_of_a_set_count() -> None:
    """Others are passed over: of other kinds, for encryption, private, broken."""
    good = {**KEYS["ES256"].as_dict(private=False), "kid": "good"}
    passed_over = [
        {**good, "use": "enc"}, {**good, "alg": "ES384"}, {**good, "key_ops": ["sign"]}, {**good, "kid": 7},
        {**good, "x": "AA"}, {**good, "crv": "P-384"}, {**good, "kty": "OKP"}, KEYS["ES256"].as_dict(private=True),
        KEYS["EdDSA"].as_dict(private=False), SECRET.as_dict(private=True), {}, 7, None, "x",
    ]  # fmt: skip
    found = parse_key_set(json.dumps({"keys": [*passed_over, good]}).encode(), "ES256")
    assert [key.id for key in found] == ["good"]
    for content in (b"", b"[]", b"{}", b'{"keys": 1}', b"\xff", b"{" * 100_000, b'{"keys": ' + b"[" * 100_000):
        with pytest.raises(ValueError, match=r"set|object"):
            parse_key_set(content, "ES256")


# Whatever comes.

texts = st.one_of(st.text(max_size=60), st.binary(max_size=60).map(lambda raw: raw.decode("latin-1")))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(("alg", "kid", "typ", "crit", "b64", "iss", "sub", "aud", "exp", "nbf", "iat", "scope"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    header=st.dictionaries(names, values, max_size=4),
    claims=st.dictionaries(names, values, max_size=6),
    sign=st.booleans(),
)
async def test_nothing_but_refusals_comes_of_any_token(
    tmp_path: Path, header: dict[str, Any], claims: dict[str, Any], sign: bool
) -> None:
    """Headers and claims of any kind, rightly signed or not."""
    rig = TokenRig(settings_of("HS256", grants=(grant("scope", "{scope}"),)), directory=tmp_path)
    token = by_hand({"alg": "HS256", **header}, {**claims_of(), **claims}, SECRET.raw_value if sign else b"wrong")
    try:
        who = await claimed(rig, token)
    except Unauthorized:
        return
    assert sign
    assert who.name.startswith("jwt:login/")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    text=st.text(alphabet=st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=200), dots=st.booleans()
)
async def test_nothing_but_refusals_comes_of_any_authorization(tmp_path: Path, text: str, dots: bool) -> None:
    """Texts that are no tokens at all."""
    rig = TokenRig(settings_of(), directory=tmp_path)
    value = f"Bearer {part({'alg': 'EdDSA'})}.{text}.x" if dots else text
    head = head_with(authorization=value)
    if rig.scheme.is_brought(head, THERE):
        with pytest.raises(Unauthorized):
            await rig.scheme.claim(head, THERE, Origin("192.0.2.9"))

"""Client certificates: rules, names, and the scheme that the gate asks."""

import msgspec
import pytest

from overlayd.access.certificates import CertificateScheme
from overlayd.access.gate import Claim
from overlayd.access.origin import Origin, Peer, PeerCertificate
from overlayd.access.principal import may
from overlayd.access.settings import CertificateSettings
from overlayd.model.errors import ConfigInvalid, Unauthorized
from overlayd.model.limits import Limits
from overlayd.net.head import parse_head

HEAD = parse_head(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", Limits())
PRESS = PeerCertificate(
    subject="CN=press-7,O=Example", names=("DNS:press-7.example", "URI:spiffe://example/press/7"),
    fingerprint="sha256:" + "ab" * 32,
)  # fmt: skip


def rule(name: str = "presses", **settings: object) -> CertificateSettings:
    """An entry of the settings."""
    return msgspec.convert({"name": name, "scopes": ["publish:press.*", "read"]} | settings, CertificateSettings)


async def claim_of(certificate: PeerCertificate, *rules: CertificateSettings) -> Claim:
    """What the scheme says of a certificate."""
    scheme = CertificateScheme(rules, is_asked=True)
    peer = Peer("tcp", address="192.0.2.7", is_tls=True, certificate=certificate)
    assert scheme.is_brought(HEAD, peer)
    return await scheme.claim(HEAD, peer, Origin("192.0.2.7"))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"subject": "CN=press-7,O=Example"}, "presses"),
        ({"subject": "CN=*,O=Example"}, "presses/press-7"),
        ({"san": "DNS:press-7.example"}, "presses"),
        ({"san": "DNS:*.EXAMPLE"}, "presses/press-7"),
        ({"san": "URI:spiffe://example/*/*"}, "presses/press/7"),
        ({"fingerprint": "sha256:" + "ab" * 32}, "presses"),
        ({"subject": "CN=*,O=Example", "san": "DNS:press-7.example", "fingerprint": "sha256:" + "ab" * 32}, "presses/press-7"),
    ],
)  # fmt: skip
async def test_what_fits(settings: dict[str, str], name: str) -> None:
    """Subject, alternative name or fingerprint; a star's text goes into the name, so that each holder has one."""
    principal = (await claim_of(PRESS, rule(**settings))).principal
    assert (principal.name, principal.kind, principal.owner) == (f"certificate:{name}", "certificate", name)
    assert principal.address == "192.0.2.7"
    assert not principal.may_create
    assert may(principal, "publish", "press.7")
    assert may(principal, "read", "anything")
    assert not may(principal, "publish", "other.7")
    assert not may(principal, "admin")


@pytest.mark.parametrize(
    "settings",
    [
        {"subject": "CN=press-7"}, {"subject": "O=Example"}, {"subject": "CN=*"}, {"subject": "cn=press-7,o=example"},
        {"san": "DNS:example"}, {"san": "DNS:*.exampl"}, {"san": "URI:spiffe://example/*"[:-1]}, {"fingerprint": "sha256:" + "ac" * 32},
        {"subject": "CN=*,O=Example", "san": "DNS:other.example"},
    ],
)  # fmt: skip
async def test_what_does_not_fit(settings: dict[str, str]) -> None:
    """A part of what a certificate says isn't it, and everything that a rule says must fit."""
    with pytest.raises(Unauthorized, match="press-7"):
        await claim_of(PRESS, rule(**settings))


@pytest.mark.parametrize(
    "subject", [r"CN=a\,O=Example", r"CN=x,OU=y,O=Example", r"CN=a+UID=b,O=Example", "CN=,O=Example", r"CN=a\2CO=Example,O=Example"]
)  # fmt: skip
async def test_a_star_stays_within_its_part(subject: str) -> None:
    """Whoever chooses a common name can't make it look like the parts behind it."""
    certificate = msgspec.structs.replace(PRESS, subject=subject)
    with pytest.raises(Unauthorized):
        await claim_of(certificate, rule(subject="CN=*,O=Example"))


async def test_the_first_rule_counts() -> None:
    """In the order of the settings."""
    first = rule("one", subject="CN=press-7,O=Example", owner="anna")
    principal = (await claim_of(PRESS, first, rule("all", subject="CN=*,O=Example"))).principal
    assert (principal.name, principal.owner) == ("certificate:one", "anna")


async def test_roles_of_certificates() -> None:
    """Named sets of scopes work as with keys; one that there isn't stops the start."""
    principal = (await claim_of(PRESS, rule(subject="CN=press-7,O=Example", roles=["admin"], scopes=[]))).principal
    assert may(principal, "admin")
    with pytest.raises(ConfigInvalid, match="no role 'boss'"):
        CertificateScheme([rule(subject="CN=a", roles=["boss"])], is_asked=True)


def test_rules_without_a_listener() -> None:
    """Rules that could never be used are a mistake; no rules are none."""
    with pytest.raises(ConfigInvalid, match="no listener asks"):
        CertificateScheme([rule(subject="CN=a")], is_asked=False)
    scheme = CertificateScheme([], is_asked=True)
    assert not scheme.is_configured
    assert not scheme.is_brought(HEAD, Peer("tcp", certificate=PRESS))
    assert scheme.is_ambient


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "say which"), ({"subject": "CN=**"}, "star"), ({"subject": "*" + "a*" * 5}, "star"), ({"san": "press-7"}, "begins with"),
        ({"fingerprint": "AB:CD"}, "not a fingerprint"), ({"subject": "CN=a", "scopes": ["rule"]}, "not a scope"),
        ({"subject": "CN=a", "name": "A B"}, "not a name"),
    ],
)  # fmt: skip
def test_wrong_rules(settings: dict[str, object], words: str) -> None:
    """Each mistake is told when the settings are read."""
    with pytest.raises(msgspec.ValidationError, match=words):
        rule(**settings)  # type: ignore[arg-type]

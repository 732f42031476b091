"""Client certificates of an authority that signs whatever it is asked to, made to look like somebody else's."""

import ipaddress
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from tls_authority import NOW, Authority
from tls_authority import name_of as named
from tls_rig import open_tls_edge

from overlayd.access.certificates import CertificateScheme
from overlayd.access.gate import RequestHead
from overlayd.access.origin import Origin, Peer, PeerCertificate
from overlayd.access.settings import CertificateSettings
from overlayd.model.errors import Unauthorized
from overlayd.model.limits import Limits
from overlayd.net.head import parse_head
from overlayd.net.tls import certificate_facts

CLOCK_US = int(NOW.timestamp() * 1e6)
HEAD: RequestHead = parse_head(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", Limits())
BY_SUBJECT = CertificateSettings("presses", subject="CN=*,O=Example")
BY_NAME = CertificateSettings("named", san="DNS:press-*.example")
BY_URI = CertificateSettings("workload", san="URI:spiffe://example/*")
BY_ADDRESS = CertificateSettings("host", san="IP:10.0.0.7")


class Fixed:
    """The time at which certificates were made."""

    def now_us(self) -> int:
        return CLOCK_US


def facts_of(file: Path) -> PeerCertificate:
    """What the gate is told of a certificate."""
    der = x509.load_pem_x509_certificate(file.read_bytes()).public_bytes(serialization.Encoding.DER)
    return certificate_facts(der, Fixed())


async def name_of(rule: CertificateSettings, facts: PeerCertificate) -> str:
    """Who the gate takes its holder for; "" for nobody."""
    scheme = CertificateScheme([rule], is_asked=True)
    peer = Peer("tcp", "192.0.2.9", 1, "192.0.2.1", 1, certificate=facts)
    try:
        return (await scheme.claim(HEAD, peer, Origin("192.0.2.9"))).principal.name
    except Unauthorized:
        return ""


async def test_honest_ones_are_known(tmp_path: Path) -> None:
    """So that the refusals below aren't refusals of everything."""
    authority = Authority(tmp_path)
    press = facts_of(authority.issue("press-7", x509.DNSName("press-7.example"), organization="Example"))
    assert await name_of(BY_SUBJECT, press) == "certificate:presses/press-7"
    assert await name_of(BY_NAME, press) == "certificate:named/7"
    other = facts_of(authority.issue(
        "w", x509.UniformResourceIdentifier("spiffe://example/a/b"), x509.IPAddress(ipaddress.ip_address("10.0.0.7"))
    ))  # fmt: skip
    assert await name_of(BY_URI, other) == "certificate:workload/a/b"
    assert await name_of(BY_ADDRESS, other) == "certificate:host"


@pytest.mark.parametrize(
    ("common", "organization"),
    [
        ("a,O=Example", "Elsewhere"), ("a,O=Example", ""), ("press-7+O=Example", ""), ("a\\,O=Example", ""),
        ('a",O=Example', ""), ("a\x00,O=Example", ""), ("a", "Example,O=Elsewhere"), ("a", "example"), ("a", "Example "),
        ("a", "Example\x00"), ("*", "Example"), ("a b", "Example"), ("é", "Example"), ("a\n", "Example"), ("a", "\u0415xample"),
    ],
)  # fmt: skip
async def test_subjects_that_look_like_others(common: str, organization: str) -> None:
    """What stands in one part of a subject never reaches into another, nor do letters of other alphabets count."""
    facts = PeerCertificate(subject=named(common, organization).rfc4514_string(), names=(), fingerprint="")
    assert await name_of(BY_SUBJECT, facts) == ""


@pytest.mark.parametrize(
    "make",
    [
        lambda: x509.DNSName("press-7.example.evil.test"), lambda: x509.DNSName("*.example"), lambda: x509.DNSName("press-.example"),
        lambda: x509.DNSName("xpress-7.example"), lambda: x509.DNSName("press-7.example\x00.evil.test"),
        lambda: x509.DNSName("press-*.example"), lambda: x509.DNSName("press-7.example\n"),
        lambda: x509.UniformResourceIdentifier("DNS:press-7.example"), lambda: x509.RFC822Name("DNS:press-7.example"),
        lambda: x509.UniformResourceIdentifier("spiffe://example.evil/a"), lambda: x509.UniformResourceIdentifier("spiffe://example"),
        lambda: x509.UniformResourceIdentifier("spiffe://example/a?b"), lambda: x509.UniformResourceIdentifier("IP:10.0.0.7"),
        lambda: x509.IPAddress(ipaddress.ip_address("::ffff:10.0.0.7")), lambda: x509.DNSName("10.0.0.7"),
    ],
)  # fmt: skip
async def test_alternative_names_that_look_like_others(tmp_path: Path, make: Callable[[], x509.GeneralName]) -> None:
    """A name of one kind never counts as one of another, and a star in a certificate stands for nothing."""
    facts = facts_of(Authority(tmp_path).issue("game", make()))
    assert [await name_of(rule, facts) for rule in (BY_NAME, BY_URI, BY_ADDRESS)] == ["", "", ""]


async def test_an_authority_of_the_same_name(tmp_path: Path) -> None:
    """Its signatures are somebody else's; so is a certificate that signed itself, and the authority's own is no client's."""
    real, fake = tmp_path / "real", tmp_path / "fake"
    real.mkdir()
    fake.mkdir()
    clients, impostor = Authority(real, "clients"), Authority(fake, "clients")
    async with open_tls_edge(tmp_path, tls={"client_ca": str(clients.file)}) as tls:

        async def is_let_in(certificate: Path) -> bool:
            try:
                async with await tls.connect(tls.authority.client_context(certificate)) as client:
                    return (await client.request("GET", "/healthz")).status == 200
            except (trio.BrokenResourceError, ssl.SSLError, EOFError):
                return False

        assert await is_let_in(clients.issue("good"))
        assert not await is_let_in(impostor.issue("good"))
        assert tls.failures("wrong_certificate") == 1


async def test_a_certificate_with_very_many_names(tmp_path: Path) -> None:
    """Judged in time that grows with them alone."""
    names = [x509.DNSName(f"a{n}.example") for n in range(2000)]
    facts = facts_of(Authority(tmp_path).issue("many", *names))
    assert len(facts.names) == 2000
    assert await name_of(BY_NAME, facts) == ""

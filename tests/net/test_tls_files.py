"""Certificates and keys: what is wrong with them is said at start; they are read anew without dropping sessions."""

import datetime
import ipaddress
import ssl
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from net_rig import GET_HEALTH
from tls_authority import DAY, NOW, Authority, key_pem_of
from tls_rig import open_tls_edge

from overlayd.model.clock import SystemClock
from overlayd.model.errors import ConfigInvalid
from overlayd.model.metrics import Metrics
from overlayd.net.settings import TlsListener
from overlayd.net.tls import TlsEndpoints, certificate_facts, make_context

CLOCK = SystemClock()


def refusal_of(cert: Path | str, key: Path | str = "", client_ca: str = "") -> ConfigInvalid:
    """Why a listener can't be opened."""
    with pytest.raises(ConfigInvalid) as caught:
        make_context(TlsListener(address="a:1", cert=str(cert), key=str(key), client_ca=client_ca), CLOCK)
    return caught.value


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """One that signs anything."""
    return Authority(tmp_path)


def test_files_that_are_not_there(tmp_path: Path, authority: Authority) -> None:
    """The file and the reason are named."""
    missing = refusal_of(tmp_path / "none.pem")
    assert missing.detail == f"can't read {tmp_path / 'none.pem'}: No such file or directory"
    assert missing.subject == "listen.tls.cert"
    assert refusal_of(authority.issue("a"), tmp_path / "none.key").subject == "listen.tls.key"
    assert refusal_of(authority.issue("a"), client_ca=str(tmp_path)).detail.endswith("Is a directory")


def test_files_that_hold_something_else(tmp_path: Path, authority: Authority) -> None:
    """A certificate without key, a key without certificate, nonsense: each is told for what it is."""
    both = authority.issue("a")
    bare = tmp_path / "bare.pem"
    bare.write_bytes(b"\xff\x00 nonsense")
    assert refusal_of(bare).detail == f"there is no certificate in {bare}"
    assert refusal_of(both, bare).detail == f"there is no private key in {bare}"
    assert refusal_of(authority.file).detail == f"there is no private key in {authority.file}"
    assert refusal_of(both, client_ca=str(bare)).detail == f"there is no certificate in {bare}"
    bare.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    assert "can't be used" in refusal_of(bare, both).detail
    assert "can't be used" in refusal_of(both, client_ca=str(bare)).detail


def test_a_key_of_another_certificate(tmp_path: Path, authority: Authority) -> None:
    """They don't belong together, and that is what the message says."""
    a, b = authority.issue("a"), authority.issue("b")
    assert refusal_of(a, b).detail == f"the key in {b} isn't the one of the certificate in {a}"


def test_an_encrypted_key(tmp_path: Path, authority: Authority) -> None:
    """No passphrase is asked for on a terminal that nobody looks at."""
    key = ec.generate_private_key(ec.SECP256R1())
    sealed = tmp_path / "sealed.key"
    sealed.write_bytes(key_pem_of(key, b"secret"))
    assert refusal_of(authority.issue("a", key=key), sealed).detail == f"the key in {sealed} is encrypted"


def test_a_certificate_out_of_its_time(tmp_path: Path, authority: Authority) -> None:
    """Expired or not valid yet, with the date; a session with it would fail at every client."""
    expired = refusal_of(authority.issue("old", begins=NOW - 3 * DAY, ends=NOW - DAY)).detail
    assert f"expired on {NOW - DAY:%Y-%m-%d}" in expired
    early = refusal_of(authority.issue("new", begins=NOW + DAY))
    assert f"isn't valid before {NOW + DAY:%Y-%m-%d}" in early.detail
    assert "clock" in early.hint


def test_a_weak_key(authority: Authority) -> None:
    """1024 bits of RSA aren't served."""
    key = rsa.generate_private_key(65537, 1024)
    assert "ee key too small" in refusal_of(authority.issue("weak", key=key)).detail


def test_warnings(authority: Authority, capsys: pytest.CaptureFixture[str]) -> None:
    """A certificate that ends soon and a key that everybody can read are said, and used."""
    file = authority.issue("soon", ends=NOW + 3 * DAY)
    file.chmod(0o644)
    _, expires_at = make_context(TlsListener(address="a:1", cert=str(file)), CLOCK)
    assert abs(expires_at - (NOW + 3 * DAY)) < datetime.timedelta(seconds=2)
    shown = capsys.readouterr().out
    assert "expires soon" in shown
    assert "everybody on this machine can read" in shown


def test_the_expiry_is_a_metric(authority: Authority) -> None:
    """So that somebody is told before it is too late."""
    metrics = Metrics()
    settings = TlsListener(address="127.0.0.1:7", cert=str(authority.issue("a")))
    endpoints = TlsEndpoints((settings,), clock=CLOCK, metrics=metrics)
    name = "overlayd_tls_certificate_expiry_timestamp_seconds"
    assert metrics.registry.get_sample_value(name, {"listener": "127.0.0.1:7"}) == int(
        next(iter(endpoints)).expires_at.timestamp()
    )


async def test_a_reload_is_for_new_sessions(tmp_path: Path) -> None:
    """Sessions go on as they were, those that begin see the new certificate; a wrong one changes nothing."""

    async def serial() -> int:
        stream = await tls.shake_hands()
        return x509.load_der_x509_certificate(stream.getpeercert(binary_form=True)).serial_number

    async with open_tls_edge(tmp_path) as tls:
        first = await serial()
        old = await tls.connect()
        tls.authority.issue("node")
        assert await serial() == first
        assert tls.edge.ports.reload() == ["127.0.0.1:0"]
        second = await serial()
        assert second != first
        assert (await old.request("GET", "/healthz")).status == 200
        await trio.Path(tls.settings.cert).write_text("nothing")
        with pytest.raises(ConfigInvalid, match="no certificate"):
            tls.edge.ports.reload()
        assert await serial() == second
        assert (await old.request("GET", "/healthz")).status == 200


async def test_a_required_client_certificate(tmp_path: Path) -> None:
    """Without one, with one of another authority, or with one out of its time there is no session."""
    clients, others = Authority(tmp_path, "clients"), Authority(tmp_path, "others")
    async with open_tls_edge(tmp_path, tls={"client_ca": str(clients.file)}) as tls:

        async def try_with(certificate: Path | None) -> bool:
            try:
                async with await tls.connect(tls.authority.client_context(certificate)) as client:
                    return (await client.request("GET", "/healthz")).status == 200
            except (trio.BrokenResourceError, ssl.SSLError, EOFError):
                return False

        assert await try_with(clients.issue("good"))
        assert not await try_with(None)
        assert not await try_with(others.issue("foreign"))
        assert not await try_with(clients.issue("late", begins=NOW - 3 * DAY, ends=NOW - DAY))
        await tls.edge.wait_until(lambda: tls.failures("wrong_certificate") == 2)
        assert tls.failures("no_certificate") == 1


async def test_an_optional_client_certificate(tmp_path: Path) -> None:
    """Clients without one come in; with a wrong one they don't."""
    clients, others = Authority(tmp_path, "clients"), Authority(tmp_path, "others")
    options = {"client_ca": str(clients.file), "client_certificates": "optional"}
    async with open_tls_edge(tmp_path, tls=options) as tls:
        async with await tls.connect() as client:
            assert (await client.request("GET", "/healthz")).status == 200
        stream = await tls.shake_hands(tls.authority.client_context(others.issue("foreign")))
        await stream.send_all(GET_HEALTH)
        with pytest.raises((trio.BrokenResourceError, ssl.SSLError)):
            await stream.receive_some(100)


def test_what_a_certificate_says(authority: Authority) -> None:
    """Subject, the alternative names that are known, and the fingerprint that other tools show, too."""
    names = (
        x509.DNSName("Press-7.example"), x509.UniformResourceIdentifier("spiffe://example/press-7"),
        x509.RFC822Name("a@b.example"), x509.IPAddress(ipaddress.ip_address("2001:db8::1")),
        x509.RegisteredID(x509.ObjectIdentifier("1.2.3")),
    )  # fmt: skip
    file = authority.issue("press-7", *names, organization="Example, Inc")
    der = x509.load_pem_x509_certificate(file.read_bytes()).public_bytes(serialization.Encoding.DER)
    facts = certificate_facts(der, CLOCK)
    assert facts.subject == r"CN=press-7,O=Example\, Inc"
    assert facts.names == ("DNS:press-7.example", "URI:spiffe://example/press-7", "email:a@b.example", "IP:2001:db8::1")
    assert len(facts.fingerprint) == len("sha256:") + 64


def test_an_expired_certificate_of_a_resumed_session(authority: Authority) -> None:
    """OpenSSL looks at the time in a full handshake only."""
    file = authority.issue("old", begins=NOW - 3 * DAY, ends=NOW - DAY)
    der = x509.load_pem_x509_certificate(file.read_bytes()).public_bytes(serialization.Encoding.DER)
    with pytest.raises(ValueError, match="expired"):
        certificate_facts(der, CLOCK)
    with pytest.raises(ValueError, match=r"parse|error"):
        certificate_facts(b"\x30\x03\x02\x01\x01", CLOCK)

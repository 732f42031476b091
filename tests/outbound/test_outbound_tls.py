"""Calls over TLS to real TLS servers, good and bad."""

import datetime
import ssl

import chaos_sink as chaos
import pytest
import trio
import trustme
from outbound_rig import FixedResolver, OutboundRig, RigMaker
from trio.testing import MockClock

from overlayd.model.errors import ConfigInvalid
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.outbound import Outbound, OutboundSettings, Reason
from overlayd.outbound.opening import make_context

NAME = "hooks.example"
LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """An authority of our own."""
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


def server_context(issued: trustme.LeafCert) -> ssl.SSLContext:
    """A server that shows this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(context)
    return context


@pytest.fixture
def tls_rig(authority: trustme.CA, make_rig: RigMaker) -> OutboundRig:
    """A client that trusts the authority and finds every name at 127.0.0.1."""
    context = make_context("")
    authority.configure_trust(context)
    return make_rig(context=context, resolver=FixedResolver(("127.0.0.1",)))


async def test_calls_are_encrypted_and_connections_kept(authority: trustme.CA, tls_rig: OutboundRig) -> None:
    """The certificate is checked against the name in the URL, though the connection goes to a checked address."""
    context = server_context(authority.issue_cert(NAME))
    names: list[str | None] = []
    context.sni_callback = lambda sock, name, ctx: names.append(name)
    async with chaos.open_sink(context=context, name=NAME) as sink:
        sink.play(chaos.answer(200, b"x" * 100_000))
        for _ in range(3):
            answer = await tls_rig.post(sink.url, b"{}" * 10, body_max=200_000)
            assert (answer.status, len(answer.body)) == (200, 100_000)
        assert sink.turns[0].headers["host"] == f"{NAME}:{sink.port}"
        assert sink.connections == 1
    assert names == [NAME]


async def test_addresses_in_urls_need_their_own_certificates(authority: trustme.CA, tls_rig: OutboundRig) -> None:
    """https://127.0.0.1 is checked against the certificate's addresses."""
    async with chaos.open_sink(context=server_context(authority.issue_cert("127.0.0.1"))) as sink:
        assert (await tls_rig.post(sink.url)).status == 200
    async with chaos.open_sink(context=server_context(authority.issue_cert(NAME))) as sink:
        assert (await tls_rig.refuse(sink.url)).reason == Reason.TLS_NAME


async def test_another_names_certificate_is_refused(authority: trustme.CA, tls_rig: OutboundRig) -> None:
    """Nothing of the request is sent."""
    async with chaos.open_sink(context=server_context(authority.issue_cert("other.example")), name=NAME) as sink:
        failure = await tls_rig.refuse(sink.url)
        assert (failure.reason, len(sink.turns)) == (Reason.TLS_NAME, 0)


async def test_an_expired_certificate_is_refused(authority: trustme.CA, tls_rig: OutboundRig) -> None:
    """And so is one that isn't valid yet; the words say which."""
    expired = authority.issue_cert(NAME, not_before=LONG_AGO, not_after=LONG_AGO + datetime.timedelta(days=30))
    async with chaos.open_sink(context=server_context(expired), name=NAME) as sink:
        failure = await tls_rig.refuse(sink.url)
        assert failure.reason == Reason.TLS_EXPIRED
        assert "expired" in failure.detail
    far = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)
    early = authority.issue_cert(NAME, not_before=far, not_after=far + datetime.timedelta(days=30))
    async with chaos.open_sink(context=server_context(early), name=NAME) as sink:
        assert (await tls_rig.refuse(sink.url)).reason == Reason.TLS_EXPIRED


async def test_a_certificate_of_nobody_we_trust_is_refused(tls_rig: OutboundRig) -> None:
    """An authority of somebody's own isn't ours."""
    stranger = trustme.CA(key_type=trustme.KeyType.ECDSA)
    async with chaos.open_sink(context=server_context(stranger.issue_cert(NAME)), name=NAME) as sink:
        assert (await tls_rig.refuse(sink.url)).reason == Reason.TLS_UNTRUSTED


async def test_a_server_that_speaks_no_tls(tls_rig: OutboundRig) -> None:
    """Clear text where TLS should be, a close and a reset in the handshake are failures of TLS."""

    async def serve(words: bytes) -> None:
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        port = listener.socket.getsockname()[1]
        async with listener, trio.open_nursery() as nursery:

            async def answer() -> None:
                stream = await listener.accept()
                await stream.receive_some()
                if words:
                    await stream.send_all(words)
                await stream.aclose()

            nursery.start_soon(answer)
            assert (await tls_rig.refuse(f"https://{NAME}:{port}/")).reason == Reason.TLS_FAILED

    await serve(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await serve(b"")


async def test_old_protocols_are_refused(authority: trustme.CA, tls_rig: OutboundRig) -> None:
    """TLS 1.1 isn't spoken."""
    context = server_context(authority.issue_cert(NAME))
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = ssl.TLSVersion.TLSv1_1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    async with chaos.open_sink(context=context, name=NAME) as sink:
        assert (await tls_rig.refuse(sink.url)).reason == Reason.TLS_FAILED


async def test_a_handshake_that_hangs_times_out(tls_rig: OutboundRig, patient_clock: MockClock) -> None:
    """Whoever accepts a connection and says nothing is given up after `outbound_tls_timeout`."""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with listener:
        port = listener.socket.getsockname()[1]
        started = trio.current_time()
        assert (await tls_rig.refuse(f"https://{NAME}:{port}/")).reason == Reason.TLS_TIMEOUT
        assert trio.current_time() - started == pytest.approx(5.0, abs=0.1)
    assert tls_rig.hits("outbound_tls_timeout") == 1


async def test_large_bodies_and_early_answers_over_tls(authority: trustme.CA, tls_rig: OutboundRig) -> None:
    """Reading goes on while an encrypted body goes out."""
    async with chaos.open_sink(context=server_context(authority.issue_cert(NAME)), name=NAME) as sink:
        body = bytes(range(256)) * 12_000
        assert (await tls_rig.post(sink.url, body)).status == 200
        assert await sink.turns[0].body() == body
        sink.play(chaos.early(413))
        assert (await tls_rig.post(sink.url, bytes(8_000_000))).status == 413


async def test_both_versions_of_tls_keep_their_connections(authority: trustme.CA, tls_rig: OutboundRig) -> None:
    """Session tickets of TLS 1.3, which come unasked, don't spoil a kept connection."""
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = server_context(authority.issue_cert(NAME))
        context.minimum_version = context.maximum_version = version
        async with chaos.open_sink(context=context, name=NAME) as sink:
            for _ in range(3):
                assert (await tls_rig.post(sink.url)).status == 200
            assert sink.connections == 1


def test_a_file_of_authorities_that_cannot_be_used_stops_the_start(tmp_path: object, authority: trustme.CA) -> None:
    """Missing, or without a certificate in it."""
    for name in ("/nowhere/ca.pem", "/etc/hostname"):
        with pytest.raises(ConfigInvalid, match="certificate authorities"):
            Outbound(Limits(), OutboundSettings(ca_file=name), Metrics())


async def test_authorities_from_a_file_are_trusted(authority: trustme.CA) -> None:
    """`ca_file` adds to the system's."""
    with authority.cert_pem.tempfile() as ca_file:
        settings = OutboundSettings(ca_file=ca_file, allow_private=("127.0.0.0/8",))
        out = Outbound(Limits(), settings, Metrics(), resolver=FixedResolver(("127.0.0.1",)))
    rig = OutboundRig()
    rig.out = out
    async with chaos.open_sink(context=server_context(authority.issue_cert(NAME)), name=NAME) as sink:
        assert (await rig.post(sink.url)).status == 200
    out.close()

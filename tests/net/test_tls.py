"""TLS on a listener: real clients, wrong ones, and connections that never come to a request."""

import ssl
import subprocess
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import trio
import trio.testing
from net_rig import GET_HEALTH, RawClient, limits_with
from real_waiting import PATIENCE_S
from tls_rig import TlsEdge, open_tls_edge

from overlayd.model.units import Duration

VERSIONS = {ssl.TLSVersion.TLSv1_2: "TLSv1.2", ssl.TLSVersion.TLSv1_3: "TLSv1.3"}


def context_for(tls: TlsEdge, version: ssl.TLSVersion) -> ssl.SSLContext:
    """A client that speaks one version only."""
    context = tls.authority.client_context()
    context.minimum_version = context.maximum_version = version
    return context


async def first_answer(stream: trio.abc.Stream) -> bytes:
    """What comes up to the connection's end."""
    data = b""
    while True:
        try:
            more = await stream.receive_some(65536)
        except trio.BrokenResourceError:
            return data
        if not more:
            return data
        data += more


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("is_rsa", [False, True])
async def test_requests_over_tls(tmp_path: Path, version: ssl.TLSVersion, is_rsa: bool) -> None:
    """Both versions, both kinds of keys; bodies and answers of any size; the connection is kept."""
    async with open_tls_edge(tmp_path, is_rsa=is_rsa) as tls:
        async with await tls.connect(context_for(tls, version)) as client:
            for size in (0, 1, 9_000, 300_000):
                answer = await client.request("POST", "/echo", b"x" * size)
                assert answer.status == 200
                assert len(answer.json["body"]) == size
            big = await client.request("GET", "/big?bytes=3000000")
            assert big.body == b"x" * 3_000_000
        assert tls.edge.urls[0].startswith("https://127.0.0.1:")
        assert tls.edge.count("overlayd_tls_handshakes_total", version=VERSIONS[version], resumed="no") == 1


async def test_httpx_is_served(tmp_path: Path) -> None:
    """A client that somebody else wrote, with verification on; one that doesn't know the authority goes away."""
    async with open_tls_edge(tmp_path) as tls:
        url = f"https://127.0.0.1:{tls.edge.tls_port}/healthz"
        async with httpx.AsyncClient(verify=tls.authority.client_context(), trust_env=False) as client:
            assert (await client.get(url)).json() == {"alive": True}
        async with httpx.AsyncClient(trust_env=False) as stranger:
            with pytest.raises(httpx.ConnectError):
                await stranger.get(url)
        await tls.edge.wait_until(lambda: tls.failures("alert") + tls.failures("left") == 1)


async def test_openssl_is_served(tmp_path: Path) -> None:
    """`openssl s_client` verifies the chain, agrees on HTTP/1.1 by ALPN and gets an answer and a proper goodbye."""
    async with open_tls_edge(tmp_path) as tls:
        done = await s_client(tls, "-alpn", "h2,http/1.1", "-verify_return_error", "-ign_eof")
        assert "Verify return code: 0 (ok)" in done
        assert "ALPN protocol: http/1.1" in done
        assert '{"alive":true}' in done
        assert "Secure Renegotiation IS" in done


async def s_client(tls: TlsEdge, *arguments: str, said: bytes = b"") -> str:
    """What OpenSSL's own client shows of one request."""
    command = [
        "openssl", "s_client", "-connect", f"127.0.0.1:{tls.edge.tls_port}", "-servername", "localhost", "-CAfile",
        str(tls.authority.file), *arguments,
    ]  # fmt: skip
    request = said or GET_HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    done = await trio.run_process(
        command, stdin=request, capture_stdout=True, stderr=subprocess.STDOUT, check=False, capture_stderr=False
    )
    return done.stdout.decode(errors="replace")


async def test_a_client_may_not_renegotiate(tmp_path: Path) -> None:
    """TLS 1.2's renegotiation, which costs the server a handshake each time, isn't taken part in."""
    async with open_tls_edge(tmp_path) as tls:
        shown = await s_client(tls, "-tls1_2", said=b"R\n" + GET_HEALTH)
        assert "no renegotiation" in shown
        assert tls.edge.count("overlayd_tls_handshakes_total", version="TLSv1.2", resumed="no") == 1


async def test_old_versions_are_refused(tmp_path: Path) -> None:
    """A client that speaks nothing newer than TLS 1.1 gets an alert that says so."""
    async with open_tls_edge(tmp_path) as tls:
        shown = await s_client(tls, "-tls1_1", "-cipher", "DEFAULT:@SECLEVEL=0")
        assert "alert protocol version" in shown
        assert tls.failures("version") == 1


async def test_weak_ciphers_are_refused(tmp_path: Path) -> None:
    """So does one whose ciphers keep no secrets once the key is stolen."""
    async with open_tls_edge(tmp_path, is_rsa=True) as tls:
        shown = await s_client(tls, "-tls1_2", "-cipher", "AES128-SHA")
        assert "handshake failure" in shown
        assert tls.failures("cipher") == 1


async def test_clear_text_is_answered_in_clear_text(tmp_path: Path) -> None:
    """Whoever forgot the s of https is told so, in words that a browser or curl shows."""
    async with open_tls_edge(tmp_path) as tls:
        async with RawClient(await tls.connect_raw()) as client:
            await client.send(GET_HEALTH)
            answer = await client.read_answer()
            assert (answer.status, answer.json["detail"]) == (400, "this port speaks TLS")
            assert "https://" in answer.json["hint"]
            assert await client.is_closed_by_peer()
        assert tls.failures("clear_text") == 1
        assert tls.edge.calls == []


@pytest.mark.parametrize(
    "garbage",
    [b"\x00", b"\xff" * 5000, b"\x16\x03\x01\xff\xff" + b"\0" * 70_000, b"\x16\x03\x01\x00\x05hello", b"\x16" + b"\x16" * 400,
     b"\x80\x2e\x01\x03\x01", b"\x16\x03\x01\x00\x00" * 2000, b"\x15\x03\x01\x00\x02\x02\x28"],
)  # fmt: skip
async def test_garbage_instead_of_a_handshake(tmp_path: Path, garbage: bytes) -> None:
    """It ends that connection, is counted, and reaches nothing behind the handshake."""
    async with open_tls_edge(tmp_path) as tls:
        stream = await tls.connect_raw()
        with suppress(trio.BrokenResourceError):
            await stream.send_all(garbage)
            await stream.send_eof()
        await first_answer(stream)
        await tls.edge.wait_connections()
        assert tls.failures("not_tls") + tls.failures("alert") + tls.failures("version") + tls.failures("left") == 1
        async with await tls.connect() as client:
            assert (await client.request("GET", "/healthz")).status == 200
        assert tls.edge.count("overlayd_net_connection_crashes_total") == 0


async def hello_of(tls: TlsEdge) -> tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
    """A client's side without a connection; its first message is in the outgoing buffer."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = tls.authority.client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return client, incoming, outgoing


async def test_a_handshake_byte_by_byte(tmp_path: Path) -> None:
    """A hello in the smallest pieces is a hello."""
    async with open_tls_edge(tmp_path) as tls:
        client, incoming, outgoing = await hello_of(tls)
        stream = await tls.connect_raw()
        for byte in outgoing.read():
            await stream.send_all(bytes((byte,)))
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                incoming.write(await stream.receive_some(65536))
        await stream.send_all(outgoing.read())
        client.write(GET_HEALTH)
        await stream.send_all(outgoing.read())
        await tls.edge.wait_until(lambda: tls.edge.calls == ["/healthz"])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
async def test_a_handshake_that_never_ends(tmp_path: Path, patient_clock: trio.testing.MockClock, share: float) -> None:
    """Silence before or within a hello has its time, then the connection is cut and counted."""
    async with open_tls_edge(tmp_path, limits=limits_with(handshake_timeout=Duration(10))) as tls:
        _, _, outgoing = await hello_of(tls)
        hello = outgoing.read()
        stream = await tls.connect_raw()
        if share:
            await stream.send_all(hello[: int(len(hello) * share)])
        await tls.edge.wait_connections()
        assert 10 <= trio.current_time() < 25
        assert tls.failures("timeout") == 1
        assert tls.edge.count("overlayd_limit_hits_total", limit="handshake_timeout") == 1
        assert tls.edge.count("overlayd_net_connections_opening") == 0


async def test_a_client_that_leaves_within_the_handshake(tmp_path: Path) -> None:
    """Counted, with nothing left behind."""
    async with open_tls_edge(tmp_path) as tls:
        _, _, outgoing = await hello_of(tls)
        stream = await tls.connect_raw()
        await stream.send_all(outgoing.read()[:100])
        await stream.aclose()
        await tls.edge.wait_until(lambda: tls.failures("left") == 1)
        await tls.edge.wait_connections()


async def test_idle_handshakes_keep_nobody_out(tmp_path: Path) -> None:
    """When too many connections are before their handshake's end, the longest silent one gives way."""
    async with open_tls_edge(tmp_path, limits=limits_with(opening_max=3)) as tls:
        silent = [await tls.connect_raw() for _ in range(3)]
        await tls.edge.wait_until(lambda: tls.edge.count("overlayd_net_connections_opening") == 3)
        async with await tls.connect() as client:
            assert (await client.request("GET", "/healthz")).status == 200
        assert await first_answer(silent[0]) == b""
        assert tls.failures("crowded") == 1
        assert tls.edge.count("overlayd_limit_hits_total", limit="opening_max") == 1
        assert tls.edge.count("overlayd_net_connections_opening") == 2


async def test_shutdown_does_not_wait_for_handshakes(tmp_path: Path) -> None:
    """A connection that hasn't come to its first request is cut at once."""
    with trio.fail_after(PATIENCE_S) as scope:
        async with open_tls_edge(tmp_path) as tls:
            await tls.connect_raw()
            await tls.edge.wait_until(lambda: tls.edge.count("overlayd_net_connections_opening") == 1)
            scope.deadline = trio.current_time() + 9  # less than `handshake_timeout`


async def test_the_end_is_said_in_tls(tmp_path: Path) -> None:
    """After the last answer the node says goodbye, so that a client knows that nothing was cut off."""
    async with open_tls_edge(tmp_path) as tls:
        stream = trio.SSLStream(await tls.connect_raw(), tls.authority.client_context(), server_hostname="localhost")
        await stream.send_all(GET_HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        data = b""
        while more := await stream.receive_some(65536):  # raises for an end without a goodbye
            data += more
        assert data.endswith(b'{"alive":true}')


async def test_a_half_close_gets_its_answer(tmp_path: Path) -> None:
    """A client that says that it sends no more, in TLS, still gets the answer to what it sent."""
    async with open_tls_edge(tmp_path) as tls:
        stream = await tls.shake_hands()
        await stream.send_all(GET_HEALTH)
        with pytest.raises(ssl.SSLWantReadError):
            stream._ssl_object.unwrap()
        await stream.transport_stream.send_all(stream._outgoing.read())
        data = b""
        while more := await stream.transport_stream.receive_some(65536):
            stream._incoming.write(more)
            with suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                while True:
                    data += stream._ssl_object.read(65536)
        assert data.endswith(b'{"alive":true}')


async def test_a_body_that_is_cut_off(tmp_path: Path) -> None:
    """An end without goodbye in the middle of a body is what it is in clear text: nobody waits for an answer."""
    async with open_tls_edge(tmp_path) as tls:
        stream = await tls.shake_hands()
        await stream.send_all(b"POST /timed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc")
        await tls.edge.wait_until(lambda: tls.edge.calls == ["/timed"])
        stream.transport_stream.socket.close()
        await tls.edge.wait_connections()
        assert tls.edge.count("overlayd_net_connection_crashes_total") == 0


async def test_broken_records_end_the_connection(tmp_path: Path) -> None:
    """Ciphertext that was tampered with isn't read on."""
    async with open_tls_edge(tmp_path) as tls:
        stream = await tls.shake_hands()
        stream._ssl_object.write(GET_HEALTH)
        record = bytearray(stream._outgoing.read())
        record[-1] ^= 1
        await stream.transport_stream.send_all(bytes(record))
        await tls.edge.wait_connections()
        assert tls.edge.calls == []
        assert tls.edge.count("overlayd_net_connection_crashes_total") == 0


async def test_sessions_are_resumed(tmp_path: Path) -> None:
    """A second connection goes on from the first one's session; after a reload it starts anew."""
    async with open_tls_edge(tmp_path) as tls:
        first = await tls.shake_hands()
        await first.send_all(GET_HEALTH)
        await first.receive_some(65536)
        session = first._ssl_object.session
        assert session is not None
        assert session.has_ticket

        async def resume() -> bool:
            raw = await tls.connect_raw()
            again = trio.SSLStream(raw, first._ssl_object.context, server_hostname="localhost", https_compatible=True)
            again._ssl_object.session = session
            await again.do_handshake()
            return bool(again._ssl_object.session_reused)

        assert await resume()
        await tls.edge.wait_until(
            lambda: tls.edge.count("overlayd_tls_handshakes_total", version="TLSv1.3", resumed="yes") == 1
        )
        tls.edge.ports.reload()
        assert not await resume()

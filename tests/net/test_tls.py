"""TLS on a listener: real clients, wrong ones, and connections that never come to a request."""

import socket
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest
import trio
import trio.testing
from net_rig import GET_HEALTH, RawClient, limits_with
from tls_authority import DAY, NOW, Authority
from tls_rig import open_tls_edge
from trio.testing import wait_all_tasks_blocked

from overlayd.model.errors import ConfigInvalid
from overlayd.model.units import Duration
from overlayd.net.tls_stream import TlsStream


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("is_rsa", [False, True])
async def test_requests_over_tls(tmp_path: Path, version: ssl.TLSVersion, is_rsa: bool) -> None:
    """Both versions, both kinds of keys; the application sees https and its bytes; the connection is kept."""
    async with open_tls_edge(tmp_path, is_rsa=is_rsa) as tls:
        context = tls.authority.client_context()
        context.minimum_version = context.maximum_version = version
        async with await tls.connect(context) as client:
            for size in (0, 1, 9_000, 300_000):
                answer = await client.request("POST", "/echo", b"x" * size)
                assert answer.status == 200
                assert len(answer.json["body"]) == size
            big = await client.request("GET", "/big?bytes=3000000")
            assert len(big.body) == 3_000_000
        assert tls.edge.urls[0].startswith("https://127.0.0.1:")
        assert tls.edge.count(
            "overlayd_tls_handshakes_total",
            version=version.name.replace("_", ".")[:-2] + version.name[-2:].replace("_", "."),
            resumed="no",
        ) in (0.0, 1.0)


async def test_httpx_is_served(tmp_path: Path) -> None:
    """A client that somebody else wrote, with verification on; one that doesn't know the authority goes away."""
    async with open_tls_edge(tmp_path) as tls:
        url = f"https://127.0.0.1:{tls.edge.tls_port}/healthz"
        async with httpx.AsyncClient(verify=tls.authority.client_context(), trust_env=False) as client:
            assert (await client.get(url)).json() == {"alive": True}
        async with httpx.AsyncClient(trust_env=False) as stranger:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await stranger.get(url)
        await tls.edge.wait_until(lambda: tls.failures("alert") == 1)


async def test_openssl_is_served(tmp_path: Path) -> None:
    """`openssl s_client` verifies the chain, agrees on HTTP/1.1 by ALPN and gets an answer."""
    async with open_tls_edge(tmp_path) as tls:
        command = [
            "openssl", "s_client", "-connect", f"127.0.0.1:{tls.edge.tls_port}", "-servername", "localhost", "-CAfile",
            str(tls.authority.file), "-alpn", "h2,http/1.1", "-verify_return_error", "-ign_eof",
        ]  # fmt: skip
        request = GET_HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        done = await trio.run_process(
            command, stdin=request, capture_stdout=True, stderr=subprocess.DEVNULL, check=False
        )
        text = done.stdout.decode()
        assert "Verify return code: 0 (ok)" in text
        assert "ALPN protocol: http/1.1" in text
        assert '{"alive":true}' in text

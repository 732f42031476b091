"""A node as a process that speaks TLS: both clients, the commands, curl's way, client certificates."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import trio
from node_process import Node, listen_tls
from real_waiting import PATIENCE_S
from tls_authority import Authority

from overlayd.client import Client, SyncClient, TlsFiles
from overlayd.client.retry import ONCE
from overlayd.model.errors import Forbidden, NodeUnreachable, Unauthorized
from overlayd.model.wire import PacketMessage

RULES = """
[[access.certificates]]
name = "presses"
subject = "CN=*,O=Example"
scopes = ["publish:press.>", "read:press.>", "subscribe:press.>", "manage:press.>"]
"""


class SecureNode:
    """A node with its authorities' files."""

    def __init__(self, node: Node, authority: Authority) -> None:
        self.url = node.tls_url
        self.node = node
        self.authority = authority
        self.ca = str(authority.file)
        self.press = str(authority.issue("press-7", organization="Example"))
        self.stranger = str(authority.issue("stranger", organization="Elsewhere"))

    def tls(self, certfile: str = "") -> TlsFiles:
        return TlsFiles(self.ca, certfile)


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureNode]:
    """A node that takes client certificates and doesn't insist on them."""
    directory = tmp_path_factory.mktemp("tls")
    authority = Authority(directory)
    config = listen_tls(authority.issue("node"), client_ca=str(authority.file), client_certificates="optional") + RULES
    node = Node(directory / "data", config=config)
    try:
        yield SecureNode(node.wait_ready(), authority)
    finally:
        assert node.stop() == 0, "".join(node.output[-40:])


async def test_the_client_over_https_and_wss(secure: SecureNode) -> None:
    """Publishing, reading and live reading, known by a certificate."""
    async with Client(secure.url, tls=secure.tls(secure.press), verify=True) as client:
        await client.define("press.7", {})
        async with client.live("press.7", start="now") as messages:
            receipts = [await client.publish("press.7", {"n": n}) for n in range(20)]
            outcome = await client.publish_many("press.7", ({"data": {"n": n, "pad": "x" * 3000}} for n in range(300)))
            seen = [await messages.receive() for _ in range(320)]
        assert [one.packet.packet_sequence for one in seen if isinstance(one, PacketMessage)] == list(range(1, 321))
        assert receipts[0].sequence == 1
        assert outcome.accepted == 300
        assert len((await client.read("press.7", limit=1000)).packets) == 320


def test_the_blocking_client_over_https(secure: SecureNode) -> None:
    """The same, without Trio; NDJSON in place of the WebSocket."""
    with SyncClient(secure.url, tls=secure.tls(secure.press)) as client:
        client.define("press.sync", {})
        client.publish("press.sync", {"n": 1})
        with client.live("press.sync", start="beginning") as lines:
            assert isinstance(next(iter(lines)), PacketMessage)


def test_rights_are_those_of_the_certificate(secure: SecureNode) -> None:
    """Nobody else's streams; and who has no certificate, or one of nobody, has no rights at all."""
    with SyncClient(secure.url, tls=secure.tls(secure.press), retry=ONCE) as client, pytest.raises(Forbidden):
        client.publish("other", {"n": 1})
    with SyncClient(secure.url, tls=secure.tls(), retry=ONCE) as client, pytest.raises(Unauthorized):
        client.publish("press.7", {"n": 1})
    stranger = SyncClient(secure.url, tls=secure.tls(secure.stranger), retry=ONCE)
    with stranger as client, pytest.raises(Unauthorized, match="CN=stranger,O=Elsewhere"):
        client.publish("press.7", {"n": 1})


def test_an_unknown_authority(secure: SecureNode) -> None:
    """Without its file the client believes nobody."""
    with SyncClient(secure.url, retry=ONCE) as client, pytest.raises(NodeUnreachable, match="certificate"):
        client.node()


def test_the_commands_over_https(secure: SecureNode) -> None:
    """With flags, or with variables."""

    def run(*arguments: str, said: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "overlayd", *arguments], capture_output=True, text=True, env=os.environ | environ,
            check=False, timeout=PATIENCE_S, input=said,
        )  # fmt: skip

    files = ("--cacert", secure.ca, "--cert", secure.press)
    with SyncClient(secure.url, tls=secure.tls(secure.press)) as client:
        client.define("press.cli", {})
    published = run("publish", "press.cli", "--bare", "--url", secure.url, *files, said='{"t":21}')
    assert published.returncode == 0, published.stderr
    variables = {"OVERLAYD_URL": secure.url, "OVERLAYD_CACERT": secure.ca, "OVERLAYD_CERT": secure.press}
    shown = run("streams", "show", "press.cli", "--json", **variables)
    assert json.loads(shown.stdout)["packets"] == 1, shown.stderr
    refused = run("streams", "show", "press.cli", "--url", secure.url)
    assert refused.returncode != 0


def test_server_sent_events_over_https(secure: SecureNode) -> None:
    """Read by a client that somebody else wrote."""
    context = ssl.create_default_context(cafile=secure.ca)
    context.load_cert_chain(secure.press)
    with httpx.Client(verify=context, trust_env=False, base_url=secure.url) as client:
        client.put("/v1/streams/press.sse", json={}).raise_for_status()
        client.post("/v1/streams/press.sse/data", content=b'{"t":1}').raise_for_status()
        with client.stream(
            "GET", "/v1/live?stream=press.sse&from=beginning", headers={"Accept": "text/event-stream"}
        ) as answer:
            lines = answer.iter_lines()
            while not next(lines).startswith("event: packet"):
                pass
        answer = client.get("/docs")
        assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_the_node_says_how_it_is_protected(secure: SecureNode) -> None:
    """At start and in /readyz, which stays ready."""
    context = ssl.create_default_context(cafile=secure.ca)
    context.load_cert_chain(secure.press)
    with httpx.Client(verify=context, trust_env=False, base_url=secure.url) as client:
        ready: dict[str, Any] = client.get("/readyz").json()
    assert ready["ready"]
    assert ready["checks"]["access"] == {"ok": True, "detail": "credentials are asked for: client certificates"}
    assert any("client certificates" in line for line in secure.node.output)


def test_a_hangup_reads_certificates_anew(secure: SecureNode) -> None:
    """SIGHUP: who connects from then on sees the new one; a wrong file is said, and changes nothing."""

    def serial() -> str:
        address = ("localhost", int(secure.url.rsplit(":", 1)[1]))
        context = ssl.create_default_context(cafile=secure.ca)
        with (
            socket.create_connection(address) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as sock,
        ):
            shown = sock.getpeercert()
            assert shown is not None
            return str(shown["serialNumber"])

    first = serial()
    file = secure.authority.issue("node")
    secure.node.process.send_signal(signal.SIGHUP)
    secure.node.wait_for("certificates were read anew")
    assert serial() != first
    second = serial()
    file.write_text("nothing")
    secure.node.process.send_signal(signal.SIGHUP)
    secure.node.wait_for("not reloaded")
    assert any("there is no certificate in" in line for line in secure.node.output)
    assert serial() == second


async def test_many_handshakes_at_once(secure: SecureNode) -> None:
    """A crowd that comes in one moment is served, all of it."""
    context = ssl.create_default_context(cafile=secure.ca)
    port = int(secure.url.rsplit(":", 1)[1])
    answers: list[bytes] = []

    async def come() -> None:
        stream = await trio.open_ssl_over_tcp_stream("localhost", port, ssl_context=context, https_compatible=True)
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answers.append(bytes(await stream.receive_some(65536)))
        await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(come)
    assert sum(answer.startswith(b"HTTP/1.1 200") for answer in answers) == 100

"""https: the requests and the WebSocket go through the same trust."""

import datetime
import ipaddress
import ssl
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fake_node import WELCOME, Answer, FakeNode, packet_message
from trio_websocket import WebSocketConnection

from overlayd.client import Client
from overlayd.client.retry import ONCE
from overlayd.model.errors import NodeUnreachable
from overlayd.model.wire import PacketMessage


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fake node")])
    begin = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=36_500))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "node.pem"
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(pem + signed.public_bytes(serialization.Encoding.PEM))
    return file


async def serve(node: FakeNode, certificate: Path, nursery: trio.Nursery) -> None:
    """Starts the fake node behind TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def handle(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            await node.serve(stream)  # type: ignore[arg-type]
        except* (trio.BrokenResourceError, ssl.SSLError):
            pass  # the client didn't trust it

    listeners = await nursery.start(trio.serve_ssl_over_tcp, handle, 0, context)
    port = listeners[0].transport_listener.socket.getsockname()[1]
    node.url = f"https://127.0.0.1:{port}"


async def test_a_trusted_certificate_carries_requests_and_live_messages(certificate: Path) -> None:
    """Both through the context that was given."""

    async def live(socket: WebSocketConnection, params: dict[str, str]) -> None:
        await socket.send_message(WELCOME)
        await socket.send_message(packet_message("s", 1))
        await socket.get_message()

    node = FakeNode()
    node.live = live
    node.handler = lambda request: Answer(200, b"note")
    async with trio.open_nursery() as nursery:
        await serve(node, certificate, nursery)
        async with Client(node.url, ssl_context=ssl.create_default_context(cafile=certificate)) as client:
            assert await client.checkpoint() == "note"
            assert isinstance(await client.live("s").receive(), PacketMessage)
        nursery.cancel_scope.cancel()


async def test_an_unknown_certificate_is_refused(certificate: Path) -> None:
    """Neither a request nor a handshake goes out."""
    node = FakeNode()
    async with trio.open_nursery() as nursery:
        await serve(node, certificate, nursery)
        async with Client(node.url, retry=ONCE) as client:
            with pytest.raises(NodeUnreachable, match="certificate"):
                await client.checkpoint()
            with pytest.raises(NodeUnreachable, match="certificate"):
                await client.live("s").receive()
        nursery.cancel_scope.cancel()
    assert node.requests == []

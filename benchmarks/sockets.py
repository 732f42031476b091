"""Many live connections at once: WebSocket and SSE clients of a node and of nchan, subscribers of NATS and Mosquitto."""

import base64
import resource
import secrets
import socket
import ssl
from collections.abc import Callable

from benchmarks.protocols import HANDSHAKE_TIMEOUT_S, mqtt_connect, mqtt_subscribe, receive

WAVE = 200
HEAD_END = b"\r\n\r\n"
SPARE_DESCRIPTORS = 100

Greeting = tuple[bytes, Callable[[bytes], bool]]
"""What a connection sends first, and whether what came back means that it is attached."""


def websocket(path: str, attached: bytes = b"") -> Greeting:
    """An upgrade; attached with its head, or with a message that holds the text."""
    key = base64.b64encode(secrets.token_bytes(16)).decode()
    head = (
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    ).encode()
    return head, lambda said: said.startswith(b"HTTP/1.1 101") and HEAD_END in said and attached in said


def event_stream(path: str) -> Greeting:
    """Server-sent events; attached with the head."""
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".encode()
    return head, lambda said: said.startswith(b"HTTP/1.1 200") and HEAD_END in said


def nats_subscriber(subject: str) -> Greeting:
    """A core subscription."""
    said_first = f'CONNECT {{"verbose":false,"headers":true}}\r\nSUB {subject} 1\r\nPING\r\n'.encode()
    return said_first, lambda said: b"PONG\r\n" in said


def mqtt_subscriber(topic: str, number: int) -> Greeting:
    """A subscription with QoS 1; its packets aren't acknowledged, which Mosquitto allows without end here."""
    return mqtt_connect(f"reader-{number}") + mqtt_subscribe(topic), lambda said: b"\x90\x03" in said


def allow_descriptors(count: int) -> None:
    """Raises the soft limit as far as needed. Raises OSError where the hard one forbids it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + SPARE_DESCRIPTORS
    if wanted > hard:
        raise OSError(f"{count} connections need {wanted} open files; this machine allows {hard} (ulimit -Hn)")
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def attach(
    port: int, count: int, greeting: Callable[[int], Greeting], context: ssl.SSLContext | None = None
) -> list[socket.socket]:  # fmt: skip
    """That many connections, each attached, over TLS with a context; wave by wave, so that no backlog overflows."""
    allow_descriptors(count)
    connections: list[socket.socket] = []
    for first in range(0, count, WAVE):
        wave = []
        for number in range(first, min(first + WAVE, count)):
            connection = socket.create_connection(("127.0.0.1", port), HANDSHAKE_TIMEOUT_S)
            if context is not None:
                connection = context.wrap_socket(connection, server_hostname="127.0.0.1")
            hello, is_attached = greeting(number)
            connection.sendall(hello)
            wave.append((connection, is_attached))
        for connection, is_attached in wave:
            said = b""
            while not is_attached(said):
                said += receive(connection)
        connections += [connection for connection, _ in wave]
    return connections


def read_some(connection: socket.socket, count: int) -> bytes | None:
    """What has come, b"" at the end; None while TLS waits for the rest of a record. Over TLS at most one record, so it
    is to be asked again as long as the connection `has_more`."""
    try:
        return connection.recv(count)
    except ssl.SSLWantReadError:
        return None


def has_more(connection: socket.socket) -> bool:
    """Whether there are bytes of which the kernel knows nothing."""
    return isinstance(connection, ssl.SSLSocket) and connection.pending() > 0


def close_all(connections: list[socket.socket]) -> None:
    """Closes every one."""
    for connection in connections:
        connection.close()

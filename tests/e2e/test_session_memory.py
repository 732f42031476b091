"""What an idle live session weighs: resident memory of a real node, less that before, for each session."""

import contextlib
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from node_process import Node
from real_waiting import pause

KIB_MAX = 20.0
WAVE = 100
UPGRADE = (
    b"GET /v1/live?stream=idle HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
EVENTS = b"GET /v1/live?stream=idle HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node of its own."""
    running = Node(tmp_path / "data")
    try:
        yield running.wait_ready()
    finally:
        running.stop()


def resident_kib(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1024


def open_sessions(port: int, count: int, request: bytes, kept: contextlib.ExitStack) -> None:
    """That many sessions, each subscribed; in waves, so that no backlog overflows."""
    for first in range(0, count, WAVE):
        wave = []
        for _ in range(min(WAVE, count - first)):
            client = kept.enter_context(socket.create_connection(("127.0.0.1", port), 10))
            client.sendall(request)
            wave.append(client)
        for client in wave:
            said = b""
            while b'"type":"subscribed"' not in said:
                more = client.recv(65536)
                assert more, said
                said += more


def measure(node: Node, count: int, request: bytes) -> float:
    """KiB of each."""
    port = int(node.url.rsplit(":", 1)[1])
    pid = node.process.pid
    with contextlib.ExitStack() as kept:
        open_sessions(port, 50, request, kept)  # what is made once
        before = resident_kib(pid)
        open_sessions(port, count, request, kept)
        pause(0.3)
        return (resident_kib(pid) - before) / count


@pytest.mark.parametrize("request_head", [UPGRADE, EVENTS], ids=["websocket", "sse"])
def test_an_idle_session_is_small(node: Node, request_head: bytes) -> None:
    """Five hundred sessions weigh at most 20 KiB each."""
    assert measure(node, 500, request_head) <= KIB_MAX


@pytest.mark.slow
@pytest.mark.parametrize("request_head", [UPGRADE, EVENTS], ids=["websocket", "sse"])
def test_five_thousand_idle_sessions(node: Node, request_head: bytes) -> None:
    """The same with five thousand."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 5_200:
        pytest.skip(f"needs 5,200 open files; this machine allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 5_200), hard))
    try:
        assert measure(node, 5_000, request_head) <= KIB_MAX
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

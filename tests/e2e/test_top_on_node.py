"""`overlayd top` beside a real node: once as text, and live on a terminal of its own."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable

import httpx
from node_process import Node
from real_waiting import PATIENCE_S
from test_commands import on

from overlayd.cli.exits import OK, UNREACHABLE, USAGE


def test_one_snapshot_as_text(node: Node) -> None:
    """Streams, sessions and what the node does, for scripts; a node that isn't there is told as ever."""
    httpx.post(f"{node.url}/v1/streams/shown/packets", json={"data": 1}).raise_for_status()
    with httpx.stream("GET", f"{node.url}/v1/live?stream=shown", headers={"Accept": "text/event-stream"}) as live:
        lines_of_it = live.iter_lines()
        next(lines_of_it)
        done = on(node, "top", "--once", "--interval", "0.2")
    assert done.returncode == OK, done.stderr
    lines = done.stdout.splitlines()
    assert "  up " in lines[0]
    assert re.match(r"packets    in [\d.]+/s, out 0/s, refused 0/s; ", lines[1])  # the audit of who looked, for one
    assert any(line.startswith("sessions   0 websocket, 1 sse") for line in lines)
    assert any(line.split()[:2] == ["shown", "active"] for line in lines)
    assert any(line.split()[1:3] == ["sse", "loopback"] for line in lines)
    assert "\x1b" not in done.stdout
    assert on(node, "top", "--once", "--interval", "0").returncode == USAGE
    away = subprocess.run(
        [sys.executable, "-m", "overlayd", "top", "--once", "--url", "http://127.0.0.1:9"], capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert away.returncode == UNREACHABLE


def test_live_until_it_is_interrupted(node: Node) -> None:
    """It draws on the whole terminal, again and again, and Ctrl-C ends it in order, with the terminal as it was."""
    httpx.post(f"{node.url}/v1/streams/shown/packets", json={"data": 1}).raise_for_status()
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "30"}
    command = [sys.executable, "-m", "overlayd", "top", "--interval", "0.2", "--data", str(node.directory)]
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    try:
        drawn = read_until(leader, lambda text: text.count(b"STREAM") >= 3 and b"in 0/s" in text)
        assert b"shown" in drawn
        assert b"\x1b[?1049h" in drawn
        process.send_signal(signal.SIGINT)
        rest = read_until(leader, lambda text: b"\x1b[?1049l" in text)
        assert b"Traceback" not in rest
        assert process.wait(PATIENCE_S) == OK
    finally:
        process.kill()
        process.wait()
        os.close(leader)


def read_until(file: int, is_enough: Callable[[bytes], bool]) -> bytes:
    """What a terminal shows until it is enough."""
    text = b""
    while not is_enough(text):
        assert select.select([file], [], [], PATIENCE_S)[0], text[-2000:]
        text += os.read(file, 65536)
    return text

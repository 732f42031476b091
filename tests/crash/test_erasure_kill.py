"""kill -9 in the middle of an erasure: afterwards it was never asked for, or nothing of what it is about is left."""

import json
import random
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from daemon_process import DaemonProcess
from real_waiting import PATIENCE_S, pause

MARK = "planted-51c9"
PACKETS = 600


def _fill(url: str, stream: str) -> None:
    lines = [
        f'{{"id":"{MARK}-{stream}-{number}","data":{{"text":"{MARK} {stream} {"x" * 300}"}}}}\n'
        for number in range(PACKETS)
    ]
    answer = httpx.post(
        f"{url}/v1/streams/{stream}/packets", content="".join(lines),
        headers={"Content-Type": "application/x-ndjson"}, timeout=PATIENCE_S,
    )  # fmt: skip
    assert answer.status_code == 201, answer.text


def _client(directory: Path) -> httpx.Client:
    return httpx.Client(
        transport=httpx.HTTPTransport(uds=str(directory / "overlayd.sock")), base_url="http://localhost", timeout=60
    )  # fmt: skip


def _begin(directory: Path, stream: str) -> None:
    """Asks for the erasure of a whole stream's packets; the node dies under it."""
    body = json.dumps({"stream": stream, "from": 1, "to": PACKETS}).encode()
    head = f"POST /v1/erase HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
        connection.connect(str(directory / "overlayd.sock"))
        connection.sendall(head.encode() + body)
        connection.recv(65536)


def _is_marked(directory: Path, stream: str) -> bool:
    text = f"{MARK} {stream}".encode()
    names = (one for one in directory.iterdir() if one.is_file() and one.name != "reserve")
    return any(text in one.read_bytes() for one in names)


def _kill_rounds(directory: Path, rounds: int, seed: int) -> tuple[int, int]:
    """How often it was never begun, and how often it was completed after the kill."""
    chance, never, completed = random.Random(seed), 0, 0
    for number in range(rounds):
        stream = f"s{number}"
        with DaemonProcess(directory) as daemon:
            _fill(daemon.url, stream)
            asking = threading.Thread(target=_begin, args=(directory, stream))
            asking.start()
            pause(chance.random() * 0.12)
            daemon.kill()
            asking.join()
        with DaemonProcess(directory) as daemon:
            with _client(directory) as client:
                erasures = client.get("/v1/erase").json()["erasures"]
                kept = client.get(f"/v1/streams/{stream}").json()["packets"]
            mine = [one for one in erasures if one["streams"][0]["stream"] == stream]
            if not mine:
                assert kept == PACKETS
                assert _is_marked(directory, stream)
                never += 1
            else:
                assert [one["state"] for one in mine] == ["done"]
                assert kept == 0
                assert not _is_marked(directory, stream)
                completed += 1
            assert daemon.stop() == 0
    verified = subprocess.run(
        [sys.executable, "-m", "overlayd", "verify", "--data", str(directory)], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stdout + verified.stderr
    return never, completed


def test_an_erasure_that_was_killed_completes_or_never_began(tmp_path: Path) -> None:
    """Two kills at chosen instants."""
    assert sum(_kill_rounds(tmp_path / "data", rounds=2, seed=3)) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_erasures_survive_twenty_kills(tmp_path: Path) -> None:
    """The long form, in which both ends occur."""
    never, completed = _kill_rounds(tmp_path / "data", rounds=20, seed=4)
    assert completed
    assert never + completed == 20

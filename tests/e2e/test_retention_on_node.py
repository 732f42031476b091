"""Retention on a real node under load: publishing goes on, the file shrinks, nothing that is kept is lost, kill -9 or not."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from node_process import Node
from real_waiting import until

from overlayd.cli import cli

CONFIG = """
[storage]
flush_entries = 256
[retention]
every = "200ms"
cut_entries = 256
trust_clock = true
[[streams]]
name = "fleeting"
[streams.retention]
max_packets = 2000
hold_max = "1s"
max_age = "{age}"
[streams.dedup]
window = "1ms"
[[streams]]
name = "held"
[streams.retention]
max_packets = 10
hold_max = "1s"
max_age = "{age}"
[streams.dedup]
window = "1ms"
"""


class Load(threading.Thread):
    """Publishes batches until it is stopped; notes receipts."""

    def __init__(self, url: str, stream: str, size: int = 2000, batch: int = 20) -> None:
        super().__init__(daemon=True)
        self._url = f"{url}/v1/streams/{stream}/packets"
        self._body = json.dumps([{"data": "x" * size} for _ in range(batch)])
        self._is_over = threading.Event()
        self.acknowledged: list[int] = []

    def run(self) -> None:
        with httpx.Client(headers={"content-type": "application/json"}) as client:
            while not self._is_over.is_set():
                try:
                    answer = client.post(self._url, content=self._body)
                except httpx.HTTPError:
                    return
                if answer.status_code in (200, 201, 207):
                    self.acknowledged += [receipt["sequence"] for receipt in answer.json()["receipts"]]

    def finish(self) -> None:
        self._is_over.set()
        self.join()


def verify(directory: Path) -> None:
    """The whole log holds."""
    done = subprocess.run(
        [sys.executable, "-m", "overlayd", "verify", "--data", str(directory)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cut  " in done.stdout


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Node]]:
    """Nodes that a test starts, stopped at its end."""
    nodes: list[Node] = []
    yield nodes
    for node in nodes:
        node.stop()


def local_client(node: Node) -> httpx.Client:
    """The service's own user, who may do everything."""
    return httpx.Client(
        transport=httpx.HTTPTransport(uds=str(node.directory / "overlayd.sock")), base_url="http://localhost"
    )


def client_cursor(node: Node) -> str:
    """A cursor of the log's very beginning, as a consumer holds it that fell behind."""
    head: str = httpx.get(f"{node.url}/v1/node").json()["cursor"]
    return head.rsplit("-", 1)[0] + "-5"


def show(url: str, stream: str) -> dict[str, int]:
    """A stream as the API shows it."""
    found: dict[str, int] = httpx.get(f"{url}/v1/streams/{stream}").json()
    return found


def publish_some(node: Node) -> int:
    """Several thousand packets; the last sequence that was acknowledged."""
    load = Load(node.url, "fleeting")
    load.start()
    until(lambda: len(load.acknowledged) > 6000, "publishing stands still")
    load.finish()
    return max(load.acknowledged)


def test_retention_under_load_and_kills(tmp_path: Path, started: list[Node]) -> None:
    """While packets come, old ones go, the log is cut and the file stays small; kill -9 in between loses nothing kept."""
    directory, config = tmp_path / "data", CONFIG.replace("{age}", "0s")
    for number in range(3):
        node = Node(directory, config=config)
        started.append(node)
        node.wait_ready()
        if number == 0:
            assert httpx.post(f"{node.url}/v1/streams/quiet/packets", json={"data": 1}).status_code == 201
        last = publish_some(node)
        if number < 2:
            node.process.kill()
            node.process.wait()
    packets = [{"data": at, "id": f"h{at}"} for at in range(50)]
    assert httpx.post(f"{node.url}/v1/streams/held/packets", json=packets).status_code == 201
    until(lambda: show(node.url, "fleeting")["packets"] == 2000, "not reduced")
    until(lambda: show(node.url, "held")["packets"] == 10, "not reduced")
    stream = show(node.url, "fleeting")
    assert stream["head_sequence"] == last
    assert stream["oldest_sequence"] == last - 1999
    held = httpx.get(f"{node.url}/v1/streams/held/packets", params={"limit": 100}).json()
    assert [packet["data_payload"] for packet in held["packets"]] == list(range(40, 50))
    database = directory / "log.sqlite3"
    assert last > 18_000
    until(lambda: os.stat(database).st_size < 1000 * last, "the file doesn't shrink")
    with local_client(node) as client:  # only what is kept in this stream keeps the log's beginning
        assert client.get("/v1/retention").json()["minimum_index"] == 0
        assert client.delete("/v1/streams/quiet", params={"confirm": "quiet"}).status_code == 200
        until(lambda: client.get("/v1/retention").json()["minimum_index"] > 10_000, "not cut")
        assert client.get("/v1/retention").json()["clock_trusted"]
    first = client_cursor(node)
    reading = httpx.get(f"{node.url}/v1/read", params={"stream": "fleeting", "after": first, "limit": 1}).json()
    assert [(message["type"], message["reason"]) for message in reading["messages"][:1]] == [("gap", "retention")]
    assert node.stop() == 0
    verify(directory)


def test_holds_by_command(tmp_path: Path, started: list[Node]) -> None:
    """A hold is placed, listed, beats retention and deletion with 409 and an audit record, and is released."""
    node = Node(tmp_path / "data", config=CONFIG.replace("{age}", "0s"))
    started.append(node)
    node.wait_ready()
    socket = ["--url", f"unix:{node.directory / 'overlayd.sock'}"]
    definition = {"retention": {"max_packets": 5, "hold_max": "0s"}}
    runner = CliRunner()
    made = runner.invoke(cli, ["streams", "define", "case", "-", *socket], input=json.dumps(definition))
    assert made.exit_code == 0, made.output
    placed = runner.invoke(cli, ["streams", "hold", "case", "--to", "8", "--reason", "case 7", *socket])
    assert (placed.exit_code, placed.output) == (0, "hold 1 on case, sequences 1 to 8\n")
    assert httpx.post(f"{node.url}/v1/streams/case/packets", json=[{"data": at} for at in range(20)]).status_code == 201
    until(lambda: show(node.url, "case")["packets"] == 8, "not reduced")
    listed = runner.invoke(cli, ["streams", "holds", "case", *socket])
    assert "1 to 8" in listed.output
    refused = runner.invoke(cli, ["streams", "delete", "case", "--yes", *socket])
    assert refused.exit_code == 1
    assert "hold 1 keeps case" in refused.output
    released = runner.invoke(cli, ["streams", "release", "case", "1", *socket])
    assert released.exit_code == 0, released.output
    until(lambda: show(node.url, "case")["packets"] == 5, "not reduced")
    shown = runner.invoke(cli, ["retention", *socket])
    assert "legal holds" in shown.output
    with local_client(node) as client:
        audit = client.get("/v1/streams/overlayd.audit/packets", params={"limit": 100}).json()
    records = [packet["data_payload"] for packet in audit["packets"]]
    acts = [(record["action"], record["result"]) for record in records if record.get("subject") == "case"]
    assert ("stream.hold", "ok") in acts
    assert ("stream.delete", "refused") in acts
    assert ("stream.release", "ok") in acts
    assert runner.invoke(cli, ["streams", "delete", "case", "--yes", *socket]).exit_code == 0

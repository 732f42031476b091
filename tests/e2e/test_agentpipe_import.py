"""`overlayd import agentpipe` and `overlayd rebuild sessions` on a real node."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from agentpipe_node import CONFIG, DATA, Admin
from node_process import Node

RECORDED = "e0aa6d27-08a6-41a2-8e54-8cced6c084b3"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node with AgentPipe's surface."""
    running = Node(tmp_path_factory.mktemp("node") / "data", config=CONFIG)
    try:
        yield running.wait_ready()
    finally:
        assert running.stop() == 0, "".join(running.output[-40:])


def overlayd(node: Node, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One command as the service's own user."""
    command = [sys.executable, "-m", "overlayd", *arguments, "--data", str(node.directory)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_clients_store_is_imported_and_can_be_again(node: Node, tmp_path: Path) -> None:
    """From its directory; what the node has is known."""
    store = tmp_path / "events"
    store.mkdir()
    (store / f"events_{RECORDED}.jsonl").write_bytes((DATA / "recorded-event-store.jsonl").read_bytes())
    first = overlayd(node, "import", "agentpipe", str(store))
    assert (first.returncode, first.stdout.strip()) == (0, "1 files: 7 events taken"), first.stderr
    before = Admin(node).get(f"/api/sessions/{RECORDED}?includeMessages=true")
    assert overlayd(node, "import", "agentpipe", str(store)).returncode == 0
    assert Admin(node).get(f"/api/sessions/{RECORDED}?includeMessages=true") == before
    assert before["messageCount"] == 3


def test_what_the_client_prints_is_imported_without_its_log(node: Node) -> None:
    """`log.entry` is for the screen."""
    found = overlayd(node, "import", "agentpipe", str(DATA / "recorded-stdout-events.jsonl"), "--json")
    tally = json.loads(found.stdout)
    assert (found.returncode, tally["accepted"], tally["rejected"], tally["left_out"]) == (0, 5, 0, 3)


def test_a_finished_session_is_imported_once(node: Node, tmp_path: Path) -> None:
    """As JSON in either shape."""
    body = {
        "conversation": {
            "id": "imported", "name": "n", "mode": "m", "initial_prompt": "p", "status": "COMPLETED",
            "started_at": "2025-10-15T10:00:00Z",
        },
        "agents": [], "messages": [],
    }  # fmt: skip
    file = tmp_path / "session.json"
    file.write_text(json.dumps(body))
    assert "1 sessions uploaded" in overlayd(node, "import", "agentpipe", str(file)).stdout
    assert "1 sessions were there already" in overlayd(node, "import", "agentpipe", str(file)).stdout


def test_a_wrong_line_is_named_and_stops_no_other(node: Node, tmp_path: Path) -> None:
    """By file and line."""
    good = {"type": "bridge.test", "timestamp": "2026-01-01T00:00:00Z", "data": {}}
    bad = {"type": "message.created", "timestamp": "2026-01-01T00:00:00Z", "data": {"conversation_id": "x"}}
    file = tmp_path / "mixed.jsonl"
    file.write_text("\n".join(json.dumps(one) for one in (good, bad, good)))
    found = overlayd(node, "import", "agentpipe", str(file))
    assert (found.returncode, found.stdout.strip()) == (1, "1 files: 2 events taken, 1 rejected")
    assert f"{file}:2: data.agent_type" in found.stderr


def test_sessions_are_rebuilt_by_a_command(node: Node) -> None:
    """And are the same afterwards."""
    before = Admin(node).get("/api/sessions")
    found = overlayd(node, "rebuild", "sessions")
    assert (found.returncode, found.stdout.splitlines()[-1]) == (0, "done"), found.stderr
    assert Admin(node).get("/api/sessions") == before


def test_a_node_without_the_surface_says_so(tmp_path: Path) -> None:
    """Instead of losing events."""
    running = Node(tmp_path / "data").wait_ready()
    try:
        found = overlayd(running, "import", "agentpipe", str(DATA / "recorded-event-store.jsonl"))
    finally:
        assert running.stop() == 0
    assert found.returncode == 1
    assert "[agentpipe] enabled = true" in found.stderr

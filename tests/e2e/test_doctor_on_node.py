"""`overlayd doctor` beside a running node, and after it was killed."""

from pathlib import Path

import msgspec
from node_process import Node
from test_commands import on

from overlayd.cli.exits import OK


def examined(node: Node) -> dict[str, str]:
    """The state and detail of each finding, by name."""
    done = on(node, "doctor", "--json")
    assert done.returncode == OK, done.stdout
    return {
        one["name"]: f"{one['state']}: {one['detail']}" for one in map(msgspec.json.decode, done.stdout.splitlines())
    }


def test_a_node_that_runs_and_one_that_was_killed(tmp_path: Path) -> None:
    """It opens the log beside the node without being in its way, knows its key, and sees whether anybody answers."""
    node = Node(tmp_path / "data")
    try:
        node.wait_ready()
        found = examined(node)
        assert found["node"] == "ok: takes packets"
        assert found["log"].startswith("ok: ")
        assert found["key"].endswith("is the log's")
        assert on(node, "smoke").returncode == OK
        node.process.kill()
    finally:
        node.stop()
    assert examined(node)["node"].startswith("warning: none answers at ")

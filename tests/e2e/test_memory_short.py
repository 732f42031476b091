"""A node that is short of memory does without new sessions, then packets, tells so, and keeps what it has."""

from pathlib import Path

import httpx
from node_process import Node
from test_commands import on

from overlayd.cli.exits import OK


def test_a_node_with_a_tiny_budget(tmp_path: Path) -> None:
    """With less than an empty node uses, sessions and packets are refused in words, reading goes on; with a budget that
    a reload raises, everything is back."""
    node = Node(tmp_path / "data", config='[limits]\nmemory_bytes = "4MiB"\n')
    try:
        node.wait_ready()
        node.wait_for('"without": "packets"')
        published = httpx.post(f"{node.url}/v1/streams/a/packets", json={"data": 1})
        assert (published.status_code, published.json()["code"]) == (503, "memory.short")
        assert int(published.headers["Retry-After"]) >= 1
        refused = httpx.get(f"{node.url}/v1/live?stream=a", headers={"Accept": "text/event-stream"})
        assert (refused.status_code, refused.json()["code"]) == (503, "memory.short")
        assert httpx.get(f"{node.url}/v1/streams").status_code == 200
        ready = httpx.get(f"{node.url}/readyz")
        assert (ready.status_code, ready.json()["checks"]["intake"]["ok"]) == (503, False)
        assert "without new sessions" in ready.json()["checks"]["memory"]["detail"]
        (tmp_path / "data.toml").write_text('[limits]\nmemory_bytes = "4GiB"\n')
        assert on(node, "reload").returncode == OK
        node.wait_for('"without": "nothing"')
        assert httpx.post(f"{node.url}/v1/streams/a/packets", json={"data": 1}).status_code == 201
        assert httpx.get(f"{node.url}/readyz").status_code == 200
    finally:
        assert node.stop() == 0

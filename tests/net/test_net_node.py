"""Routes about the node itself, and what every answer has in common."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from route_rig import LOOPBACK, Node, open_node, principal_with

from overlayd.access import Principal


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A node with routes over a real log."""
    async with open_node(tmp_path) as running:
        yield running


async def test_alive_and_ready(node: Node) -> None:
    """Alive is alive; ready says what is wrong."""
    assert (await node.ask("GET", "/healthz")).json == {"alive": True}
    reply = await node.ask("GET", "/readyz")
    assert (reply.status, reply.json) == (200, {"ready": True, "checks": {"storage": {"ok": True}}})
    node.troubles["storage"] = "the disk is full"
    reply = await node.ask("GET", "/readyz")
    assert (reply.status, reply.json["ready"]) == (503, False)
    assert reply.json["checks"]["storage"] == {"ok": False, "detail": "the disk is full"}


async def test_a_warning_doesnt_make_it_unready(tmp_path: Path) -> None:
    """A chain that doesn't go on is told as a check that failed, in words to those who are let in; packets are taken."""
    trouble = ["the newest block is 130 minutes old"]
    async with open_node(tmp_path, warnings={"chain": lambda: trouble[0]}) as running:
        reply = await running.ask("GET", "/readyz")
        assert (reply.status, reply.json["ready"]) == (200, True)
        assert reply.json["checks"]["chain"] == {"ok": False, "detail": trouble[0]}
        trouble[0] = ""
        assert (await running.ask("GET", "/readyz")).json["checks"]["chain"] == {"ok": True}


async def test_metrics(node: Node) -> None:
    """Metrics come as Prometheus text, or as OpenMetrics to who asks for it."""
    await node.ask("GET", "/healthz")
    plain = await node.ask("GET", "/metrics")
    assert plain.headers["content-type"].startswith("text/plain")
    assert b'overlayd_http_requests_total{method="GET",route="/healthz",status="200"} 1.0' in plain.body
    asked = await node.ask("GET", "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert asked.headers["content-type"].startswith("application/openmetrics-text")
    assert asked.body.endswith(b"# EOF\n")


async def test_node(node: Node) -> None:
    """The node names its log, key, epoch, head and versions."""
    body = (await node.ask("GET", "/v1/node", who=LOOPBACK)).json
    assert body["node"] == "test"
    assert body["origin"] == f"overlayd/{body['log']}/{body['epoch']}"
    assert (body["head"], body["cursor"]) == (node.log.head, f"e{body['epoch']}-{node.log.head}")
    assert {"overlayd", "python", "sqlite", "trio"} <= body["versions"].keys()


async def test_rights_to_read(node: Node) -> None:
    """Who may only publish learns who the node is and which streams there are, and reads nothing."""
    nobody = principal_with("publish")
    assert (await node.ask("GET", "/v1/node", who=nobody)).status == 200
    assert (await node.ask("GET", "/v1/streams", who=nobody)).json["streams"] == []
    for path in ("/metrics", "/v1/streams/a", "/v1/log/checkpoint", "/v1/log/consistency?from=0"):
        reply = await node.ask("GET", path, who=nobody)
        assert (reply.status, reply.json["code"]) == (403, "access.forbidden")


async def test_request_without_principal(node: Node) -> None:
    """A request that didn't come through the door has no rights at all."""
    response = await node.app.test_client().get("/v1/node")
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="overlayd"'


async def test_routes_are_labels(node: Node) -> None:
    """Metrics are labelled by the route's pattern, never by names or paths that clients make up."""
    for path in ("/v1/streams/secret-name", "/made/up"):
        await node.ask("GET", path)
    text = (await node.ask("GET", "/metrics")).body
    assert b"secret-name" not in text
    assert b"made" not in text
    assert b'route="/v1/streams/<stream>"' in text
    assert b'route="unknown"' in text


async def test_access_line(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """One line a request: who, what, how long; never a query, header or body."""
    who = Principal(name="somebody", kind="open", rights=frozenset(("read",)), address="192.0.2.1")
    await node.ask("GET", "/v1/streams?q=secret", who=who, Authorization="Bearer hidden")
    lines = [line for line in capsys.readouterr().out.splitlines() if "duration_ms" in line]
    assert len(lines) == 1
    for shown in ("/v1/streams", "somebody", "r-1", "200", "GET"):
        assert shown in lines[0]
    assert "secret" not in lines[0]
    assert "hidden" not in lines[0]

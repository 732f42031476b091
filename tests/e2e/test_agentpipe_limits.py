"""AgentPipe's bounds on a real node: rates with their headers, sizes, and the variables that set them."""

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from agentpipe_node import CONFIG, DATA, KEY, Admin, Api
from node_process import Node

BRIDGE_TEST = {"type": "bridge.test", "timestamp": "2026-01-01T00:00:00Z", "data": {}}
DOCUMENTED = {"type": "error.occurred", "data": {"error": "boom"}}


@contextmanager
def running(directory: Path, more: str) -> Iterator[Node]:
    """A node with further settings."""
    node = Node(directory / "data", config=CONFIG + more)
    try:
        yield node.wait_ready()
    finally:
        assert node.stop() == 0, "".join(node.output[-40:])


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node with small bounds."""
    more = (
        'ingest_rate = "3/min"\nupload_rate = "1/min"\nretrieval_rate = "4/h"\nconversation_rate = "2/min"\n'
        'event_bytes = "2KiB"\nbatch_bytes = "8KiB"\nbatch_events = 3\nupload_bytes = "4KiB"\nupload_messages = 2\n'
        "search_terms = 2\n"
    )
    with running(tmp_path_factory.mktemp("node"), more) as one:
        yield one


@pytest.fixture
def api(node: Node) -> Api:
    """Requests with the bridge's key."""
    return Api(node)


def hits(node: Node, limit: str) -> float:
    """How often a limit was hit."""
    text = Admin(node).ask("GET", "/metrics").body.decode()
    lines = [line for line in text.splitlines() if line.startswith(f'overlayd_limit_hits_total{{limit="{limit}"}}')]
    return float(lines[0].split()[-1]) if lines else 0.0


def test_the_documented_dialect_is_held_to_its_rate(api: Api, node: Node) -> None:
    """Told with every answer, and with the refusal as the documents have it."""
    first = api.ask("POST", "/api/ingest", DOCUMENTED)
    assert first.headers["ratelimit-policy"] == '"agentpipe_ingest";q=3;w=60'
    assert re.fullmatch(r'"agentpipe_ingest";r=2;t=\d+', first.headers["ratelimit"])
    wrong = api.ask("POST", "/api/ingest", {"type": "error.occurred", "data": {}})
    assert wrong.status == 400
    last = api.ask("POST", "/api/ingest", [DOCUMENTED])
    left = [answer.headers["x-ratelimit-remaining"] for answer in (first, wrong, last)]
    assert left == ["2", "1", "0"]
    refused = api.ask("POST", "/api/ingest", DOCUMENTED)
    assert (refused.status, refused.json["error"]) == (429, "Rate limit exceeded")
    assert 0 < refused.json["retryAfter"] <= 20
    assert refused.headers["retry-after"] == str(refused.json["retryAfter"])
    assert refused.headers["x-ratelimit-limit"] == "3"
    assert refused.headers["x-ratelimit-remaining"] == "0"
    assert refused.headers["x-ratelimit-reset"].endswith("Z")
    assert hits(node, "agentpipe_ingest") == 1


def test_the_client_is_never_refused_at_its_own_pace(api: Api) -> None:
    """Its events aren't sent again after 429, so its bucket is another one."""
    statuses = {api.ask("POST", "/api/ingest", BRIDGE_TEST).status for _ in range(150)}
    assert statuses == {200}


def test_a_conversation_can_have_a_rate_of_its_own(api: Api, node: Node) -> None:
    """In either dialect."""
    api.begin("paced")
    api.say("paced", 1)
    refused = api.ingest("message.created", conversation_id="paced", message_id="2", agent_type="a", content="b")
    assert refused.status == 429
    assert hits(node, "agentpipe_conversation") == 1


def test_uploads_and_reads_have_rates(api: Api, node: Node) -> None:
    """Ten a minute, a thousand an hour, unless the settings say else."""
    uploads = [api.ask("POST", "/api/sessions/upload", {}) for _ in range(2)]
    assert [answer.status for answer in uploads] == [400, 429]
    reads = [
        api.ask("GET", path) for path in ("/api/sessions", "/api/conversations/none", *["/api/metrics/summary"] * 3)
    ]
    assert [answer.status for answer in reads] == [200, 404, 200, 200, 429]
    for answers, name, left in ((uploads, "upload", ["0", "0"]), (reads, "retrieval", ["3", "2", "1", "0", "0"])):
        assert [answer.headers["x-ratelimit-remaining"] for answer in answers] == left
        assert all(answer.headers["ratelimit-policy"].startswith(f'"agentpipe_{name}";') for answer in answers)
    assert (hits(node, "agentpipe_upload"), hits(node, "agentpipe_retrieval")) == (1, 1)


def test_who_needs_no_key_isnt_counted(node: Node) -> None:
    """The service's own user, and everybody on a node without keys; nor is anything told to them."""
    answers = [Admin(node).ask("GET", "/api/sessions") for _ in range(10)]
    assert {answer.status for answer in answers} == {200}
    assert not any("ratelimit" in answer.headers for answer in answers)


@pytest.mark.parametrize(
    ("limit", "path", "body", "status"),
    [
        ("agentpipe.event_bytes", "/api/ingest", {**BRIDGE_TEST, "data": {"message": "x" * 2500}}, 413),
        ("agentpipe.batch_bytes", "/api/ingest", b" " * 9000, 413),
        ("agentpipe.batch_events", "/api/ingest", [BRIDGE_TEST] * 4, 413),
        ("agentpipe.upload_bytes", "/api/sessions/upload", b" " * 5000, 413),
        ("agentpipe.search_terms", "/api/search", {"query": "one two three"}, 400),
    ],
)
def test_sizes_are_bounded(node: Node, limit: str, path: str, body: Any, status: int) -> None:
    """And each hit is counted."""
    before = hits(node, limit)
    reply = Admin(node).ask("POST", path, body)
    assert (reply.status, "error" in reply.json) == (status, True)
    assert hits(node, limit) == before + 1


def test_messages_of_an_upload_are_bounded(node: Node) -> None:
    """Ten thousand, or fewer where the settings say so."""
    one = {"agent_type": "a", "agent_name": "b", "content": "c", "timestamp": "2026-01-01T00:00:00Z"}
    body = {
        "conversation": {
            "name": "n", "mode": "m", "initial_prompt": "p", "status": "ACTIVE", "started_at": "2026-01-01T00:00:00Z",
        },
        "agents": [], "messages": [one] * 3,
    }  # fmt: skip
    reply = Admin(node).ask("POST", "/api/sessions/upload", body)
    assert (reply.status, reply.json["details"][0]["code"]) == (400, "too_big")
    assert hits(node, "agentpipe.upload_messages") == 1


def test_what_was_measured_is_told(api: Api, node: Node) -> None:
    """By the names in AgentPipe's documents."""
    api.ask("POST", "/api/ingest", BRIDGE_TEST)
    text = Admin(node).ask("GET", "/metrics").body.decode()
    assert 'agentpipe_ingest_events_total{status="success",type="bridge.test"}' in text
    assert 'agentpipe_ingest_duration_seconds_bucket{le="0.001",type="bridge.test"}' in text
    assert "\nagentpipe_sse_connections 0.0" in text
    assert "\nagentpipe_active_conversations " in text


def test_variables_of_agentpipe_set_up_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the surface is on, and less than the node's own variables; a page's origin is taken over, too."""
    for name, value in {
        "AGENTPIPE_BRIDGE_API_KEY": "any text will do", "RATE_LIMIT_MAX_REQUESTS": "2", "SSE_MAX_CONNECTIONS": "1",
        "ALLOWED_ORIGINS": "https://page.example", "OVERLAYD_AGENTPIPE__ENABLED": "true",
        "OVERLAYD_AGENTPIPE__SSE_CONNECTIONS": "2",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert "AGENTPIPE_BRIDGE_API_KEY" in os.environ
    node = Node(tmp_path / "data")
    try:
        api = Api(node.wait_ready(), "any text will do")
        statuses = [api.ask("POST", "/api/ingest", DOCUMENTED).status for _ in range(3)]
        assert statuses == [200, 200, 429]
        with api.listen("/api/stream") as one, api.listen("/api/stream") as two:
            assert (one.status, two.status, api.ask("GET", "/api/stream").status) == (200, 200, 429)
        asked = api.ask("GET", "/api/sessions", Origin="https://page.example")
        assert asked.headers["access-control-allow-origin"] == "https://page.example"
        foreign = api.ask("POST", "/api/ingest", BRIDGE_TEST, Origin="https://evil.example")
        assert "access-control-allow-origin" not in foreign.headers
    finally:
        assert node.stop() == 0


def test_a_node_that_isnt_told_has_no_such_routes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And AgentPipe's variables mean nothing to it."""
    monkeypatch.setenv("AGENTPIPE_BRIDGE_API_KEY", KEY)
    monkeypatch.setenv("SSE_MAX_CONNECTIONS", "no number")
    node = Node(tmp_path / "data").wait_ready()
    try:
        for path in ("/api/sessions", "/api/health", "/api/stream"):
            assert Api(node, "").ask("GET", path).status == 404
        assert Api(node).ask("GET", "/api/sessions").status == 401
    finally:
        assert node.stop() == 0


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    """Sessions stand where they stood; events sent again are known; the newest come to new listeners."""
    with running(tmp_path, "") as node:
        api = Api(node)
        lines = (DATA / "recorded-event-store.jsonl").read_bytes()
        assert api.ask("POST", "/api/ingest", lines, Content_Type="application/x-ndjson").status == 200
        before = api.get("/api/sessions")
    with running(tmp_path, "") as node:
        api = Api(node)
        assert api.get("/api/sessions") == before
        assert api.ask("POST", "/api/ingest", lines, Content_Type="application/x-ndjson").status == 200
        assert api.get("/api/sessions") == before
        with api.listen("/api/stream") as listener:
            assert listener.event()["type"] == "connection.established"
            assert listener.event()["type"] == "message.created"


def test_a_reader_that_takes_nothing_holds_nobody_up(tmp_path: Path) -> None:
    """A listener that never reads costs the others nothing."""
    with running(tmp_path, "") as node:
        api = Api(node)
        with socket.create_connection((api.host, api.port)) as lazy:
            lazy.sendall(
                f"GET /api/stream HTTP/1.1\r\nHost: x.localhost\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()
            )
            api.begin("busy")
            with api.listen("/api/stream?conversationId=busy") as listener:
                listener.event()
                listener.event()
                for number in range(1, 60):
                    api.say("busy", number, "x" * 20_000)
                assert [listener.event()["data"]["sequence_number"] for _ in range(59)] == list(range(1, 60))

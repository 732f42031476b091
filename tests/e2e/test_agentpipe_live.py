"""AgentPipe's live paths on a real node: frames as the page wants them, what comes first, resuming, caps, rates."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from agentpipe_node import CONFIG, KEY, Admin, Api
from node_process import Node
from real_waiting import until

from overlayd.client import SyncClient, access_calls
from overlayd.model.wire_access import KeyIn

CAPS = 'sse_connections = 6\nsse_per_conversation = 3\nsse_per_address = 5\nsse_heartbeat = "1s"\nupload_rate = ""\n'


def start(directory: Path, more: str) -> Node:
    """A node with further settings."""
    return Node(directory / "data", config=CONFIG + more).wait_ready()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node with small caps and a quick heartbeat."""
    running = start(tmp_path_factory.mktemp("node"), CAPS)
    try:
        yield running
    finally:
        assert running.stop() == 0, "".join(running.output[-40:])


@pytest.fixture
def api(node: Node) -> Api:
    """Requests with the bridge's key."""
    return Api(node)


def hits(node: Node, limit: str) -> float:
    """How often a limit was hit."""
    text = Admin(node).ask("GET", "/metrics").body.decode()
    lines = [line for line in text.splitlines() if line.startswith(f'overlayd_limit_hits_total{{limit="{limit}"}}')]
    return float(lines[0].split()[-1]) if lines else 0.0


def test_the_page_gets_unnamed_frames(api: Api) -> None:
    """After the first frame that each path has, every event with an id, and nothing with a name."""
    with api.listen("/api/realtime/stream") as documented, api.listen("/api/stream") as page:
        assert documented.headers["content-type"] == "text/event-stream"
        assert documented.headers["cache-control"] == "no-cache, no-transform"
        assert documented.headers["x-accel-buffering"] == "no"
        first = documented.event()
        assert (first["type"], first["message"]) == ("connected", "Subscribed to all events")
        first = page.event()
        assert (first["type"], first["data"]["conversationId"]) == ("connection.established", None)
        api.begin("frames")
        api.say("frames", 1)
        for listener in (documented, page):
            begun, said = listener.event(), listener.event()
            assert (begun["type"], said["type"]) == ("conversation.started", "message.created")
            assert said["data"]["content"] == "message 1"
            assert begun["id"] != said["id"]


@pytest.mark.parametrize("name", ["conversationId", "conversation_id"])
def test_a_conversation_is_found_by_either_spelling(api: Api, name: str) -> None:
    """The real server never delivers the client's events on a filtered stream."""
    api.begin(f"one-{name.lower()}")
    api.begin("another")
    with api.listen(f"/api/stream?{name}=one-{name.lower()}") as listener:
        assert listener.event()["data"]["conversationId"] == f"one-{name.lower()}"
        api.say("another", 1)
        api.say(f"one-{name.lower()}", 1)
        assert listener.event()["type"] == "conversation.started"
        assert listener.event()["data"]["message_id"] == f"one-{name.lower()}-m1"


def test_documented_events_have_a_time_even_if_they_brought_none(api: Api) -> None:
    """The page sorts by it."""
    body = {
        "type": "conversation.started",
        "data": {
            "mode": "reactive", "initialPrompt": "Hi",
            "participants": [{"agentId": "a", "agentType": "b", "agentName": "c"}],
        },
    }  # fmt: skip
    id = api.ask("POST", "/api/ingest", body).json["conversationId"]
    with api.listen(f"/api/stream?conversationId={id}") as listener:
        listener.event()
        event = listener.event()
    assert event["data"]["conversationId"] == id
    assert event["timestamp"].endswith("Z")


def test_the_newest_hundred_come_first(api: Api) -> None:
    """To a new listener, of all conversations or of one."""
    api.begin("hundred")
    for number in range(1, 121):
        api.say("hundred", number)
    for path in ("/api/realtime/stream", "/api/realtime/stream?conversationId=hundred"):
        with api.listen(path) as listener:
            assert listener.event()["type"] == "connected"
            assert [listener.event()["data"]["sequence_number"] for _ in range(100)] == list(range(21, 121))


def test_a_browser_that_comes_back_misses_nothing(api: Api) -> None:
    """It shows the id of the last frame that it got; the original can't do that."""
    api.begin("resume")
    with api.listen("/api/stream?conversationId=resume") as listener:
        listener.event()
        last = listener.event()["id"]
    for number in (1, 2, 3):
        api.say("resume", number)
    with api.listen("/api/stream?conversationId=resume", Last_Event_ID=last) as listener:
        listener.event()
        assert [listener.event()["data"]["sequence_number"] for _ in range(3)] == [1, 2, 3]
    refused = api.ask("GET", "/api/stream", Last_Event_ID="nonsense")
    assert (refused.status, "error" in refused.json) == (400, True)


def test_silence_is_filled(api: Api) -> None:
    """With a comment and nothing else."""
    with api.listen("/api/stream?conversationId=silent") as listener:
        listener.event()
        assert listener.frame() == ":heartbeat"


def test_caps_hold_and_places_come_free(api: Api, node: Node) -> None:
    """For one conversation, for one address, in all."""
    path = "/api/stream?conversationId=capped"
    with api.listen(path) as one, api.listen(path) as two, api.listen(path) as three:
        assert {one.status, two.status, three.status} == {200}
        refused = api.ask("GET", path)
        assert (refused.status, refused.json["error"]) == (429, "Rate limit exceeded")
        assert hits(node, "agentpipe.sse_per_conversation") == 1
        with api.listen("/api/stream") as four, api.listen("/api/stream"):
            assert four.status == 200
            stats = api.get("/api/realtime/stats")
            assert (stats["globalListeners"], stats["conversationListeners"], stats["totalListeners"]) == (2, 3, 5)
            assert api.ask("GET", "/api/stream").status == 429
            assert hits(node, "agentpipe.sse_per_address") == 1
            replayed = api.ask("GET", "/api/sessions/frames/replay")
            assert replayed.status == 429
    with api.listen(path) as again:
        assert again.event()["type"] == "connection.established"


def test_a_replay_that_nobody_hears_any_more_ends(api: Api) -> None:
    """Its place is free again, though the conversation has an hour to go."""
    api.begin("slow")
    for number, hour in ((1, 8), (2, 9)):
        data = {"conversation_id": "slow", "message_id": str(number), "agent_type": "a", "content": str(number)}
        body = {"type": "message.created", "timestamp": f"2026-11-21T0{hour}:15:25Z", "data": data}
        assert api.ask("POST", "/api/ingest", body).status == 201
    with api.listen("/api/sessions/slow/replay?speed=1000") as listener:
        assert [listener.event()["type"] for _ in range(2)] == ["conversation.started", "message.created"]
        assert listener.event()["data"]["content"] == "2"
    with api.listen("/api/sessions/slow/replay") as listener:
        assert listener.event()["type"] == "conversation.started"
        assert api.get("/api/realtime/stats")["conversationListeners"] == 1
    until(lambda: api.get("/api/realtime/stats")["totalListeners"] == 0, "nobody listens any more")


def test_a_ticket_opens_the_live_paths(api: Api, node: Node) -> None:
    """A browser's EventSource can't show a key."""
    with SyncClient(node.url, KEY) as client:
        ticket = client.send(access_calls.issue_ticket()).ticket
    nobody = Api(node, "ovl_none")
    assert nobody.ask("GET", "/api/stream").status == 401
    with Api(node).listen(f"/api/stream?ticket={ticket}", Authorization="") as listener:
        assert listener.status == 200


def test_who_may_not_subscribe_is_refused(api: Api, node: Node) -> None:
    """In AgentPipe's words."""
    with SyncClient(f"unix:{node.directory}/overlayd.sock") as client:
        key = client.send(access_calls.create_key(KeyIn(scopes=["publish:sessions.>"]))).key
    reply = Api(node, key).ask("GET", "/api/stream?conversationId=frames")
    assert (reply.status, reply.json["error"]) == (403, "Forbidden")

"""AgentPipe's client at a real node: its recorded requests, both dialects, repeats, batches, refusals."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from agentpipe_node import CONFIG, DATA, KEY, Api, replay
from node_process import Node

from overlayd.client import SyncClient, access_calls
from overlayd.model.wire import Packet
from overlayd.model.wire_access import KeyIn

RECORDED = "e0aa6d27-08a6-41a2-8e54-8cced6c084b3"
DOCUMENTED = {
    "type": "conversation.started", "timestamp": "2025-01-15T10:30:00.123Z",
    "data": {
        "name": "Test", "mode": "round-robin", "initialPrompt": "Hello",
        "participants": [{"agentId": "agent-1", "agentType": "claude", "agentName": "PM"}],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node with the bridge's key."""
    running = Node(tmp_path_factory.mktemp("node") / "data", config=CONFIG)
    try:
        yield running.wait_ready()
    finally:
        assert running.stop() == 0, "".join(running.output[-40:])


@pytest.fixture
def api(node: Node) -> Api:
    """Requests with the bridge's key."""
    return Api(node)


@pytest.mark.parametrize("scenario", ["full", "sparse", "test"])
def test_what_the_real_client_sends_is_taken(api: Api, scenario: str) -> None:
    """Byte for byte; 200 and 201 are the only answers that the client takes for success."""
    replies = replay(api, scenario)
    assert {reply.status for reply in replies} <= {200, 201}
    again = replay(api, scenario)
    assert [reply.status for reply in again] == [reply.status for reply in replies]


def test_answers_are_those_of_the_real_server(api: Api) -> None:
    """In the order of the recording."""
    connected, started, first, *_, error, completed = replay(api, "full")
    assert connected.json["message"] == "Bridge connection registered"
    assert (started.status, started.json) == (201, {"conversation_id": RECORDED})
    assert (first.status, first.json) == (201, {"message_id": "841bdf15-b190-4c6e-b8da-bb3a35d5151e"})
    assert (error.status, error.json, completed.json) == (200, {"success": True}, {"success": True})


def test_a_conversation_is_a_stream_with_each_event_once(api: Api, node: Node) -> None:
    """However often the client tries; native readers get its history, in its own bytes."""
    replay(api, "full")
    replay(api, "full")
    with SyncClient(f"unix:{node.directory}/overlayd.sock") as client:
        packets = [one for one in client.packets(f"sessions.{RECORDED}") if isinstance(one, Packet)]
    assert [packet.type for packet in packets] == [
        "conversation.started", "message.created", "message.created", "message.created", "conversation.error",
        "conversation.completed",
    ]  # fmt: skip
    recorded = json.loads((DATA / "recorded-bridge-requests.json").read_text())["scenarios"]["full"]["requests"]
    assert bytes(packets[1].data_payload).decode() == recorded[2]["body_text"]


def test_the_local_event_store_is_one_batch(api: Api) -> None:
    """A line an event, a result an event, those that the node had before like any other."""
    text = (DATA / "recorded-event-store.jsonl").read_bytes()
    reply = api.ask("POST", "/api/ingest", text, Content_Type="application/x-ndjson")
    assert (reply.status, reply.json["accepted"], reply.json["rejected"]) == (200, 7, 0)
    assert [one["status"] for one in reply.json["results"]] == [200, 201, 201, 201, 201, 200, 200]


def test_a_batch_tells_each_event_what_became_of_it(api: Api) -> None:
    """One that is wrong keeps no other out; in a body of which nothing is right the first mistake counts."""
    good = {"type": "bridge.test", "timestamp": "2026-01-01T00:00:00Z", "data": {"message": "one"}}
    bad = {"type": "log.entry", "timestamp": "2026-01-01T00:00:00Z", "data": {}}
    mixed = api.ask("POST", "/api/ingest", [good, bad, good])
    assert (mixed.status, [one["status"] for one in mixed.json["results"]]) == (207, [200, 400, 200])
    assert mixed.json["results"][1]["field"] == "type"
    assert api.ask("POST", "/api/ingest", [bad]).status == 400
    lines = b"\n".join((json.dumps(good).encode(), b"{broken", b""))
    reply = api.ask("POST", "/api/ingest", lines, Content_Type="application/x-ndjson")
    assert [one["status"] for one in reply.json["results"]] == [200, 400]


def test_the_documented_dialect_gets_ids_from_the_node(api: Api) -> None:
    """The same again for a repeat with the same time; messages need a conversation that there is."""
    first = api.ask("POST", "/api/ingest", DOCUMENTED)
    assert (first.status, first.json["status"]) == (201, "created")
    conversation = first.json["conversationId"]
    assert api.ask("POST", "/api/ingest", DOCUMENTED).json == first.json
    message: dict[str, Any] = {
        "type": "message.created",
        "data": {
            "conversationId": conversation,
            "message": {
                "agentId": "agent-1", "agentName": "PM", "agentType": "claude", "content": "Hi", "role": "agent",
                "timestamp": "2025-01-15T10:30:05Z", "metrics": {"totalTokens": 7, "cost": 0.5, "duration": 20},
            },
        },
    }  # fmt: skip
    said = api.ask("POST", "/api/ingest", message)
    assert (said.status, said.json["status"]) == (201, "created")
    assert api.ask("POST", "/api/ingest", message).json == said.json
    ended = {"type": "conversation.interrupted", "data": {"conversationId": conversation, "reason": "enough"}}
    assert api.ask("POST", "/api/ingest", ended).json == {"success": True}
    session = api.get(f"/api/sessions/{conversation}?includeMessages=true")
    assert (session["status"], session["completionReason"], session["totalTokens"]) == ("INTERRUPTED", "enough", 7)
    assert session["messages"][0]["metrics"]["cost"] == 0.5
    message["data"]["conversationId"] = "c" + "0" * 24
    unknown = api.ask("POST", "/api/ingest", message)
    assert (unknown.status, unknown.json) == (
        404, {"error": "Conversation not found", "conversationId": "c" + "0" * 24},
    )  # fmt: skip


def test_without_a_time_two_conversations_are_two(api: Api) -> None:
    """Nobody could tell a repeat from a second one like the first."""
    body = {name: value for name, value in DOCUMENTED.items() if name != "timestamp"}
    ids = {api.ask("POST", "/api/ingest", body).json["conversationId"] for _ in range(2)}
    assert len(ids) == 2


def test_refusals_name_the_member(api: Api) -> None:
    """In the words of the dialect that the event is in."""
    wire = api.ingest("message.created", conversation_id="x", agent_type="y", content=7)
    assert wire.status == 400
    assert (wire.json["error"], wire.json["details"][0]["path"]) == ("Invalid event format", ["data", "content"])
    documented = json.loads(json.dumps(DOCUMENTED))
    documented["data"]["mode"] = "chaos"
    reply = api.ask("POST", "/api/ingest", documented)
    assert (reply.status, reply.json["error"], reply.json["field"]) == (400, "Validation failed", "data.mode")
    broken = api.ask("POST", "/api/ingest", b'{"type":')
    assert (broken.status, broken.json["error"]) == (400, "Invalid event format")
    twice = api.ask(
        "POST", "/api/ingest", b'{"type":"bridge.test","type":"x","timestamp":"2026-01-01T00:00Z","data":{}}'
    )
    assert twice.status == 400


def test_a_message_id_says_one_thing(api: Api) -> None:
    """The real server fails with 500, so that the client tries three times more for nothing."""
    api.begin("one-thing")
    api.say("one-thing", 1, "first")
    reply = api.ingest(
        "message.created", conversation_id="one-thing", message_id="one-thing-m1", agent_type="claude", content="second"
    )
    assert (reply.status, reply.json["error"]) == (409, "Duplicate id")


def test_ids_that_differ_only_in_case_are_two_conversations(api: Api) -> None:
    """Their streams' names would be the same."""
    api.begin("Case-Test")
    api.begin("case-test")
    assert api.get("/api/sessions/Case-Test")["id"] == "Case-Test"
    assert api.get("/api/sessions/case-test")["id"] == "case-test"


def test_who_shows_no_key_is_told_as_the_client_expects(api: Api, node: Node) -> None:
    """401 in the real server's words, for a missing and for a wrong key."""
    missing = Api(node, "").ask("POST", "/api/ingest", {})
    assert (missing.status, missing.json["error"], missing.json["details"]) == (
        401, "Unauthorized", "Missing or invalid authorization header",
    )  # fmt: skip
    wrong = Api(node, "ap_live_" + "A" * 32).ask("POST", "/api/ingest", {})
    assert (wrong.status, wrong.json["error"], wrong.json["details"]) == (401, "Unauthorized", "Invalid API key")


def test_a_key_of_the_node_publishes_only_what_its_scopes_say(node: Node) -> None:
    """`ap_live_` keys come from the node's own list."""
    with SyncClient(f"unix:{node.directory}/overlayd.sock") as client:
        may = client.send(access_calls.create_key(KeyIn(scopes=["publish:sessions.>"], kind="ap"))).key
        may_not = client.send(access_calls.create_key(KeyIn(scopes=["publish:other.>"], kind="ap"))).key
    assert may.startswith("ap_live_")
    body = {"type": "bridge.test", "timestamp": "2026-01-01T00:00:00Z", "data": {}}
    assert Api(node, may).ask("POST", "/api/ingest", body).status == 200
    assert Api(node, may).ask("GET", "/api/sessions").status == 403
    refused = Api(node, may_not).ask("POST", "/api/ingest", body)
    assert (refused.status, refused.json["error"]) == (403, "Forbidden")


def test_the_bridge_key_is_for_conversations_only(node: Node) -> None:
    """It opens nothing else on the node."""
    assert Api(node, KEY).ask("POST", "/v1/streams/weather/data", {"t": 1}).status == 403
    assert Api(node, KEY).ask("GET", "/v1/keys").status == 403

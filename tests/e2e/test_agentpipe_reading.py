"""Sessions on a real node: uploaded, listed, searched, exported, played again, made anew."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from agentpipe_node import CONFIG, Admin, Api
from node_process import Node
from real_waiting import until

from overlayd.client import SyncClient, access_calls
from overlayd.model.wire_access import KeyIn

MANY = 10_000
MARKS = ("alpha", "beta", "gamma", "delta")


def session_body(original: str = "", count: int = 2) -> dict[str, Any]:
    """An upload in the documents' shape."""
    agents = [{"agentId": f"agent-{n}", "agentType": kind, "agentName": name}
              for n, (kind, name) in enumerate((("claude", "PM"), ("gpt", "Engineer")))]  # fmt: skip
    messages = [
        {
            **agents[n % 2], "content": f"note {n} about {MARKS[n % 4]}-{n}", "role": "agent", "sequenceNumber": n,
            "timestamp": f"2025-10-15T{10 + n // 3600:02}:{n // 60 % 60:02}:{n % 60:02}.000Z",
            "metrics": {"duration": 5, "totalTokens": 3, "cost": 0.001},
        }
        for n in range(count)
    ]  # fmt: skip
    return {
        "session": {
            "name": "Historical", "mode": "round-robin", "initialPrompt": "Discuss", "status": "COMPLETED",
            "startedAt": "2025-10-15T09:59:00.000Z", "completedAt": "2025-10-15T16:00:00.000Z",
            "metadata": {"originalId": original} if original else {"importedFrom": "disk"},
        },
        "participants": agents, "messages": messages,
    }  # fmt: skip


def web_body(**members: Any) -> dict[str, Any]:
    """An upload in the shape of the web server's schema."""
    return {
        "conversation": {
            "name": "Old", "mode": "reactive", "initial_prompt": "p", "started_at": "2025-10-15T10:00:00Z",
            "completed_at": "2025-10-15T10:30:00Z", "status": "INTERRUPTED", "total_tokens": 99, **members,
        },
        "agents": [{"agent_type": "claude", "agent_name": "PM", "model": "m"}],
        "messages": [
            {"agent_type": "claude", "agent_name": "PM", "content": "one", "timestamp": "2025-10-15T10:01:00Z",
             "sequence_number": 1, "tokens_used": 12, "cost": 0.25},
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node whose rates are no part of these tests."""
    rates = 'ingest_rate = ""\nupload_rate = ""\nretrieval_rate = ""\n'
    running = Node(tmp_path_factory.mktemp("node") / "data", config=CONFIG + rates)
    try:
        yield running.wait_ready()
    finally:
        assert running.stop() == 0, "".join(running.output[-40:])


@pytest.fixture
def api(node: Node) -> Api:
    """Requests with the bridge's key."""
    return Api(node)


@pytest.fixture(scope="module")
def large(node: Node) -> str:
    """The id of an uploaded session with as many messages as there may be."""
    reply = Api(node).ask("POST", "/api/sessions/upload", session_body("large", MANY))
    assert (reply.status, reply.json["messagesCreated"], reply.json["participantsCreated"]) == (201, MANY, 2)
    assert (reply.json["totalTokens"], reply.json["totalCost"]) == (3 * MANY, 10.0)
    return str(reply.json["conversationId"])


def found(api: Api, query: str, **filters: Any) -> list[str]:
    """The sessions that a search finds."""
    reply = api.ask("POST", "/api/search", {"query": query, "filters": filters})
    assert reply.status == 200, reply
    return [one["id"] for one in reply.json["results"]]


def test_ten_thousand_messages_are_uploaded_listed_searched_and_exported(api: Api, large: str) -> None:
    """As one session, each message once and in its place."""

    def whole_session() -> Any:
        """Sessions are made from the log, behind the answer."""
        listed = next(one for one in api.get("/api/sessions?limit=100")["data"] if one["id"] == large)
        return listed if listed["totalMessages"] >= MANY else None

    listed = until(whole_session, "all messages are read from the log")
    assert (listed["totalMessages"], listed["totalTokens"], listed["status"]) == (MANY, 3 * MANY, "COMPLETED")
    page = api.get(f"/api/conversations/{large}/messages?page=100&limit=100")
    assert page["pagination"] == {"page": 100, "limit": 100, "total": MANY, "pages": 100}
    assert [one["sequenceNumber"] for one in page["data"]] == list(range(9900, MANY))
    assert found(api, "gamma-9998") == [large]
    assert found(api, "gamma-9999") == []
    whole = api.get(f"/api/sessions/{large}?includeMessages=true&messageLimit=10000")
    assert [one["sequenceNumber"] for one in whole["messages"]] == list(range(MANY))
    text = api.ask("GET", f"/api/sessions/{large}/export?format=csv").body.decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["content"] for row in rows] == [f"note {n} about {MARKS[n % 4]}-{n}" for n in range(MANY)]
    assert len(api.get(f"/api/sessions/{large}/export?format=json")["messages"]) == MANY
    again = api.ask("POST", "/api/sessions/upload", session_body("large", MANY))
    assert (again.status, again.json["error"], again.json["existingConversationId"]) == (
        409, "Duplicate upload", large,
    )  # fmt: skip


def test_the_web_servers_shape_is_taken_too(api: Api) -> None:
    """With the client's id where it brings one, and the totals that it names."""
    reply = api.ask("POST", "/api/sessions/upload", web_body(id="from-disk"))
    assert (reply.status, reply.json["conversation_id"]) == (201, "from-disk")
    session = api.get("/api/sessions/from-disk")
    assert (session["status"], session["totalTokens"], session["totalCost"]) == ("INTERRUPTED", 99, 0.25)
    assert api.ask("POST", "/api/sessions/upload", web_body(id="from-disk")).status == 409
    drawn = api.ask("POST", "/api/sessions/upload", web_body()).json["conversation_id"]
    assert drawn.startswith("c")


def test_what_was_streamed_cant_be_uploaded_again(api: Api) -> None:
    """It is the same session."""
    api.begin("streamed")
    reply = api.ask("POST", "/api/sessions/upload", session_body("streamed"))
    assert (reply.status, reply.json["existingConversationId"]) == (409, "streamed")


def test_an_upload_is_there_whole_or_not_at_all(api: Api, node: Node) -> None:
    """A mistake in its last message leaves nothing of it; the answer says which."""
    body = session_body("broken")
    body["messages"][1]["agentId"] = "stranger"
    refused = api.ask("POST", "/api/sessions/upload", body)
    assert (refused.status, refused.json["error"], refused.json["field"]) == (400, "Validation failed", "messages")
    body = session_body("broken")
    body["messages"][1]["content"] = ""
    refused = api.ask("POST", "/api/sessions/upload", body)
    assert refused.json["field"] == "messages.1.content"
    assert api.ask("POST", "/api/sessions/upload", session_body("broken")).status == 201


def test_times_of_an_upload_are_its_own(api: Api) -> None:
    """Not those at which it came."""
    id = api.ask("POST", "/api/sessions/upload", session_body("times")).json["conversationId"]
    session = api.get(f"/api/conversations/{id}")
    assert session["startedAt"] == "2025-10-15T09:59:00.000Z"
    assert session["completedAt"] == "2025-10-15T16:00:00.000Z"
    assert [one["timestamp"] for one in session["messages"]] == ["2025-10-15T10:00:00.000Z", "2025-10-15T10:00:01.000Z"]
    assert session["metadata"] == {"originalId": "times"}


def test_lists_are_filtered_sorted_and_paged(api: Api) -> None:
    """In the names of both APIs."""
    for number, tokens in enumerate((5, 50, 500)):
        body = web_body(id=f"sorted-{number}", total_tokens=tokens, mode="sorted")
        assert api.ask("POST", "/api/sessions/upload", body).status == 201
    by_tokens = api.get("/api/conversations?mode=sorted&sortBy=totalTokens&sortOrder=asc&pageSize=2")
    assert [one["id"] for one in by_tokens["conversations"]] == ["sorted-0", "sorted-1"]
    assert by_tokens["pagination"] == {
        "page": 1, "pageSize": 2, "totalCount": 3, "totalPages": 2, "hasNextPage": True, "hasPreviousPage": False,
    }  # fmt: skip
    assert [one["id"] for one in api.get("/api/conversations?mode=sorted&sort=totalTokens&limit=2&page=2")["conversations"]] == [
        "sorted-0"
    ]  # fmt: skip
    assert api.get("/api/sessions?agentType=nobody")["pagination"]["total"] == 0
    assert api.get("/api/sessions?endDate=2020-01-01")["data"] == []
    assert api.get("/api/sessions?status=ERROR")["data"] == []
    refused = api.ask("GET", "/api/sessions?sort=id;DROP TABLE agentpipe_session".replace(" ", "%20"))
    assert refused.status == 400
    assert api.get("/api/sessions")["pagination"]["total"] >= 3


def test_sums_and_recent_messages(api: Api) -> None:
    """Over what may be seen."""
    api.begin("recent")
    api.say("recent", 1, "newest of all")
    recent = api.get("/api/messages/recent?limit=1")
    assert (recent["count"], recent["messages"][0]["content"]) == (1, "newest of all")
    assert recent["messages"][0]["conversationId"] == "recent"
    summary = api.get("/api/metrics/summary")
    assert summary["activeConversations"] >= 1
    assert {"type", "count", "totalCost"} == set(summary["topAgents"][0])
    assert api.get("/api/metrics/summary?endDate=2020-01-01")["totalConversations"] == 0
    assert {"type": "claude"}.items() <= api.get("/api/search?type=agents")["agents"][0].items()


def test_an_etag_holds_until_the_next_write(api: Api) -> None:
    """And not a write longer; what others may see has another one."""
    first = api.ask("GET", "/api/sessions")
    tag = first.headers["etag"]
    same = api.ask("GET", "/api/sessions", If_None_Match=tag)
    assert (same.status, same.body, same.headers["etag"]) == (304, b"", tag)
    assert api.ask("GET", "/api/sessions?page=2", If_None_Match=tag).status == 200
    api.begin("etag")
    changed = api.ask("GET", "/api/sessions", If_None_Match=tag)
    assert (changed.status, changed.headers["etag"] != tag) == (200, True)


def test_a_session_is_played_again(api: Api) -> None:
    """In order, at the speed that is asked for, with the words that were said."""
    api.begin("again")
    for number in (1, 2):
        api.say("again", number)
    api.ingest("conversation.completed", conversation_id="again", status="completed")
    text = api.ask("GET", "/api/sessions/again/replay?speed=0").body.decode()
    events = [json.loads(frame.removeprefix("data: ")) for frame in text.strip().split("\n\n")]
    assert [event["type"] for event in events] == [
        "conversation.started", "message.created", "message.created", "conversation.completed",
    ]  # fmt: skip
    assert [event["data"]["content"] for event in events[1:3]] == ["message 1", "message 2"]
    assert api.ask("GET", "/api/sessions/again/replay?speed=-1").status == 400
    assert api.ask("GET", "/api/sessions/nobody/replay").status == 404
    assert api.get("/api/realtime/stats")["totalListeners"] == 0


def test_markdown_and_csv_run_nothing(api: Api) -> None:
    """A cell that a spreadsheet would take for a formula is a text; a tag is shown, not meant."""
    api.begin("risky")
    api.say("risky", 1, '=HYPERLINK("http://evil")')
    api.say("risky", 2, "<script>alert(1)</script>")
    rows = list(csv.DictReader(io.StringIO(api.ask("GET", "/api/conversations/risky/export?format=csv").body.decode())))
    assert rows[0]["content"] == '\'=HYPERLINK("http://evil")'
    reply = api.ask("GET", "/api/conversations/risky/export?format=markdown")
    assert "<script" not in reply.body.decode()
    assert reply.headers["content-disposition"].startswith('attachment; filename="conversation-risky-')
    assert api.ask("GET", "/api/conversations/risky/export?format=exe").status == 400


@pytest.mark.parametrize(
    "query",
    ['"', '""', "'", "* OR *", "a AND", "NEAR(a b)", "content:x", "^a", "a*", "-a", "(", "\\", "%", "_", "\0", "{}", "; DROP TABLE x", "🚀" * 50],
)  # fmt: skip
def test_a_search_takes_its_text_literally(api: Api, query: str) -> None:
    """FTS5 has a language; nobody's text is in it. What isn't there isn't found."""
    if api.ask("GET", "/api/sessions/hostile").status == 404:
        api.begin("hostile")
        api.say("hostile", 1, "before content zebra near drop table")
    assert api.ask("POST", "/api/search", {"query": query, "limit": 100}).status == 200
    assert found(api, "zebra") == ["hostile"]
    assert found(api, f"{query} zebra nosuchwordanywhere") == []
    assert found(api, f"{query} OR zebra") == []


def test_a_search_is_filtered(api: Api) -> None:
    """By what its body says."""
    api.begin("filtered")
    api.say("filtered", 1, "quagga")
    assert found(api, "quagga", status=["ACTIVE"], agentTypes=["claude"], minTokens=10, maxCost=1) == ["filtered"]
    assert found(api, "quagga", minTokens=11) == []
    assert found(api, "quagga", agentTypes=["gpt"]) == []
    assert found(api, "quagga", startDate="2100-01-01") == []
    bodies: list[Any] = [[], {"query": 7}, {"filters": []}, {"query": "x", "limit": True}, {"query": "x" * 1001}]
    for body in bodies:
        status = api.ask("POST", "/api/search", body).status
        assert status == (200 if body == {"filters": []} else 400), body


def test_a_rebuilt_session_is_the_same(api: Api, node: Node) -> None:
    """From the log alone; only an administrator may ask for it."""
    api.begin("rebuilt")
    api.say("rebuilt", 1, "kept")
    before = api.get("/api/sessions/rebuilt?includeMessages=true")
    assert api.ask("POST", "/api/sessions/rebuild").status == 403
    assert Admin(node).ask("POST", "/api/sessions/rebuild").status == 200
    audited = [
        one["data_payload"] for one in Admin(node).get("/v1/streams/overlayd.audit/packets?limit=1000")["packets"]
    ]
    assert [one["subject"] for one in audited if one["action"] == "rebuild"] == ["sessions"]
    path = "/api/sessions/rebuilt?includeMessages=true"
    until(lambda: api.ask("GET", path).status == 200 and api.get(path)["messages"], "the session is there again")
    assert api.get(path) == before
    assert found(api, "kept") == ["rebuilt"]


def test_a_deleted_stream_takes_its_session_along(api: Api, node: Node) -> None:
    """And its words out of the search."""
    api.begin("deleted")
    api.say("deleted", 1, "okapi")
    assert found(api, "okapi") == ["deleted"]
    with SyncClient(f"unix:{node.directory}/overlayd.sock") as client:
        client.delete("sessions.deleted")
    assert api.ask("GET", "/api/sessions/deleted").status == 404
    assert found(api, "okapi") == []


def test_health_is_told_to_anybody(node: Node) -> None:
    """As AgentPipe's documents have it."""
    body = Api(node, "").get("/api/health")
    assert body["status"] == "healthy"
    assert {"database", "redis", "sse"} <= set(body["checks"])


def test_streams_that_one_may_not_read_are_no_sessions(node: Node, api: Api) -> None:
    """A key for one conversation sees this one, and no count of others."""
    api.begin("seen")
    api.begin("unseen")
    with SyncClient(f"unix:{node.directory}/overlayd.sock") as client:
        key = client.send(access_calls.create_key(KeyIn(scopes=["read:sessions.seen"]))).key
    narrow = Api(node, key)
    assert [one["id"] for one in narrow.get("/api/sessions")["data"]] == ["seen"]
    assert narrow.ask("GET", "/api/sessions/unseen").status == 404
    assert narrow.get("/api/metrics/summary")["totalConversations"] == 1
    assert found(narrow, "Hello") == ["seen"]

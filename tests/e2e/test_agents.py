"""Agents on a real node: replies over every way, the switch, the example, and a node killed around a reply."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from click.testing import CliRunner
from js_packages import JS, install_js, needs_node
from node_process import Node
from real_waiting import PATIENCE_S
from trio_websocket import open_websocket_url

from overlayd.cli import cli
from overlayd.client import SyncClient

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIG = """
[webhooks]
allow_private = ["127.0.0.0/8"]

[[subscriptions]]
name = "hook"
kind = "agent"
streams = ["asked"]
agent = { output = "answered", trigger = { gt = ["n", 0] } }
webhook = { url = "URL", ordering = "stream", retry = { schedule = ["50ms", "50ms", "50ms", "1s", "1s"] } }
"""
WAIT_S = 50.0


class Agent:
    """A program that wakes: answers each packet with its double. `on_call` is called before it answers."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.on_call: Any = None
        self.changed = threading.Condition()
        agent = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with agent.changed:
                    agent.calls.append(body)
                    agent.changed.notify_all()
                if agent.on_call is not None:
                    agent.on_call(len(agent.calls))
                reply = json.dumps(
                    {"packets": [{"data": {"double": 2 * body["packet"]["data_payload"]["n"]}}]}
                ).encode()
                try:
                    self.send_response(200)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(reply)))
                    self.end_headers()
                    self.wfile.write(reply)
                    self.wfile.flush()
                except OSError:  # the node was killed meanwhile
                    self.close_connection = True

            def log_message(self, format: str, *arguments: object) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/wake"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def agent() -> Iterator[Agent]:
    """A program that is called."""
    found = Agent()
    yield found
    found.close()


def start(directory: Path, agent: Agent) -> Node:
    """A node with the agent declared in its file."""
    return Node(directory, config=CONFIG.replace("URL", agent.url)).wait_ready()


def client_of(node: Node) -> SyncClient:
    """Over the node's own socket, which may do everything."""
    return SyncClient(f"unix:{node.directory / 'overlayd.sock'}")


def values(client: SyncClient, stream: str, count: int) -> list[Any]:
    """The stream's packets once there are so many."""
    found: list[Any] = []
    after = 0
    while len(found) < count:
        page = client.read(stream, after=after, limit=1000, wait_s=WAIT_S)
        assert page.packets, f"{len(found)} of {count} after {WAIT_S} s"
        found += [json.loads(bytes(packet.data_payload)) for packet in page.packets]
        after = page.next_after
    return found


def make_key(node: Node, *scopes: str) -> dict[str, str]:
    """The header of a new key."""
    transport = httpx.HTTPTransport(uds=str(node.directory / "overlayd.sock"))
    with httpx.Client(transport=transport, base_url="http://localhost") as raw:
        answer = raw.post("/v1/keys", json={"scopes": list(scopes), "owner": "me"})
    assert answer.status_code == 201, answer.text
    return {"Authorization": f"Bearer {answer.json()['key']}"}


def test_nothing_is_lost_or_doubled_by_kills_around_replies(tmp_path: Path, agent: Agent) -> None:
    """Killed before the answer, and at the moment it comes: after the last start each packet has one reply."""
    directory, count, kills = tmp_path / "data", 20, 4
    nodes: list[Node] = []
    calls_left = [2]

    def kill(call: int) -> None:
        calls_left[0] -= 1
        if calls_left[0] < 0 and len(nodes) <= kills:  # a late kill leaves calls to those that come after it
            nodes[-1].process.wait(PATIENCE_S)
        if calls_left[0] or len(nodes) > kills:
            return
        if len(nodes) % 2:
            nodes[-1].process.kill()
        else:
            threading.Timer(0.002, nodes[-1].process.kill).start()

    agent.on_call = kill
    nodes.append(start(directory, agent))
    with client_of(nodes[-1]) as client:
        client.define("answered", {})
        client.publish_many("asked", [{"data": {"n": n}} for n in range(count)])
    for _ in range(kills):
        assert nodes[-1].process.wait(PATIENCE_S) == -9
        nodes[-1].stop()
        calls_left[0] = 2
        nodes.append(start(directory, agent))
    with client_of(nodes[-1]) as client:
        assert values(client, "answered", count - 1) == [{"double": 2 * n} for n in range(1, count)]
        assert count - 1 + kills / 2 <= len(agent.calls) <= count - 1 + kills
        assert client.subscriptions.get("hook").dead_letters == 0
    assert nodes[-1].stop() == 0


def test_ways_to_reply_and_the_switch(tmp_path: Path, agent: Agent) -> None:
    """Over HTTP by a key: refused without the right, then fetched and replied, replied over the socket, paused."""
    node = start(tmp_path / "data", agent)
    try:
        with client_of(node) as client:
            client.define("out", {})
            client.define("answered", {})
            plain = make_key(node, "subscribe", "publish")
            able = make_key(node, "subscribe", "publish", "read", "agent")
            other = make_key(node, "subscribe", "publish:other", "agent")
            reader = make_key(node, "subscribe", "read")
            boss = make_key(node, "manage")
        body = {"name": "w", "kind": "agent", "streams": ["in"], "agent": {"attach": "pull", "output": "out"}}
        with httpx.Client(base_url=node.url) as raw:
            assert raw.post("/v1/subscriptions", json=body, headers=plain).json()["code"] == "access.forbidden"
            assert raw.post("/v1/subscriptions", json=body, headers=other).json()["code"] == "access.forbidden"
            nowhere = body | {"agent": {"attach": "pull", "output": "nowhere"}}
            assert raw.post("/v1/subscriptions", json=nowhere, headers=able).status_code == 404
            made = raw.post("/v1/subscriptions", json=body, headers=able)
            assert made.status_code == 201, made.text
            assert made.json()["runs"]["today"] == 0
            raw.post("/v1/streams/in/packets", json={"data": {"n": 1}}, headers=able).raise_for_status()
            message = raw.post("/v1/subscriptions/w/fetch", json={"wait": "5s"}, headers=able).json()["messages"][0]
            assert message["packet"]["producer"]["signature"] == "none"
            assert message["packet"]["producer"]["principal"].startswith("key:")
            reply = {"packets": [{"data": "pulled"}]}
            bad = {"leases": [message["lease"]], "reply": {"packets": [{"data": 1, "id": "x"}]}}
            assert raw.post("/v1/subscriptions/w/ack", json=bad, headers=able).status_code == 422
            good = {"leases": [message["lease"]], "reply": reply}
            assert raw.post("/v1/subscriptions/w/ack", json=good, headers=reader).status_code == 403
            assert raw.post("/v1/subscriptions/w/ack", json=good, headers=able).json() == {"results": ["ok"]}
            live = body | {"name": "l", "agent": {"attach": "live", "output": "out"}}
            assert raw.post("/v1/subscriptions", json=live, headers=able).status_code == 201
            trio.run(reply_with_less, node.url, able)
            trio.run(reply_live, node.url, able)
            assert raw.get("/v1/agents", headers=able).status_code == 403
            paused = raw.post("/v1/agents/pause", headers=boss).json()
            assert (paused["paused"], paused["agents"]) == (True, 3)
            assert raw.post("/v1/subscriptions/w/fetch", headers=able).status_code == 409
        with client_of(node) as client:
            assert values(client, "out", 2) == ["pulled", {"live": 1}]
            client.publish("asked", {"n": 4})
        assert node.stop() == 0
        node = start(tmp_path / "data", agent)
        assert agent.calls == []
        with httpx.Client(base_url=node.url) as raw:
            assert raw.post("/v1/agents/resume", headers=boss).json()["paused"] is False
        with client_of(node) as client:
            assert values(client, "answered", 1) == [{"double": 8}]
            assert [one["action"] for one in values(client, "overlayd.audit", 1) if one["action"][:7] == "agents."] == [
                "agents.pause", "agents.resume"
            ]  # fmt: skip
    finally:
        assert node.stop() == 0


def test_agents_by_commands(tmp_path: Path) -> None:
    """An agent is made, fetches who a packet is from, replies, and all agents are paused and resumed, by commands."""
    node = Node(tmp_path / "data").wait_ready()

    def run(*arguments: str, text: str = "") -> tuple[int, str, str]:
        done = CliRunner().invoke(cli, [*arguments, "--data", str(node.directory)], input=text)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
        return done.exit_code, done.stdout, done.stderr

    try:
        with client_of(node) as client:
            client.define("out", {})
        code, _, errors = run(
            "subscriptions", "create", "mood", "--kind", "agent", "--stream", "in", "--output", "out"
        )  # fmt: skip
        assert code == 0, errors
        with client_of(node) as client:
            client.publish("in", {"n": 1})
            client.publish("in", {"n": 2})
        fetched = run("subscriptions", "fetch", "mood", "--max", "2", "--wait", "5s")[1].splitlines()
        first, second = map(json.loads, fetched)
        assert first["packet"]["producer"]["signature"] == "none"
        assert first["packet"]["producer"]["principal"]
        reply = json.dumps({"packets": [{"data": "one"}]})
        assert run("subscriptions", "ack", "mood", first["lease"], second["lease"], "--reply", reply)[0] == 2
        assert run("subscriptions", "ack", "mood", first["lease"], "--reply", "[1]")[0] == 2
        assert run("subscriptions", "ack", "mood", first["lease"], "--reply", reply)[:2] == (0, "ok\n")
        assert run("subscriptions", "ack", "mood", second["lease"], "--reply", "-", text=reply)[:2] == (0, "ok\n")
        assert run("subscriptions", "ack", "mood", second["lease"], "--reply", reply)[:2] == (1, "expired\n")
        with client_of(node) as client:
            assert values(client, "out", 2) == ["one", "one"]
        assert json.loads(run("agents", "--json")[1]) == {"paused": False, "agents": 1}
        assert "paused  yes" in run("agents", "pause-all")[1]
        code, _, errors = run("subscriptions", "fetch", "mood")
        assert (code, "agents are paused" in errors) == (1, True)
        assert json.loads(run("agents", "resume-all", "--json")[1])["paused"] is False
        assert run("subscriptions", "fetch", "mood")[0] == 0
    finally:
        assert node.stop() == 0


def open_live(url: str, headers: dict[str, str], ticket: str = "") -> Any:
    """A WebSocket, as a block."""
    named = [] if ticket else [(name.encode(), value.encode()) for name, value in headers.items()]
    query = f"?ticket={ticket}" if ticket else ""
    return open_websocket_url(
        f"{url.replace('http', 'ws')}/v1/live{query}", subprotocols=["overlayd.v1"], extra_headers=named
    )


async def ask_live(socket: Any, kind: str, **message: Any) -> dict[str, Any]:
    """The next message of a kind, after something was sent."""
    if message:
        await socket.send_message(json.dumps(message))
    answer: dict[str, Any] = {}
    while answer.get("type") != kind:
        answer = json.loads(await socket.get_message())
    return answer


async def reply_with_less(url: str, headers: dict[str, str]) -> None:
    """What a narrower ticket of the agent's own key is let do: read, but neither reply nor push out who may."""
    with trio.fail_after(PATIENCE_S):
        async with httpx.AsyncClient(base_url=url, headers=headers) as raw:
            tickets = []
            for scope in ("subscribe", "publish:in"):
                given = await raw.post("/v1/tickets", json={"scopes": [scope]})
                tickets.append(given.raise_for_status().json()["ticket"])
            async with open_live(url, {}, tickets[0]) as reader:
                await ask_live(reader, "subscribed", type="subscribe", id="a", name="l")
                (await raw.post("/v1/streams/in/packets", json={"data": {"n": 2}})).raise_for_status()
                cursor = (await ask_live(reader, "packet"))["cursor"]
                reply = {"packets": [{"data": "forged"}]}
                refused = await ask_live(reader, "error", type="ack", id="a", cursor=cursor, reply=reply)
                assert refused["code"] == "access.forbidden"
                async with open_live(url, {}, tickets[1]) as writer:
                    refused = await ask_live(writer, "error", type="subscribe", id="a", name="l")
                    assert refused["code"] == "access.forbidden"
                assert (await ask_live(reader, "heartbeat", type="ping"))["type"] == "heartbeat"


async def reply_live(url: str, headers: dict[str, str]) -> None:
    """Reads a packet by the subscription's name and replies to it; a reply to nothing is refused."""
    with trio.fail_after(PATIENCE_S):
        async with open_live(url, headers) as socket:
            message = await ask_live(socket, "packet", type="subscribe", id="a", name="l")
            assert message["packet"]["producer"]["principal"].startswith("key:")
            wrong = {"type": "ack", "id": "a", "cursor": message["cursor"], "reply": {"packets": 5}, "ref": 1}
            await socket.send_message(json.dumps(wrong))
            answer = json.loads(await socket.get_message())
            assert (answer["type"], answer["code"]) == ("error", "reply.invalid")
            right = wrong | {"reply": {"packets": [{"data": {"live": 1}}]}}
            await socket.send_message(json.dumps(right))
            async with httpx.AsyncClient(base_url=url) as raw:
                read = f"/v1/streams/out/packets?after=1&wait={WAIT_S:.0f}s"
                assert len((await raw.get(read, headers=headers)).json()["packets"]) == 1
                shown = (await raw.get("/v1/subscriptions/l", headers=headers)).json()
                assert shown["cursor"] == message["cursor"]


POSTS = ["What a wonderful, happy day!", {"text": "This is terrible, I hate it."}, {"text": "The table is of wood."}, 5]


def test_the_python_example_scores_posts(tmp_path: Path) -> None:
    """As its words say: run against a node, it replies with a score to each text."""
    node = Node(tmp_path / "data").wait_ready()
    try:
        with client_of(node) as client:
            client.publish_many("posts", [{"data": post, "id": f"p{n}"} for n, post in enumerate(POSTS)])
            url = f"unix:{node.directory / 'overlayd.sock'}"
            subprocess.run(
                [sys.executable, str(EXAMPLES / "sentiment_agent.py"), url, "posts", "moods", str(len(POSTS))],
                check=True, timeout=60, capture_output=True,
            )  # fmt: skip
            moods = values(client, "moods", 3)
            assert [(one["post"], one["mood"]) for one in moods] == [("p0", "good"), ("p1", "bad"), ("p2", "neutral")]
            packet = client.read_packet("moods", 1)
            assert (packet.hops, packet.key, packet.type) == (1, "p0", "sentiment")
    finally:
        assert node.stop() == 0


@needs_node
def test_the_javascript_example_scores_posts(tmp_path: Path) -> None:
    """The same, over HTTP with a key."""
    install_js()
    node = Node(tmp_path / "data").wait_ready()
    try:
        with client_of(node) as client:
            key = make_key(node, "subscribe", "publish", "agent", "manage")["Authorization"].removeprefix("Bearer ")
            client.publish_many("posts", [{"data": post, "id": f"p{n}"} for n, post in enumerate(POSTS)])
            subprocess.run(
                ["node", str(EXAMPLES / "sentiment_agent.mjs"), node.url, "posts", "moods", str(len(POSTS))],
                check=True, timeout=60, capture_output=True,
                env=os.environ | {"OVERLAYD_KEY": key, "AGENT_MODULES": str(JS / "package.json")},
            )  # fmt: skip
            moods = values(client, "moods", 3)
            assert [(one["post"], one["mood"]) for one in moods] == [("p0", "good"), ("p1", "bad"), ("p2", "neutral")]
    finally:
        assert node.stop() == 0

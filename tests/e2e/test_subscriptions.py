"""Durable subscriptions on a real node: over HTTP, by commands, through both clients, from a file, and over a socket."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from click.testing import CliRunner
from node_process import Node
from real_waiting import PATIENCE_S, until

from overlayd.cli import cli
from overlayd.client import Client, SyncClient
from overlayd.model.errors import OverlaydError, SubscriptionConflict, UnknownSubscription


class Sink:
    """A receiver that notes what comes; `status` is what it answers."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], Any]] = []
        self.status = 204
        self.answers = threading.Event()
        """Clear: whoever calls waits for its answer."""
        self.answers.set()
        self._changed = threading.Condition()
        sink = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with sink._changed:
                    sink.requests.append((dict(self.headers), body))
                    sink._changed.notify_all()
                sink.answers.wait(PATIENCE_S)
                try:
                    self.send_response(sink.status)
                    self.send_header("content-length", "0")
                    self.end_headers()
                except OSError:  # the node was killed meanwhile
                    self.close_connection = True

            def log_message(self, format: str, *arguments: object) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/in"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def wait(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.requests) >= count, PATIENCE_S), len(self.requests)


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    """A receiver for the tests of this module."""
    found = Sink()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, sink: Sink) -> Iterator[Node]:
    """A node that may call this machine, with a subscription that its file declares."""
    config = f"""
[webhooks]
allow_private = ["127.0.0.0/8"]

[[subscriptions]]
name = "declared"
kind = "webhook"
streams = ["declared.>"]
webhook = {{ url = "{sink.url}", retry = {{ schedule = ["1s"] }} }}
"""
    running = Node(tmp_path_factory.mktemp("node") / "data", config=config)
    try:
        yield running.wait_ready()
    finally:
        assert running.stop() == 0, "".join(running.output[-40:])


def publish(node: Node, stream: str, *values: Any) -> None:
    """Packets, durable."""
    with SyncClient(f"unix:{node.directory}/overlayd.sock") as client:
        for value in values:
            client.publish(stream, value)


def run(node: Node, *arguments: object) -> tuple[int, str, str]:
    """`overlayd subscriptions …` on the node's socket."""
    done = CliRunner().invoke(cli, ["subscriptions", *map(str, arguments), "--data", str(node.directory)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done.exit_code, done.stdout, done.stderr


def test_webhook_by_commands(node: Node, sink: Sink) -> None:
    """Created, tested, delivered to, paused, resumed, moved, looked at and deleted, by commands alone."""
    before = len(sink.requests)
    code, out, err = run(node, "create", "hook", "--stream", "hook", "--post-to", sink.url, "--ordered")
    assert code == 0, err
    assert "secret" in out
    assert "whsec_" in out
    assert "isn't shown again" in err
    code, out, _ = run(node, "test", "hook")
    assert (code, "delivered" in out) == (0, True)
    sink.wait(before + 1)
    publish(node, "hook", 1, 2, 3)
    sink.wait(before + 4)
    values = [body["packet"]["data_payload"] for _, body in sink.requests[before + 1 :]]
    assert values == [1, 2, 3]
    assert run(node, "pause", "hook")[0] == 0
    assert "paused" in run(node, "show", "hook")[1]
    publish(node, "hook", 4)
    assert run(node, "resume", "hook")[0] == 0
    sink.wait(before + 5)
    shown = json.loads(run(node, "show", "hook", "--json")[1])
    assert "secret" not in shown
    assert "secret" not in shown["webhook"]
    assert "hook" in run(node, "list", "--kind", "webhook")[1]
    first = sink.requests[before + 1][1]["packet"]["offset"]
    epoch = shown["cursor"].rpartition("-")[0]
    assert run(node, "seek", "hook", "--cursor", f"{epoch}-{first}")[0] == 0
    sink.wait(before + 8)
    assert [body["packet"]["data_payload"] for _, body in sink.requests[before + 5 :]] == [2, 3, 4]
    attempts = [json.loads(line) for line in run(node, "attempts", "hook", "--json")[1].splitlines()]
    assert [one["outcome"] for one in attempts] == ["delivered"] * len(attempts)
    assert run(node, "rotate-secret", "hook")[1].startswith("whsec_")
    assert run(node, "delete", "hook")[0] == 0
    assert run(node, "show", "hook")[0] == 1


def test_dead_letters_by_commands(node: Node, sink: Sink) -> None:
    """What exhausts its retries is listed, shown with its packet, tried again and thrown away."""
    sink.status = 500
    definition = json.dumps({"webhook": {"url": sink.url, "retry": {"max_retries": 0}}, "streams": ["dead"]})
    assert run(node, "create", "dead", "--definition", definition)[0] == 0
    publish(node, "dead", "x", "y")
    with SyncClient(f"unix:{node.directory}/overlayd.sock") as client:
        until(lambda: len(client.subscriptions.dead_letters("dead")) == 2, "both are dead letters")
    letters = [json.loads(line) for line in run(node, "dead-letters", "list", "dead", "--json")[1].splitlines()]
    assert [one["state"] for one in letters] == ["parked", "parked"]
    assert letters[0]["status"] == 500
    number = letters[0]["number"]
    shown = json.loads(run(node, "dead-letters", "show", "dead", number)[1])
    assert shown["packets"][0]["data_payload"] == "x"
    sink.status = 204
    before = len(sink.requests)
    assert run(node, "dead-letters", "redeliver", "dead", "--from", number, "--to", number)[0] == 0
    sink.wait(before + 1)
    assert sink.requests[-1][0]["webhook-id"] == shown["delivery_id"]
    assert "1 deleted" in run(node, "dead-letters", "delete", "dead", "--all")[2]
    assert run(node, "dead-letters", "delete", "dead")[0] == 2
    assert run(node, "dead-letters", "show", "dead", 999)[0] == 1


def test_pull_by_commands(node: Node) -> None:
    """Fetched, acknowledged, given back and extended by commands."""
    assert run(node, "create", "work", "--stream", "work")[0] == 0
    publish(node, "work", 1, 2, 3)
    lines = [json.loads(line) for line in run(node, "fetch", "work", "--max", 2, "--wait", "5s")[1].splitlines()]
    assert [one["packet"]["data_payload"] for one in lines] == [1, 2]
    assert run(node, "ack", "work", lines[0]["lease"])[:2] == (0, "ok\n")
    assert run(node, "extend", "work", lines[1]["lease"], "--lease", "1m")[:2] == (0, "ok\n")
    assert run(node, "nack", "work", lines[1]["lease"])[:2] == (0, "ok\n")
    assert run(node, "ack", "work", lines[1]["lease"])[:2] == (1, "expired\n")
    rest = run(node, "fetch", "work", "--max", 10, "--ack")[1].splitlines()
    assert sorted(json.loads(line)["packet"]["data_payload"] for line in rest) == [2, 3]
    assert json.loads(run(node, "show", "work", "--json")[1])["outstanding"] == 0
    assert run(node, "fetch", "no-such")[0] == 1


async def test_async_client(node: Node) -> None:
    """The same through the asynchronous client, with errors by their kinds."""
    async with Client(f"unix:{node.directory}/overlayd.sock") as client:
        made = await client.subscriptions.create({"name": "async", "kind": "pull", "streams": ["async"]})
        assert made.state == "active"
        with pytest.raises(SubscriptionConflict):
            await client.subscriptions.create({"name": "async", "kind": "pull"})
        await client.publish("async", {"n": 1})
        fetched = await client.subscriptions.fetch("async", 5, wait_s=10.0)
        assert [bytes(message.packet.data_payload) for message in fetched.messages if message.packet] == [b'{"n":1}']
        leases = [message.lease for message in fetched.messages]
        assert await client.subscriptions.extend(made.id, leases) == ["ok"]
        assert await client.subscriptions.nack(made.id, leases, delay_s=0.0) == ["ok"]
        assert await client.subscriptions.ack(made.id, leases) == ["expired"]
        changed = await client.subscriptions.patch("async", {"streams": ["async", "more"], "pull": {"lease": "2m"}})
        assert changed.streams == ["async", "more"]
        assert (await client.subscriptions.pause("async")).state == "paused"
        assert (await client.subscriptions.resume("async")).state == "active"
        assert "async" in [one.name for one in await client.subscriptions.list(state="active")]
        assert await client.subscriptions.attempts("async")
        assert await client.subscriptions.dead_letters("async") == []
        assert (await client.subscriptions.seek("async", time="2020-01-01T00:00:00Z")).cursor.endswith("-0")
        with pytest.raises(SubscriptionConflict):
            await client.subscriptions.rotate_secret("async")
        await client.subscriptions.delete("async")
        with pytest.raises(UnknownSubscription):
            await client.subscriptions.get("async")


def test_declared_in_a_file(node: Node, sink: Sink) -> None:
    """What the file declares works, and the answer to whoever wants to change it names file and line."""
    before = len(sink.requests)
    publish(node, "declared.one", "hello")
    sink.wait(before + 1)
    with httpx.Client(
        transport=httpx.HTTPTransport(uds=f"{node.directory}/overlayd.sock"), base_url="http://n"
    ) as http_:
        shown = http_.get("/v1/subscriptions/declared").json()
        assert shown["owner"] == "config"
        for answer in (
            http_.delete("/v1/subscriptions/declared"),
            http_.patch("/v1/subscriptions/declared", json={"streams": ["x"]}),
        ):
            assert answer.status_code == 409
            assert answer.json()["code"] == "definition.config"
            assert "data.toml:" in answer.json()["detail"]
        assert http_.post("/v1/subscriptions/declared/rotate-secret").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "", {"kind": "pull"}, 422, "subscription.invalid"),
        ("POST", "", {"name": "x", "kind": "agent"}, 422, "subscription.invalid"),
        (
            "POST",
            "",
            {"name": "x", "kind": "webhook", "webhook": {"url": "http://10.0.0.1/"}},
            422,
            "subscription.invalid",
        ),
        ("POST", "", {"name": "x", "kind": "pull", "filter": "data >"}, 422, "filter.invalid"),
        ("POST", "", {"name": "x", "kind": "pull", "from": "e1aaaaaaaa-1"}, 410, "cursor.epoch"),
        ("GET", "/nobody", None, 404, "subscription.unknown"),
        ("PATCH", "/errors", {"name": "y"}, 422, "subscription.invalid"),
        ("POST", "/errors/test", None, 409, "subscription.conflict"),
        ("POST", "/errors/seek", {}, 400, "parameter.invalid"),
        ("POST", "/errors/seek", {"cursor": "nonsense"}, 400, "cursor.malformed"),
        ("POST", "/errors/rotate-secret", {}, 409, "subscription.conflict"),
        ("POST", "/errors/fetch", {"max": 100000}, 400, "parameter.invalid"),
        ("POST", "/errors/fetch", {"wait": "soon"}, 400, "parameter.invalid"),
        ("POST", "/errors/ack", {"leases": ["x"] * 20000}, 429, "limit.reached"),
        ("POST", "/errors/ack", {"leases": [], "delay": "1s"}, 400, "parameter.invalid"),
        ("POST", "/errors/nack", {"leases": [], "delay": "100h"}, 400, "parameter.invalid"),
        ("POST", "/errors/extend", {}, 422, "definition.invalid"),
        ("GET", "/errors/dead-letters/7", None, 404, "subscription.dead_letter"),
        ("GET", "/errors/dead-letters/x", None, 400, "parameter.invalid"),
        ("DELETE", "/errors/dead-letters/7", None, 404, "subscription.dead_letter"),
        ("GET", "?kind=nothing", None, 400, "parameter.invalid"),
        ("POST", "/declared/fetch", {}, 409, "subscription.conflict"),
    ],
)
def test_refusals(node: Node, method: str, path: str, body: Any, status: int, code: str) -> None:
    """Each mistake has its status and code, and words."""
    with httpx.Client(
        transport=httpx.HTTPTransport(uds=f"{node.directory}/overlayd.sock"), base_url="http://n"
    ) as http_:
        if http_.get("/v1/subscriptions/errors").status_code == 404:
            http_.post("/v1/subscriptions", json={"name": "errors", "kind": "pull"}).raise_for_status()
        answer = http_.request(method, f"/v1/subscriptions{path}", json=body)
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
        assert len(answer.json()["detail"]) > 10


def test_limits_of_a_request_are_counted(node: Node) -> None:
    """The bounds of one fetch and of one acknowledgement are told by name and counted as hits."""
    with SyncClient(node.url) as client, httpx.Client(base_url=node.url) as http_:
        client.subscriptions.create({"name": "bounds", "kind": "pull"})
        for verb, body, limit in (
            ("fetch", {"max": 1001}, "fetch_max"), ("ack", {"leases": ["x"] * 10_001}, "leases_per_request"),
        ):  # fmt: skip
            answer = http_.post(f"/v1/subscriptions/bounds/{verb}", json=body)
            assert answer.json()["subject"] == limit
            hits = [line for line in http_.get("/metrics").text.splitlines() if f'limit="{limit}"' in line]
            assert float(hits[0].split()[-1]) >= 1


async def test_named_live(node: Node) -> None:
    """What one connection acknowledged isn't given to the next; a second client closes the first with 4009."""
    with SyncClient(node.url) as client:
        client.subscriptions.create({"name": "live", "kind": "live", "streams": ["live"]})
        publish(node, "live", *range(4))
        async with open_socket(node) as first:
            await first.send({"type": "subscribe", "id": "s", "name": "live"})
            packets = [await first.packet() for _ in range(4)]
            await first.send({"type": "ack", "id": "s", "cursor": packets[1]["cursor"]})
            await first.send({"type": "ping"})
            while (await first.receive())["type"] != "heartbeat":
                pass
            async with open_socket(node) as second:
                await second.send({"type": "subscribe", "id": "t", "name": "live"})
                assert [(await second.packet())["packet"]["data_payload"] for _ in range(2)] == [2, 3]
                assert await first.close_code() == 4009
        shown = client.subscriptions.get("live")
        assert shown.cursor == packets[1]["cursor"]
        assert shown.lag_entries >= 2


async def test_a_change_reaches_the_connection_that_reads(node: Node) -> None:
    """A named live subscription that is changed closes its reader's connection with 1001: what it acknowledged counts,
    and what it gets next is what is defined now. A change that changes nothing, or is refused, leaves it alone."""
    with SyncClient(node.url) as client:
        client.subscriptions.create({"name": "changing", "kind": "live", "streams": ["changing"]})
        publish(node, "changing", *range(4))
        async with open_socket(node) as first:
            await first.send({"type": "subscribe", "id": "s", "name": "changing"})
            packets = [await first.packet() for _ in range(4)]
            await first.send({"type": "ack", "id": "s", "cursor": packets[0]["cursor"]})
            client.subscriptions.patch("changing", {"streams": ["changing"]})
            with pytest.raises(OverlaydError):
                client.subscriptions.patch("changing", {"filter": "data >"})
            publish(node, "changing", 4)
            assert (await first.packet())["packet"]["data_payload"] == 4
            client.subscriptions.patch("changing", {"filter": "data >= 3"})
            assert await first.close_code() == 1001
        assert first.reason == "subscription.changed"
        async with open_socket(node) as second:
            await second.send({"type": "subscribe", "id": "s", "name": "changing"})
            assert [(await second.packet())["packet"]["data_payload"] for _ in range(2)] == [3, 4]
            client.subscriptions.pause("changing")
            assert await second.close_code() == 1008


class Socket:
    """A plain WebSocket client."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.reason = ""

    async def send(self, message: dict[str, Any]) -> None:
        await self._connection.send_message(json.dumps(message))

    async def receive(self) -> dict[str, Any]:
        with trio.fail_after(PATIENCE_S):
            found: dict[str, Any] = json.loads(await self._connection.get_message())
        assert found["type"] != "error", found
        return found

    async def packet(self) -> dict[str, Any]:
        """The next packet message."""
        while (found := await self.receive())["type"] != "packet":
            pass
        return found

    async def close_code(self) -> int:
        """How the node closes the connection."""
        from trio_websocket import ConnectionClosed

        with trio.fail_after(PATIENCE_S):
            while True:
                try:
                    await self._connection.get_message()
                except ConnectionClosed as closed:
                    self.reason = "" if closed.reason is None else closed.reason.reason
                    return int(closed.reason.code) if closed.reason else 0


def open_socket(node: Node) -> Any:
    """A connection to the live path."""
    from contextlib import asynccontextmanager

    from trio_websocket import open_websocket_url

    @asynccontextmanager
    async def opened() -> Any:
        async with open_websocket_url(node.url.replace("http", "ws") + "/v1/live", subprotocols=["overlayd.v1"]) as ws:
            try:
                yield Socket(ws)
            finally:
                await ws._stream.aclose()  # the library forgets it when the node closed first

    return opened()


def test_restart_goes_on(tmp_path: Path, sink: Sink) -> None:
    """What was published while the node was down for a subscription, or before a kill, arrives after the next start."""
    config = '[webhooks]\nallow_private = ["127.0.0.0/8"]\n'
    first = Node(tmp_path / "data", config=config).wait_ready()
    try:
        assert run(first, "create", "again", "--stream", "again", "--post-to", sink.url)[0] == 0
        run(first, "pause", "again")
        publish(first, "again", *range(20))
        first.process.kill()
    finally:
        first.stop()
    before = len(sink.requests)
    second = Node(tmp_path / "data", config=config).wait_ready()
    try:
        assert "paused" in run(second, "show", "again")[1]
        run(second, "resume", "again")
        sink.wait(before + 20)
        assert len({headers["webhook-id"] for headers, _ in sink.requests[before:]}) == 20
    finally:
        assert second.stop() == 0

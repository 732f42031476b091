"""Keys on a real node: made, used on every way in, rotated, revoked while connections are open, and told to the audit."""

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from click.testing import CliRunner
from live_sockets import Refused, open_socket
from node_process import Node
from real_waiting import PATIENCE_S, SOON_S, until
from trio_websocket import ConnectionClosed, WebSocketConnection

from overlayd.cli import cli
from overlayd.client import Client, SyncClient, access_calls
from overlayd.model.errors import Forbidden, Unauthorized
from overlayd.model.wire import Packet, StreamBody
from overlayd.model.wire_access import KeyIn, KeyMade

WRONG = "ovl_live_" + "A" * 32


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node on which a first key was made, so that loopback needs one, too."""
    running = Node(tmp_path_factory.mktemp("node") / "data")
    try:
        running.wait_ready()
        make(running, "publish:first")
        yield running
    finally:
        assert running.stop() == 0, "".join(running.output[-40:])


def admin(node: Node) -> SyncClient:
    """The service's own user, over the Unix socket."""
    return SyncClient(f"unix:{node.directory}/overlayd.sock")


def make(node: Node, *scopes: str, **members: Any) -> KeyMade:
    """A new key."""
    with admin(node) as client:
        return client.send(access_calls.create_key(KeyIn(scopes=list(scopes), **members)))


def audited(node: Node, action: str) -> list[dict[str, Any]]:
    """The audit records of an action."""
    with admin(node) as client:
        packets = [packet for packet in client.packets("overlayd.audit") if isinstance(packet, Packet)]
        return [json.loads(bytes(packet.data_payload)) for packet in packets if packet.type == action]


def ask(node: Node, method: str, path: str, key: str = "", body: bytes | None = None) -> tuple[int, dict[str, Any]]:
    """One request over TCP: status and JSON body."""
    host = node.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=PATIENCE_S)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    if body is not None:
        headers["Content-Type"] = "application/json"
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text) if text else {}


def live_url(node: Node, query: str) -> str:
    """The live path of the node."""
    return f"{node.url}/v1/live?{query}"


def bearer(key: str) -> dict[str, str]:
    """The headers that show a key."""
    return {"Authorization": f"Bearer {key}"}


def test_once_there_is_a_key_everybody_needs_one(node: Node) -> None:
    """Probes go on; the Unix socket is the service's own."""
    status, problem = ask(node, "GET", "/v1/node")
    assert (status, problem["code"]) == (401, "access.unauthorized")
    assert ask(node, "GET", "/healthz") == (200, {"alive": True})
    checks = ask(node, "GET", "/readyz")[1]["checks"]
    assert {"storage", "stopping", "checkpoint_key"} <= checks.keys()
    assert all(check == {"ok": True} for check in checks.values())
    key = make(node, "read:x").key
    assert ask(node, "GET", "/v1/node", key)[0] == 200
    assert ask(node, "GET", "/readyz", key)[1]["checks"]["access"]["detail"].startswith("credentials are asked for: ")


def test_a_key_is_for_its_streams(node: Node) -> None:
    """Publishing through the lanes and through the client."""
    made = make(node, "publish:scoped.*", "read:scoped.*", owner="alice")
    assert made.key.startswith("ovl_live_")
    with SyncClient(node.url, made.key) as client:
        client.publish("scoped.a", {"n": 1})
        with pytest.raises(Forbidden):
            client.publish("other", {"n": 1})
        assert len(list(client.packets("scoped.a"))) == 1
        assert client.node().log
    for path in ("/v1/streams/other/packets", "/v1/streams/other/data"):
        for body in (b'{"data":1}', b'{"data":2}'):
            status, problem = ask(node, "POST", path, made.key, body)
            assert (status, problem["code"], problem["subject"]) == (403, "access.forbidden", "other")


def test_one_connection_two_streams_and_a_revocation(node: Node) -> None:
    """The quick way of a kept-alive connection asks for each stream, and for each request whether the key counts."""
    made = make(node, "publish:kept.a")
    connection = http.client.HTTPConnection(node.url.removeprefix("http://"), timeout=PATIENCE_S)
    headers = {"Authorization": f"Bearer {made.key}", "Content-Type": "application/json"}

    def publish(stream: str) -> int:
        connection.request("POST", f"/v1/streams/{stream}/packets", b'{"data":1}', headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status

    with admin(node) as client:
        client.publish("kept.b", 1)
    with closing(connection):
        assert [publish("kept.a") for _ in range(5)] == [201] * 5
        assert publish("kept.b") == 403
        assert publish("kept.a") == 201
        revoke(node, made.id)
        assert publish("kept.a") == 401
    with admin(node) as client:
        assert client.stream("kept.b").head_sequence == 1


async def test_a_revoked_key_ends_its_live_connections(node: Node) -> None:
    """A WebSocket with 4001, after `bye`; server-sent events with `bye`."""
    made = make(node, "subscribe:live.*", "publish:live.*")
    other = make(node, "subscribe:live.*")
    url = live_url(node, "stream=live.a")
    async with (
        open_socket(url, bearer(made.key)) as ended,
        open_socket(url, bearer(other.key)) as untouched,
    ):
        connection, events = await trio.to_thread.run_sync(open_events, node, made.key)
        await trio.to_thread.run_sync(revoke, node, made.id)
        told, code = await read_to_end(ended)
        assert [message["type"] for message in told] == ["welcome", "subscribed", "bye"]
        assert (told[-1]["reason"], code) == ("access.revoked", 4001)
        rest = await trio.to_thread.run_sync(events.read)
        connection.close()
        assert b"event: bye" in rest
        assert b"access.revoked" in rest
        await trio.to_thread.run_sync(publish_one, node, "live.a")
        kinds = [json.loads(await untouched.get_message())["type"] for _ in range(3)]
        assert kinds == ["welcome", "subscribed", "packet"]


async def read_to_end(connection: WebSocketConnection) -> tuple[list[dict[str, Any]], int]:
    """Everything that a WebSocket still gets, and the code that it is closed with."""
    told = []
    with trio.fail_after(SOON_S):
        while True:
            try:
                told.append(json.loads(await connection.get_message()))
            except ConnectionClosed as closed:
                return told, 0 if closed.reason is None else closed.reason.code


def open_events(node: Node, key: str) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """Server-sent events whose head has come."""
    connection = http.client.HTTPConnection(node.url.removeprefix("http://"), timeout=PATIENCE_S)
    connection.request("GET", "/v1/live?stream=live.a", headers={"Authorization": f"Bearer {key}"})
    answer = connection.getresponse()
    assert answer.status == 200
    return connection, answer


def revoke(node: Node, id: str) -> None:
    """Ends a key."""
    with admin(node) as client:
        client.send(access_calls.revoke_key(id))


def publish_one(node: Node, stream: str) -> None:
    """A packet, from the service's own user."""
    with admin(node) as client:
        client.publish(stream, 1)


def test_a_revoked_key_ends_an_upload(node: Node) -> None:
    """What was committed stays; the rest isn't taken, and the answer says how far it got."""
    made = make(node, "publish:upload")
    publish_one(node, "upload")
    host, port = node.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as stream:
        head = (
            f"POST /v1/streams/upload/packets HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {made.key}\r\n"
            "Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        line = b'{"data":1}\n'
        chunk = b"%x\r\n%b\r\n" % (len(line), line)
        stream.sendall(head.encode() + chunk)
        with admin(node) as client:
            until(lambda: client.stream("upload").head_sequence == 2, "the first line is taken")
        revoke(node, made.id)
        stream.sendall(chunk)
        answer = b""
        while b"\r\n\r\n" not in answer or b"access.unauthorized" not in answer:
            data = stream.recv(65536)
            if not data:
                break
            answer += data
    assert answer.startswith(b"HTTP/1.1 401")
    assert b'"accepted":1' in answer
    with admin(node) as client:
        assert client.stream("upload").head_sequence == 2


async def test_messages_on_a_socket_ask_for_their_streams(node: Node) -> None:
    """A refused publish or subscribe leaves the socket open; what a pattern covers is only what the key is for."""
    made = make(node, "subscribe:told.a", "publish:told.b")
    await trio.to_thread.run_sync(publish_one, node, "told.c")
    async with open_socket(live_url(node, ""), bearer(made.key)) as connection:
        answers = []
        for message in (
            {"type": "subscribe", "id": "no", "streams": ["told.b"]}, {"type": "subscribe", "id": "all", "streams": ["told.*"]},
            {"type": "publish", "ref": 1, "stream": "told.a", "packets": [{"data": 1}]},
            {"type": "publish", "ref": 2, "stream": "overlayd.audit", "packets": [{"data": 1}]},
        ):  # fmt: skip
            await connection.send_message(json.dumps(message))
        for _ in range(5):
            answer = json.loads(await connection.get_message())
            answers.append((answer["type"], answer.get("code", "")))
        assert answers == [
            ("welcome", ""), ("error", "access.forbidden"), ("subscribed", ""), ("error", "access.forbidden"),
            ("error", "access.forbidden"),
        ]  # fmt: skip
        await trio.to_thread.run_sync(publish_one, node, "told.c")
        await trio.to_thread.run_sync(publish_one, node, "told.a")
        message = json.loads(await connection.get_message())
        assert (message["type"], message["stream_id"]) == ("packet", "told.a")


async def test_a_ticket_opens_one_connection(node: Node) -> None:
    """For a page in a browser, which can't send the key along."""
    made = make(node, "subscribe:page.*", "publish:page.*")
    async with Client(node.url, made.key) as client:
        ticket = (await client.send(access_calls.issue_ticket(["subscribe:page.a"]))).ticket
        with pytest.raises(Forbidden):
            await client.send(access_calls.issue_ticket(["read:page.a"]))
    async with open_socket(live_url(node, f"stream=page.a&ticket={ticket}"), {}) as connection:
        assert json.loads(await connection.get_message())["type"] == "welcome"
        await connection.send_message(
            json.dumps({"type": "publish", "ref": 1, "stream": "page.a", "packets": [{"data": 1}]})
        )
        kinds = [json.loads(await connection.get_message())["type"] for _ in range(2)]
        assert kinds == ["subscribed", "error"]
    with pytest.raises(Refused):
        async with open_socket(live_url(node, f"stream=page.a&ticket={ticket}"), {}):
            pass
    assert ask(node, "GET", f"/v1/node?ticket={ticket}")[0] == 401
    assert ask(node, "GET", f"/v1/live?ticket={made.key}")[1]["code"] == "access.key_in_url"


async def test_a_stream_that_becomes_private_ends_who_saw_it_as_public(node: Node) -> None:
    """With 4003, at once."""
    with admin(node) as client:
        client.define("news", {"visibility": "public"})
    made = make(node, "publish:else")
    async with open_socket(live_url(node, "stream=news"), bearer(made.key)) as connection:
        await trio.to_thread.run_sync(make_private, node)
        told, code = await read_to_end(connection)
        assert (told[-1]["type"], told[-1]["reason"], code) == ("bye", "access.forbidden", 4003)


def make_private(node: Node) -> None:
    """Takes the news from those who have no right to them."""
    with admin(node) as client:
        client.define("news", {"visibility": "private"})


def test_rotation_on_the_node(node: Node) -> None:
    """The old secret goes on for the grace, then not at all."""
    made = make(node, "read:x")
    with admin(node) as client:
        second = client.send(access_calls.rotate_key(made.id, "1h"))
        assert [ask(node, "GET", "/v1/node", key)[0] for key in (made.key, second.key)] == [200, 200]
        assert len(client.send(access_calls.show_key(made.id)).secrets) == 2
        third = client.send(access_calls.rotate_key(made.id, "0s"))
    assert [ask(node, "GET", "/v1/node", key)[0] for key in (made.key, second.key, third.key)] == [401, 401, 200]


async def test_changed_rights_reach_a_live_session(node: Node) -> None:
    """It is told to come back (1001); the next request on a kept connection is judged by the new rights."""
    made = await trio.to_thread.run_sync(make, node, "subscribe:fresh.a", "read:fresh.a")
    async with httpx.AsyncClient(base_url=node.url, headers={"Authorization": f"Bearer {made.key}"}) as kept:
        assert (await kept.get("/v1/streams/fresh.a/last")).status_code == 404
        async with open_socket(
            f"{node.url}/v1/live?stream=fresh.a", {"Authorization": f"Bearer {made.key}"}
        ) as connection:
            assert json.loads(await connection.get_message())["type"] == "welcome"
            await trio.to_thread.run_sync(
                run_keys, node, "change", made.id, "--scope", "read:else", "--expires", "2999-01-01T00:00:00Z"
            )
            told, code = await read_to_end(connection)
            assert (told[-1]["type"], code) == ("bye", 1001)
        assert (await kept.get("/v1/streams/fresh.a/last")).status_code == 403
    changed = [
        record for record in await trio.to_thread.run_sync(audited, node, "key.change") if record["subject"] == made.id
    ]
    assert changed[0]["detail"]["changed"] == "expires_at scopes"


def run_keys(node: Node, *arguments: str) -> None:
    """`overlayd keys`, over the node's own socket."""
    result = CliRunner().invoke(cli, ["keys", *arguments, "--url", f"unix:{node.directory}/overlayd.sock"])
    assert result.exit_code == 0, result.output


def shown(node: Node, stream: str) -> StreamBody:
    """A stream as it is shown."""
    with admin(node) as client:
        return client.stream(stream)


def test_owned_streams_on_the_node(node: Node) -> None:
    """A key that may manage its own makes streams, and manages no others."""
    made = make(node, "manage:@own", "publish:mine.*", owner="alice")
    other = make(node, "manage:@own", "publish:mine.*", owner="bob")
    with SyncClient(node.url, made.key) as client, SyncClient(node.url, other.key) as stranger:
        client.define("mine.a", {"title": "Mine"})
        client.set_state("mine.a", "paused")
        assert shown(node, "mine.a").owned_by == "alice"
        for forbidden in (
            lambda: stranger.set_state("mine.a", "active"), lambda: stranger.delete("mine.a"),
            lambda: client.define("first", {}), lambda: client.define("theirs", {}),
        ):  # fmt: skip
            with pytest.raises(Forbidden):
                forbidden()
        client.delete("mine.a")
    acts = [(record["actor"], record["subject"]) for record in audited(node, "stream.state")]
    assert (f"key:{made.id}", "mine.a") in acts
    assert any(record["subject"] == "mine.a" for record in audited(node, "stream.delete"))


def test_brute_force_is_told_to_wait(node: Node) -> None:
    """401, then 429 with Retry-After; the audit has it once, and the address isn't locked out."""
    made = make(node, "read:x")
    statuses = [ask(node, "GET", "/v1/node", WRONG)[0] for _ in range(15)]
    assert statuses[:3] == [401] * 3
    assert statuses[-1] == 429
    assert ask(node, "GET", "/v1/node", made.key)[0] == 200
    records = audited(node, "access.failed")
    assert 1 <= len(records) <= 2
    assert records[0]["address"] == "127.0.0.1"
    with pytest.raises(Unauthorized), SyncClient(node.url) as client:
        client.node()


def test_the_audit_is_provable_and_for_auditors_alone(node: Node) -> None:
    """A packet of it has a proof like any other; nobody writes into it."""
    auditor, reader = make(node, "audit").key, make(node, "read", "subscribe", "manage", "publish").key
    status, proof = ask(node, "GET", "/v1/streams/overlayd.audit/packets/1/proof", auditor)
    assert (status, proof["stream"]) == (200, "overlayd.audit")
    assert ask(node, "GET", "/v1/streams/overlayd.audit/packets", reader)[0] == 403
    streams = ask(node, "GET", "/v1/streams?limit=1000", reader)[1]["streams"]
    assert "overlayd.audit" not in json.dumps(streams)
    with admin(node) as client:
        for method, path, body in (
            ("POST", "packets", b'{"data":1}'), ("PUT", "", b"{}"), ("DELETE", "?confirm=overlayd.audit", None),
            ("PUT", "state", b'{"state":"stopped"}'),
        ):  # fmt: skip
            target = "/v1/streams/overlayd.audit" + (path if path.startswith("?") else f"/{path}" if path else "")
            assert unix_ask(node, method, target, body) == 403
        assert client.stream("overlayd.audit").packets > 0


def unix_ask(node: Node, method: str, path: str, body: bytes | None) -> int:
    """The status of a request over the Unix socket."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(10)
        stream.connect(str(Path(node.directory) / "overlayd.sock"))
        content = body or b""
        stream.sendall(
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        return int(stream.recv(4096).split()[1])

"""Credentials that ended, and keys that are narrower than what they reach for, on a whole node."""

import http.client
import json
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from real_waiting import PATIENCE_S

sys.path.insert(0, str(Path(__file__).parent.parent / "e2e"))

from node_process import Node

from overlayd.client import SyncClient, access_calls
from overlayd.model.wire import Packet
from overlayd.model.wire_access import KeyIn, KeyMade

EVERYTHING = ("admin", "manage", "publish", "read", "subscribe")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node with two streams that are nobody's business."""
    running = Node(tmp_path_factory.mktemp("rights") / "data")
    try:
        running.wait_ready()
        with admin(running) as client:
            client.publish("staff.pay", "hers")
            client.publish("staff.menu", "soup")
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


def ask(node: Node, method: str, path: str, key: str, body: Any = None) -> tuple[int, Any]:
    """One request over TCP: status and JSON body."""
    with closing(http.client.HTTPConnection(node.url.removeprefix("http://"), timeout=PATIENCE_S)) as connection:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
    return answer.status, json.loads(text) if text else {}


def revoke(node: Node, key: KeyMade) -> None:
    """Ends the key, as its administrator."""
    with admin(node) as client:
        client.send(access_calls.revoke_key(key.id))


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/keys", b'{"scopes": ["admin"]}'),
        ("POST", "/v1/tickets", b'{"ttl": "30s"}'),
        ("PUT", "/v1/quotas/policies/mine", b'{"name": "mine"}'),
        ("PUT", "/v1/streams/mine", b'{"visibility": "public"}'),
        ("PUT", "/v1/streams/staff.menu/state", b'{"state": "stopped"}'),
        ("POST", "/v1/subscriptions", b'{"name": "mine", "kind": "pull"}'),
        ("POST", "/v1/streams/staff.menu/packets", b'{"data": "poison"}'),
        ("POST", "/v1/streams/staff.menu/packets?atomic=true", b'[{"data": "poison"}]'),
        ("POST", "/v1/streams/staff.menu/data", b'"poison pudding"'),
        ("POST", "/v1/streams/staff.men%75/packets", b'{"data": "poison"}'),
    ],
)
def test_a_key_revoked_while_its_body_comes_does_nothing(node: Node, method: str, path: str, body: bytes) -> None:
    """Who holds a stolen key could keep requests begun, and finish them when the key is revoked."""
    key = make(node, *EVERYTHING)
    host, _, port = node.url.removeprefix("http://").partition(":")
    with closing(socket.create_connection((host, int(port)), timeout=PATIENCE_S)) as link:
        link.sendall(
            f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key.key}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        assert link.recv(1000).startswith(b"HTTP/1.1 100 "), "the body isn't waited for, so nothing is tried here"
        link.sendall(body[:5])
        revoke(node, key)
        link.sendall(body[5:])
        answer = b"".join(iter(lambda: link.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 401 "), answer
    with admin(node) as client:
        packets = [packet for packet in client.packets("staff.menu") if isinstance(packet, Packet)]
        assert [bytes(packet.data_payload) for packet in packets] == [b'"soup"']


def test_an_owners_narrow_key_doesnt_use_what_a_wide_one_subscribed_to(node: Node) -> None:
    """Keys of one owner share subscriptions, but nobody reads, redirects or learns the secret of more than they may see."""
    wide, narrow = make(node, "subscribe", owner="eve"), make(node, "subscribe:staff.menu", owner="eve")
    peer = make(node, "subscribe:staff.>", owner="eve")
    for name, streams in (("all", []), ("some", ["staff.*"]), ("pay", ["staff.pay"]), ("menu", ["staff.menu"])):
        wanted = {"name": name, "kind": "pull", "streams": streams}
        assert ask(node, "POST", "/v1/subscriptions", wide.key, wanted)[0] == 201
    for name in ("all", "some", "pay"):
        path = f"/v1/subscriptions/{name}"
        for method, action in (
            ("POST", "/fetch"), ("GET", ""), ("PATCH", ""), ("GET", "/dead-letters"), ("GET", "/attempts"),
            ("POST", "/seek"), ("DELETE", ""),
        ):  # fmt: skip
            body: dict[str, Any] | None = {} if method in ("POST", "PATCH") else None
            assert ask(node, method, path + action, narrow.key, body)[0] == 404, (name, method, action)
    assert [one["name"] for one in ask(node, "GET", "/v1/subscriptions", narrow.key)[1]["subscriptions"]] == ["menu"]
    names = [one["name"] for one in ask(node, "GET", "/v1/subscriptions", peer.key)[1]["subscriptions"]]
    assert names == ["menu", "pay", "some"]
    assert len(ask(node, "GET", "/v1/subscriptions", make(node, "subscribe", owner="eve").key)[1]["subscriptions"]) == 4
    assert ask(node, "POST", "/v1/subscriptions/menu/fetch", narrow.key)[0] == 200


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("to=0001-01-01T00:00:00Z", 400),
        ("to=9999-12-31T23:59:59Z", 200),
        ("from=0001-01-01T00:00:00Z&by=day", 200),
        ("from=0001-01-01T00:00:00Z&to=9999-12-31T23:59:59Z&by=total", 200),
        ("to=9999-12-31T23:59:59Z&by=day", 200),
        ("after=WzEwMDAwMDAwMDAwMDAwMDAwMDAwMCwgIiIsICIiLCAiIl0", 400),  # the hour 10**20
        ("after=WzkyMjMzNzIwMzY4NTQ3NzU4MDgsICJhIiwgImIiLCAiYyJd", 400),  # the hour 2**63
        ("after=Wy0xLCAiIiwgIiIsICIiXQ", 400),  # the hour -1
    ],
)
def test_usage_of_times_that_never_are(node: Node, query: str, status: int) -> None:
    """What is beyond the calendar, or beyond what the database counts, isn't a fault of the node's."""
    assert ask(node, "GET", f"/v1/usage?{query}", make(node, "manage").key)[0] == status

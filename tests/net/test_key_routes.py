"""`/v1/keys` and `/v1/tickets`: what is taken, what is told, and what is written down about it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from route_rig import LOOPBACK, Node, Reply, open_node, scoped

from overlayd.access.key_records import KeyRecord, SecretRecord, read_key
from overlayd.access.secret_text import is_key, is_ticket
from overlayd.model.clock import SystemClock
from overlayd.model.metrics import Metrics
from overlayd.net.content import Bodies
from overlayd.net.json_body import JsonBodies
from overlayd.net.key_routes import add_key_routes
from overlayd.net.ticket_routes import add_ticket_routes

JSON = "application/json"


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A node with the routes."""
    async with open_node(tmp_path) as running:
        access, bodies = (
            running.access,
            JsonBodies(Bodies(running.limits, running.lane, Metrics()), running.limits),
        )
        add_key_routes(
            running.app, keys=access.keys, changes=access.changes, trail=access.trail, clock=SystemClock(),
            lane=running.lane, bodies=bodies,
        )  # fmt: skip
        add_ticket_routes(running.app, tickets=access.tickets, clock=SystemClock(), bodies=bodies)
        yield running


async def post(node: Node, path: str, members: Any = None, **more: Any) -> Reply:
    """A POST with a JSON body."""
    body = b"" if members is None else msgspec.json.encode(members)
    return await node.ask("POST", path, body, Content_Type=JSON, **more)


async def audited(node: Node) -> list[str]:
    """Actions in the audit stream."""
    stream = node.log.find_stream("overlayd.audit")
    entries = [] if stream is None else await node.log.read_packets(stream, 0, 100)
    return [msgspec.json.decode(entry.body)["action"] for entry in entries]


async def test_a_keys_life(node: Node) -> None:
    """Its secret is in the answers that make one, and nowhere else."""
    made = await post(node, "/v1/keys", {"title": "Press", "scopes": ["publish:press.*"], "owner": "alice"})
    assert (made.status, made.headers["cache-control"]) == (201, "no-store")
    secret, id = made.json["key"], made.json["id"]
    assert is_key(secret)
    assert made.headers["location"] == f"/v1/keys/{id}"
    assert made.json["secrets"][0]["prefix"] == secret[:15]
    shown = await node.ask("GET", f"/v1/keys/{id}")
    assert shown.json == {name: value for name, value in made.json.items() if name != "key"}
    assert (shown.json["state"], shown.json["created_by"]) == ("active", "unix:0")
    rotated = await post(node, f"/v1/keys/{id}/rotate")
    assert rotated.status == 200
    assert rotated.json["key"] != secret
    assert [("expires_at" in one) for one in rotated.json["secrets"]] == [False, True]
    listed = await node.ask("GET", "/v1/keys")
    assert [key["id"] for key in listed.json["keys"]] == [id]
    assert secret.encode() not in listed.body + shown.body
    assert (await node.ask("DELETE", f"/v1/keys/{id}")).status == 204
    assert (await node.ask("DELETE", f"/v1/keys/{id}")).json["code"] == "key.unknown"
    assert await audited(node) == ["key.create", "keys.read", "key.rotate", "key.revoke"]


async def test_a_key_is_changed(node: Node) -> None:
    """What is left out stays, and its secret; `null` takes an end away. What changed is written down, a change of nothing
    isn't."""
    made = (await post(node, "/v1/keys", {"scopes": ["read"], "title": "T", "owner": "alice"})).json
    path = f"/v1/keys/{made['id']}"
    found = node.access.keys.find(made["key"])
    assert found is not None
    before = found.key.standings[found.secret.digest]
    reply = await node.ask(
        "PATCH", path, b'{"scopes":["publish:a","publish:a"],"expires_at":"2999-01-01T00:00:00Z"}', Content_Type=JSON
    )
    assert (reply.status, reply.json["scopes"], reply.json["title"], reply.json["owner"]) == (
        200,
        ["publish:a"],
        "T",
        "alice",
    )
    assert reply.json["expires_at"] == "2999-01-01T00:00:00.000000Z"
    assert reply.json["secrets"] == made["secrets"]
    assert before.ended == "changed"
    assert (await node.ask("GET", path)).json == reply.json
    again = await node.ask("PATCH", path, b'{"expires_at":null,"roles":["agent"],"scopes":[],"policy":"premium","owner":"bob","title":""}',
                           Content_Type=JSON)  # fmt: skip
    assert [again.json.get(name) for name in ("expires_at", "roles", "scopes", "policy", "owner", "title")] == [
        None, ["agent"], [], "premium", "bob", None,
    ]  # fmt: skip
    assert (await node.ask("PATCH", path, b'{"owner":"bob"}', Content_Type=JSON)).json == again.json
    assert (await audited(node)).count("key.change") == 2
    stored = await node.log.read(lambda connection: read_key(connection, made["id"]))
    assert stored is not None
    assert (stored.owner, stored.scopes, stored.roles) == ("bob", (), ("agent",))


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ('{"scopes":[]}', 400), ('{"scopes":["fly"]}', 400), ('{"roles":["nosuch"]}', 400), ('{"owner":""}', 422),
        ('{"expires_at":"2001-01-01T00:00:00Z"}', 400), ('{"expires_at":"soon"}', 400), ('{"key":"x"}', 422), ("{", 400),
    ],
)  # fmt: skip
async def test_changes_that_arent_made(node: Node, body: str, status: int) -> None:
    """The key stays as it was."""
    made = (await post(node, "/v1/keys", {"scopes": ["read"]})).json
    assert (await node.ask("PATCH", f"/v1/keys/{made['id']}", body.encode(), Content_Type=JSON)).status == status
    assert (await node.ask("GET", f"/v1/keys/{made['id']}")).json["scopes"] == ["read"]
    assert "key.change" not in await audited(node)
    assert (await node.ask("PATCH", "/v1/keys/nosuch", b"{}", Content_Type=JSON)).status == 404


async def test_a_list_in_pages(node: Node) -> None:
    """By id, of one owner if asked."""
    ids = sorted(
        [(await post(node, "/v1/keys", {"scopes": ["read"], "owner": f"o{n % 2}"})).json["id"] for n in range(5)]
    )
    first = (await node.ask("GET", "/v1/keys?limit=3")).json
    assert [key["id"] for key in first["keys"]] == ids[:3]
    rest = (await node.ask("GET", f"/v1/keys?limit=3&after={first['next_after']}")).json
    assert ([key["id"] for key in rest["keys"]], "next_after" in rest) == (ids[3:], False)
    assert len((await node.ask("GET", "/v1/keys?owner=o1")).json["keys"]) == 2


@pytest.mark.parametrize(
    ("members", "status", "pointer"),
    [
        ({}, 400, ""), ({"scopes": ["fly"]}, 400, ""), ({"scopes": "read"}, 422, "/scopes"), ({"roles": ["nosuch"]}, 400, ""),
        ({"scopes": ["read"], "expires_at": "tomorrow"}, 400, ""), ({"scopes": ["read"], "expires_at": "2001-01-01T00:00:00Z"}, 400, ""),
        ({"scopes": ["read"], "kind": "aws"}, 422, "/kind"), ({"scopes": ["read"], "secret": "x"}, 422, ""),
    ],
)  # fmt: skip
async def test_what_isnt_a_key(node: Node, members: Any, status: int, pointer: str) -> None:
    """Mistakes are told with their place; nothing is made or written down."""
    reply = await post(node, "/v1/keys", members)
    assert reply.status == status
    if pointer:
        assert reply.json["errors"][0]["pointer"] == pointer
    assert len(node.access.keys) == 0
    assert await audited(node) == []


async def test_keys_of_the_configuration_are_read_only(node: Node) -> None:
    """The answer names the file."""
    record = KeyRecord("press", "ovl", "press", ("read",), 1, (SecretRecord(bytes(32), "", 1),), created_by="config")
    node.access.keys.put(record, declared_in="node.toml:7")
    shown = (await node.ask("GET", "/v1/keys/press")).json
    assert (shown["declared_in"], shown["created_by"]) == ("node.toml:7", "config")
    for method, path in (("DELETE", "/v1/keys/press"), ("POST", "/v1/keys/press/rotate"), ("PATCH", "/v1/keys/press")):
        reply = await node.ask(method, path, b'{"owner":"x"}' if method == "PATCH" else b"", Content_Type=JSON)
        assert (reply.status, reply.json["code"], reply.json["declared_in"]) == (
            409,
            "definition.config",
            "node.toml:7",
        )


async def test_keys_are_for_admins(node: Node) -> None:
    """Not even managers see them."""
    for who in (LOOPBACK, scoped("manage", "audit", "read")):
        for method, path in (
            ("GET", "/v1/keys"), ("POST", "/v1/keys"), ("GET", "/v1/keys/x"), ("DELETE", "/v1/keys/x"), ("POST", "/v1/keys/x/rotate"),
        ):  # fmt: skip
            assert (await node.ask(method, path, who=who)).status == 403
    assert (await node.ask("GET", "/v1/keys", who=scoped("admin"))).status == 200


async def test_agentpipe_keys(node: Node) -> None:
    """Begin with ap_live_."""
    made = (await post(node, "/v1/keys", {"kind": "ap", "roles": ["agent"]})).json
    assert made["key"].startswith("ap_live_")
    assert made["kind"] == "ap"


async def test_tickets(node: Node) -> None:
    """With what was asked for, or the setting's time and everything that the asker may do."""
    who = scoped("subscribe:a.*")
    plain = await post(node, "/v1/tickets", who=who)
    assert (plain.status, plain.headers["cache-control"]) == (201, "no-store")
    assert is_ticket(plain.json["ticket"])
    assert node.access.tickets.redeem(plain.json["ticket"]) == who
    narrow = await post(node, "/v1/tickets", {"scopes": ["subscribe:a.b"], "ttl": "5s"}, who=who)
    assert node.access.tickets.redeem(narrow.json["ticket"]).grants.scopes == ("subscribe:a.b",)
    for members, status in (
        ({"scopes": ["subscribe:b"]}, 403), ({"ttl": "1h"}, 400), ({"ttl": "soon"}, 400), ({"scopes": ["fly"]}, 400),
        ({"for": "ever"}, 422),
    ):  # fmt: skip
        assert (await post(node, "/v1/tickets", members, who=who)).status == status


async def test_a_body_that_is_no_json(node: Node) -> None:
    """Is told so; another content type, too."""
    reply = await node.ask("POST", "/v1/keys", b"{", Content_Type=JSON)
    assert (reply.status, reply.json["code"]) == (400, "json.malformed")
    reply = await node.ask("POST", "/v1/keys", b"a=b", Content_Type="application/x-www-form-urlencoded")
    assert reply.status == 415

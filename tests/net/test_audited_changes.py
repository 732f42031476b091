"""What is answered with 2xx and changes something stands in the audit by then: one transaction writes both."""

import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from metering_rig import MeteredNode, holder, open_metered
from real_waiting import PATIENCE_S

from overlayd.access.principal import Principal
from overlayd.delivery.subscriptions import rounds
from overlayd.model.errors import OverlaydError, StorageFull

MANAGER = Principal(
    name="unix:0", kind="unix", rights=frozenset(("subscribe", "read", "manage", "agent", "publish")), address="uid:0"
)


async def audited(node: MeteredNode) -> list[str]:
    """Actions in the audit stream, which nobody but the requests themselves wrote into: no trail runs."""
    log = node.parts.log
    stream = log.find_stream("overlayd.audit")
    entries = [] if stream is None else await log.read_packets(stream, 0, 100)
    return [msgspec.json.decode(entry.body)["action"] for entry in entries]


async def test_changes_of_subscriptions(tmp_path: Path) -> None:
    """Made, changed, paused, resumed, moved, deleted."""
    async with open_metered(tmp_path) as node, trio.open_nursery() as nursery:
        await nursery.start(node.parts.durable.run)
        path = "/v1/subscriptions"
        made = await node.ask("POST", path, {"name": "s", "kind": "pull", "streams": ["a"]}, who=MANAGER)
        assert made.status == 201, made
        one = f"{path}/{made.json['id']}"
        for method, below, body in (
            ("PATCH", "", {"types": ["t"]}), ("POST", "/pause", b""), ("POST", "/resume", b""),
            ("POST", "/seek", {"time": "2020-01-01T00:00:00Z"}), ("DELETE", "", b""),
        ):  # fmt: skip
            reply = await node.ask(method, one + below, body, who=MANAGER)
            assert reply.status in (200, 204), reply
        assert await audited(node) == [
            f"subscription.{what}" for what in ("create", "change", "pause", "resume", "seek", "delete")
        ]
        nursery.cancel_scope.cancel()


async def test_a_change_that_cannot_be_told_does_not_happen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a subscription is, whether it is, its secret and the switch of agents stay as they are."""
    async with open_metered(tmp_path) as node, trio.open_nursery() as nursery:
        await nursery.start(node.parts.durable.run)
        path = "/v1/subscriptions"
        webhook = {"url": "https://hooks.example/x"}
        made = {"name": "s", "kind": "webhook", "streams": ["a"], "webhook": webhook}
        assert (await node.ask("POST", path, made, who=MANAGER)).status == 201
        one = f"{path}/s"
        before, told = (await node.ask("GET", one, who=MANAGER)).body, await audited(node)
        sealed = await node.parts.log.read(_sealed)
        full = refuse_own(node, monkeypatch)
        for method, at, body in (
            ("POST", path, {"name": "t", "kind": "pull", "streams": ["a"]}), ("PATCH", one, {"types": ["t"]}),
            ("DELETE", one, b""), ("POST", f"{one}/rotate-secret", b""), ("POST", "/v1/agents/pause", b""),
        ):  # fmt: skip
            assert (await node.ask(method, at, body, who=MANAGER)).status == 507, at
        full.clear()
        assert (await node.ask("GET", one, who=MANAGER)).body == before
        assert (await node.ask("GET", f"{path}/t", who=MANAGER)).status == 404
        assert (await node.ask("GET", "/v1/agents", who=MANAGER)).json["paused"] is False
        assert await node.parts.log.read(_sealed) == sealed
        assert await audited(node) == told
        nursery.cancel_scope.cancel()


async def test_what_is_refused_is_neither_done_nor_told_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause that a full disk keeps from being durable is refused for good; asked for again, both are there, once."""
    monkeypatch.setattr(rounds, "TROUBLE_PAUSE_S", 0.001)
    async with open_metered(tmp_path) as node, trio.open_nursery() as nursery:
        await nursery.start(node.parts.durable.run)
        made = {"name": "s", "kind": "pull", "streams": ["a"]}
        assert (await node.ask("POST", "/v1/subscriptions", made, who=MANAGER)).status == 201
        full = refuse_own(node, monkeypatch)
        assert (await node.ask("POST", "/v1/subscriptions/s/pause", who=MANAGER)).status == 507
        full.clear()
        assert await node.parts.log.read(_states) == ["active"]
        assert (await node.ask("POST", "/v1/subscriptions/s/pause", who=MANAGER)).status == 200
        assert await node.parts.log.read(_states) == ["paused"]
        assert await audited(node) == ["subscription.create", "subscription.pause"]
        nursery.cancel_scope.cancel()


def refuse_own(node: MeteredNode, monkeypatch: pytest.MonkeyPatch) -> list[OverlaydError]:
    """The log takes no packet of the node's own while there is something in what this gives."""
    append, full = node.parts.log.append_own, [StorageFull("no room")]

    async def append_or_refuse(*given: Any, **named: Any) -> list[int]:
        if full:
            await trio.lowlevel.checkpoint()
            raise StorageFull("no room")
        return await append(*given, **named)

    monkeypatch.setattr(node.parts.log, "append_own", append_or_refuse)
    return full  # type: ignore[return-value]


def _sealed(connection: sqlite3.Connection) -> list[bytes]:
    return [row[0] for row in connection.execute("SELECT sealed FROM webhook_secret")]


def _states(connection: sqlite3.Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT rest ->> 0 FROM subscription_state")]


async def test_dead_letters_that_are_thrown_away(tmp_path: Path) -> None:
    """One, a range, and nothing where there was nothing."""
    async with open_metered(tmp_path) as node, trio.open_nursery() as nursery:
        await nursery.start(node.parts.durable.run)
        definition = {"name": "s", "kind": "pull", "streams": ["a"], "from": "beginning", "pull": {"max_deliveries": 1}}
        assert (await node.ask("PUT", "/v1/streams/a", {})).status == 201
        assert (await node.ask("POST", "/v1/subscriptions", definition, who=MANAGER)).status == 201
        assert (await node.publish("a", 3, who=MANAGER)).status == 201
        one = "/v1/subscriptions/s"
        with trio.fail_after(PATIENCE_S):
            leases: list[str] = []
            while len(leases) < 3:
                given = (await node.ask("POST", f"{one}/fetch", {"max": 3, "wait": "1s"}, who=MANAGER)).json["messages"]
                leases += [message["lease"] for message in given]
            assert (await node.ask("POST", f"{one}/nack", {"leases": leases}, who=MANAGER)).status == 200
            numbers: list[int] = []
            while len(numbers) < 3:
                letters = (await node.ask("GET", f"{one}/dead-letters", who=MANAGER)).json["dead_letters"]
                numbers = [letter["number"] for letter in letters]
                await trio.lowlevel.checkpoint()
        before = len(await audited(node))
        assert (await node.ask("DELETE", f"{one}/dead-letters/{numbers[0]}", who=MANAGER)).status == 204
        for count in (2, 0):
            reply = await node.ask("DELETE", f"{one}/dead-letters", who=MANAGER)
            assert (reply.status, reply.json["count"]) == (200, count)
        assert (await audited(node))[before:] == ["dead_letters.delete", "dead_letters.delete"]
        nursery.cancel_scope.cancel()


async def test_the_switch_of_agents(tmp_path: Path) -> None:
    """Both ways."""
    async with open_metered(tmp_path) as node:
        for what in ("pause", "resume"):
            assert (await node.ask("POST", f"/v1/agents/{what}", who=MANAGER)).status == 200
        assert await audited(node) == ["agents.pause", "agents.resume"]


async def test_streams_and_keys(tmp_path: Path) -> None:
    """In the transactions of their changes."""
    async with open_metered(tmp_path) as node:
        assert (await node.ask("PUT", "/v1/streams/a", {"title": "A"})).status == 201
        assert (await node.ask("PUT", "/v1/streams/a", {"title": "B"})).status == 200
        assert (await node.ask("PUT", "/v1/streams/a/state", {"state": "paused"})).status == 200
        assert (await node.ask("DELETE", "/v1/streams/a?confirm=a")).status == 200
        key = (await node.ask("POST", "/v1/keys", {"scopes": ["read"]})).json["id"]
        for method, path, body in (
            ("PATCH", f"/v1/keys/{key}", {"owner": "bob"}), ("POST", f"/v1/keys/{key}/rotate", b""),
            ("DELETE", f"/v1/keys/{key}", b""),
        ):  # fmt: skip
            assert (await node.ask(method, path, body)).status in (200, 204)
        assert await audited(node) == [
            "stream.create", "stream.define", "stream.state", "stream.delete", "key.create", "key.change", "key.rotate", "key.revoke",
        ]  # fmt: skip
        assert (await node.ask("GET", "/v1/keys", who=holder())).status == 403

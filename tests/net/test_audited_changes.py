"""What is answered with 2xx and changes something stands in the audit by then: nothing here writes it later."""

from pathlib import Path

import msgspec
import trio
from metering_rig import MeteredNode, holder, open_metered

from overlayd.access.principal import Principal

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


async def test_dead_letters_that_are_thrown_away(tmp_path: Path) -> None:
    """One, a range, and nothing where there was nothing."""
    async with open_metered(tmp_path) as node, trio.open_nursery() as nursery:
        await nursery.start(node.parts.durable.run)
        definition = {"name": "s", "kind": "pull", "streams": ["a"], "from": "beginning", "pull": {"max_deliveries": 1}}
        assert (await node.ask("PUT", "/v1/streams/a", {})).status == 201
        assert (await node.ask("POST", "/v1/subscriptions", definition, who=MANAGER)).status == 201
        assert (await node.publish("a", 3, who=MANAGER)).status == 201
        one = "/v1/subscriptions/s"
        with trio.fail_after(20):
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

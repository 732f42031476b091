"""Usage and quotas from the command line and from both clients, against a real node."""

import re

import httpx
import msgspec
import pytest
from node_process import Node
from test_commands import on

from overlayd.cli.exits import FAILED, OK, USAGE
from overlayd.client import Client, SyncClient
from overlayd.model.errors import Forbidden, UnknownPolicy
from overlayd.model.quota import QuotaPolicy

UNIX = "unix:{}/overlayd.sock"


def test_usage_is_shown_as_a_table_and_as_json(node: Node) -> None:
    """What was read over HTTP shows up by method and stream; a wrong question is wrong usage."""
    httpx.post(f"{node.url}/v1/streams/used/packets", json={"data": 1}).raise_for_status()
    answer = httpx.get(f"{node.url}/v1/streams/used/packets").raise_for_status()
    done = on(node, "usage", "--method", "read", "--json")
    assert done.returncode == OK, done.stderr
    rows = [msgspec.json.decode(line) for line in done.stdout.splitlines()]
    (row,) = [row for row in rows if row["stream"] == "used"]
    assert (row["principal"], row["requests"], row["bytes"]) == ("loopback", 1, len(answer.content))
    table = on(node, "usage").stdout.splitlines()
    assert table[0].split()[:4] == ["FROM", "PRINCIPAL", "STREAM", "METHOD"]
    assert any(line.split()[1:4] == ["loopback", "used", "read"] for line in table[1:])
    assert on(node, "usage", "--by", "week").returncode == USAGE
    assert on(node, "usage", "--from", "yesterday").returncode == FAILED


def test_policies_are_made_changed_and_deleted(node: Node) -> None:
    """With sizes as people write them; what isn't named stays as it was."""
    assert on(node, "quotas", "set", "mine", "bytes_per_hour=1GiB", "requests_per_day=5").returncode == OK
    assert on(node, "quotas", "set", "mine", "is_active=false", "description=for tests").returncode == OK
    done = on(node, "quotas", "policies", "--json")
    policies = {one["name"]: one for one in map(msgspec.json.decode, done.stdout.splitlines())}
    assert set(policies) == {"standard", "premium", "enterprise", "mine"}
    mine = policies["mine"]
    assert (mine["bytes_per_hour"], mine["requests_per_day"], mine["is_active"]) == (1 << 30, 5, False)
    assert "1.0 GiB" in next(line for line in on(node, "quotas", "policies").stdout.splitlines() if "mine" in line)
    for wrong in ("colour=red", "bytes_per_hour=lots", "bytes_per_hour", "burst_duration_minutes=0"):
        assert on(node, "quotas", "set", "mine", wrong).returncode == USAGE
    assert on(node, "quotas", "delete", "mine").returncode == OK
    assert on(node, "quotas", "delete", "mine").returncode == FAILED
    shown = on(node, "quotas").stdout.splitlines()
    assert shown[0].startswith("unix:")
    assert [line.split()[0] for line in shown[1:]] == ["WINDOW", "hour", "day", "month"]


async def test_both_clients_ask_the_same(node: Node) -> None:
    """Each method of either client; what isn't allowed or isn't there is the error that it is."""
    httpx.get(f"{node.url}/v1/read?from=beginning").raise_for_status()  # noqa: ASYNC210 - nothing else runs
    async with Client(UNIX.format(node.directory)) as client, Client(node.url) as stranger:
        with SyncClient(UNIX.format(node.directory)) as other:
            assert (await client.usage(method="read", by="total")).usage == other.usage(method="read", by="total").usage
            assert (await client.deliveries(limit=1)).deliveries == other.deliveries(limit=1).deliveries
            assert (await client.quota("loopback")).hour.bytes_used == other.quota("loopback").hour.bytes_used > 0
            policy = QuotaPolicy(name="c", bytes_per_day=7)
            assert await client.put_quota_policy(policy) == policy
            assert policy in other.quota_policies() == await client.quota_policies()
            other.delete_quota_policy("c")
            with pytest.raises(UnknownPolicy):
                await client.delete_quota_policy("c")
        with pytest.raises(Forbidden):
            await stranger.put_quota_policy(policy)
        with pytest.raises(Forbidden):
            await stranger.quota("key:somebody")


def test_what_a_subscription_is_given_is_counted(node: Node) -> None:
    """Packets, bytes and fetches at once; the whole run with a hash of the address once it is over."""
    with SyncClient(node.url) as client:
        client.subscriptions.create({"name": "worker", "kind": "pull", "streams": ["fetched"]})
        client.publish("fetched", {"n": 1})
        client.publish("fetched", {"n": 2})
        for _ in range(2):
            (message,) = client.subscriptions.fetch("worker", 1, wait_s=5).messages
            client.subscriptions.ack("worker", [message.lease])
        client.subscriptions.delete("worker")
    with SyncClient(UNIX.format(node.directory)) as client:
        (row,) = [row for row in client.usage(method="pull", by="total").usage if row.stream == "fetched"]
        assert (row.principal, row.requests, row.packets, row.bytes, row.ended) == ("loopback", 2, 2, 14, 1)
        (run,) = [one for one in client.deliveries(limit=100).deliveries if one.method == "pull"]
        assert (run.stream, run.packets, run.bytes, run.errors, run.reason) == ("fetched", 2, 14, 0, "deleted")
        assert re.fullmatch("[0-9a-f]{16}", run.address_hash)

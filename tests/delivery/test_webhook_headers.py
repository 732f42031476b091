"""Values of webhooks' headers: sent with each request, sealed in the database, never shown."""

import json
import sqlite3
from pathlib import Path

import chaos_sink as chaos
import msgspec
import pytest
import trio
from test_webhook_secrets import read_everything
from trio.testing import MockClock
from webhook_node import WebhookNode, open_node

from overlayd.delivery.subscriptions.definition import parse_patch
from overlayd.delivery.subscriptions.showing import subscription_body
from overlayd.model.errors import InvalidSubscription

TOKEN = "Bearer 5d41402abc4b2a76b9719d911017c592"
HEADERS = {"Authorization": TOKEN, "X-Plain": ""}


def shown(node: WebhookNode, name: str = "hook") -> str:
    """What is told of a subscription."""
    found = node.parts.book.find(name)
    body = subscription_body(found, node.parts.engine.dispatcher.position, node.log.head, now_us=0)
    return msgspec.json.encode(body, enc_hook=str).decode()


async def test_values_are_sent_sealed_and_not_shown(tmp_path: Path, patient_clock: MockClock) -> None:
    """Also after a restart; names are told, and no file but in the key's reach holds a value."""
    async with open_node(tmp_path) as node, chaos.open_sink() as sink:
        await node.subscribe(sink.url, headers=HEADERS)
        await node.publish(1)
        await trio.sleep(1)
        assert sink.turns[0].headers["authorization"] == TOKEN
        assert TOKEN not in shown(node)
        assert json.loads(shown(node))["webhook"]["headers"] == {"Authorization": "(hidden)", "X-Plain": "(hidden)"}
        content = read_everything(tmp_path)
    content += read_everything(tmp_path)
    assert b"Authorization" in content  # its row is there
    assert TOKEN[7:].encode() not in content
    async with open_node(tmp_path) as node, chaos.open_sink() as sink:
        found = node.parts.book.find("hook")
        patch = msgspec.json.encode({"webhook": {"url": sink.url}})
        asked = parse_patch(patch, found.definition, node.parts.book.parse_query, node.webhooks.judge.check)
        await node.parts.book.patch(found, asked)
        await node.publish(2)
        await trio.sleep(1)
        assert sink.turns[0].headers["authorization"] == TOKEN
        with pytest.raises(InvalidSubscription, match="isn't the value"):
            parse_patch(
                b'{"webhook": {"headers": {"Authorization": "(hidden)"}}}', found.definition,
                node.parts.book.parse_query, node.webhooks.judge.check,
            )  # fmt: skip
        await node.parts.book.delete(found)
        assert await node.log.read(lambda c: c.execute("SELECT count(*) FROM webhook_headers").fetchone()) == (0,)


async def test_rows_of_before_are_sealed_at_the_start(tmp_path: Path, patient_clock: MockClock) -> None:
    """Earlier versions kept values in the definition; nothing of them is left in any file after the next stop."""
    async with open_node(tmp_path) as node, chaos.open_sink() as sink:
        subscription, _ = await node.subscribe(sink.url, headers=HEADERS)

        def as_before(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM webhook_headers")
            connection.execute(
                "UPDATE subscription SET definition = CAST(json_set(definition, '$.webhook.headers.Authorization', ?)"
                " AS BLOB) WHERE id = ?",
                (TOKEN, subscription.id),
            )

        await node.log.write(as_before)
    assert TOKEN[7:].encode() in read_everything(tmp_path)
    async with open_node(tmp_path) as node, chaos.open_sink() as sink:
        found = node.parts.book.find("hook")
        assert found.definition.webhook
        assert found.definition.webhook.headers == HEADERS
    assert TOKEN[7:].encode() not in read_everything(tmp_path)
    async with open_node(tmp_path) as node:
        assert node.parts.book.find("hook").definition == found.definition


async def test_without_its_key_file_a_subscription_waits(tmp_path: Path, patient_clock: MockClock) -> None:
    """Nothing is sent without the headers that were asked for; with the key file back everything is as it was."""
    async with open_node(tmp_path) as node, chaos.open_sink() as sink:
        await node.subscribe(sink.url, headers=HEADERS)
    key = tmp_path / "keys" / "sealing.key"
    before = key.read_bytes()
    key.write_bytes(bytes(32))
    async with open_node(tmp_path) as node:
        found = node.parts.book.find("hook")
        assert found.rest.state == "disabled"
        assert "can't be opened" in found.rest.reason
        await node.parts.book.release(found)  # is written down, and leaves the sealed values alone
    key.write_bytes(before)
    async with open_node(tmp_path) as node:
        found = node.parts.book.find("hook")
        assert found.definition.webhook
        assert found.definition.webhook.headers == HEADERS

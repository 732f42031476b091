"""The served AsyncAPI document names every message that a live connection takes and gives, those of agents too."""

import json

import jsonschema_rs
import pytest

from overlayd.net.asyncapi import build_asyncapi


def schema_of(name: str) -> jsonschema_rs.Validator:
    """Judges payloads of a message."""
    document = build_asyncapi()
    payload = document["components"]["messages"][name]["payload"]
    return jsonschema_rs.validator_for({**payload, "components": document["components"]})


def test_every_client_message_is_named() -> None:
    """What the socket takes by its word is what the document lists."""
    document = build_asyncapi()
    messages = document["components"]["messages"]
    assert {name for name in messages if name.startswith("client.")} == {
        f"client.{word}" for word in ("subscribe", "unsubscribe", "publish", "ping", "ack")
    }
    assert {"server.packet", "server.packet.agent"} <= messages.keys()
    sent = [one["$ref"].rpartition("/")[2] for one in document["operations"]["sendToNode"]["messages"]]
    assert "client.ack" in sent
    json.dumps(document)


@pytest.mark.parametrize(
    ("message", "is_right"),
    [
        ({"type": "ack", "id": "a", "cursor": "e2k7f3q2ma-12"}, True),
        ({"type": "ack", "id": "a", "cursor": "e2k7f3q2ma-12", "reply": {"packets": [{"data": 1}]}, "ref": 7}, True),
        ({"type": "ack", "id": "a"}, False),
        ({"type": "ack", "id": "a", "cursor": "e2k7f3q2ma-12", "reply": {"packets": 5}}, False),
        ({"type": "ack", "id": "a", "cursor": "e2k7f3q2ma-12", "reply": {"packets": [{"id": "x"}]}}, False),
    ],
)
def test_an_ack_may_carry_a_reply(message: dict[str, object], is_right: bool) -> None:
    """As the node takes it."""
    assert schema_of("client.ack").is_valid(message) is is_right


def test_attaching_by_name_is_described() -> None:
    """A durable subscription that is read live."""
    assert schema_of("client.subscribe").is_valid({"type": "subscribe", "id": "a", "name": "brain"})

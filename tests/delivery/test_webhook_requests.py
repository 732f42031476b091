"""What a receiver gets: bodies of every format, headers, signatures that strangers' code verifies."""

import hashlib
import hmac
import json
import math
from base64 import b64decode
from pathlib import Path
from typing import Any

import chaos_sink as chaos
import pytest
import rfc8785
import svix
from cloudevents.core.bindings import http
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from msgspec import UNSET
from standardwebhooks.webhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError as Refused
from webhook_rig import delivery_of, erased_message, gap_message, open_rig, packet_messages

from overlayd import __version__
from overlayd.model.subscription import WebhookRule

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def verify_inside(secret: str, body: bytes) -> dict[str, Any]:
    """As docs/webhooks.md tells receivers, with the rfc8785 package."""
    members = json.loads(body)
    signature = members.pop("signature")
    key = b64decode(secret.removeprefix("whsec_"))
    expected = hmac.new(key, rfc8785.dumps(members), hashlib.sha256).hexdigest()
    assert hmac.compare_digest(signature, f"sha256={expected}")
    return dict(members)


async def send_one(
    directory: Path, rule_options: dict[str, Any], *messages: Any, **delivery: Any
) -> tuple[chaos.Turn, bytes, str]:
    """One delivery to a good receiver: the request, its body, the secret."""
    async with open_rig(directory) as rig, chaos.open_sink() as sink:
        secret = await rig.create_secret()
        rule = WebhookRule(url=sink.url, **rule_options)
        result = await rig.attempt(delivery_of(rule, messages, **delivery))
        assert (result.outcome, result.status, result.reason) == ("delivered", 200, "")
        return sink.turns[0], await sink.turns[0].body(), secret


async def test_a_packet_is_posted_as_the_contract_says(tmp_path: Path) -> None:
    """Body and headers, and each of the three signatures verifies with code that isn't ours."""
    messages = packet_messages({"t": 21.50, "n": 1e3}, id="a1", type="sensor", key="k", traceparent=TRACE)
    turn, body, secret = await send_one(
        tmp_path, {"headers": {"Authorization": "Bearer x", "X-Site": "roof"}}, *messages
    )
    assert (turn.method, turn.path) == ("POST", "/hook")

    members = verify_inside(secret, body)
    assert set(members) == {"stream_id", "packet", "delivery_timestamp"}
    assert members["stream_id"] == "weather-001"
    packet = members["packet"]
    assert (packet["packet_id"], packet["packet_sequence"], packet["data_payload"]) == (
        "a1",
        1,
        {"t": 21.5, "n": 1000.0},
    )

    assert turn.headers["content-type"] == "application/json"
    assert turn.headers["user-agent"] == f"overlayd/{__version__}"
    assert turn.headers["webhook-id"].startswith("msg_abcdefghijklmnop_")
    assert "." not in turn.headers["webhook-id"]
    assert turn.headers["traceparent"] == TRACE
    assert (turn.headers["authorization"], turn.headers["x-site"]) == ("Bearer x", "roof")

    assert Webhook(secret).verify(body, turn.headers)["stream_id"] == "weather-001"
    svix.Webhook(secret).verify(body, turn.headers)
    raw = hmac.new(b64decode(secret.removeprefix("whsec_")), body, hashlib.sha256).hexdigest()
    assert turn.headers["x-overlayd-signature"] == f"sha256={raw}"
    with pytest.raises(Refused):
        Webhook(secret).verify(body + b" ", turn.headers)
    with pytest.raises(svix.WebhookVerificationError):
        svix.Webhook(secret).verify(body + b" ", turn.headers)


async def test_payloads_travel_byte_for_byte(tmp_path: Path) -> None:
    """What the producer wrote stands in the body as it wrote it, and the signature inside still verifies."""
    payload = b'{"big":18446744073709551615,  "neg":-9007199254740993,"f":1.10,"u":"\\u00e9\xc3\xa9","e":1E5}'
    _, body, secret = await send_one(tmp_path, {}, *packet_messages(payload))
    assert payload in body
    members = json.loads(body)
    signature = members.pop("signature")
    text = canonical_by_hand(members)
    expected = hmac.new(b64decode(secret.removeprefix("whsec_")), text, hashlib.sha256).hexdigest()
    assert signature == f"sha256={expected}"


def canonical_by_hand(value: Any) -> bytes:
    """RFC 8785 with integers of any size in plain digits, for what the rfc8785 package refuses."""
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: name.encode("utf-16-be"))
        return b"{" + b",".join(rfc8785.dumps(name) + b":" + canonical_by_hand(value[name]) for name in names) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(map(canonical_by_hand, value)) + b"]"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value).encode()
    assert not isinstance(value, float) or math.isfinite(value)
    return bytes(rfc8785.dumps(value))


async def test_a_batch_is_a_list_whatever_its_length(tmp_path: Path) -> None:
    """`batch_size` above 1 gives `packets`, in order, also for a single one; a trace only when all share it."""
    rule = {"batch_size": 10}
    turn, body, secret = await send_one(tmp_path / "a", rule, *packet_messages(1, 2, 3, traceparent=TRACE))
    members = verify_inside(secret, body)
    assert [packet["data_payload"] for packet in members["packets"]] == [1, 2, 3]
    assert turn.headers["traceparent"] == TRACE
    assert Webhook(secret).verify(body, turn.headers)
    mixed = (*packet_messages(1, traceparent=TRACE), *packet_messages(2))
    turn, body, secret = await send_one(tmp_path / "b", rule, *mixed)
    assert "traceparent" not in turn.headers
    _, body, secret = await send_one(tmp_path / "c", rule, *packet_messages(7))
    assert [packet["data_payload"] for packet in verify_inside(secret, body)["packets"]] == [7]


async def test_notices_are_objects_of_their_own(tmp_path: Path) -> None:
    """Gaps, erasures and tests say what they are, and are signed like packets."""
    turn, body, secret = await send_one(tmp_path / "a", {"batch_size": 5}, gap_message(), kind="gap")
    members = verify_inside(secret, body)
    assert (members["type"], members["reason"]) == ("gap", "retention")
    assert members["from"].endswith("-5")
    assert members["to"].endswith("-9")
    assert Webhook(secret).verify(body, turn.headers)
    _, body, secret = await send_one(tmp_path / "b", {}, erased_message(), kind="erased")
    members = verify_inside(secret, body)
    assert (members["type"], members["stream_id"], members["packet_sequence"]) == ("erased", "weather-001", 7)
    _, body, secret = await send_one(tmp_path / "c", {}, kind="test")
    members = verify_inside(secret, body)
    assert set(members) == {"type", "subscription_id", "delivery_timestamp"}
    assert (members["type"], members["subscription_id"]) == ("test", "abcdefghijklmnop")


async def test_cloudevents_are_read_by_the_cloudevents_package(tmp_path: Path) -> None:
    """Structured mode, one event a request; batches where batches were asked for; the standard signature around them."""
    rule = {"format": "cloudevents"}
    turn, body, secret = await send_one(tmp_path / "a", rule, *packet_messages({"t": 1}, id="a1", type="sensor"))
    assert turn.headers["content-type"] == "application/cloudevents+json"
    message = http.HTTPMessage(headers={"content-type": turn.headers["content-type"]}, body=body)
    event = http.from_structured(message, JSONFormat(), CloudEvent)
    assert (event.get_type(), event.get_source(), event.get_data()) == ("sensor", "/streams/weather-001", {"t": 1})
    assert "signature" not in json.loads(body)
    assert Webhook(secret).verify(body, turn.headers)

    turn, body, secret = await send_one(tmp_path / "b", {**rule, "batch_size": 3}, *packet_messages(1, 2))
    assert turn.headers["content-type"] == "application/cloudevents-batch+json"
    assert [event["data"] for event in json.loads(body)] == [1, 2]
    _, body, _ = await send_one(tmp_path / "c", {**rule, "batch_size": 3}, gap_message(), kind="gap")
    assert [event["type"] for event in json.loads(body)] == ["overlayd.gap"]
    _, body, _ = await send_one(tmp_path / "d", rule, kind="test")
    assert json.loads(body)["type"] == "overlayd.test"


async def test_templates_make_the_body(tmp_path: Path) -> None:
    """A text that is one placeholder keeps the value's type; the signature headers hold for any body."""
    template = '{"text": "{{ packet.key }}: {{ data.t }} degrees", "value": "{{ data.t }}", "all": "{{ packet.data_payload }}", "n": null}'
    turn, body, secret = await send_one(
        tmp_path / "a", {"format": "template", "template": template}, *packet_messages({"t": 21.5}, key="roof")
    )
    assert json.loads(body) == {"text": "roof: 21.5 degrees", "value": 21.5, "all": {"t": 21.5}, "n": None}
    assert Webhook(secret).verify(body, turn.headers)
    template = '{"first": "{{ packets.0.data_payload }}", "ids": ["{{ webhook_id }}", "{{ subscription_id }}"], "gone": "{{packets.9}}"}'
    turn, body, _ = await send_one(
        tmp_path / "b", {"format": "template", "template": template, "batch_size": 2}, *packet_messages(5, 6)
    )
    ids = [turn.headers["webhook-id"], "abcdefghijklmnop"]
    assert json.loads(body) == {"first": 5, "ids": ids, "gone": None}
    _, body, secret = await send_one(
        tmp_path / "c", {"format": "template", "template": '{"a": "{{ data }}"}'}, gap_message(), kind="gap"
    )
    assert verify_inside(secret, body)["type"] == "gap"


async def test_each_attempt_is_stamped_and_signed_anew(tmp_path: Path) -> None:
    """The id stays, time and signatures follow the clock."""
    async with open_rig(tmp_path) as rig, chaos.open_sink() as sink:
        secret = await rig.create_secret()
        delivery = delivery_of(WebhookRule(url=sink.url), packet_messages({"a": 1}))
        sink.play(chaos.answer(500), chaos.answer(200))
        assert (await rig.attempt(delivery)).outcome == "retry"
        rig.clock.us += 60_000_000
        assert (await rig.attempt(delivery)).outcome == "delivered"
        first, second = sink.turns
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        assert int(second.headers["webhook-timestamp"]) == int(first.headers["webhook-timestamp"]) + 60
        for turn in (first, second):
            Webhook(secret).verify(await turn.body(), turn.headers)
        stamps = [verify_inside(secret, await turn.body())["delivery_timestamp"] for turn in (first, second)]
        assert stamps[0] != stamps[1]


async def test_large_deliveries_are_built_in_a_thread(tmp_path: Path) -> None:
    """And come out the same."""
    messages = packet_messages({"text": "é" * 50_000})
    turn, body, secret = await send_one(tmp_path, {"secret": UNSET}, *messages)
    assert len(verify_inside(secret, body)["packet"]["data_payload"]["text"]) == 50_000
    assert Webhook(secret).verify(body, turn.headers)

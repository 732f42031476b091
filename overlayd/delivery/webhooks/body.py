"""Bodies of webhook requests. Pure: the same delivery and time always give the same bytes.

Whether a body holds one packet or a list of them is the definition's word (`batch_size`), not the delivery's, so that a
receiver meets one shape only. What isn't a packet (gap, status, erased, test) is an object of its own in every format
but CloudEvents.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from overlayd.delivery.agents.bodies import agent_notification
from overlayd.delivery.frames import Message, agent_packet, encode_message, other_message, packet_body, wrap_event
from overlayd.delivery.matching import PacketView
from overlayd.delivery.webhooks.template import TemplateTooLong, fill_template, judged_template
from overlayd.model.clock import format_time_us
from overlayd.model.outlet import Delivery
from overlayd.model.subscription import AgentRule, WebhookRule
from overlayd.model.wire import Packet, encode_wire

JSON_TYPE = "application/json"
EVENT_TYPE = "application/cloudevents+json"
EVENTS_TYPE = "application/cloudevents-batch+json"
NODE_SOURCE = "/node"


class TestMessage(msgspec.Struct, tag="test", tag_field="type"):
    """What `POST …/test` sends."""

    __test__ = False  # not one of pytest's

    subscription_id: str


class BodyTooLong(Exception):
    """The request's body is over its bound; no attempt can change that."""


class Body(msgspec.Struct, frozen=True):
    """A request's body. `is_signable`: an object of ours, which takes the member `signature`."""

    text: bytes
    content_type: str
    is_signable: bool


def build_body(delivery: Delivery[Message], rule: WebhookRule, *, now_us: int, bytes_max: int) -> Body:
    """The body of one attempt, without the signature inside. Raises BodyTooLong."""
    if rule.format == "agent" and delivery.kind == "packets":
        body = Body(agent_notification(delivery, now_us), JSON_TYPE, is_signable=True)
    elif rule.format == "cloudevents":
        body = _events(delivery, rule, now_us)
    elif rule.format == "template" and delivery.kind == "packets":
        body = _from_template(delivery, rule, now_us, bytes_max)
    else:
        body = Body(_own_text(delivery, rule, now_us), JSON_TYPE, is_signable=True)
    if len(body.text) > bytes_max:
        raise BodyTooLong(f"the body has {len(body.text)} bytes, {bytes_max} are the most")
    return body


def fitting(delivery: Delivery[Message], rule: WebhookRule, *, bytes_max: int) -> int:
    """How many of the first messages fit into one body, at least one. Encodes them all to find out."""
    if rule.format == "template":
        return _fitting_template(delivery, rule, bytes_max)
    size = 0
    for count, message in enumerate(delivery.messages):
        try:  # each with an envelope of its own, so that together they are never more
            size += len(build_body(_first_of(delivery, (message,)), rule, now_us=0, bytes_max=bytes_max).text)
        except BodyTooLong:
            return max(1, count)
        if size > bytes_max:
            return max(1, count)
    return len(delivery.messages)


def _fitting_template(delivery: Delivery[Message], rule: WebhookRule, bytes_max: int) -> int:
    """What a template makes of several packets, only filling it tells."""
    low, high = 1, len(delivery.messages)
    while low < high:
        middle = (low + high + 1) // 2
        try:
            build_body(_first_of(delivery, delivery.messages[:middle]), rule, now_us=0, bytes_max=bytes_max)
            low = middle
        except BodyTooLong:
            high = middle - 1
    return low


def _first_of(delivery: Delivery[Message], messages: tuple[Message, ...]) -> Delivery[Message]:
    return msgspec.structs.replace(delivery, messages=messages)


def traceparent_of(messages: Sequence[Message]) -> str:
    """The trace that the delivery belongs to: its packets', when they have one in common; else ""."""
    found = {message.subject.meta.traceparent for message in messages if isinstance(message.subject, PacketView)}
    return found.pop() if len(found) == 1 else ""


def _own_text(delivery: Delivery[Message], rule: WebhookRule, now_us: int) -> bytes:
    stamp = b',"delivery_timestamp":"%s"}' % format_time_us(now_us).encode()
    if delivery.kind == "packets":
        texts = [encode_wire(_packet(delivery, message)) for message in delivery.messages]
        content = b'"packet":%s' % texts[0] if rule.batch_size == 1 else b'"packets":[%s]' % b",".join(texts)
        return b'{"stream_id":%s,%s%s' % (msgspec.json.encode(delivery.stream), content, stamp)
    return encode_wire(_notice(delivery))[:-1] + stamp


def _events(delivery: Delivery[Message], rule: WebhookRule, now_us: int) -> Body:
    if delivery.kind == "test":
        event = wrap_event(_notice(delivery), id=delivery.delivery_id, source=NODE_SOURCE, time_us=now_us)
        texts = [encode_wire(event)]
    else:
        texts = [encode_message(message, "cloudevents") for message in delivery.messages]
    if rule.batch_size == 1:
        return Body(texts[0], EVENT_TYPE, is_signable=False)
    return Body(b"[%s]" % b",".join(texts), EVENTS_TYPE, is_signable=False)


def _from_template(delivery: Delivery[Message], rule: WebhookRule, now_us: int, bytes_max: int) -> Body:
    assert isinstance(rule.template, str)
    packets = [msgspec.json.decode(encode_wire(_packet(delivery, message))) for message in delivery.messages]
    values: dict[str, Any] = {
        "stream_id": delivery.stream, "subscription_id": delivery.subscription_id, "webhook_id": delivery.delivery_id,
        "delivery_timestamp": format_time_us(now_us),
    }  # fmt: skip
    if rule.batch_size == 1:
        values |= {"packet": packets[0], "data": packets[0]["data_payload"]}
    else:
        values["packets"] = packets
    try:
        text = fill_template(judged_template(rule.template), values, bytes_max=bytes_max)
    except TemplateTooLong as err:
        raise BodyTooLong(f"the filled template is over {bytes_max} bytes") from err
    return Body(text, JSON_TYPE, is_signable=False)


def _packet(delivery: Delivery[Message], message: Message) -> Packet:
    assert isinstance(message.subject, PacketView)
    if isinstance(delivery.definition.agent, AgentRule):
        return agent_packet(message.subject, message.state)
    return packet_body(message.subject, message.state)


def _notice(delivery: Delivery[Message]) -> Any:
    return TestMessage(delivery.subscription_id) if delivery.kind == "test" else other_message(delivery.messages[0])

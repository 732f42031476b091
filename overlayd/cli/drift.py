"""How a node's streams and subscriptions differ from those in files, and what brings them in line. No I/O here."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import msgspec

from overlayd.client import subscription_calls as subscriptions
from overlayd.client.calls import Call, define, delete, stream, tagged
from overlayd.config import StreamSettings
from overlayd.delivery.query import LiveQuery, parse_message
from overlayd.delivery.subscriptions.declaring import DeclaredSubscription
from overlayd.delivery.subscriptions.definition import parse_new
from overlayd.model.definition import Definition, encode_definition
from overlayd.model.errors import (
    DefinitionConflict,
    OwnedByConfig,
    SequenceMismatch,
    SubscriptionConflict,
    UnknownStream,
    UnknownSubscription,
)
from overlayd.model.limits import Limits
from overlayd.model.names import is_node_name
from overlayd.model.subscription import SubscriptionDefinition, decode_subscription, encode_subscription
from overlayd.model.wire import StreamBody, encode_wire
from overlayd.model.wire_subscriptions import SubscriptionBody

Verb = Literal["create", "change", "delete", "keep", "conflict"]
_NOT_COMPARED = ("secret", "from")
"""Nobody is shown a secret; and where a subscription stands is its own."""


class Step(msgspec.Struct, frozen=True):
    """One difference. `keep` and `conflict` stay as they are, for the reason in `detail`; the others have a call.

    `found`: what the node showed when that was decided; nothing else may be changed or deleted. `call`: made of its ETag.
    """

    verb: Verb
    kind: Literal["stream", "subscription"]
    name: str
    detail: str = ""
    call: Callable[[str], Call[Any]] | None = None
    found: StreamBody | SubscriptionBody | None = None


def plan_streams(wanted: Sequence[StreamSettings], found: Iterable[StreamBody], *, prune: bool) -> Iterator[Step]:
    """What to do to streams, by name. One that is in no file is deleted only when that is asked for and it is empty."""
    there = {one.stream: one for one in found if not is_node_name(one.stream)}
    for one in sorted(wanted, key=lambda stream: stream.name):
        name = str(one.name)
        text = encode_definition(one.definition)
        members: dict[str, Any] = msgspec.json.decode(text)
        old = there.pop(name, None)
        if old is None:
            yield Step("create", "stream", name, call=partial(_define, name, members, is_new=True))
            continue
        before: dict[str, Any] = msgspec.json.decode(encode_definition(_definition_of(old)))
        differing = _differing(before, members)
        if not differing:
            continue
        if old.owner == "config":
            yield Step("conflict", "stream", name, f"the node's own configuration says otherwise: {differing}")
        else:
            yield Step("change", "stream", name, differing, partial(_define, name, members), old)
    for name, old in sorted(there.items()) if prune else ():
        if old.owner == "config":
            continue
        if old.head_sequence:
            yield Step(
                "keep",
                "stream",
                name,
                f"it has had {old.head_sequence} packets; `overlayd streams delete` takes it away",
            )
        else:
            yield Step("delete", "stream", name, call=partial(_delete, name, old.head_sequence), found=old)


def plan_subscriptions(
    wanted: Sequence[DeclaredSubscription], found: Iterable[SubscriptionBody], *, prune: bool
) -> Iterator[Step]:
    """The same of subscriptions. Secrets and where they stand aren't compared, and of headers only the names."""
    there = {one.name: one for one in found}
    for one in sorted(wanted, key=lambda subscription: subscription.name):
        old = there.pop(one.name, None)
        body: dict[str, Any] = msgspec.json.decode(one.body)
        if old is None:
            yield Step("create", "subscription", one.name, call=partial(_create, body))
            continue
        new = _members_of(_asked(one.body))
        before = _members_of(_shown(old))
        differing = _differing(_without_values(before), _without_values(new))
        if not differing:
            continue
        if old.owner == "config":
            yield Step(
                "conflict", "subscription", one.name, f"the node's own configuration says otherwise: {differing}"
            )
        elif old.kind != new["kind"]:
            yield Step("conflict", "subscription", one.name, f"it is a {old.kind}; a kind never changes")
        else:
            call = partial(_patch, old.id, _merge_patch(before, new))
            yield Step("change", "subscription", one.name, differing, call, old)
    for name, old in sorted(there.items()) if prune else ():
        if old.owner != "config":
            yield Step("delete", "subscription", name, call=partial(_drop, old.id), found=old)


def _definition_of(stream: StreamBody) -> Definition:
    return Definition(**{name: getattr(stream, name) for name in Definition.__struct_fields__})


def _asked(body: bytes) -> SubscriptionDefinition:
    """The definition with all its defaults. Raises InvalidSubscription, which reading the file has ruled out."""

    def parse(members: Mapping[str, Any]) -> LiveQuery:
        return parse_message(members, Limits(), heartbeat_s=15.0)

    return parse_new(body, parse, lambda rule: []).definition


def _shown(subscription: SubscriptionBody) -> SubscriptionDefinition:
    members = {name: getattr(subscription, name) for name in SubscriptionDefinition.__struct_fields__}
    given = {name: value for name, value in members.items() if value is not msgspec.UNSET}
    return decode_subscription(encode_wire(given))


def _members_of(definition: SubscriptionDefinition) -> dict[str, Any]:
    members: dict[str, Any] = msgspec.json.decode(encode_subscription(definition))
    assert decode_subscription(msgspec.json.encode(members)) == definition
    return members


def _without_values(members: dict[str, Any]) -> dict[str, Any]:
    """Without what nobody is shown."""
    webhook = members.get("webhook")
    if not isinstance(webhook, dict):
        return members
    shown = {name: value for name, value in webhook.items() if name not in _NOT_COMPARED}
    if isinstance(headers := shown.get("headers"), dict):
        shown["headers"] = sorted(headers)
    return {**members, "webhook": shown}


def _differing(before: dict[str, Any], after: dict[str, Any]) -> str:
    return ", ".join(word for word in dict.fromkeys((*before, *after)) if before.get(word) != after.get(word))


def _merge_patch(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """RFC 7396: what makes the one the other."""
    patch: dict[str, Any] = {name: None for name in before if name not in after}
    for name, value in after.items():
        old = before.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            if inner := _merge_patch(old, value):
                patch[name] = inner
        elif value != old:
            patch[name] = value
    return patch


def _define(name: str, members: dict[str, Any], etag: str, *, is_new: bool = False) -> Call[Any]:
    return define(name, members, if_match=etag, is_new=is_new)


def _delete(name: str, sequence: int, etag: str) -> Call[Any]:
    return delete(name, if_match=etag, expected_sequence=sequence)


def _create(body: dict[str, Any], _etag: str) -> Call[Any]:
    return subscriptions.create(body)


def _patch(id: str, changes: dict[str, Any], etag: str) -> Call[Any]:
    return subscriptions.patch(id, changes, if_match=etag)


def _drop(id: str, etag: str) -> Call[Any]:
    return subscriptions.delete(id, if_match=etag)


def carry_out(steps: Iterable[Step], send: Callable[[Call[Any]], Any], tell: Callable[[Step], None]) -> list[Step]:
    """Sends what there is to send, one after the other; gives what came of each.

    What isn't any more what was decided on, or came into being meanwhile, is left as it is: a conflict. Raises what the
    node refuses one with for another reason; those before it are done.
    """
    done = []
    for step in steps:
        try:
            if step.call is not None:
                send(step.call(_look_again(step, send)))
        except _MOVED as error:
            step = Step("conflict", step.kind, step.name, f"it changed meanwhile, apply again: {error.detail}")
        tell(step)
        done.append(step)
    return done


_MOVED = (DefinitionConflict, SequenceMismatch, SubscriptionConflict, OwnedByConfig, UnknownStream, UnknownSubscription)
"""What the node says to whom somebody else was quicker than."""


def _look_again(step: Step, send: Callable[[Call[Any]], Any]) -> str:
    """The ETag of what the step was decided on; "" when it makes something. Raises one of _MOVED when it is another."""
    if isinstance(step.found, StreamBody):
        now = send(tagged(stream(step.name)))
        is_same = _stream_facts(now.value) == _stream_facts(step.found)
    elif isinstance(step.found, SubscriptionBody):
        now = send(tagged(subscriptions.subscription(step.found.id)))
        is_same = _members_of(_shown(now.value)) == _members_of(_shown(step.found))
    else:
        return ""
    if not is_same:
        raise DefinitionConflict(f"{step.name} isn't what it was a moment ago", subject=step.name)
    return str(now.etag)


def _stream_facts(shown: StreamBody) -> tuple[object, ...]:
    return _definition_of(shown), shown.definition_version, shown.created_at, shown.owner

"""What a durable subscription may say about itself, judged before anything is stored."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
from msgspec import UNSET

from overlayd.delivery.agents.definition import check_agent, complete_agent, effective_filter
from overlayd.delivery.agents.predicate import PredicateError
from overlayd.delivery.query import At, Beginning, LiveQuery, Now, Selection
from overlayd.model.clock import parse_time_us
from overlayd.model.cursor import Cursor
from overlayd.model.errors import BadCursor, BadParameter, InvalidSubscription, Violation
from overlayd.model.subscription import (
    PullRule,
    RetryRule,
    SubscriptionDefinition,
    WebhookRule,
    decode_subscription,
    encode_subscription,
)

KINDS = ("webhook", "agent", "pull", "live")
"""Those that this version can do."""

BATCH_WAIT_MAX_S = 300.0
TIMEOUT_MAX_S = 60.0
PAUSE_MAX_S = 7 * 86_400.0
RETRY_SPAN_MAX_S = 31 * 86_400.0

ID_CHARS = 16
_ID = re.compile(r"[a-z2-7]{16}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", re.ASCII)
_PLACE = re.compile(r"(.*) - at `\$(.*)`", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
_MEMBERS = {"stream": "streams", "topic": "topics", "type": "types", "key": "keys"}

CheckWebhook = Callable[[WebhookRule], "list[Violation]"]
"""What the webhooks' own judge has to say about the table `webhook`; pointers begin with /webhook."""

ParseQuery = Callable[[Mapping[str, Any]], LiveQuery]
"""`Delivery.parse_message`."""

Start = Now | Beginning | At | Cursor


class Asked(msgspec.Struct, frozen=True):
    """A definition that holds, with what was made of it. `secret`: "" when none was given."""

    definition: SubscriptionDefinition
    selection: Selection
    start: Start
    secret: str


def parse_new(raw: bytes, parse_query: ParseQuery, check_webhook: CheckWebhook) -> Asked:
    """The body of `POST /v1/subscriptions`, which is a JSON object. Raises InvalidSubscription."""
    try:
        members = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        start = _parse_start(members.pop("from", None))
        definition = decode_subscription(msgspec.json.encode(members))
    except msgspec.ValidationError as err:
        raise _refusal([violation_of(err)]) from err
    return judge(definition, parse_query, check_webhook, start)


def parse_patch(
    raw: bytes, present: SubscriptionDefinition, parse_query: ParseQuery, check_webhook: CheckWebhook
) -> Asked:
    """The definition with a JSON merge patch (RFC 7396) applied. Name and kind stay. Raises InvalidSubscription."""
    try:
        patch = msgspec.json.decode(raw, type=dict[str, Any])
    except msgspec.ValidationError as err:
        raise _refusal([violation_of(err)]) from err
    fixed = [name for name in ("name", "kind") if name in patch and patch[name] != getattr(present, name)]
    if fixed:
        raise _refusal([_wrong(f"/{name}", f"the {name} of a subscription stays as it is") for name in fixed])
    if "from" in patch:
        raise _refusal([_wrong("/from", "where a subscription stands is changed by seek")])
    unknown = [name for name in patch if name not in SubscriptionDefinition.__struct_fields__]
    if unknown:  # also when null would take away what isn't there: more likely it is misspelt
        raise _refusal([_wrong(f"/{name}", "a subscription has no such member") for name in unknown])
    if isinstance(patch.get("webhook"), dict) and "secret" in patch["webhook"]:
        raise _refusal([_wrong("/webhook/secret", "the secret is changed by rotate-secret")])
    whole = _merge(msgspec.json.decode(encode_subscription(present)), patch)
    try:
        definition = decode_subscription(msgspec.json.encode(whole))
    except msgspec.ValidationError as err:
        raise _refusal([violation_of(err)]) from err
    return judge(definition, parse_query, check_webhook, Now())


def judge(
    definition: SubscriptionDefinition, parse_query: ParseQuery, check_webhook: CheckWebhook, start: Start
) -> Asked:
    """The definition, if nothing is wrong with it. Raises InvalidSubscription with everything that is."""
    violations = list(_name_and_kind(definition))
    definition = complete_agent(definition)
    violations += check_agent(definition)
    selection = Selection()
    try:
        selection = parse_query(_query_members(definition)).selection
    except BadParameter as err:
        name = err.subject.split(" ")[0]
        member = _MEMBERS.get(name, name if name in SubscriptionDefinition.__struct_fields__ else "")
        violations.append(_wrong(f"/{member}" if member else "", err.detail))
    secret = ""
    if definition.webhook is not UNSET:
        violations += [*_webhook(definition.webhook), *check_webhook(definition.webhook)]
        secret = definition.webhook.secret or ""
        bare = msgspec.structs.replace(definition.webhook, secret=UNSET)
        definition = msgspec.structs.replace(definition, webhook=bare)
    if definition.pull is not UNSET:
        violations += _pull(definition.pull)
    elif definition.reached_by == "pull":
        definition = msgspec.structs.replace(definition, pull=PullRule())
    if violations:
        raise _refusal(violations)
    return Asked(definition, selection, start, secret)


def parse_place(cursor: str | None, time: str | None) -> Start:
    """Where `seek` goes. Raises BadParameter or BadCursor."""
    if (cursor is None) == (time is None):
        raise BadParameter("give either a cursor or a time", subject="cursor")
    return Cursor.parse(cursor) if cursor is not None else _parse_time(str(time))


def is_id(text: str) -> bool:
    """Whether it has the form of an id that the node draws."""
    return _ID.fullmatch(text) is not None


def violation_of(error: msgspec.ValidationError) -> Violation:
    """msgspec's words with a JSON pointer."""
    text = str(error)
    match = _PLACE.fullmatch(text)
    detail, path = (match[1], match[2]) if match else (text, "")
    pointer = "".join(f"/{name or index}" for name, index in _STEP.findall(path))
    return _wrong(pointer, detail)


def _parse_start(raw: msgspec.Raw | None) -> Start:
    if raw is None:
        return Now()
    text = msgspec.json.decode(raw, type=str)
    named: dict[str, Start] = {"now": Now(), "beginning": Beginning()}
    if text in named:
        return named[text]
    if text == "last":
        raise _refusal([_wrong("/from", "a durable subscription can't begin with the newest packets; use a time")])
    try:
        return Cursor.parse(text) if text[:1] == "e" else _parse_time(text)
    except (BadCursor, BadParameter) as err:
        detail = f"must be now, beginning, an RFC 3339 time with a zone or a cursor, not {text[:60]!r}"
        raise _refusal([_wrong("/from", detail)]) from err


def _parse_time(text: str) -> At:
    try:
        return At(parse_time_us(text))
    except (ValueError, OverflowError) as err:
        raise BadParameter(f"not an RFC 3339 time with a zone: {text[:60]!r}", subject="time") from err


def _query_members(definition: SubscriptionDefinition) -> dict[str, Any]:
    members: dict[str, Any] = {
        "streams": list(definition.streams), "topics": list(definition.topics), "types": list(definition.types),
        "keys": list(definition.keys), "deliver": definition.deliver,
    }  # fmt: skip
    if (expression := _filter_of(definition)) is not None:
        members["filter"] = expression
    if definition.min_confirmations is not UNSET:
        members["min_confirmations"] = definition.min_confirmations
    return members


def _filter_of(definition: SubscriptionDefinition) -> str | None:
    """None for a trigger that can't be put into CEL, which is told elsewhere."""
    try:
        return effective_filter(definition)
    except PredicateError:
        return None


def _name_and_kind(definition: SubscriptionDefinition) -> Iterator[Violation]:
    if _NAME.fullmatch(definition.name) is None:
        yield _wrong("/name", "letters, digits, _, . and -, beginning with a letter, a digit or _; at most 64")
    elif is_id(definition.name):
        yield _wrong("/name", "it looks like an id that the node draws; choose another")
    if definition.kind not in KINDS:
        yield _wrong(
            "/kind", f"this version can't do {definition.kind} subscriptions yet; it can do {', '.join(KINDS)}"
        )
    if definition.kind == "agent" and definition.agent is UNSET:
        yield _wrong("/agent", "an agent's subscription says what it is: agent, {} at least")
        return
    way = definition.reached_by
    if way == "webhook" and definition.webhook is UNSET:
        yield _wrong("/webhook", "a webhook subscription says where to post: webhook.url")
    for table in ("webhook", "pull"):
        if way != table and getattr(definition, table) is not UNSET:
            yield _wrong(f"/{table}", f"goes with kind {table}, not with {way}")
    if definition.kind != "agent" and definition.agent is not UNSET:
        yield _wrong("/agent", f"goes with kind agent, not with {definition.kind}")


def _webhook(rule: WebhookRule) -> Iterator[Violation]:
    if not 0 <= rule.batch_wait <= BATCH_WAIT_MAX_S:
        yield _wrong("/webhook/batch_wait", f"from 0s to {BATCH_WAIT_MAX_S:.0f}s")
    if rule.batch_wait and rule.batch_size == 1:
        yield _wrong("/webhook/batch_wait", "a delivery of one packet has nothing to wait for; raise batch_size")
    if not 0 < rule.timeout <= TIMEOUT_MAX_S:
        yield _wrong("/webhook/timeout", f"above 0s, at most {TIMEOUT_MAX_S:.0f}s")
    if rule.retry is not UNSET:
        yield from _retry(rule.retry)


def _retry(rule: RetryRule) -> Iterator[Violation]:
    at = "/webhook/retry"
    exponential = [
        name for name in ("max_retries", "backoff", "max_backoff", "jitter") if getattr(rule, name) is not UNSET
    ]
    if rule.schedule is not UNSET and exponential:
        yield _wrong(at, f"schedule and {', '.join(exponential)} exclude each other")
    if rule.schedule is not UNSET:
        for number, pause in enumerate(rule.schedule):
            if not 0 <= pause <= PAUSE_MAX_S:
                yield _wrong(f"{at}/schedule/{number}", "from 0s to 7d")
        if sum(rule.schedule) > RETRY_SPAN_MAX_S:
            yield _wrong(f"{at}/schedule", "at most 31d in all")
    for name in ("backoff", "max_backoff"):
        pause = getattr(rule, name)
        if pause is not UNSET and not 0 < pause <= PAUSE_MAX_S:
            yield _wrong(f"{at}/{name}", "above 0s, at most 7d")
    if rule.backoff is not UNSET and rule.max_backoff is not UNSET and rule.max_backoff < rule.backoff:
        yield _wrong(f"{at}/max_backoff", "not below backoff")


def _pull(rule: PullRule) -> Iterator[Violation]:
    if not 1 <= rule.lease <= LEASE_MAX_S:
        yield _wrong("/pull/lease", f"from 1s to {LEASE_MAX_S / 3600:.0f}h")


def _merge(whole: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(whole) if isinstance(whole, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merge(merged.get(name), value)
    return merged


def _wrong(pointer: str, detail: str) -> Violation:
    return Violation(pointer, "subscription.member", detail)


def _refusal(violations: list[Violation]) -> InvalidSubscription:
    first = violations[0]
    return InvalidSubscription(
        f"the subscription can't be used: {first.detail}" + (f" at {first.pointer}" if first.pointer else ""),
        violations=violations,
    )


LEASE_MAX_S = 12 * 3600.0

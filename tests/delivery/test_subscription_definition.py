"""What a subscription may say, and where exactly it is wrong when it may not."""

import contextlib
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.delivery.query import At, Beginning, LiveQuery, Now, parse_message
from overlayd.delivery.subscriptions.definition import Asked, is_id, parse_new, parse_patch, parse_place
from overlayd.delivery.subscriptions.retry import ORDERED_SCHEDULE_S, STANDARD_SCHEDULE_S, policy_of
from overlayd.model.cursor import Cursor
from overlayd.model.errors import BadCursor, BadParameter, InvalidSubscription, Violation
from overlayd.model.limits import Limits
from overlayd.model.subscription import (
    PullRule,
    RetryRule,
    WebhookRule,
    decode_subscription,
    encode_subscription,
)
from overlayd.model.units import Duration


def parse_query(members: Mapping[str, Any]) -> LiveQuery:
    """As a node does."""
    return parse_message(members, Limits(), heartbeat_s=15.0)


def parse(body: Any) -> Asked:
    """A body that wasn't judged yet."""
    return parse_new(msgspec.json.encode(body), parse_query, lambda rule: [])


HOOK = {"name": "h", "kind": "webhook", "webhook": {"url": "https://x/"}}


def hook(**members: Any) -> dict[str, Any]:
    """A webhook with something else in its table."""
    return HOOK | {"webhook": {"url": "https://x/", **members}}


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({"kind": "pull"}, [""]),
        ({"name": "", "kind": "pull"}, ["/name"]),
        ({"name": "a b", "kind": "pull"}, ["/name"]),
        ({"name": "x" * 65, "kind": "pull"}, ["/name"]),
        ({"name": "abcdefghijklmnop", "kind": "pull"}, ["/name"]),
        ({"name": "x", "kind": "nonsense"}, ["/kind"]),
        ({"name": "x", "kind": "forward"}, ["/kind"]),
        ({"name": "x", "kind": "webhook"}, ["/webhook"]),
        ({"name": "x", "kind": "pull", "webhook": {"url": "https://x/"}}, ["/webhook"]),
        (HOOK | {"pull": {}}, ["/pull"]),
        ({"name": "x", "kind": "pull", "streams": ["A"]}, ["/streams"]),
        ({"name": "x", "kind": "pull", "topics": ["a.>.b"]}, ["/topics"]),
        ({"name": "x", "kind": "pull", "types": ["y" * 200]}, ["/types"]),
        ({"name": "x", "kind": "pull", "keys": [""]}, ["/keys"]),
        ({"name": "x", "kind": "pull", "filter": "  "}, ["/filter"]),
        ({"name": "x", "kind": "pull", "min_confirmations": 2}, ["/min_confirmations"]),
        ({"name": "x", "kind": "pull", "deliver": "never"}, ["/deliver"]),
        ({"name": "x", "kind": "pull", "from": "last"}, ["/from"]),
        ({"name": "x", "kind": "pull", "from": "yesterday"}, ["/from"]),
        ({"name": "x", "kind": "pull", "from": "e1x-1"}, ["/from"]),
        ({"name": "x", "kind": "pull", "no_such": 1}, [""]),
        ({"name": "x", "kind": "pull", "pull": {"lease": "0s"}}, ["/pull/lease"]),
        ({"name": "x", "kind": "pull", "pull": {"lease": "13h"}}, ["/pull/lease"]),
        ({"name": "x", "kind": "pull", "pull": {"max_deliveries": 0}}, ["/pull/max_deliveries"]),
        (hook(batch_wait="1s"), ["/webhook/batch_wait"]),
        (hook(batch_size=2, batch_wait="1h"), ["/webhook/batch_wait"]),
        (hook(batch_size=1001), ["/webhook/batch_size"]),
        (hook(concurrency=0), ["/webhook/concurrency"]),
        (hook(timeout="0s"), ["/webhook/timeout"]),
        (hook(timeout="2m"), ["/webhook/timeout"]),
        (hook(rate_per_second=0), ["/webhook/rate_per_second"]),
        (hook(retry={"schedule": ["1s"], "max_retries": 2}), ["/webhook/retry"]),
        (hook(retry={"schedule": ["1s", "8d"]}), ["/webhook/retry/schedule/1"]),
        (hook(retry={"schedule": ["7d"] * 5}), ["/webhook/retry/schedule"]),
        (hook(retry={"backoff": "0s"}), ["/webhook/retry/backoff"]),
        (hook(retry={"backoff": "2m", "max_backoff": "1m"}), ["/webhook/retry/max_backoff"]),
        (hook(retry={"max_retries": 101}), ["/webhook/retry/max_retries"]),
        (hook(retry={"backoff": "soon"}), ["/webhook/retry/backoff"]),
        (hook(timeout="0s") | {"name": "-", "streams": ["A"]}, ["/name", "/streams", "/webhook/timeout"]),
        ([], [""]),
    ],
)
def test_refusals_name_the_place(body: Any, pointers: list[str]) -> None:
    """Everything that is wrong is told, each with a pointer into the body."""
    with pytest.raises(InvalidSubscription) as caught:
        parse(body)
    assert [flaw.pointer for flaw in caught.value.violations] == pointers
    assert all(flaw.detail for flaw in caught.value.violations)


def test_everything_a_definition_can_say() -> None:
    """A whole body comes through; the secret is taken out, the start apart."""
    asked = parse(
        {
            "name": "all_of.it-1", "kind": "webhook", "streams": ["b", "a.*"], "topics": ["t.>"], "types": ["x"],
            "keys": ["k"], "filter": "data > 1", "deliver": "both", "min_confirmations": 3, "from": "beginning",
            "webhook": {
                "url": "https://x/", "secret": "whsec_abc", "format": "template", "template": "{}", "batch_size": 5,
                "batch_wait": "2s", "ordering": "stream", "concurrency": 3, "timeout": "5s", "headers": {"a": "b"},
                "retry": {"schedule": ["1s", "1m"]}, "rate_per_second": 2.5, "gaps": True,
            },
        }
    )  # fmt: skip
    assert asked.secret == "whsec_abc"
    assert asked.start == Beginning()
    assert isinstance(asked.definition.webhook, WebhookRule)
    assert not asked.definition.webhook.secret
    assert asked.selection.streams == ("a.*", "b")
    assert decode_subscription(encode_subscription(asked.definition)) == asked.definition


def test_starts() -> None:
    """now, a time, a cursor; nothing said is now."""
    body = {"name": "x", "kind": "pull"}
    assert parse(body).start == Now()
    assert parse(body | {"from": "2026-01-02T03:04:05Z"}).start == At(1_767_323_045_000_000)
    assert parse(body | {"from": "e1aeaqcaib-7"}).start == Cursor.parse("e1aeaqcaib-7")
    assert parse(body).definition.pull == PullRule()


def test_places() -> None:
    """`seek` takes a cursor or a time, not both, not neither."""
    assert parse_place(None, "2026-01-02T03:04:05Z") == At(1_767_323_045_000_000)
    for cursor, time, error in (
        (None, None, BadParameter), ("e1aeaqcaib-7", "x", BadParameter), ("x", None, BadCursor),
        (None, "noon", BadParameter),
    ):  # fmt: skip
        with pytest.raises(error):
            parse_place(cursor, time)


def test_patches() -> None:
    """A merge patch changes members, nests into tables, and null takes a member away."""
    present = parse(hook(batch_size=4, retry={"max_retries": 2}) | {"filter": "data > 1", "types": ["x"]}).definition
    raw = b'{"filter":null,"types":["y"],"webhook":{"retry":null,"batch_size":8}}'
    patched = parse_patch(raw, present, parse_query, lambda rule: []).definition
    assert not patched.filter
    assert patched.types == ("y",)
    assert isinstance(patched.webhook, WebhookRule)
    assert (patched.webhook.batch_size, bool(patched.webhook.retry), patched.webhook.url) == (8, False, "https://x/")


@pytest.mark.parametrize("name", ["", "fliter", "owner"])
@pytest.mark.parametrize("value", ["null", "1"])
def test_patches_of_members_that_there_are_none_of(name: str, value: str) -> None:
    """A misspelt member is told of, also when null would take away what isn't there."""
    present = parse(hook()).definition
    with pytest.raises(InvalidSubscription) as caught:
        parse_patch(f'{{"{name}":{value}}}'.encode(), present, parse_query, lambda rule: [])
    assert [flaw.pointer for flaw in caught.value.violations] == [f"/{name}"]


def test_webhooks_own_judge_is_asked() -> None:
    """What it finds stands beside the rest."""
    with pytest.raises(InvalidSubscription) as caught:
        parse_new(
            msgspec.json.encode(hook(timeout="0s")), parse_query, lambda rule: [Violation("/webhook/url", "x", "no")]
        )
    assert [flaw.pointer for flaw in caught.value.violations] == ["/webhook/timeout", "/webhook/url"]


def test_policies() -> None:
    """Without a rule the schedule goes with the ordering; parts that aren't said have defaults."""
    assert policy_of(RetryRule(), "none").schedule_s == STANDARD_SCHEDULE_S
    assert policy_of(RetryRule(), "stream").schedule_s == ORDERED_SCHEDULE_S
    policy = policy_of(RetryRule(backoff=Duration(2)), "stream")
    assert (policy.max_attempts, policy.backoff_s, policy.max_backoff_s, policy.has_jitter) == (10, 2.0, 3600.0, True)
    assert policy_of(RetryRule(schedule=()), "none").max_attempts == 1
    assert policy_of(RetryRule(max_retries=0), "none").max_attempts == 1


def test_ids() -> None:
    """Ids have a form of their own, which names can't take."""
    assert is_id("dmuzirornkj4z6mf")
    assert not is_id("dmuzirornkj4z6m")
    assert not is_id("dmuzirornkj4z6m1")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["name", "kind", "streams", "filter", "from", "webhook", "pull", "deliver", "keys", "other"])


@given(body=st.dictionaries(NAMES, JSON))
def test_anything_is_refused_in_order(body: Any) -> None:
    """Whatever is sent, it is used or refused as an invalid subscription."""
    with contextlib.suppress(InvalidSubscription):
        assert parse(body).definition.kind in ("webhook", "pull", "live")

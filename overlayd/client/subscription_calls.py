"""Requests about durable subscriptions, as values (calls.py)."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from overlayd.client.calls import JSON, Answer, Call, decoder_of
from overlayd.model.units import Duration
from overlayd.model.wire_agents import AgentsBody
from overlayd.model.wire_subscriptions import (
    AttemptList,
    CountBody,
    DeadLetterBody,
    DeadLetterList,
    FetchBody,
    LeasesBody,
    SecretBody,
    SubscriptionBody,
    SubscriptionList,
    TestBody,
)

ROOT = "/v1/subscriptions"
AGENTS = "/v1/agents"
_ONE = decoder_of(SubscriptionBody)
_LIST = decoder_of(SubscriptionList)
_SECRET = decoder_of(SecretBody)
_TEST = decoder_of(TestBody)
_ATTEMPTS = decoder_of(AttemptList)
_LETTER = decoder_of(DeadLetterBody)
_LETTERS = decoder_of(DeadLetterList)
_COUNT = decoder_of(CountBody)
_FETCHED = decoder_of(FetchBody)
_LEASES = decoder_of(LeasesBody)
_AGENTS = decoder_of(AgentsBody)
_HEADERS = (("Content-Type", JSON),)


def path_of(subscription: str, *rest: str) -> str:
    """The path of a subscription, by id or name."""
    return "/".join((ROOT, quote(subscription, safe=""), *rest))


def create(definition: Mapping[str, Any]) -> Call[SubscriptionBody]:
    """Not repeatable: a second one of the name is refused, so a caller who lost the answer looks for it by name."""
    return Call("POST", ROOT, _ONE, headers=_HEADERS, content=_text(definition), is_repeatable=False)


def subscriptions(*, kind: str = "", state: str = "", after: str = "") -> Call[SubscriptionList]:
    """A page of subscriptions by name."""
    given = tuple((name, value) for name, value in (("kind", kind), ("state", state), ("after", after)) if value)
    return Call("GET", ROOT, _LIST, params=given)


def subscription(name: str) -> Call[SubscriptionBody]:
    """One subscription and where it stands."""
    return Call("GET", path_of(name), _ONE)


def patch(name: str, changes: Mapping[str, Any], *, if_match: str = "") -> Call[SubscriptionBody]:
    """A JSON merge patch. `if_match`: only of the definition with this ETag."""
    return Call("PATCH", path_of(name), _ONE, headers=(*_HEADERS, *_only(if_match)), content=_text(changes))


def delete(name: str, *, if_match: str = "") -> Call[None]:
    """With its dead letters. `if_match`: only if its definition still has this ETag."""
    return Call("DELETE", path_of(name), _nothing, headers=_only(if_match), is_repeatable=False)


def set_state(name: str, *, is_paused: bool) -> Call[SubscriptionBody]:
    """Pauses or resumes."""
    return Call("POST", path_of(name, "pause" if is_paused else "resume"), _ONE)


def seek(name: str, *, cursor: str = "", time: str = "") -> Call[SubscriptionBody]:
    """Goes on from another place."""
    place = {key: value for key, value in (("cursor", cursor), ("time", time)) if value}
    return Call("POST", path_of(name, "seek"), _ONE, headers=_HEADERS, content=_text(place))


def test(name: str) -> Call[TestBody]:
    """Sends one delivery without packets."""
    return Call("POST", path_of(name, "test"), _TEST, is_repeatable=False, hold_s=60.0)


def rotate_secret(name: str, secret: str = "") -> Call[SecretBody]:
    """Another secret, drawn if none is given."""
    content = _text({"secret": secret} if secret else {})
    return Call("POST", path_of(name, "rotate-secret"), _SECRET, headers=_HEADERS, content=content, is_repeatable=False)


def attempts(name: str) -> Call[AttemptList]:
    """The last attempts, newest first."""
    return Call("GET", path_of(name, "attempts"), _ATTEMPTS)


def dead_letters(name: str, *, after: int = 0) -> Call[DeadLetterList]:
    """A page of dead letters by number."""
    return Call("GET", path_of(name, "dead-letters"), _LETTERS, params=(("after", str(after)),) if after else ())


def dead_letter(name: str, number: int) -> Call[DeadLetterBody]:
    """One dead letter with its packets."""
    return Call("GET", path_of(name, "dead-letters", str(number)), _LETTER)


def redeliver(name: str, *, first: int | None = None, last: int | None = None) -> Call[CountBody]:
    """Tries a range of dead letters again, or all."""
    content = _text(_range_of(first, last))
    return Call("POST", path_of(name, "dead-letters", "redeliver"), _COUNT, headers=_HEADERS, content=content)


def delete_dead_letters(name: str, *, first: int | None = None, last: int | None = None) -> Call[CountBody]:
    """Throws a range of dead letters away, or all that are parked."""
    params = tuple((key, str(value)) for key, value in _range_of(first, last).items())
    return Call("DELETE", path_of(name, "dead-letters"), _COUNT, params=params)


def fetch(name: str, count: int, wait_s: float) -> Call[FetchBody]:
    """Not repeatable: what a lost answer leased comes again when its leases end."""
    content = _text({"max": count, "wait": str(Duration(wait_s))})
    return Call(
        "POST", path_of(name, "fetch"), _FETCHED, headers=_HEADERS, content=content, is_repeatable=False, hold_s=wait_s
    )


def settle(
    name: str, verb: str, leases: Sequence[str], delay_s: float | None = None, *,
    reply: Mapping[str, Any] | None = None,
) -> Call[LeasesBody]:  # fmt: skip
    """ack, nack or extend."""
    members: dict[str, Any] = {"leases": list(leases)}
    if reply is not None:
        members["reply"] = reply
    if delay_s is not None:
        members["delay"] = str(Duration(delay_s))
    return Call("POST", path_of(name, verb), _LEASES, headers=_HEADERS, content=_text(members), is_repeatable=False)


def agents() -> Call[AgentsBody]:
    """How the switch of all agents stands."""
    return Call("GET", AGENTS, _AGENTS)


def switch_agents(*, is_paused: bool) -> Call[AgentsBody]:
    """Pauses all agents, or has them go on."""
    return Call("POST", f"{AGENTS}/{'pause' if is_paused else 'resume'}", _AGENTS)


def _range_of(first: int | None, last: int | None) -> dict[str, int]:
    return {key: value for key, value in (("from", first), ("to", last)) if value is not None}


def _nothing(answer: Answer) -> None:
    return None


def _only(if_match: str) -> tuple[tuple[str, str], ...]:
    return (("If-Match", if_match),) if if_match else ()


def _text(value: Any) -> bytes:
    return msgspec.json.encode(value)

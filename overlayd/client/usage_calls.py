"""The requests about usage and quotas as values (calls.py)."""

from urllib.parse import quote

import msgspec

from overlayd.client.calls import JSON, Call, decoder_of
from overlayd.model.quota import QuotaPolicy
from overlayd.model.wire_usage import DeliveryList, PolicyList, QuotaBody, UsageBody

_USAGE = decoder_of(UsageBody)
_DELIVERIES = decoder_of(DeliveryList)
_QUOTA = decoder_of(QuotaBody)
_POLICY = decoder_of(QuotaPolicy)
_POLICIES = decoder_of(PolicyList)


def usage(
    *, principal: str = "", stream: str = "", method: str = "", from_: str = "", to: str = "", by: str = "",
    limit: int = 0, after: str = "",
) -> Call[UsageBody]:  # fmt: skip
    """One page of what was published, read and delivered."""
    named = [("principal", principal), ("stream", stream), ("method", method), ("from", from_), ("to", to), ("by", by)]
    named += [("limit", str(limit or "")), ("after", after)]
    return Call("GET", "/v1/usage", _USAGE, params=_given(named))


def deliveries(*, principal: str = "", stream: str = "", limit: int = 0, before: int = 0) -> Call[DeliveryList]:
    """Deliveries that are over, the newest first."""
    named = [("principal", principal), ("stream", stream), ("limit", str(limit or "")), ("before", str(before or ""))]
    return Call("GET", "/v1/usage/deliveries", _DELIVERIES, params=_given(named))


def quota(principal: str = "") -> Call[QuotaBody]:
    """What somebody used and has left; without a name, oneself."""
    return Call("GET", "/v1/quotas", _QUOTA, params=_given([("principal", principal)]))


def quota_policies() -> Call[list[QuotaPolicy]]:
    """All quota policies, by name."""
    return Call("GET", "/v1/quotas/policies", lambda answer: _POLICIES(answer).policies)


def put_quota_policy(policy: QuotaPolicy) -> Call[QuotaPolicy]:
    """Creates a policy, or changes it."""
    content = msgspec.json.encode(policy)
    return Call("PUT", _policy_path(policy.name), _POLICY, headers=(("Content-Type", JSON),), content=content)


def delete_quota_policy(name: str) -> Call[None]:
    """Takes a policy away."""
    return Call("DELETE", _policy_path(name), lambda answer: None, is_repeatable=False)


def _policy_path(name: str) -> str:
    return f"/v1/quotas/policies/{quote(name, safe='')}"


def _given(named: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in named if value)

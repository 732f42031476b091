"""Who asks, and what they may do."""

from overlayd.access.origin import AccessRules, Peer, judge_request
from overlayd.access.principal import Principal, StreamFacts, may, may_some, require, require_some
from overlayd.access.scopes import Right

__all__ = [
    "AccessRules", "Peer", "Principal", "Right", "StreamFacts", "judge_request", "may", "may_some", "require",
    "require_some",
]  # fmt: skip

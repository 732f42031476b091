"""Who asks, and what they may do."""

from overlayd.access.origin import AccessRules, Peer, judge_request
from overlayd.access.principal import Principal, Right, require

__all__ = ["AccessRules", "Peer", "Principal", "Right", "judge_request", "require"]

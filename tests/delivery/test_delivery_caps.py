"""Caps of live sessions: in all, per address, per principal."""

import pytest

from overlayd.delivery.session import Registry
from overlayd.model.clock import Entropy, SystemClock
from overlayd.model.errors import LimitReached
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics


@pytest.mark.parametrize("limit", ["sessions_max", "sessions_per_address", "sessions_per_principal"])
def test_a_cap_is_hit_counted_and_given_back(limit: str) -> None:
    """The session over the cap is refused and counted; when another ends, there is room again."""
    metrics = Metrics()
    registry = Registry(limits=Limits(**{limit: 2}), clock=SystemClock(), entropy=Entropy(), metrics=metrics)
    first = registry.enter("sse", "loopback", "127.0.0.1")
    registry.enter("sse", "loopback", "127.0.0.1")
    with pytest.raises(LimitReached) as refused:
        registry.enter("sse", "loopback", "127.0.0.1")
    assert refused.value.subject == limit
    assert metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": limit}) == 1
    registry.leave(first)
    registry.enter("sse", "loopback", "127.0.0.1")
    if limit == "sessions_per_principal":
        registry.enter("sse", "unix:0", "127.0.0.1")
    if limit == "sessions_per_address":
        registry.enter("sse", "loopback", "127.0.0.2")

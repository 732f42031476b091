"""Slows down addresses that keep coming with wrong credentials, in a bounded table.

A secret can't be found by guessing; what is protected is the node's time and the readability of its records. So a
right credential that is cheap to look up still gets in from an address that is being slowed down: otherwise one
misconfigured client would lock out everybody behind the same proxy.
"""

import math
from collections import OrderedDict
from collections.abc import Callable

from overlayd.access.rates import address_group
from overlayd.access.settings import AccessSettings
from overlayd.model.errors import LimitReached, Rate
from overlayd.model.metrics import Metrics

LIMIT = "failures_per_address"


class FailureBook:
    """Failures by address. Each is forgiven after a while; an address that has too many left is slowed down."""

    def __init__(self, settings: AccessSettings, metrics: Metrics, now_s: Callable[[], float]) -> None:
        """`now_s`: monotonic seconds."""
        self._burst = settings.failures_per_address
        self._interval_s = float(settings.failure_forgiven)
        self._addresses_max = settings.failure_addresses
        self._metrics = metrics
        self._now_s = now_s
        self._forgiven_at: OrderedDict[str, float] = OrderedDict()
        addresses = metrics.gauge("overlayd_access_failing_addresses", "Addresses whose wrong credentials count")
        addresses.set_function(lambda: len(self._forgiven_at))

    def __repr__(self) -> str:
        return f"FailureBook(addresses={len(self._forgiven_at)})"

    def wait_s(self, address: str) -> float:
        """How long the address has to wait before a wrong credential is looked at again; 0 for not at all."""
        forgiven_at = self._forgiven_at.get(address_group(address))
        if forgiven_at is None:
            return 0.0
        return max(0.0, forgiven_at - self._now_s() - (self._burst - 1) * self._interval_s)

    def note(self, address: str) -> None:
        """A wrong credential came from the address."""
        group, now = address_group(address), self._now_s()
        self._forgiven_at[group] = max(self._forgiven_at.get(group, now), now) + self._interval_s
        self._forgiven_at.move_to_end(group)
        while self._forgiven_at:
            oldest = next(iter(self._forgiven_at))
            is_full = len(self._forgiven_at) > self._addresses_max
            if self._forgiven_at[oldest] > now and not is_full:
                break
            if is_full and self._forgiven_at[oldest] > now:
                self._metrics.count_limit_hit("failure_addresses")
            del self._forgiven_at[oldest]

    def refusal(self, address: str, wait_s: float) -> LimitReached:
        """What an address is told that has to wait."""
        self._metrics.count_limit_hit(LIMIT)
        window_s = max(1, math.ceil(self._burst * self._interval_s))
        return LimitReached(
            f"too many wrong credentials came from {address}", subject=LIMIT, retry_after_s=wait_s,
            hint="wait, and send a credential that counts",
        ).with_rate(Rate(LIMIT, self._burst, window_s, 0, wait_s))  # fmt: skip

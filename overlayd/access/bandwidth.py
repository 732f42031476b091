"""The bandwidth of a quota policy: bytes in a second, over everything that an account sends and is sent.

What was used counts when it is known, and whoever is ahead of the rate waits: live sessions and uploads by going on later,
other requests by 429. An account may be ahead by `AHEAD_S` and by what is one piece anyway (a body, an answer, a frame).
"""

import math
from collections.abc import Mapping
from typing import Protocol

import trio

from overlayd.access.quotas import Account
from overlayd.model.errors import LimitReached, Rate
from overlayd.model.quota import QuotaPolicy

LIMIT = "max_bandwidth_mbps"
AHEAD_S = 1.0
LOOK_S = 1.0
"""Who waits looks so often whether the policy is another one, or nobody may go on."""
_BYTES_PER_MBIT = 125_000


class Policies(Protocol):
    """Policies as they are now, by name."""

    @property
    def policies(self) -> Mapping[str, QuotaPolicy]: ...


class Bandwidth:
    """One account's pace. Every call takes the same few steps."""

    __slots__ = ("_account", "_book")

    def __init__(self, account: Account, book: Policies) -> None:
        self._account = account
        self._book = book

    def wait_s(self) -> float:
        """How long until the account is no more than `AHEAD_S` ahead of its rate; 0 for not at all."""
        self._reckon(self._mbps())
        return max(0.0, self._account.paid_until_s - trio.current_time() - AHEAD_S)

    def spend(self, size: int) -> None:
        """Bytes were sent or taken."""
        mbps = self._mbps()
        self._reckon(mbps)
        if mbps:
            began_s = max(self._account.paid_until_s, trio.current_time())
            self._account.paid_until_s = began_s + size / (mbps * _BYTES_PER_MBIT)

    def _mbps(self) -> float:
        """What holds now; 0 for no bound."""
        policy = self._book.policies.get(self._account.policy)
        return 0.0 if policy is None else policy.max_bandwidth_mbps

    def _reckon(self, mbps: float) -> None:
        """At another rate what was sent takes another time: whoever's policy was widened doesn't wait by the old one."""
        account, now = self._account, trio.current_time()
        if account.paid_mbps == mbps:
            return
        owed_s = max(0.0, account.paid_until_s - now)
        account.paid_until_s = now + owed_s * account.paid_mbps / mbps if mbps else 0.0
        account.paid_mbps = mbps

    def refusal(self, wait_s: float) -> LimitReached:
        """What a request is told that comes too early."""
        mbps = self._mbps()
        quota = max(1, math.ceil(mbps * _BYTES_PER_MBIT))
        return LimitReached(
            f"{self._account.name} has used more than {mbps:g} Mbit/s (policy {self._account.policy})", subject=LIMIT,
            hint="wait as long as Retry-After says", retry_after_s=wait_s,
        ).with_rate(Rate(LIMIT, quota, 1, 0, wait_s))  # fmt: skip

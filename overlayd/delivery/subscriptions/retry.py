"""When a failed delivery is tried again: exponentially with jitter, or after the pauses of a schedule."""

import random

import msgspec
from msgspec import UNSET, UnsetType

from overlayd.model.subscription import Ordering, RetryRule

STANDARD_SCHEDULE_S = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""Pauses of the Standard Webhooks specification: ten attempts within about three days."""

ORDERED_SCHEDULE_S = (1.0, 5.0, 15.0, 60.0, 180.0, 600.0, 1800.0)
"""Eight attempts within an hour, jitter and timeouts included: what follows in the stream waits for each of them."""

SCHEDULE_JITTER = 0.1
"""A schedule's pauses become longer by up to this part of them, so that receivers don't get everything at once."""

RETRY_AFTER_MAX_S = 86_400.0
"""A receiver that asks for a longer pause gets this one."""

DEFAULT_RETRIES = 9
DEFAULT_BACKOFF_S = 5.0
DEFAULT_MAX_BACKOFF_S = 3600.0


class RetryPolicy(msgspec.Struct, frozen=True):
    """Attempts are counted from 1. `schedule_s`: the pause after each but the last; empty: exponential."""

    max_attempts: int
    schedule_s: tuple[float, ...] = ()
    backoff_s: float = 0.0
    max_backoff_s: float = 0.0
    has_jitter: bool = True

    def pause_s(self, attempts: int, chance: random.Random) -> float | None:
        """Seconds to wait after so many failed attempts; None when that was the last."""
        if attempts >= self.max_attempts:
            return None
        if self.schedule_s:
            return self.schedule_s[attempts - 1] * (1.0 + SCHEDULE_JITTER * chance.random())
        ceiling = self._ceiling_s(attempts)
        return chance.random() * ceiling if self.has_jitter else ceiling

    def pause_max_s(self, attempts: int) -> float:
        """The longest pause that can follow so many attempts. A clock that jumped makes nobody wait longer."""
        if not 0 < attempts < self.max_attempts:
            return 0.0
        longest = (
            self.schedule_s[attempts - 1] * (1 + SCHEDULE_JITTER) if self.schedule_s else self._ceiling_s(attempts)
        )
        return max(longest, RETRY_AFTER_MAX_S)

    def _ceiling_s(self, attempts: int) -> float:
        return min(self.max_backoff_s, self.backoff_s * 2.0 ** min(attempts - 1, 64))


def policy_of(rule: RetryRule | UnsetType, ordering: Ordering) -> RetryPolicy:
    """What the rule says; without one, what goes with the ordering."""
    if rule is UNSET or rule == RetryRule():
        schedule = STANDARD_SCHEDULE_S if ordering == "none" else ORDERED_SCHEDULE_S
        return RetryPolicy(len(schedule) + 1, schedule)
    if rule.schedule is not UNSET:
        return RetryPolicy(len(rule.schedule) + 1, tuple(float(pause) for pause in rule.schedule))
    return RetryPolicy(
        max_attempts=1 + (DEFAULT_RETRIES if rule.max_retries is UNSET else rule.max_retries),
        backoff_s=DEFAULT_BACKOFF_S if rule.backoff is UNSET else float(rule.backoff),
        max_backoff_s=DEFAULT_MAX_BACKOFF_S if rule.max_backoff is UNSET else float(rule.max_backoff),
        has_jitter=rule.jitter is UNSET or rule.jitter == "full",
    )

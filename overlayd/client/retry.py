"""How often and how patiently a request or a connection is tried again."""

import random

import msgspec

from overlayd.model.errors import ApiProblem, CommitFailed, NodeUnreachable, OverlaydError, StreamPaused


class RetryPolicy(msgspec.Struct, frozen=True):
    """Exponential pauses with jitter between `first_s` and `max_s`. `attempts` counts the first one too."""

    attempts: int = 5
    first_s: float = 0.2
    max_s: float = 30.0


ONCE = RetryPolicy(attempts=1)


class Backoff:
    """The pauses of one effort: the next one is up to twice as long as the last.

    Each is drawn from the upper half of its range, so that clients that lost the same node come back spread out.
    """

    def __init__(self, policy: RetryPolicy, chance: random.Random) -> None:
        self._policy = policy
        self._chance = chance
        self._next_s = policy.first_s
        self.count = 0

    @property
    def is_spent(self) -> bool:
        """Whether as many attempts as allowed have failed."""
        return self.count >= self._policy.attempts

    def reset(self) -> None:
        """Something worked; the next failure is the first again."""
        self._next_s = self._policy.first_s
        self.count = 0

    def fail(self, retry_after_s: float | None = None) -> float:
        """Counts a failure; the seconds to wait, at least what the node asked for (up to `max_s`)."""
        self.count += 1
        pause_s = self._next_s * (0.5 + self._chance.random() / 2)
        self._next_s = min(self._next_s * 2, self._policy.max_s)
        return pause_s + min(retry_after_s or 0.0, self._policy.max_s)


def is_worth_repeating(error: OverlaydError, *, is_repeatable: bool) -> bool:
    """Whether the same request may be sent again after `error`.

    `is_repeatable`: doing it twice is the same as doing it once. If it isn't, only an error that proves that
    nothing was done lets it be sent again. A failed commit proves nothing: the disk may hold the packets. And an
    upload that broke off says how many packets were taken by then.
    """
    if not is_repeatable and error.extra.get("accepted"):
        return False
    if isinstance(error, NodeUnreachable):
        return is_repeatable or not error.is_sent
    if isinstance(error, ApiProblem):
        return error.is_retryable and is_repeatable
    if isinstance(error, StreamPaused):  # a person's decision, which outlasts our patience
        return False
    return error.retryable and (is_repeatable or not isinstance(error, CommitFailed))

"""How fast one subscription is served, and how much of the node it may use."""

import math

import msgspec

TROUBLED_FAILURES = 3
TOGETHER_S = 0.25


class NodePlaces:
    """Deliveries in flight on the node. Each subscription may always have one; what goes beyond is shared, so that
    however many endpoints hang, everybody else goes on."""

    def __init__(self, extra: int) -> None:
        self._free = extra

    def take_extra(self) -> bool:
        """Whether there was a place; give it back with `give_extra`."""
        if self._free <= 0:
            return False
        self._free -= 1
        return True

    def give_extra(self) -> None:
        self._free += 1

    @property
    def free(self) -> int:
        return self._free


class TroubledTurns:
    """When endpoints that keep failing are tried again: so many a second, all of them together, one after the other. The
    more there are, the longer each waits; what the node spends on them stays the same. Those who wait begin together, a
    few times a second: the event loop's turns and the commits that they share cost less than half."""

    def __init__(self, per_s: int) -> None:
        self._each_s = 1.0 / per_s
        self._last_at = -math.inf

    def next_at(self, now: float) -> float:
        """Draws a turn: when it is."""
        self._last_at = max(now, self._last_at + self._each_s)
        return now if self._last_at == now else math.ceil(self._last_at / TOGETHER_S) * TOGETHER_S


class Window:
    """Deliveries of one subscription in flight: one more with each success, up to `most`; one after a failure."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.size = 1

    def note(self, *, is_success: bool) -> None:
        self.size = min(self._most, self.size + 1) if is_success else 1


class Pace(msgspec.Struct):
    """At most `per_second` attempts, a tenth of a second's worth of them at once."""

    per_second: float | None
    level: float = 0.0
    at: float = -math.inf

    def ready_at(self, now: float) -> float:
        """When the next attempt may begin."""
        if self.per_second is None:
            return now
        burst = max(1.0, self.per_second / 10)
        self.level = min(burst, self.level + (now - self.at) * self.per_second)
        self.at = now
        return now if self.level >= 1.0 - 1e-9 else now + (1.0 - self.level) / self.per_second

    def take(self) -> None:
        """An attempt begins."""
        self.level -= 1.0


class Service(msgspec.Struct):
    """What lasts from one worker of a subscription to the next. `held_until`: nothing is begun before then.
    `failed_at`: when the last attempt failed, None when it didn't, or when that was before a restart. `failures`: one
    after the other."""

    window: Window
    pace: Pace
    held_until: float = -math.inf
    failed_at: float | None = None
    failures: int = 0

    @property
    def is_troubled(self) -> bool:
        """Whether the endpoint fails again and again: then others go first."""
        return self.failures >= TROUBLED_FAILURES

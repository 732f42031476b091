"""What holds an agent back: runs an hour, runs and bytes a day. Pure; wall time is the caller's.

Hours and days are the calendar's (UTC). A clock that jumps can lengthen a hold by no more than the window itself.
"""

import msgspec
from msgspec import UNSET

from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.subscription import AgentRule

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US


class RunCount(msgspec.Struct, array_like=True, frozen=True):
    """What an agent has used. `hour`, `day`: which one since 1970 the numbers are about. `coalesced` packets were
    settled because a newer one of their key waited; `replies` are packets that it replied with."""

    hour: int = 0
    hour_runs: int = 0
    day: int = 0
    day_runs: int = 0
    day_bytes: int = 0
    coalesced: int = 0
    replies: int = 0

    def at(self, now_us: int) -> "RunCount":
        """The numbers of the hour and the day that it is now."""
        hour, day = now_us // HOUR_US, now_us // DAY_US
        found = self if hour == self.hour else msgspec.structs.replace(self, hour=hour, hour_runs=0)
        return found if day == found.day else msgspec.structs.replace(found, day=day, day_runs=0, day_bytes=0)

    def with_run(self, now_us: int) -> "RunCount":
        """One more delivery."""
        now = self.at(now_us)
        return msgspec.structs.replace(now, hour_runs=now.hour_runs + 1, day_runs=now.day_runs + 1)

    def with_bytes(self, now_us: int, size: int) -> "RunCount":
        """So many bytes more, given or replied."""
        now = self.at(now_us)
        return msgspec.structs.replace(now, day_bytes=now.day_bytes + size)


def count_hold(metrics: Metrics, hold: "Hold") -> None:
    """Counts what held an agent back."""
    if hold.brake == "runs_per_hour":
        metrics.count_limit_hit("agent_runs_per_hour")
    elif hold.brake == "runs_per_day":
        metrics.count_limit_hit("agent_runs_per_day")
    else:
        metrics.count_limit_hit("agent_bytes_per_day")


class Hold(msgspec.Struct, frozen=True):
    """Nothing is begun for so long, because this is used up: `runs_per_hour`, `runs_per_day` or `bytes_per_day`."""

    wait_s: float
    brake: str


class Brakes:
    """One agent's bounds: its definition's, within the node's."""

    def __init__(self, rule: AgentRule, limits: Limits) -> None:
        self.runs_per_hour = _smaller(rule.runs_per_hour, limits.agent_runs_per_hour)
        self.runs_per_day = _smaller(rule.runs_per_day, limits.agent_runs_per_day)
        self.bytes_per_day = _smaller(rule.bytes_per_day, limits.agent_bytes_per_day)

    def hold(self, runs: RunCount, now_us: int) -> Hold | None:
        """Why nothing may be begun now; None when it may. The longest hold counts."""
        now = runs.at(now_us)
        to_day, to_hour = (DAY_US - now_us % DAY_US) / 1e6, (HOUR_US - now_us % HOUR_US) / 1e6
        if now.day_runs >= self.runs_per_day:
            return Hold(to_day, "runs_per_day")
        if now.day_bytes >= self.bytes_per_day:
            return Hold(to_day, "bytes_per_day")
        if now.hour_runs >= self.runs_per_hour:
            return Hold(to_hour, "runs_per_hour")
        return None


def _smaller(asked: int | msgspec.UnsetType, most: int) -> int:
    return int(most) if asked is UNSET else min(int(asked), int(most))

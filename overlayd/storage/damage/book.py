"""What the node knows to be damaged: told by /readyz, the metrics, the log file and the node's own events."""

from collections.abc import Awaitable, Callable

import msgspec
import structlog
import trio

from overlayd.model.errors import DamagedEntry, OverlaydError
from overlayd.model.metrics import Metrics
from overlayd.storage.damage.known_loss import Runs, is_in_runs, join_runs
from overlayd.storage.damage.mending import RUNS_SHOWN, Mending
from overlayd.storage.errors import says_damage

RUNS_MAX = 1000
"""Runs of offsets that are told apart; what is found beyond them is only counted."""
_log = structlog.get_logger("storage.damage")

Announce = Callable[[str, dict[str, object]], Awaitable[None]]
"""Tells the node's own events: type and data."""


class DamageBook:
    """Runs of offsets that can't be served, those that a start found included."""

    def __init__(self, lost: Runs, mending: Mending | None, metrics: Metrics) -> None:
        """`lost`: on record since earlier; `mending`: what this start did."""
        self._runs = lost
        self._mending = mending
        self._is_started = False
        self._news: Runs = []
        self._is_news = trio.Event()
        self._found = metrics.counter("overlayd_damage_found", "Runs of damaged entries that readers came upon")
        metrics.gauge("overlayd_damaged_entries", "Entries that are known to be lost or not to verify").set_function(
            lambda: self.count
        )
        metrics.gauge("overlayd_mended", "1 when this start had to mend the database").set(mending is not None)

    def __repr__(self) -> str:
        return f"DamageBook(runs={self._runs[:5]}, count={self.count})"

    @property
    def count(self) -> int:
        """How many entries these are."""
        return sum(high - low + 1 for low, high in self._runs)

    @property
    def runs(self) -> Runs:
        """Ascending, inclusive."""
        return list(self._runs)

    def note(self, low: int, high: int) -> None:
        """A reader came upon a run. Returns at once; it is told soon after, and once."""
        if is_in_runs(self._runs, low) and is_in_runs(self._runs, high):
            return
        self._found.inc()
        joined = join_runs([*self._runs, (low, high)])
        if len(joined) <= RUNS_MAX:
            self._runs = joined
        _log.error("damaged entries", low=low, high=high)
        if len(self._news) < RUNS_SHOWN:
            self._news.append((low, high))
            self._is_news.set()

    def settle(self) -> None:
        """The node has started: what its features had stored could be read."""
        self._is_started = True

    def is_told_by(self, failure: BaseException) -> bool:
        """Whether a start failed over rows that can't be what was stored, and mending wasn't tried yet."""
        return not self._is_started and self._mending is None and _is_unreadable(failure)

    def describe(self) -> str:
        """For /readyz."""
        if not self._runs and self._mending is None:
            return "no damage is known"
        shown = ", ".join(f"{low}" if low == high else f"{low}-{high}" for low, high in self._runs[:RUNS_SHOWN])
        more = " and more" if len(self._runs) > RUNS_SHOWN else ""
        text = f"DEGRADED: {self.count} entries can't be served: {shown}{more}" if self._runs else "no entry is lost"
        if self._mending is not None:
            text += f"; the database was mended at this start, the damaged files are in {self._mending.kept_in}"
            if self._mending.damaged_tables:
                text += f", rows of {', '.join(self._mending.damaged_tables)} may be missing"
        return text

    async def run(self, announce: Announce) -> None:
        """Tells the node's events what is found, until cancelled."""
        if self._mending is not None:
            mending = self._mending
            await _tell(announce, "storage.mended", {
                "reason": mending.reason, "kept_in": mending.kept_in, "lost": mending.lost_count,
                "missing": mending.missing[:RUNS_SHOWN], "content_lost": mending.hollow[:RUNS_SHOWN],
                "new_epoch": mending.new_epoch, "tables": mending.damaged_tables,
            })  # fmt: skip
        while True:
            await self._is_news.wait()
            self._is_news = trio.Event()
            news, self._news = join_runs(self._news), []
            await _tell(announce, "storage.damaged", {"runs": news, "known": self.count})


def _is_unreadable(failure: BaseException) -> bool:
    if isinstance(failure, BaseExceptionGroup):
        return any(_is_unreadable(member) for member in failure.exceptions)
    return says_damage(failure) or isinstance(failure, msgspec.DecodeError | DamagedEntry)


async def _tell(announce: Announce, type: str, data: dict[str, object]) -> None:
    try:
        await announce(type, data)
    except OverlaydError as error:
        _log.warning("not told in the node's events", type=type, error=error.detail)

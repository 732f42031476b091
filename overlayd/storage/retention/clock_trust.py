"""Whether the clock can be believed when packets are called old: a wrong one would take everything away."""

import sqlite3
from collections.abc import Awaitable, Callable

import structlog

from overlayd.model.bodies import ClockStep

STEP_US = 86_400_000_000
"""A step of more than a day makes the clock doubtful."""

_KEY = "clock_doubt"
_log = structlog.get_logger("storage.retention")


class ClockTrust:
    """Doubt comes with a step of more than a day and stays, over restarts, until a time source or an admin settles it; a
    clock that the system calls unsynchronized is doubtful as long as it says so. Where the system says nothing, only
    steps count."""

    def __init__(self, *, is_always: bool, synced: bool | None) -> None:
        """`is_always`: `[retention] trust_clock`."""
        self._is_always = is_always
        self._synced = synced
        self.has_doubt = False
        """A step that nobody has settled yet."""

    @property
    def is_trusted(self) -> bool:
        return self._is_always or not (self.has_doubt or self._synced is False)

    @property
    def trouble(self) -> str:
        """Why it isn't trusted, for people; "" when it is."""
        if self.is_trusted:
            return ""
        return "the clock stepped by more than a day" if self.has_doubt else "the clock isn't synchronized"

    def load(self, connection: sqlite3.Connection) -> None:
        """Blocking: what an earlier run left."""
        row = connection.execute("SELECT value FROM state WHERE key = ?", (_KEY,)).fetchone()
        self.has_doubt = bool(row and row[0])

    def note(self, step: ClockStep) -> bool:
        """A step, or a change of synchronization; whether what is stored must change (`store`)."""
        before = self.has_doubt
        is_settled = self._synced is False and step.clock_synced is True
        if step.clock_synced is not None:
            self._synced = step.clock_synced
        if is_settled:  # a time source has just set it, by however much
            self.has_doubt = False
        elif abs(step.step_us) > STEP_US:
            self.has_doubt = True
        if self.has_doubt != before:
            _log.warning("trust in the clock changed", trusted=self.is_trusted, step_us=step.step_us)
        return self.has_doubt != before

    async def settle(self, write: Callable[[Callable[[sqlite3.Connection], None]], Awaitable[None]]) -> None:
        """An admin says that the clock is right. Checkpoint."""
        self.has_doubt = False
        await write(self.store)

    def store(self, connection: sqlite3.Connection) -> None:
        """In the writer's transaction."""
        connection.execute("INSERT OR REPLACE INTO state (key, value) VALUES (?, ?)", (_KEY, int(self.has_doubt)))

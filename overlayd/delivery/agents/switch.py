"""The switch that pauses all agents of the node at once, and stays as it was put over restarts."""

import sqlite3
from collections.abc import Sequence

import msgspec
import trio

from overlayd.delivery.subscriptions.parts import DurableSubscriptions
from overlayd.delivery.subscriptions.rounds import write_whole
from overlayd.model.clock import Clock
from overlayd.storage import Log
from overlayd.storage.migrations import Feature
from overlayd.storage.own import OwnPacket

FEATURE = Feature(
    "agents",
    (
        """
CREATE TABLE agent_switch (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    is_paused INTEGER NOT NULL,
    since_us INTEGER NOT NULL,
    principal TEXT NOT NULL  -- who put it so
) STRICT;
""",
    ),
)


class SwitchState(msgspec.Struct, frozen=True):
    """How it stands; `since_us` is 0 where nobody ever touched it."""

    is_paused: bool = False
    since_us: int = 0
    principal: str = ""


class AgentSwitch:
    """Pauses all agents, or lets them go on. What is in flight ends as it ends, its reply included."""

    def __init__(self, log: Log, durable: DurableSubscriptions, clock: Clock) -> None:
        self._log = log
        self._durable = durable
        self._clock = clock
        self.state = SwitchState()
        self._putting = trio.Lock()

    async def load(self) -> None:
        """Puts it as it was, before subscriptions are read back. Checkpoint."""
        self.state = await self._log.read(_read)
        self._durable.engine.hold_agents(self.state.is_paused)

    async def put(self, is_paused: bool, principal: str, own: Sequence[OwnPacket] = ()) -> SwitchState:
        """Durable when it returns, and `own`, which tells about it, with it. As it is already: nothing changes, and
        nothing is told. Checkpoint. Raises as `Log.write`."""
        async with self._putting:
            if is_paused == self.state.is_paused:
                return self.state
            state = SwitchState(is_paused, self._clock.now_us(), principal)
            await write_whole(self._log, lambda connection: _write(connection, state), own)
            self.state = state
            self._durable.engine.hold_agents(is_paused)
        if is_paused:
            for subscription in self._durable.engine.subscriptions.values():
                if subscription.is_held:
                    self._durable.live.withdraw(subscription)
        return state

    @property
    def agents(self) -> int:
        """Agents on the node."""
        return sum(one.definition.kind == "agent" for one in self._durable.engine.subscriptions.values())


def _read(connection: sqlite3.Connection) -> SwitchState:
    row = connection.execute("SELECT is_paused, since_us, principal FROM agent_switch").fetchone()
    return SwitchState() if row is None else SwitchState(bool(row[0]), row[1], row[2])


def _write(connection: sqlite3.Connection, state: SwitchState) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO agent_switch VALUES (1, ?, ?, ?)",
        (int(state.is_paused), state.since_us, state.principal),
    )

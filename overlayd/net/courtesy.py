"""Bulk work rests while single packets are published.

A packet on its way from its socket to the disk and back needs a few rounds of the event loop, and each round takes as
long as everything else that is ready in it. So whoever holds the loop for milliseconds at a time (routes of the
framework, pages of a scan, groups of an upload) rests afterwards for as long as it worked, but only while somebody
publishes single packets: those then find an idle loop at least half of the time.
"""

import trio

RECENT_S = 0.1
"""Single packets count as being published so long after the last one."""
REST_MAX_S = 0.01
"""The longest rest after one piece of work."""
WAIT_MAX_S = 0.03
"""The longest wait before one piece of work, the others' work included."""


class Courtesy:
    """Who published when, and how long bulk work rests for it. One for the node."""

    def __init__(self) -> None:
        self._published_at = float("-inf")
        self._rest_until = float("-inf")
        self._working = 0
        self._ended = trio.Event()

    def __repr__(self) -> str:
        return f"Courtesy(working={self._working}, rest_until={self._rest_until})"

    def note_packet(self, now: float) -> None:
        """A single packet came. `now`: of Trio's clock."""
        self._published_at = now

    async def begin(self) -> None:
        """Before a piece of bulk work, which is to be followed by `end`. While packets are published it waits until
        nobody else is at such a piece, and then rests; but not for long, because what they wait for may be held by
        who begins here. A checkpoint only if it waits."""
        if self._is_publishing():
            with trio.move_on_after(WAIT_MAX_S):
                await self._wait_turn()
        self._working += 1

    async def _wait_turn(self) -> None:
        while self._is_publishing():
            if self._working:
                await self._ended.wait()
            elif trio.current_time() < self._rest_until:
                await trio.sleep_until(self._rest_until)
            else:
                return

    def end(self, seconds: float) -> None:
        """A piece of bulk work is done, and took so long; the next one is to rest as long."""
        self._working -= 1
        self._ended.set()
        self._ended = trio.Event()
        if self._is_publishing():
            self._rest_until = trio.current_time() + min(seconds, REST_MAX_S)

    def _is_publishing(self) -> bool:
        return trio.current_time() - self._published_at < RECENT_S

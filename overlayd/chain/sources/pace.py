"""Keeps to a source's rate: requests are spread evenly, and whoever would have to wait too long is told so."""

from collections.abc import Callable

import trio

from overlayd.chain.sources.faults import Fault, unavailable


class Pace:
    """So many requests a second, evenly spaced, so that no second ever sees more."""

    def __init__(
        self, source: str, requests_per_s: float, *, wait_max_s: float, on_full: Callable[[], None] = lambda: None
    ) -> None:
        assert requests_per_s > 0
        self._source = source
        self._step_s = 1.0 / requests_per_s
        self._wait_max_s = wait_max_s
        self._on_full = on_full
        self._next_s = 0.0

    @property
    def wait_s(self) -> float:
        """How long a request that comes now would wait."""
        return max(0.0, self._next_s - trio.current_time())

    async def take(self) -> None:
        """Waits for this request's turn. A checkpoint. Raises SourceUnavailable when that would take too long."""
        wait_s = self.wait_s
        if wait_s > self._wait_max_s:
            self._on_full()
            raise unavailable(
                Fault.BUSY, f"its rate allows the next request in {wait_s:.1f} s only", source=self._source,
                retry_after_s=wait_s,
            )  # fmt: skip
        self._next_s = max(self._next_s, trio.current_time()) + self._step_s
        await trio.sleep(wait_s)

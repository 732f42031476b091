"""Keys that an issuer publishes at a URL: fetched beside everything else, kept through an outage for a bounded time.

Nobody waits for a fetch but who brings a key that isn't known yet. That makes the node fetch at most once in a while,
so that made-up tokens don't make it knock at the issuer's door.
"""

import random
from collections.abc import Awaitable, Callable

import structlog
import trio

from overlayd.access.jwt.keys import IssuerKey, choose, parse_key_set
from overlayd.access.jwt.settings import JwtSettings
from overlayd.access.settings import AccessSettings
from overlayd.model.errors import IssuerUnavailable, OutboundFailure
from overlayd.model.metrics import Metrics

Fetch = Callable[[str, tuple[str, ...]], Awaitable[bytes]]
"""The document at a URL, which may lead into these private networks. Raises OutboundFailure."""
RETRY_FIRST_S = 5.0
_LIMITS = {"timeout": "jwks_timeout", "too_large": "jwks_bytes"}
"""By what ended a fetch."""
_log = structlog.get_logger("access.jwt")


class PublishedKeys:
    """The keys of one issuer. `run` fetches them; before its first success there are none."""

    def __init__(
        self, issuer: JwtSettings, settings: AccessSettings, fetch: Fetch, *, on_change: Callable[[], None],
        chance: random.Random, metrics: Metrics,
    ) -> None:  # fmt: skip
        """`on_change`: called when keys have gone, whose tokens then count no more."""
        self._issuer = issuer
        self._settings = settings
        self._fetch = fetch
        self._on_change = on_change
        self._chance = chance
        self._metrics = metrics
        self._keys: dict[str, IssuerKey] = {}
        self._fetched_s = 0.0
        self._asked_s = float("-inf")
        self._is_asked = trio.Event()
        self._is_done = trio.Event()
        self._life = trio.CancelScope()
        fetches = metrics.counter(
            "overlayd_access_jwks_fetches", "Times that an issuer's keys were fetched", "issuer", "outcome"
        )
        self._fetches = {outcome: fetches.labels(issuer.name, outcome) for outcome in ("fetched", "failed")}

    def __repr__(self) -> str:
        return f"PublishedKeys({self._issuer.name!r}, keys={len(self._keys)})"

    def find(self, id: str) -> tuple[IssuerKey, ...]:
        """As `IssuerKeys`."""
        return choose(self._keys.values(), id)

    async def want(self, id: str) -> None:
        """As `IssuerKeys`. Waits for a fetch that is due, never for one that was made lately."""
        now = trio.current_time()
        if now - self._asked_s >= self._settings.jwks_refetch_min:
            self._asked_s = now
            self._is_asked.set()
        elif not self._is_asked.is_set():
            self._metrics.count_limit_hit("jwks_refetch_min")
        if self._is_asked.is_set():
            with trio.move_on_after(float(self._settings.jwks_timeout)):
                await self._is_done.wait()
        if not self._keys:
            raise IssuerUnavailable(
                f"the keys of {self._issuer.name} can't be had now",
                subject=self._issuer.name,
                retry_after_s=RETRY_FIRST_S,
            )

    def end(self) -> None:
        """As `IssuerKeys`. Ends `run`, too."""
        self._life.cancel()
        gone, self._keys = list(self._keys.values()), {}
        self._end(gone)

    async def run(self) -> None:
        """Fetches the keys now and then, and when a token wants it. Until cancelled, or ended."""
        with self._life:
            await self._keep_fetching()

    async def _keep_fetching(self) -> None:
        wait_s = RETRY_FIRST_S
        while True:
            is_fetched = await self._refresh()
            self._is_asked, done, self._is_done = trio.Event(), self._is_done, trio.Event()
            done.set()
            self._drop_stale()
            if is_fetched:
                wait_s = RETRY_FIRST_S
                pause_s = float(self._settings.jwks_refresh)
            else:
                pause_s = min(wait_s, float(self._settings.jwks_refresh)) * (0.5 + self._chance.random() / 2)
                wait_s = min(2 * wait_s, float(self._settings.jwks_refresh))
            with trio.move_on_after(self._pause_s(pause_s)):
                await self._is_asked.wait()

    async def _refresh(self) -> bool:
        """Whether there are newer keys now. What is wrong is logged."""
        try:
            content = await self._fetch(self._issuer.jwks_url, self._issuer.jwks_allow_private)
            found = parse_key_set(content, self._issuer.algorithm)
            if not found:
                raise ValueError(f"no key for {self._issuer.algorithm} is among them")
        except (OutboundFailure, ValueError) as error:
            reason = str(error)
            if isinstance(error, OutboundFailure) and (limit := _LIMITS.get(error.reason.partition(".")[2])):
                self._metrics.count_limit_hit(limit)
            _log.warning("an issuer's keys can't be fetched", issuer=self._issuer.name, reason=reason)
            self._fetches["failed"].inc()
            return False
        self._fetches["fetched"].inc()
        self._fetched_s = trio.current_time()
        self._take(found)
        return True

    def _take(self, found: list[IssuerKey]) -> None:
        """These are the keys now. One that was there before stays the same, with what it let in."""
        most = self._settings.jwks_keys_max
        if len(found) > most:
            self._metrics.count_limit_hit("jwks_keys_max")
            _log.warning("an issuer has more keys than count", issuer=self._issuer.name, keys=len(found), counted=most)
        before = self._keys
        self._keys = {key.mark: before.get(key.mark, key) for key in found[:most]}
        self._end([key for mark, key in before.items() if mark not in self._keys])

    def _drop_stale(self) -> None:
        if self._keys and trio.current_time() - self._fetched_s >= self._settings.jwks_stale_max:
            self._metrics.count_limit_hit("jwks_stale_max")
            _log.error("an issuer's keys are too old to count", issuer=self._issuer.name)
            gone, self._keys = list(self._keys.values()), {}
            self._end(gone)

    def _end(self, gone: list[IssuerKey]) -> None:
        for key in gone:
            key.standing.ended = "revoked"
        if gone:
            self._on_change()

    def _pause_s(self, pause_s: float) -> float:
        """Not beyond the moment in which the keys are too old."""
        if not self._keys:
            return pause_s
        left_s = self._fetched_s + float(self._settings.jwks_stale_max) - trio.current_time()
        return max(0.0, min(pause_s, left_s))

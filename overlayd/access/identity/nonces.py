"""Nonces of signed requests: each counts once, also over a restart, in bounded memory.

Two ways, `nonce_mode`. By the clock, a nonce is a time: one that is too old or too new isn't taken, and those in between
are remembered until they are too old. What was remembered dies with the process, so the node stores, for each identity, a
time that no nonce it took lies behind (its horizon), ahead of time and in steps; after a restart nonces up to it are
refused. Durably, a nonce is any text, stored for good before the request is looked at.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from hashlib import blake2b, sha256
from typing import Any, Protocol

import structlog
import trio

from overlayd.access.identity.headers import parse_clock_nonce
from overlayd.access.identity.tables import read_horizons, take_nonce, write_horizons
from overlayd.access.settings import AccessSettings
from overlayd.model.clock import Clock, Entropy
from overlayd.model.errors import LimitReached, OverlaydError, Unauthorized
from overlayd.model.metrics import Metrics

STEP_US = 10_000_000
"""How far ahead horizons are stored. After a crash, an identity's nonces count again at most so much later."""
KEPT_US = 86_400_000_000
"""How long a stored horizon outlives its meaning: a clock may be set back by so much while the node is down."""
MARK_BYTES = 20
_SECOND_US = 1_000_000
_log = structlog.get_logger("access.identity")


class Store(Protocol):
    """What is used of the log."""

    def read(self, function: Callable[..., Any]) -> Awaitable[Any]: ...
    def write(self, job: Callable[..., Any]) -> Awaitable[Any]: ...


class ClockNonces:
    """Nonces that are times."""

    def __init__(
        self, settings: AccessSettings, *, store: Store, clock: Clock, entropy: Entropy, metrics: Metrics
    ) -> None:  # fmt: skip
        self._ttl_us = int(float(settings.signature_ttl) * _SECOND_US)
        self._most = settings.identity.clock_nonces_max
        self._most_each = settings.identity.clock_nonces_each
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._secret = entropy.draw(16)
        self._seen: dict[int, set[int]] = {}
        """By the second that a nonce names, hashes of keys and nonces."""
        self._counts: dict[int, Counter[bytes]] = {}
        """By stretches of a ttl, how many of each identity."""
        self._total = 0
        self._floor_us = 0
        self._refused_until: dict[bytes, int] = {}
        self._newest: dict[bytes, int] = {}
        self._stored: dict[bytes, int] = {}
        self._wanted: dict[bytes, int] = {}
        self._storing = trio.Lock()
        metrics.gauge("overlayd_access_nonces", "Nonces of signed requests that are remembered").set_function(
            lambda: self._total
        )

    def __repr__(self) -> str:
        return f"ClockNonces({self._total} of {self._most})"

    async def start(self) -> None:
        """Reads what an earlier process may have taken. Checkpoint."""
        self._refused_until = await self._store.read(read_horizons)
        self._stored = dict(self._refused_until)

    async def stop(self) -> None:
        """Stores how far nonces really were taken, so that the next process refuses no more than it must. Checkpoint."""
        newest = {key: time_us for key, time_us in self._newest.items() if self._stored.get(key) != time_us}
        if not newest:
            return
        before_us = self._floor_us - KEPT_US
        try:
            await self._store.write(lambda connection: write_horizons(connection, newest, before_us))
        except OverlaydError as error:
            _log.warning("how far nonces were taken can't be noted", error=error.detail)

    def check(self, key: bytes, nonce: str) -> None:
        """Whether a request with this nonce could count. Raises Unauthorized."""
        self._judge(key, nonce)

    async def use(self, key: bytes, nonce: str, digest: bytes) -> None:
        """The nonce of a request that was proven: it counts no more. A checkpoint now and then.

        Raises Unauthorized when it was used before, LimitReached when no more can be remembered, and what storing raises.
        """
        time_us = self._judge(key, nonce)
        if time_us > self._stored.get(key, -1):
            await self._raise_horizon(key, time_us)
            self._judge(key, nonce)
        self._remember(key, nonce, time_us)

    def _judge(self, key: bytes, nonce: str) -> int:
        """Its time. Raises Unauthorized."""
        time_us = parse_clock_nonce(nonce)
        if time_us is None:
            raise _refusal("X-Nonce isn't a Unix time in decimal digits")
        now_us = self._clock.now_us()
        self._forget(now_us)
        if abs(time_us - now_us) > self._ttl_us:
            raise _refusal(f"X-Nonce is a time over {self._ttl_us // _SECOND_US} s away from the node's clock")
        if time_us < self._floor_us:
            raise _refusal("X-Nonce is a time before the last one that the node's clock has left behind")
        if time_us <= self._refused_until.get(key, -1):
            raise _refusal("X-Nonce is a time in which the node was started; sign again with a later one")
        if self._mark(key, nonce) in self._seen.get(time_us // _SECOND_US, ()):
            raise _refusal("X-Nonce was used before")
        return time_us

    def _remember(self, key: bytes, nonce: str, time_us: int) -> None:
        """Raises LimitReached. Nothing that is remembered gives way: it could be sent again."""
        counts = self._counts.setdefault(time_us // self._ttl_us, Counter())
        for limit, count, most in (
            ("clock_nonces_max", self._total, self._most),
            ("clock_nonces_each", sum(part[key] for part in self._counts.values()), self._most_each),
        ):
            if count >= most:
                self._metrics.count_limit_hit(limit)
                raise LimitReached(
                    f"{most} nonces of the last {2 * self._ttl_us // _SECOND_US} s are remembered already",
                    subject=limit, retry_after_s=self._ttl_us / _SECOND_US / 10,
                    hint="use mutual authentication, a ticket or a key for so many requests",
                )  # fmt: skip
        self._seen.setdefault(time_us // _SECOND_US, set()).add(self._mark(key, nonce))
        counts[key] += 1
        self._total += 1
        self._newest[key] = max(self._newest.get(key, 0), time_us)

    def _forget(self, now_us: int) -> None:
        """What is too old to count. A clock that goes back brings nothing of it into reach again."""
        floor_us = now_us - self._ttl_us
        if floor_us // _SECOND_US <= self._floor_us // _SECOND_US:
            return
        self._floor_us = floor_us
        for second in [second for second in self._seen if second < floor_us // _SECOND_US]:
            self._total -= len(self._seen.pop(second))
        over = [part for part in self._counts if (part + 1) * self._ttl_us <= floor_us]
        for part in over:
            del self._counts[part]
        for table in (self._newest, self._stored, self._refused_until) if over else ():
            for key in [key for key, time_us in table.items() if time_us < floor_us]:
                del table[key]

    async def _raise_horizon(self, key: bytes, time_us: int) -> None:
        """Until a time behind this one is stored. Whoever comes first stores for all who wait. Checkpoint."""
        self._wanted[key] = max(self._wanted.get(key, 0), time_us + STEP_US)
        async with self._storing:
            if self._stored.get(key, -1) >= time_us:
                return
            wanted, self._wanted = {**self._wanted, key: time_us + STEP_US}, {}
            before_us = self._floor_us - KEPT_US
            await self._store.write(lambda connection: write_horizons(connection, wanted, before_us))
            self._stored.update(wanted)

    def _mark(self, key: bytes, nonce: str) -> int:
        """So short that many fit into memory; keyed, so that nobody finds two that are equal."""
        return int.from_bytes(blake2b(key + nonce.encode(), digest_size=8, key=self._secret).digest(), "big")


class DurableNonces:
    """Nonces that are any text, each stored for good."""

    def __init__(self, settings: AccessSettings, *, store: Store, metrics: Metrics) -> None:
        self._most = settings.identity.durable_nonces_each
        self._store = store
        self._metrics = metrics

    def __repr__(self) -> str:
        return f"DurableNonces(at most {self._most} of one identity)"

    async def start(self) -> None:
        """Everything is in the database."""

    async def stop(self) -> None:
        """Everything is in the database."""

    def check(self, key: bytes, nonce: str) -> None:
        """Any might count."""

    async def use(self, key: bytes, nonce: str, digest: bytes) -> None:
        """As that of `ClockNonces`; a checkpoint. What was signed is remembered as well as the nonce: with a nonce of any
        length, the border between body and nonce could be moved."""
        marks = (_mark(key, b"n", nonce.encode()), _mark(key, b"s", digest))
        is_new = await self._store.write(lambda connection: take_nonce(connection, key, marks, self._most))
        if is_new is None:
            self._metrics.count_limit_hit("durable_nonces_each")
            raise LimitReached(
                f"{self._most} nonces of this identity are stored already", subject="durable_nonces_each",
                hint="use mutual authentication, a ticket or a key",
            )  # fmt: skip
        if not is_new:
            raise _refusal("X-Nonce was used before")


def _mark(key: bytes, kind: bytes, what: bytes) -> bytes:
    return sha256(key + kind + what).digest()[:MARK_BYTES]


def _refusal(detail: str) -> Unauthorized:
    return Unauthorized(detail, subject="nonce", hint="each request is signed with a nonce of its own")

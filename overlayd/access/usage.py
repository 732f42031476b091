"""Usage: added up in memory, written out in groups, asked for by hour, principal, stream and method."""

import sqlite3
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Annotated, Any

import msgspec
import structlog
import trio
from msgspec import Meta

from overlayd.access.rate_tables import Store
from overlayd.access.rates import address_group
from overlayd.access.usage_tables import (
    UsageAsk,
    UsageKey,
    UsageRow,
    add_counts,
    add_deliveries,
    prune,
    read_deliveries,
    read_usage,
)
from overlayd.model.clock import Clock
from overlayd.model.errors import OverlaydError
from overlayd.model.metrics import Metrics
from overlayd.model.quota import HOUR_US
from overlayd.model.units import Duration
from overlayd.model.usage import Counts, EndedDelivery, Method

OTHERS = UsageKey("", "", "read")
"""Where counts go when too many are held apart."""
ADDRESS_HASH_BYTES = 8
WRITE_S = 30.0
_log = structlog.get_logger("access.usage")


class UsageSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is remembered of who used how much."""

    flush_interval: Annotated[
        Duration, Meta(description="Usage is written so often; a kill loses what was counted since, but of packets")
    ] = Duration(10)
    retention: Annotated[Duration, Meta(description="Hourly counts stay so long; quotas need 32 days")] = Duration(
        400 * 86_400
    )
    deliveries_retention: Annotated[Duration, Meta(description="Single deliveries that are over stay so long")] = (
        Duration(30 * 86_400)
    )
    deliveries_max: Annotated[int, Meta(ge=0, description="Single deliveries that are kept; 0: none")] = 100_000
    pending_max: Annotated[
        int, Meta(ge=1, description="Principals x streams x methods counted apart between two writes")
    ] = 10_000

    def __post_init__(self) -> None:
        """Raises ValueError when a month's usage would be forgotten before the month is over."""
        if self.retention < 32 * 86_400:
            raise ValueError("usage.retention must be at least 32d: a quota's month is added up from it")


class UsageBook:
    """Takes what is told to it (`UsageSink`) and writes it out when asked to. One for the node."""

    def __init__(
        self, *, store: Store, settings: UsageSettings, clock: Clock, metrics: Metrics, secret: bytes,
        on_used: Callable[[str, int, int], None], on_failed: Callable[[], None],
    ) -> None:  # fmt: skip
        """`secret` keys the hashes of addresses. `on_used`: hears of bytes and requests of a principal at
        once; `on_failed`: that something couldn't be written out."""
        self._store = store
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._secret = secret
        self._on_used = on_used
        self._pending: dict[UsageKey, Counts] = {}
        self._ended: list[tuple[EndedDelivery, str]] = []
        self._pruned_hour = 0
        self._is_new_hour = False
        self._on_failed = on_failed

    def __repr__(self) -> str:
        return f"UsageBook(pending={len(self._pending)}, ended={len(self._ended)})"

    def delivered(
        self, stream: str, principal: str, method: Method, *, packets: int, bytes: int, latency_us: int = 0,
        latencies: int = 0, requests: int = 0, errors: int = 0,
    ) -> None:  # fmt: skip
        """So much more went out."""
        counts = self._counts(UsageKey(principal, stream, method))
        counts.requests += requests
        counts.packets += packets
        counts.bytes += bytes
        counts.errors += errors
        counts.latency_us += latency_us
        counts.latencies += latencies
        if latencies:
            counts.latency_max_us = max(counts.latency_max_us, latency_us // latencies)
        self._on_used(principal, bytes, requests)

    def ended(self, delivery: EndedDelivery) -> None:
        """A delivery is over. What it delivered since the last `delivered` isn't counted here."""
        counts = self._counts(UsageKey(delivery.principal, delivery.stream, delivery.method))
        counts.completions += 1
        counts.completed_ppm += delivery.completed_ppm
        counts.errors += delivery.errors - delivery.errors_told
        if len(self._ended) >= self._settings.pending_max:
            self._metrics.count_limit_hit("pending_max")
            return
        if self._settings.deliveries_max:
            self._ended.append((delivery, self.hash_address(delivery.address)))

    def published(self, principal: str, requests: int) -> None:
        """Publish requests that no group will count."""
        self._counts(UsageKey(principal, "", "publish")).requests += requests

    def hash_address(self, address: str) -> str:
        """16 hex digits that stand for an address (of IPv6: its /64); the same on this node as long as its data lives."""
        digest = blake2b(address_group(address).encode(), digest_size=ADDRESS_HASH_BYTES, key=self._secret)
        return digest.hexdigest()

    async def flush(self) -> None:
        """Writes out what was told so far; durable when it returns. What can't be written now is kept. Checkpoint.

        Shielded: what was queued is written whatever becomes of the caller, and would be written again if it were kept.
        """
        pending, self._pending = self._pending, {}
        ended, self._ended = self._ended, []
        now_us = self._clock.now_us()
        hour = now_us // HOUR_US
        is_pruning = hour != self._pruned_hour
        if not pending and not ended and not is_pruning:
            return
        is_done = False
        try:
            with trio.move_on_after(WRITE_S, shield=True):
                left = await self._store.write(
                    lambda connection: self._write(connection, now_us, pending, ended, is_pruning)
                )
                is_done = True
                if is_pruning and not left:
                    self._pruned_hour = hour
                    self._is_new_hour = True
        except OverlaydError as err:
            self._on_failed()
            _log.warning("usage not written", error=err.detail)
        finally:
            if not is_done:
                self._put_back(pending, ended)

    def take_new_hour(self) -> bool:
        """True once an hour: time to take away what is old elsewhere."""
        is_new, self._is_new_hour = self._is_new_hour, False
        return is_new

    async def read(self, ask: UsageAsk) -> list[UsageRow]:
        """Counts, what isn't written out yet included. Checkpoint."""
        await self.flush()
        rows: list[UsageRow] = await self._store.read(lambda connection: read_usage(connection, ask))
        return rows

    async def read_deliveries(self, principal: str, stream: str, before: int, limit: int) -> list[tuple[Any, ...]]:
        """Deliveries that are over, the newest first. Checkpoint."""
        await self.flush()
        rows: list[tuple[Any, ...]] = await self._store.read(
            lambda connection: read_deliveries(connection, principal, stream, before, limit)
        )
        return rows

    def _write(
        self, connection: sqlite3.Connection, now_us: int, pending: Mapping[UsageKey, Counts],
        ended: list[tuple[EndedDelivery, str]], is_pruning: bool,
    ) -> int:  # fmt: skip
        """How many rows were pruned; 0 says that there are no more."""
        add_counts(connection, now_us, pending)
        add_deliveries(connection, ended)
        if not is_pruning:
            return 0
        settings = self._settings
        before_hour = (now_us - int(settings.retention * 1e6)) // HOUR_US
        before_us = now_us - int(settings.deliveries_retention * 1e6)
        return prune(connection, before_hour, before_us, settings.deliveries_max)

    def _counts(self, key: UsageKey) -> Counts:
        counts = self._pending.get(key)
        if counts is None:
            if len(self._pending) >= self._settings.pending_max:
                self._metrics.count_limit_hit("pending_max")
                key = UsageKey(OTHERS.principal, OTHERS.stream, key.method)
                counts = self._pending.get(key)
            if counts is None:
                counts = self._pending[key] = Counts()
        return counts

    def _put_back(self, pending: Mapping[UsageKey, Counts], ended: list[tuple[EndedDelivery, str]]) -> None:
        for key, counts in pending.items():
            held = self._counts(key)
            for name in Counts.__struct_fields__:
                one, other = getattr(held, name), getattr(counts, name)
                setattr(held, name, max(one, other) if name == "latency_max_us" else one + other)
        self._ended = [*ended, *self._ended][: self._settings.pending_max]

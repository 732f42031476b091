"""Keeps the secrets that webhooks are signed with: drawn or given, shown once, sealed, rotated."""

import hmac
import sqlite3
from collections import OrderedDict

import msgspec
import trio

from overlayd.delivery.webhooks import tables
from overlayd.delivery.webhooks.secret_text import draw_secret, format_secret, parse_secret
from overlayd.model.clock import Clock, Entropy
from overlayd.model.errors import InvalidSubscription, SealBroken, Violation
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.outlet import Statements
from overlayd.storage import Log
from overlayd.storage.sealing import Sealer

PURPOSE = "webhook-secret"
CACHED_MAX = 20_000
UNSETTLED_S = 60.0
"""A change counts once it is committed: until then, and so long at most, each attempt looks into the database."""


class LiveSecret(msgspec.Struct, frozen=True):
    """A key that signs, until a time (Unix µs; None: for good)."""

    key: bytes
    until_us: int | None

    def __repr__(self) -> str:
        return f"LiveSecret(until_us={self.until_us})"


class _Change(msgspec.Struct, frozen=True):
    """A change that was handed out; seen when `sealed` is the newest in the database (b"": none is left there)."""

    sealed: bytes
    until: float


class SecretKeeper:
    """`model.outlet.SecretKeeper` for webhooks. Opened secrets of active subscriptions are kept in memory."""

    def __init__(
        self, log: Log, sealer: Sealer, *, limits: Limits, grace_s: float, clock: Clock, entropy: Entropy,
        metrics: Metrics,
    ) -> None:  # fmt: skip
        self._log = log
        self._sealer = sealer
        self._limits = limits
        self._grace_us = int(grace_s * 1e6)
        self._clock = clock
        self._entropy = entropy
        self._metrics = metrics
        self._opened: OrderedDict[str, tuple[LiveSecret, ...]] = OrderedDict()
        self._unsettled: dict[str, _Change] = {}

    def __repr__(self) -> str:
        return f"SecretKeeper(opened={len(self._opened)})"

    def create(self, subscription_id: str, given: str | None) -> tuple[str, Statements]:
        """The secret to show once, and what makes it stand. Raises InvalidSubscription."""
        return self._replace(subscription_id, given, grace_us=0)

    def rotate(self, subscription_id: str, given: str | None) -> tuple[str, Statements]:
        """As `create`; the ones before count for the grace time."""
        return self._replace(subscription_id, given, grace_us=self._grace_us)

    def forget(self, subscription_id: str) -> Statements:
        """For a subscription that is deleted."""
        self._expect(subscription_id, b"")
        return lambda connection: tables.remove_secrets(connection, subscription_id)

    async def live(self, subscription_id: str) -> tuple[LiveSecret, ...]:
        """The keys to sign with now, the newest first, at least one. A checkpoint where the database is asked.

        Raises SealBroken, and what reading the database may raise.
        """
        found = self._opened.get(subscription_id)
        if found is None:
            rows = await self._log.read(lambda connection: tables.read_secrets(connection, subscription_id))
            found = tuple(LiveSecret(self._sealer.open(sealed, subscription_id), until) for sealed, until in rows)
            if self._is_settled(subscription_id, rows):
                self._keep(subscription_id, found)
        now_us = self._clock.now_us()
        live = tuple(secret for secret in found if secret.until_us is None or secret.until_us > now_us)
        if not live:
            raise SealBroken("the subscription has no secret", subject=subscription_id, hint="rotate the secret")
        return live

    def _replace(self, subscription_id: str, given: str | None, grace_us: int) -> tuple[str, Statements]:
        text = given or draw_secret(self._entropy)
        try:
            key = parse_secret(text)
        except ValueError as err:
            flaw = Violation("/webhook/secret", "subscription.member", str(err))
            raise InvalidSubscription(f"the secret can't be used: {err}", violations=[flaw]) from err
        sealed = self._sealer.seal(key, subscription_id)
        self._expect(subscription_id, sealed)
        now_us, count_max = self._clock.now_us(), self._limits.webhook_secrets

        def statements(connection: sqlite3.Connection) -> None:
            if grace_us and self._is_newest(connection, subscription_id, key):
                self._unsettled.pop(subscription_id, None)
                return  # the same again changes nothing, such as a secret from the configuration at each start
            is_full = tables.add_secret(
                connection, subscription_id, sealed, now_us=now_us, grace_us=grace_us, count_max=count_max
            )
            if is_full:
                self._metrics.count_limit_hit("webhook_secrets")

        return format_secret(key), statements

    def _is_newest(self, connection: sqlite3.Connection, subscription_id: str, key: bytes) -> bool:
        rows = tables.read_secrets(connection, subscription_id)
        try:
            return bool(rows) and hmac.compare_digest(self._sealer.open(rows[0][0], subscription_id), key)
        except SealBroken:
            return False

    def _expect(self, subscription_id: str, sealed: bytes) -> None:
        self._opened.pop(subscription_id, None)
        self._unsettled[subscription_id] = _Change(sealed, trio.current_time() + UNSETTLED_S)

    def _is_settled(self, subscription_id: str, rows: list[tuple[bytes, int | None]]) -> bool:
        """Whether what was read shows the last change, or the change has had its time."""
        change = self._unsettled.get(subscription_id)
        if change is None:
            return True
        if change.until > trio.current_time() and (rows[0][0] if rows else b"") != change.sealed:
            return False
        del self._unsettled[subscription_id]
        return True

    def _keep(self, subscription_id: str, found: tuple[LiveSecret, ...]) -> None:
        self._opened[subscription_id] = found
        self._opened.move_to_end(subscription_id)
        while len(self._opened) > CACHED_MAX:
            self._opened.popitem(last=False)

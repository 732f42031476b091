"""The daemon's parts over a real log, with rates, quotas and usage, asked without listeners."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from lane_rig import ask_lane, target_of
from route_rig import Reply
from standing_clock import NO_STEP

from overlayd.access import Principal
from overlayd.access.principal import EVERYDAY, EVERYTHING
from overlayd.access.quotas import QuotaSettings
from overlayd.access.rates import RateSettings
from overlayd.access.usage import UsageSettings
from overlayd.config import Settings
from overlayd.daemon import Parts
from overlayd.daemon.serving import FEATURES
from overlayd.model.clock import Entropy
from overlayd.model.definition import Definition
from overlayd.model.metrics import Metrics
from overlayd.model.quota import QuotaPolicy
from overlayd.model.units import Size
from overlayd.storage import StorageSettings, open_log

ADMIN = Principal(name="unix:0", kind="unix", rights=EVERYTHING, address="uid:0", may_create=True)
LOOPBACK = Principal(name="loopback", kind="loopback", rights=EVERYDAY, address="127.0.0.1", may_create=True)
START_US = 1_767_323_000_000_000  # 2026-01-02T03:03:20Z


def holder(name: str = "key:anna", policy: str = "", address: str = "192.0.2.1") -> Principal:
    """Somebody with a key."""
    return Principal(name=name, kind="key", rights=EVERYDAY, address=address, may_create=True, policy=policy)


class Wall:
    """A wall clock that is set by hand."""

    def __init__(self, now_us: int = START_US) -> None:
        self.us = now_us

    def now_us(self) -> int:
        return self.us


class MeteredNode:
    """Parts, and requests to them. `is_fast`: publishes through the publish lane."""

    def __init__(self, parts: Parts, clock: Wall, *, is_fast: bool) -> None:
        self.parts = parts
        self.clock = clock
        self.metering = parts.metering
        self._lane = parts._publish_lane() if is_fast else None

    async def ask(
        self, method: str, path: str, body: Any = b"", *, who: Principal = ADMIN, **headers: str
    ) -> Reply:  # fmt: skip
        """One request. Keywords are headers with `_` for `-`; a body that isn't bytes is sent as JSON."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
        if raw and not any(name.lower() == "content-type" for name in named):
            named["Content-Type"] = "application/json"
        if self._lane is not None and target_of(method, path) is not None:
            given = await ask_lane(self._lane, path, raw, named, who=who, limits=self.parts.settings.limits)
            return Reply(given.status, given.headers, given.body)
        response = await self.parts.app.test_client().open(
            path, method=method, data=raw or None, headers=named,
            scope_base={"state": {"principal": who, "request_id": "r-1"}},
        )  # fmt: skip
        return Reply(response.status_code, dict(response.headers.items()), await response.get_data(as_text=False))

    async def publish(self, stream: str, count: int = 1, *, who: Principal, size: int = 10) -> Reply:
        """An array of packets whose bodies have `size` bytes each."""
        packets = [{"data": "x" * (size - 2)} for _ in range(count)]
        return await self.ask("POST", f"/v1/streams/{stream}/packets", packets, who=who)

    async def put_policy(self, **members: Any) -> QuotaPolicy:
        """A policy of that name."""
        policy = QuotaPolicy(**members)
        reply = await self.ask("PUT", f"/v1/quotas/policies/{policy.name}", policy)
        assert reply.status in (200, 201), reply
        return policy

    def hits(self, limit: str) -> float:
        """How often a limit was hit."""
        registry = self.parts.metrics.registry
        return registry.get_sample_value("overlayd_limit_hits_total", {"limit": limit}) or 0.0


@asynccontextmanager
async def open_metered(
    directory: Path, *, clock: Wall | None = None, rates: RateSettings | None = None,
    quotas: QuotaSettings | None = None, usage: UsageSettings | None = None, is_fast: bool = True,
) -> AsyncIterator[MeteredNode]:  # fmt: skip
    """A node whose metering has begun; it is stopped in order at the end."""
    storage = StorageSettings(
        dir=str(directory), reserve=Size(0), disk_high_water=Size(0), disk_low_water=Size(0), clock_step=NO_STEP
    )
    settings = msgspec.structs.replace(
        Settings(), storage=storage, rates=rates or RateSettings(), quotas=quotas or QuotaSettings(),
        usage=usage or UsageSettings(),
    )  # fmt: skip
    clock = clock or Wall()
    entropy, metrics = Entropy(), Metrics()
    async with open_log(
        directory, settings=settings.storage, limits=settings.limits, defaults=Definition(), clock=clock,
        entropy=entropy, metrics=metrics, features=FEATURES,
    ) as log:  # fmt: skip
        parts = Parts(log, settings, metrics, clock, entropy)
        await parts.metering.start()
        yield MeteredNode(parts, clock, is_fast=is_fast)
        await parts.metering.stop()

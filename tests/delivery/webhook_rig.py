"""What the tests of webhooks share: a real log, real sockets, deliveries as the dispatcher makes them."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from delivery_fakes import EPOCH, FakeLog
from standing_clock import NO_STEP

from overlayd.delivery.frames import Erased, Gap, Message, PacketState
from overlayd.delivery.matching import view_packet
from overlayd.delivery.webhooks import WEBHOOKS_FEATURE, Webhooks, WebhookSettings
from overlayd.model.clock import Entropy, SystemClock
from overlayd.model.cursor import Cursor
from overlayd.model.definition import Definition
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.outlet import AttemptResult, Delivery, Statements
from overlayd.model.subscription import SubscriptionDefinition, WebhookRule
from overlayd.model.units import Duration, Size
from overlayd.outbound import Outbound, OutboundSettings
from overlayd.storage import Log, StorageSettings, open_log
from overlayd.storage.sealing import read_sealing_key

SUBSCRIPTION = "abcdefghijklmnop"
LOOPBACK = OutboundSettings(allow_private=("127.0.0.0/8",))


class StillClock:
    """Wall time that the test moves. Starts at the present, because receivers compare it with their own."""

    def __init__(self) -> None:
        self.us = SystemClock().now_us()

    def now_us(self) -> int:
        return self.us


class WebhookRig:
    """The webhooks of a node, without the node."""

    def __init__(self, directory: Path, log: Log, limits: Limits, settings: WebhookSettings, clock: StillClock) -> None:
        self.log = log
        self.limits = limits
        self.clock = clock
        self.metrics = Metrics()
        self.outbound = Outbound(limits, settings.outbound, self.metrics)
        self.webhooks = Webhooks(
            log, self.outbound, settings, sealing_key=read_sealing_key(directory, Entropy()), limits=limits, clock=clock,
            entropy=Entropy(), metrics=self.metrics,
        )  # fmt: skip

    async def write(self, statements: Statements) -> None:
        """Runs what a keeper of secrets asks for."""
        await self.log.write(statements)

    async def create_secret(self, given: str | None = None, subscription_id: str = SUBSCRIPTION) -> str:
        """A first secret, stored."""
        secret, statements = self.webhooks.secrets.create(subscription_id, given)
        await self.write(statements)
        return secret

    async def rotate_secret(self, given: str | None = None, subscription_id: str = SUBSCRIPTION) -> str:
        """Another one, stored."""
        secret, statements = self.webhooks.secrets.rotate(subscription_id, given)
        await self.write(statements)
        return secret

    async def attempt(self, delivery: Delivery[Message]) -> AttemptResult:
        """One attempt."""
        return await self.webhooks.outlet.attempt(delivery)

    def hits(self, limit: str) -> float:
        """How often a limit was hit."""
        return self.metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": limit}) or 0.0


@asynccontextmanager
async def open_rig(
    directory: Path, *, grace_s: float = 86_400, outbound: OutboundSettings = LOOPBACK, **limits: Any
) -> AsyncIterator[WebhookRig]:
    """A rig on a log of its own."""
    metrics, clock = Metrics(), StillClock()
    settings = StorageSettings(reserve=Size(0), disk_high_water=Size(0), disk_low_water=Size(0), clock_step=NO_STEP)
    all_limits = msgspec.structs.replace(Limits(), **limits)
    async with open_log(
        directory, settings=settings, limits=all_limits, defaults=Definition(), clock=clock, entropy=Entropy(),
        metrics=metrics, features=(WEBHOOKS_FEATURE,),
    ) as log:  # fmt: skip
        rig = WebhookRig(directory, log, all_limits, WebhookSettings(outbound, Duration(grace_s)), clock)
        try:
            yield rig
        finally:
            rig.outbound.close()


OpenRig = Callable[..., Any]


def packet_messages(*bodies: Any, stream: str = "weather-001", **meta: Any) -> tuple[Message, ...]:
    """Packets of one stream as the dispatcher finds them; bodies as values, or as the producer's own bytes."""
    log = FakeLog()
    found = []
    for body in bodies:
        entry = log.add(stream, body=body, **meta) if isinstance(body, bytes) else log.add(stream, body, **meta)
        view = view_packet(entry, stream)
        found.append(Message("packet", Cursor(EPOCH, entry.offset), entry.appended_us, view, PacketState()))
    return tuple(found)


def gap_message() -> Message:
    """A run of packets that retention took."""
    return Message("gap", Cursor(EPOCH, 9), 1_700_000_000_000_000, Gap(EPOCH, 5, 9, "retention"))


def erased_message() -> Message:
    """A packet that was erased."""
    return Message("erased", Cursor(EPOCH, 12), 1_700_000_000_000_000, Erased("weather-001", 7))


def delivery_of(
    rule: WebhookRule, messages: tuple[Message, ...], *, kind: Any = "packets", attempt: int = 1,
    subscription_id: str = SUBSCRIPTION,
) -> Delivery[Message]:  # fmt: skip
    """A delivery under a stable id."""
    definition = SubscriptionDefinition(name="hook", kind="webhook", webhook=rule)
    first = str(messages[0].cursor)[1:].replace("-", "_") if messages else "test"
    stream = getattr(messages[0].subject, "stream", "") if messages else ""
    return Delivery(
        subscription_id,
        definition,
        f"msg_{subscription_id}_{first}",
        kind,
        stream,
        messages,
        attempt,
        1_700_000_000_000_000,
    )

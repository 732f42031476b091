"""A real log, the dispatcher of durable subscriptions and the webhooks on real sockets, without the rest of a node."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio
from delivery_fakes import make_delivery
from subscription_rig import HidingOwners
from webhook_rig import LOOPBACK, StillClock

from overlayd.delivery.subscriptions.definition import parse_new
from overlayd.delivery.subscriptions.parts import DurableSubscriptions
from overlayd.delivery.subscriptions.subscription import Reading, Subscription
from overlayd.delivery.subscriptions.tables import FEATURE
from overlayd.delivery.webhooks import WEBHOOKS_FEATURE, Webhooks, WebhookSettings
from overlayd.model.clock import Entropy
from overlayd.model.definition import Definition
from overlayd.model.draft import AppendRequest, Draft
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.names import StreamName
from overlayd.model.units import Size
from overlayd.outbound import Outbound
from overlayd.storage import Log, StorageSettings, open_log
from overlayd.storage.migrations import Feature
from overlayd.storage.sealing import read_sealing_key


class WebhookNode:
    """Publish, subscribe, look."""

    def __init__(self, directory: Path, log: Log, clock: StillClock) -> None:
        self.log = log
        self.clock = clock
        self.metrics = Metrics()
        self.events: list[tuple[str, dict[str, Any]]] = []
        settings = WebhookSettings(LOOPBACK)
        self.outbound = Outbound(Limits(), settings.outbound, self.metrics)
        self.webhooks = Webhooks(
            log, self.outbound, settings, sealing_key=read_sealing_key(directory, Entropy()), limits=Limits(),
            clock=clock, entropy=Entropy(), metrics=self.metrics,
        )  # fmt: skip
        delivery = make_delivery(log)
        delivery.clock = clock
        self.parts = DurableSubscriptions(
            delivery, entropy=Entropy(), lease_filter=delivery._lease_filter, outlets={"webhook": self.webhooks.outlet},
            secrets={"webhook": self.webhooks.secrets}, headers=self.webhooks.headers,
            check_webhook=self.webhooks.judge.check, owners=HidingOwners(set()), announce=self._announce, chance=random.Random(3),
        )  # fmt: skip

    async def _announce(self, type: str, data: dict[str, Any]) -> None:
        self.events.append((type, data))

    async def publish(self, *values: Any, stream: str = "a") -> None:
        """Appends packets, durably."""
        found = self.log.find_stream(stream)
        version = 0 if found is None else found.definition_version
        bodies = [msgspec.json.encode(value) for value in values]
        drafts = [Draft(index, body, body) for index, body in enumerate(bodies)]
        await self.log.append(AppendRequest(StreamName(stream), drafts, may_create=True, definition_version=version))

    async def subscribe(
        self, url: str, *, name: str = "hook", stream: str = "a", **webhook: Any
    ) -> tuple[Subscription, str]:
        """A webhook subscription and its secret."""
        body = {"name": name, "kind": "webhook", "streams": [stream], "webhook": {"url": url} | webhook}
        asked = parse_new(msgspec.json.encode(body), self.parts.book.parse_query, self.webhooks.judge.check)
        created = await self.parts.book.create(asked, Reading("tester"))
        return created.subscription, created.secret


@asynccontextmanager
async def open_node(
    directory: Path, *, clock: StillClock | None = None, features: tuple[Feature, ...] = ()
) -> AsyncIterator[WebhookNode]:
    """Runs for the length of the block, then drains."""
    clock = clock or StillClock()
    settings = StorageSettings(reserve=Size(0), disk_high_water=Size(0), disk_low_water=Size(0))
    async with open_log(
        directory, settings=settings, limits=Limits(), defaults=Definition(), clock=clock, entropy=Entropy(),
        metrics=Metrics(), features=(FEATURE, WEBHOOKS_FEATURE, *features),
    ) as log:  # fmt: skip
        node = WebhookNode(directory, log, clock)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.outbound.keep_house)
            await nursery.start(node.parts.run)
            yield node
            nursery.cancel_scope.cancel()

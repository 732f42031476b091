"""Agents over a real log with the pipeline behind their replies, for tests."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import chaos_sink as chaos
import msgspec
import trio
from webhook_node import WebhookNode, open_node

from overlayd.delivery.agents.replies import Replies
from overlayd.delivery.subscriptions.definition import parse_new
from overlayd.delivery.subscriptions.subscription import Reading, Subscription
from overlayd.model.definition import Definition
from overlayd.model.limits import Limits
from overlayd.model.meta import Meta, decode_meta
from overlayd.pipeline.intake import Intake
from overlayd.pipeline.schema import SchemaCache
from overlayd.storage.migrations import Feature

REPLY = {"packets": [{"data": {"mood": "fine"}, "type": "mood"}, {"data": 2, "metadata": {"own": 1}}]}


def reply_with(value: Any, status: int = 200) -> chaos.Step:
    """A JSON answer."""
    return chaos.answer(status, msgspec.json.encode(value), **{"content-type": "application/json"})


class AgentNode:
    """A node with the pipeline behind the replies."""

    def __init__(self, node: WebhookNode, limits: Limits) -> None:
        self.node = node
        self.allowed = True
        intake = Intake(log=node.log, limits=limits, schemas=SchemaCache(limits, node.metrics), metrics=node.metrics)
        node.parts.engine.shop.replies = Replies(
            node.log, intake.publish_made, lambda reading, output: self.allowed, limits=limits,
            metrics=node.metrics,
        )  # fmt: skip
        self.intake = intake

    async def agent(
        self, url: str, name: str = "mood", stream: str = "a", output: str = "out", **rest: Any
    ) -> Subscription:
        """An agent that is called at the URL."""
        await self.node.log.define_stream(output, Definition())
        webhook = {"url": url, "ordering": "stream", "retry": {"schedule": ["1s", "1s"]}} | rest.pop("webhook", {})
        body = {
            "name": name, "kind": "agent", "streams": [stream], "webhook": webhook, "agent": {"output": output} | rest,
        }  # fmt: skip
        book = self.node.parts.book
        asked = parse_new(msgspec.json.encode(body), book.parse_query, self.node.webhooks.judge.check)
        return (await book.create(asked, Reading("tester"))).subscription

    def count(self, name: str, **labels: str) -> float | None:
        """A metric's value."""
        return self.node.metrics.registry.get_sample_value(name, labels)

    async def packets(self, stream: str = "out") -> list[tuple[Meta, Any]]:
        """What a stream holds."""
        found = self.node.log.find_stream(stream)
        entries = [] if found is None else await self.node.log.read_packets(found, 0, 100)
        return [(decode_meta(entry.meta), json.loads(entry.body)) for entry in entries]

    async def settled(self, subscription: Subscription) -> None:
        """Until nothing is left to do for it."""
        head = self.node.log.head
        position = self.node.parts.engine.dispatcher
        for _ in range(400):
            if subscription.floor(position.position).offset >= head:
                return
            await trio.sleep(0.25)
        raise AssertionError(f"it isn't settled: {subscription!r}")


@asynccontextmanager
async def open_agents(
    directory: Path, limits: Limits | None = None, features: tuple[Feature, ...] = ()
) -> AsyncIterator[AgentNode]:
    """Runs for the length of the block."""
    async with open_node(directory, features=features) as node:
        yield AgentNode(node, limits or Limits())

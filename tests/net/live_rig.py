"""Reading and live routes over a real log: through Quart's test client, and behind the whole edge on sockets."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from net_rig import Edge, open_edge
from quart_trio import QuartTrio
from real_waiting import SOON_S
from route_rig import Node, open_node

from overlayd.delivery.delivery import Delivery
from overlayd.delivery.frames import packet_body
from overlayd.delivery.lane import LiveLane
from overlayd.delivery.session import Ending, Registry
from overlayd.delivery.settings import DeliverySettings
from overlayd.delivery.socket import SocketParts
from overlayd.delivery.websocket import InputBudget
from overlayd.model.clock import Entropy, SystemClock
from overlayd.model.limits import Limits
from overlayd.net.access_log import RequestLog
from overlayd.net.lane import Lane
from overlayd.net.live_lane import LiveDoor
from overlayd.net.live_publish import live_publisher
from overlayd.net.live_routes import add_live_routes
from overlayd.net.live_socket import LiveSockets
from overlayd.net.read_routes import add_read_routes
from overlayd.pipeline.filters import FilterBook
from overlayd.pipeline.intake import Intake
from overlayd.pipeline.schema import SchemaCache


class LiveNode:
    """A node with its delivery."""

    def __init__(self, node: Node, **settings: Any) -> None:
        self.node = node
        self.log = node.log
        self.ask = node.ask
        self.append = node.append
        filters = FilterBook(limits=node.limits, metrics=node.metrics, describe=packet_body)
        self.delivery = Delivery(
            log=node.log, limits=node.limits, settings=DeliverySettings(**settings), clock=SystemClock(),
            metrics=node.metrics, lease_filter=filters.lease, streams=node.access.streams,
        )  # fmt: skip
        self.registry = Registry(limits=node.limits, clock=SystemClock(), entropy=Entropy(), metrics=node.metrics)

    def add_routes(self, app: QuartTrio, lane: Lane) -> None:
        """The routes under test."""
        add_read_routes(
            app, delivery=self.delivery, registry=self.registry, lane=lane, streams=self.node.access.streams
        )
        add_live_routes(
            app, delivery=self.delivery, registry=self.registry, node="test", trail=self.node.access.trail, lane=lane
        )

    def count(self, name: str, **labels: str) -> float:
        """A metric's value."""
        return self.node.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def open_live(directory: Path, limits: Limits | None = None, **settings: Any) -> AsyncIterator[LiveNode]:
    """A node whose routes are asked without sockets."""
    async with open_node(directory, limits) as node:
        live = LiveNode(node, **settings)
        live.add_routes(node.app, node.lane)
        yield live


@asynccontextmanager
async def open_live_edge(
    directory: Path, limits: Limits | None = None, *, is_fast: bool = True, **settings: Any
) -> AsyncIterator[tuple[LiveNode, Edge]]:
    """A node behind the whole edge, with the live lane or without."""
    async with open_node(directory, limits) as node:
        live = LiveNode(node, **settings)
        intake = Intake(
            log=node.log, limits=node.limits, schemas=SchemaCache(node.limits, live.delivery.metrics.__class__()),
            metrics=live.delivery.metrics.__class__(),
        )  # fmt: skip
        lane = LiveLane(live.delivery, random.Random(1))
        sockets = LiveSockets(
            SocketParts(
                lane=lane, registry=live.registry, publish=live_publisher(intake, node.log, node.limits),
                budget=InputBudget(node.limits.sockets_unread_bytes), node="test",
            )
        )  # fmt: skip

        def open_door(request_log: RequestLog) -> LiveDoor:
            return LiveDoor(
                lane=lane, registry=live.registry, sockets=sockets, request_log=request_log, node="test",
                is_fast=is_fast,
            )  # fmt: skip

        async def end_sessions() -> None:
            await live.registry.stop(Ending(1001, "shutdown", 2.0))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lane.run)
            async with open_edge(
                directory, limits=limits, add_routes=live.add_routes, open_live=open_door, end_sessions=end_sessions
            ) as edge:
                yield live, edge
            nursery.cancel_scope.cancel()


async def wait_until(is_so: Any) -> None:
    """Polls something that another task brings about, in real time."""
    with trio.fail_after(SOON_S):
        while not is_so():  # noqa: ASYNC110 - real sockets
            await trio.sleep(0.002)

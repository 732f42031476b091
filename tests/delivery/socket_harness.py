"""A WebSocket client and the node's live socket at the two ends of a stream in memory."""

import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
import trio_websocket
from delivery_fakes import FakeLog, FixedClock, make_delivery
from push_pair import MemoryPushStream, push_pair

from overlayd.access import Principal
from overlayd.access.principal import EVERYDAY
from overlayd.delivery.lane import LiveLane
from overlayd.delivery.session import Registry
from overlayd.delivery.socket import AttachNamed, SocketParts
from overlayd.delivery.websocket import InputBudget
from overlayd.model.clock import Entropy
from overlayd.model.errors import OverlaydError, StreamPaused
from overlayd.model.limits import Limits
from overlayd.model.wire import PublishMessage, ReceiptMessage
from overlayd.net.head import parse_head
from overlayd.net.live_socket import LiveSockets
from overlayd.net.problem import plain_answer

ANYBODY = Principal(name="loopback", kind="loopback", rights=EVERYDAY, address="127.0.0.1", may_create=True)


class Client:
    """A trio-websocket client that speaks JSON."""

    def __init__(self, socket: trio_websocket.WebSocketConnection) -> None:
        self.socket = socket

    async def send(self, **message: Any) -> None:
        await self.socket.send_message(msgspec.json.encode(message).decode())

    async def receive(self) -> dict[str, Any]:
        """The next message."""
        message: dict[str, Any] = msgspec.json.decode(await self.socket.get_message())
        return message

    async def expect(self, kind: str) -> dict[str, Any]:
        """The next message, which must be of the kind."""
        message = await self.receive()
        assert message["type"] == kind, message
        return message

    async def receive_until(self, kind: str, count: int = 1) -> list[dict[str, Any]]:
        """Messages up to and with the given number of the kind."""
        messages: list[dict[str, Any]] = []
        while sum(message["type"] == kind for message in messages) < count:
            messages.append(await self.receive())
        return messages

    async def close_code(self) -> int:
        """Reads on until the node closes; the close code."""
        with pytest.raises(trio_websocket.ConnectionClosed) as caught:  # noqa: PT012 - what comes before doesn't matter
            while True:
                await self.socket.get_message()
        assert caught.value.reason is not None
        return caught.value.reason.code


class Node:
    """The live side of a node over a fake log. `publish_log` keeps what was published."""

    def __init__(
        self, log: FakeLog | None = None, *, limits: Limits | None = None, attach_named: AttachNamed | None = None,
        **settings: Any,
    ) -> None:  # fmt: skip
        self.log = log or FakeLog()
        # A filter goes to a thread by the time that it took, which on a busy machine is chance; a thread then takes real
        # time that the tests' clock doesn't know of.
        self.limits = limits or Limits(filter_mean_us=1_000_000_000)
        self.delivery = make_delivery(self.log, limits=self.limits, **settings)
        self.registry = Registry(
            limits=self.limits, clock=FixedClock(), entropy=Entropy(), metrics=self.delivery.metrics
        )
        self._users = 0
        self.publish_log: list[PublishMessage] = []
        self.publish_gate: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self.lane = LiveLane(self.delivery, random.Random(1))
        self.budget = InputBudget(self.limits.sockets_unread_bytes)
        self.sockets = LiveSockets(
            SocketParts(
                lane=self.lane, registry=self.registry, publish=self.publish, budget=self.budget, node="test-node",
                attach_named=attach_named,
            )
        )  # fmt: skip

    async def publish(self, message: PublishMessage, principal: Principal) -> ReceiptMessage:
        """Stands for the intake."""
        await self.publish_gate()
        if message.stream == "paused":
            raise StreamPaused("the stream is paused", subject="paused")
        self.publish_log.append(message)
        for packet in message.packets:
            self.log.add(message.stream, body=bytes(packet))
        count = len(message.packets)
        return ReceiptMessage(ref=message.ref, accepted=count, duplicates=0, rejected=0, receipts=[])

    async def serve(self, stream: MemoryPushStream, principal: Principal = ANYBODY) -> None:
        """What the door and the daemon do: reads the head, judges the handshake, hands on; the lane runs beside."""
        data = b""
        while b"\r\n\r\n" not in data:
            more = await stream.receive_some(65536)
            if not more:
                return
            data += more
        end = data.index(b"\r\n\r\n") + 4
        try:
            accepted = self.sockets.accept(parse_head(data[:end], self.limits), principal)
        except OverlaydError as error:
            await stream.send_all(plain_answer(error, "request-1"))
            stream.abort()
            return
        with contextlib.suppress(trio.BrokenResourceError):
            await self.sockets.serve(accepted, stream, data[end:])

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """The live lane, for the block's time; nested ones share it."""
        self._users += 1
        try:
            if self._users > 1:
                yield
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.lane.run)
                yield
                nursery.cancel_scope.cancel()
        finally:
            self._users -= 1

    @asynccontextmanager
    async def connect(
        self, query: str = "", *, subprotocols: tuple[str, ...] = ("overlayd.v1",), principal: Principal = ANYBODY
    ) -> AsyncIterator[Client]:
        """A connected client."""
        theirs, ours = push_pair()
        async with self.run(), trio.open_nursery() as nursery:
            nursery.start_soon(self.serve, ours, principal)
            socket = await trio_websocket.wrap_client_stream(
                nursery, theirs, "localhost", f"/v1/live?{query}" if query else "/v1/live", subprotocols=subprotocols
            )
            yield Client(socket)
            with trio.move_on_after(5):
                await socket.aclose()
            nursery.cancel_scope.cancel()

"""The whole node on real sockets, in this process, for clients that mean it badly."""

import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import tls_wire
import trio
from net_rig import RawClient
from real_waiting import SOON_S

from overlayd.config import Settings
from overlayd.daemon import Parts, serve_edge
from overlayd.model.clock import Entropy, SystemClock
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.units import Size
from overlayd.net.listeners import SOCKET_NAME
from overlayd.net.settings import ListenSettings
from overlayd.storage import open_log

WAY = "lane"
"""How clients come to the node; conftest.py sets it for each test."""
JSON = "application/json"
UPGRADE = (
    b"Host: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


class HostileSocket:
    """A WebSocket client that sends whatever frames it likes. What it sends is masked with zeros."""

    def __init__(self, client: RawClient) -> None:
        self.client = client

    async def send_frame(self, opcode: int, data: bytes, *, is_last: bool = True, length: int | None = None) -> None:
        """`length`: what the frame says about itself, when that isn't the truth."""
        count = len(data) if length is None else length
        first = opcode | (0x80 if is_last else 0)
        if count < 126:
            head = bytes((first, 0x80 | count))
        elif count < 1 << 16:
            head = struct.pack(">BBH", first, 0xFE, count)
        else:
            head = struct.pack(">BBQ", first, 0xFF, count)
        await self.client.send(head + bytes(4) + data)

    async def say(self, message: Any) -> None:
        await self.send_frame(1, message if isinstance(message, bytes) else json.dumps(message).encode())

    async def read_frame(self) -> tuple[int, bytes]:
        head = await self.client._read_exactly(2)
        count = head[1] & 127
        if count > 125:
            count = int.from_bytes(await self.client._read_exactly(2 if count == 126 else 8), "big")
        return head[0] & 15, await self.client._read_exactly(count)

    async def read(self) -> Any:
        """The next message, or the code of a close frame."""
        while True:
            opcode, data = await self.read_frame()
            if opcode == 8:
                return int.from_bytes(data[:2], "big")
            if opcode == 1:
                return json.loads(data)


class HostileNode:
    """A running node."""

    def __init__(self, parts: Parts, port: int, directory: Path) -> None:
        self.parts = parts
        self.port = port
        self._directory = directory

    async def connect(self) -> RawClient:
        if WAY == "Unix":
            return RawClient(await trio.open_unix_socket(self._directory / SOCKET_NAME))
        return RawClient(await tls_wire.connect(self.port))

    async def ask(self, method: str, target: str, body: bytes | None = None, **headers: str) -> Any:
        """One answer on a connection of its own."""
        async with await self.connect() as client:
            return await client.request(method, target, body, **headers)

    async def say(self, raw: bytes) -> bytes:
        """Raw bytes, then no more; everything that comes back."""
        async with await self.connect() as client:
            await client.send(raw)
            await client.stream.send_eof()
            return await client.read_rest()

    @asynccontextmanager
    async def open_socket(self, query: str = "") -> AsyncIterator[HostileSocket]:
        """A WebSocket whose `welcome` was read."""
        async with await self.connect() as client:
            await client.send(b"GET /v1/live" + query.encode() + b" HTTP/1.1\r\n" + UPGRADE + b"\r\n")
            assert (await client.read_answer()).status == 101
            socket = HostileSocket(client)
            assert (await socket.read())["type"] == "welcome"
            yield socket

    async def assert_healthy(self) -> None:
        """A client with good manners publishes over HTTP and WebSocket and gets what it published, and nothing of
        ours has crashed."""
        with trio.fail_after(SOON_S):
            async with self.open_socket("?stream=healthy") as socket:
                assert (await socket.read())["type"] == "subscribed"
                answer = await self.ask("POST", "/v1/streams/healthy/packets", b'{"data":1}', Content_Type=JSON)
                assert answer.status == 201
                assert (await socket.read())["packet"]["packet_sequence"] == answer.json["sequence"]
                await socket.say({"type": "publish", "stream": "healthy2", "packets": [{"data": 2}]})
                assert (await socket.read())["accepted"] == 1
        assert self.count("overlayd_net_connection_crashes_total") == 0

    def count(self, name: str, **labels: str) -> float:
        return self.parts.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def open_hostile_node(
    directory: Path, *, is_fast: bool | None = None, **limits: Any
) -> AsyncIterator[HostileNode]:  # fmt: skip
    """A node with some limits changed, drained at the block's end. `is_fast`: with the lanes or without, whatever the
    test's way says."""
    has_lanes = WAY != "Quart" if is_fast is None else is_fast
    settings = Settings()
    settings = msgspec.structs.replace(
        settings, limits=Limits(**limits), listen=tls_wire.secured(ListenSettings(tcp=("127.0.0.1:0",), fast_lanes=has_lanes)),
        storage=msgspec.structs.replace(settings.storage, dir=str(directory), reserve=Size(4096)),
    )  # fmt: skip
    clock, entropy, metrics = SystemClock(), Entropy(), Metrics()
    async with open_log(
        directory, settings=settings.storage, limits=settings.limits, defaults=settings.defaults.definition,
        clock=clock, entropy=entropy, metrics=metrics,
    ) as log:  # fmt: skip
        parts = Parts(log, settings, metrics, clock, entropy)
        urls: list[str] = []
        is_ready = trio.Event()

        def announce(found: list[str]) -> None:
            urls.extend(found)
            is_ready.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_edge, parts, directory, announce)
            await is_ready.wait()
            yield HostileNode(parts, int(urls[0].rsplit(":", 1)[1]), directory)
            parts.stop.set()

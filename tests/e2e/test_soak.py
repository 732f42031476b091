"""A node under a mixed load for a long time: memory, descriptors and the write-ahead log stay where they are.

The short form runs for half a minute, in which caches still fill: it finds leaks of descriptors, a WAL that isn't copied and
memory that runs away. The long one runs for `SOAK_S` (half an hour) with the bounds that the node promises.
"""

import math
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import trio
from chaos_sink import answer, open_sink
from node_process import Node

from overlayd.client import Client
from overlayd.client.admin_calls import reload_settings
from overlayd.model.errors import OverlaydError

SOAK_S = 1800.0
FILLED_AT_ONCE = 1000
CONFIG = """
[limits]
connections_per_address = 10000
[storage]
wal_bytes = "8MiB"
[log]
level = "warning"
[webhooks]
allow_private = ["127.0.0.0/8"]
[[streams]]
name = "soak.a"
retention = { max_packets = 5000, min_age = "0s" }
[[streams]]
name = "soak.b"
retention = { max_packets = 500, min_age = "0s" }
"""


class Sample(msgspec.Struct, frozen=True):
    """What the node used at a time."""

    at_s: float
    memory: int
    descriptors: int
    wal: int


class Bounds(msgspec.Struct, frozen=True):
    """`growth`: bytes per ten minutes after the warm-up; `memory`: at any time. `filling`: packets that are published and read
    live first."""

    duration_s: float
    warm_up_s: float
    growth: float
    filling: int = 0
    memory: int = 256 << 20
    descriptors: int = 10
    wal: int = 64 << 20


SHORT = Bounds(30, 15, math.inf)
LONG = Bounds(SOAK_S, 300, 1 << 20, filling=40_000)
"""The node's caches are bounded in bytes, and how soon they are full depends on the machine: they are filled at the beginning,
with about what two minutes of this load bring on a quick machine, so that what grows after the warm-up is growth."""


class Soak:
    """A node, its load, and what was seen."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.samples: list[Sample] = []
        self.done: dict[str, int] = {}

    def look(self, started: float) -> None:
        """Takes a sample. The node is one process; no child is left out."""
        process = Path(f"/proc/{self.node.process.pid}")
        memory = next(line for line in (process / "status").read_text().splitlines() if line.startswith("RssAnon:"))
        wal = self.node.directory / "log.sqlite3-wal"
        self.samples.append(
            Sample(
                trio.current_time() - started, int(memory.split()[1]) << 10, len(os.listdir(process / "fd")),
                wal.stat().st_size if wal.exists() else 0,
            )
        )  # fmt: skip

    async def again(self, name: str, pause_s: float, work: Callable[[], Awaitable[object]]) -> None:
        """Does it over and over, and counts; what the node refuses is part of the load."""
        while True:
            with trio.move_on_after(20):
                try:
                    await work()
                    self.done[name] = self.done.get(name, 0) + 1
                except OverlaydError:
                    self.done[f"{name} refused"] = self.done.get(f"{name} refused", 0) + 1
            await trio.sleep(pause_s)

    async def fill(self, client: Client, count: int) -> None:
        """Publishes so many packets and reads each live."""
        async with client.live("soak.a") as live:
            packets = aiter(live)
            for _ in range(0, count, FILLED_AT_ONCE):
                await client.publish_many("soak.a", [{"data": {"n": 0, "text": "x" * 200}}] * FILLED_AT_ONCE)
                for _ in range(FILLED_AT_ONCE):
                    await anext(packets)

    async def run(self, duration_s: float, filling: int) -> None:
        """The load, for so long, behind so many packets that fill caches."""
        started = trio.current_time()
        url = f"unix:{self.node.directory}/overlayd.sock"
        with trio.move_on_after(duration_s):
            async with Client(url) as client, trio.open_nursery() as nursery, open_sink() as sink:
                await self.fill(client, filling)
                sink.play(answer(200), answer(500), answer(200))
                await client.subscriptions.create(
                    {"name": "hook", "kind": "webhook", "streams": ["soak.b"], "webhook": {"url": sink.url}}
                )
                await client.subscriptions.create({"name": "pull", "kind": "pull", "streams": ["soak.*"]})
                for name, pause_s, work in self._works(client):
                    nursery.start_soon(self.again, name, pause_s, work)
                while True:
                    del sink.turns[:]
                    self.look(started)
                    await trio.sleep(1)

    def _works(self, client: Client) -> list[tuple[str, float, Callable[[], Awaitable[object]]]]:
        async def publish() -> None:
            await client.publish_many("soak.a", [{"data": {"n": n, "text": "x" * 200}} for n in range(20)])

        async def publish_one() -> None:
            await client.publish("soak.b", {"n": self.done.get("publish one", 0)})

        async def follow() -> None:
            async with client.live("soak.*") as live:
                for _ in range(5):
                    await anext(aiter(live))

        async def filtered() -> None:
            async with client.live("soak.a", filter="data.n > 10") as live:
                await anext(aiter(live))

        async def read() -> None:
            page = await client.read_log("soak.*", wait_s=0.5)
            assert page.cursor

        async def prove() -> None:
            packet = await client.read_last("soak.b")
            await client.proof("soak.b", packet.packet_sequence)

        async def fetch() -> None:
            batch = await client.subscriptions.fetch("pull", 100)
            if batch.messages:
                await client.subscriptions.ack("pull", [message.lease for message in batch.messages])

        async def reload() -> None:
            await client.send(reload_settings())

        return [
            ("publish", 0.05, publish), ("publish one", 0.02, publish_one), ("follow", 0.05, follow),
            ("filtered", 0.05, filtered), ("read", 0.05, read), ("prove", 0.1, prove), ("fetch", 0.1, fetch),
            ("reload", 5.0, reload),
        ]  # fmt: skip


def check(soak: Soak, bounds: Bounds) -> None:
    """Everything was done, and what is used stays within the bounds. Growth is a line through the samples."""
    for name in ("publish", "publish one", "follow", "filtered", "read", "prove", "fetch", "reload"):
        assert soak.done.get(name, 0) >= 1, (name, soak.done)
    settled = [sample for sample in soak.samples if sample.at_s >= bounds.warm_up_s]
    half = len(settled) // 2
    assert half >= 5
    counts = sorted(sample.descriptors for sample in settled[:half]), sorted(s.descriptors for s in settled[half:])
    first, last = (count[len(count) // 2] for count in counts)
    growth = slope([(sample.at_s, sample.memory) for sample in settled]) * 600
    print(
        f"done {soak.done}; descriptors {first} and {last}; memory {settled[0].memory >> 10} to "
        f"{settled[-1].memory >> 10} KiB, {growth / (1 << 20):.2f} MiB in ten minutes; "
        f"WAL at most {max(sample.wal for sample in settled) >> 10} KiB"
    )
    assert abs(last - first) <= bounds.descriptors
    assert max(sample.wal for sample in soak.samples) < bounds.wal
    assert max(sample.memory for sample in soak.samples) < bounds.memory
    assert growth < bounds.growth


def slope(points: "list[tuple[float, int]]") -> float:
    """Of the least squares line."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread


async def soak_for(directory: Path, bounds: Bounds) -> None:
    """One node, one load, one verdict."""
    node = Node(directory / "data", config=CONFIG)
    try:
        await trio.to_thread.run_sync(node.wait_ready)
        soak = Soak(node)
        await soak.run(bounds.duration_s, bounds.filling)
        check(soak, bounds)
    finally:
        assert await trio.to_thread.run_sync(node.stop) == 0


async def test_half_a_minute(tmp_path: Path) -> None:
    """The short form: nothing is lost to descriptors or the WAL, and memory doesn't run away."""
    await soak_for(tmp_path, SHORT)


@pytest.mark.slow
@pytest.mark.timeout(SOAK_S + 300)
async def test_half_an_hour(tmp_path: Path) -> None:
    """What the node promises: less than a mebibyte in ten minutes after the fifth, descriptors ±10, WAL under 64 MiB."""
    await soak_for(tmp_path, LONG)

"""Packets on a real node that follows the embedded regtest chain: each is given once, when it is deep enough."""

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import trio
from node_process import Node
from real_waiting import PATIENCE_S, pause_async, until_async
from test_subscriptions import Sink

from overlayd.client import Client
from overlayd.model.wire import encode_wire

CONFIG = """
[webhooks]
allow_private = ["127.0.0.0/8"]

[chain]
network = "regtest"
block_interval = "0s"
anchor_packets = 1
"""
STREAMS = {"c.single": {"commit": "packet", "depths": [1, 3]}, "c.batch": {"commit": "batch"}}
COUNT = 15


class Station:
    """A node, and an administrator's connection to it."""

    def __init__(self, directory: Path) -> None:
        self.node = Node(directory, config=CONFIG).wait_ready()
        transport = httpx.HTTPTransport(uds=str(directory / "overlayd.sock"))
        self.admin = httpx.Client(transport=transport, base_url="http://localhost", timeout=PATIENCE_S)

    def ask(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        answer = self.admin.request(method, path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def mine(self, blocks: int = 1) -> None:
        self.ask("POST", "/v1/chain/regtest/mine", {"blocks": blocks})

    def publish(self, stream: str, numbers: range) -> None:
        """Packets that the node's wallet pays for."""
        packets = [{"data": number, "id": str(number)} for number in numbers]
        receipts = self.ask("POST", f"/v1/streams/{stream}/packets", packets, 201)["receipts"]
        assert {receipt["confirmation_status"] for receipt in receipts} == {"pending"}
        assert all(("commitment" in receipt) == (stream == "c.single") for receipt in receipts)

    def is_paid(self, stream: str) -> bool:
        states = {packet["confirmation_status"] for packet in self.packets(stream)}
        return not states & {"none", "pending"}

    async def wait_paid(self) -> None:
        """Until every packet's transaction was seen."""
        for stream in STREAMS:
            await until_async(lambda name=stream: self.is_paid(name), f"{stream} is paid for")  # type: ignore[misc]

    def packets(self, stream: str, **query: str) -> list[dict[str, Any]]:
        path = f"/v1/streams/{stream}/packets?limit=1000" + "".join(f"&{name}={word}" for name, word in query.items())
        found: list[dict[str, Any]] = self.ask("GET", path)["packets"]
        return found

    def stop(self) -> None:
        self.admin.close()
        self.node.stop()


class Heard:
    """What one reader got, over restarts of the node."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.cursor = ""

    def note(self, message: dict[str, Any]) -> None:
        if message["type"] in ("packet", "status", "gap", "error"):
            self.messages.append(message)
            self.cursor = message["cursor"]

    def packets(self) -> Counter[tuple[str, str]]:
        """How often each came."""
        found = [message["packet"] for message in self.messages if message["type"] == "packet"]
        return Counter((packet["stream_id"], packet["packet_id"]) for packet in found)

    def statuses(self) -> Counter[tuple[str, str]]:
        """Sequences, as stream and state, each as often as it was told."""
        counts: Counter[tuple[str, str]] = Counter()
        for message in self.messages:
            if message["type"] == "status":
                first = message.get("packet_sequence") or message["from"]
                last = message.get("packet_sequence") or message["to"]
                counts[message["stream_id"], message["confirmation_status"]] += last - first + 1
        return counts

    async def wait(self, is_so: Callable[[], bool]) -> None:
        """Until it heard so much; then a little longer, to hear what is too much."""
        await until_async(is_so, "it is heard")
        await pause_async(0.2)


async def follow_socket(url: str, heard: Heard, depth: int, opened: trio.Event) -> None:
    """Over WebSocket."""
    place = {"after": heard.cursor} if heard.cursor else {"start": "now"}
    async with Client(url) as client, client.live("c.>", deliver="confirmed", min_confirmations=depth, **place) as live:  # type: ignore[arg-type]
        opened.set()
        async for message in live:
            heard.note(json.loads(encode_wire(message)))


async def follow_events(url: str, heard: Heard, opened: trio.Event) -> None:
    """Over SSE."""
    query = {"stream": "c.>", "deliver": "confirmed", **({"after": heard.cursor} if heard.cursor else {"from": "now"})}
    headers = {"Accept": "text/event-stream"}
    async with (
        httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client,
        client.stream("GET", "/v1/live", params=query, headers=headers) as answer,
    ):
        assert answer.status_code == 200
        opened.set()
        async for line in answer.aiter_lines():
            if line.startswith("data:"):
                heard.note(json.loads(line[5:]))


@asynccontextmanager
async def listening(station: Station, socket: Heard, deep: Heard, events: Heard) -> AsyncIterator[None]:
    """Three readers, each from where it was."""
    url = station.node.url
    async with trio.open_nursery() as nursery:
        ready = [trio.Event() for _ in range(3)]
        nursery.start_soon(follow_socket, url, socket, 1, ready[0])
        nursery.start_soon(follow_socket, url, deep, 3, ready[1])
        nursery.start_soon(follow_events, url, events, ready[2])
        for one in ready:
            await one.wait()
        await pause_async(0.2)
        yield
        nursery.cancel_scope.cancel()


def wanted(*numbers: int, streams: tuple[str, ...] = tuple(STREAMS)) -> Counter[tuple[str, str]]:
    """Each packet once."""
    return Counter((stream, str(number)) for stream in streams for number in numbers)


def given_to(sink: Sink) -> Counter[tuple[str, str]]:
    """The webhook's packets, each as often as it came."""
    packets = [body["packet"] for _, body in list(sink.requests) if "packet" in body]
    return Counter((packet["stream_id"], packet["packet_id"]) for packet in packets)


class Readers:
    """All who listen: at depth 1 over WebSocket, at depth 3 over WebSocket, at depth 1 over SSE."""

    def __init__(self) -> None:
        self.socket, self.deep, self.events = Heard(), Heard(), Heard()

    @property
    def every(self) -> tuple[Heard, Heard, Heard]:
        return self.socket, self.deep, self.events

    def of(self, station: Station) -> AbstractAsyncContextManager[None]:
        return listening(station, self.socket, self.deep, self.events)


async def confirm_first(station: Station, readers: Readers) -> None:
    """Nothing before the block; then each once at depth 1, and only at depth 3 for who waits for that."""
    every = wanted(*range(COUNT))
    assert [message for heard in readers.every for message in heard.messages] == []
    assert station.packets("c.single", deliver="confirmed") == []
    station.mine()
    for heard in (readers.socket, readers.events):
        await heard.wait(lambda: heard.packets().total() >= every.total())  # noqa: B023
        assert heard.packets() == every
    assert readers.deep.messages == []
    found = [message["packet"] for message in readers.socket.messages]
    assert {packet["confirmations"] for packet in found} == {1}
    assert all(packet["txid"] and packet["block_hash"] for packet in found)
    first = station.admin.get("/v1/streams/c.single/packets/1")
    assert first.json()["confirmations"] == 1
    station.mine(2)
    again = station.admin.get("/v1/streams/c.single/packets/1", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.json()["confirmations"]) == (200, 3)
    by_txid = station.ask("GET", f"/v1/packets?txid={again.json()['txid']}")["packets"]
    assert [packet["packet_sequence"] for packet in by_txid] == [1]
    await readers.deep.wait(lambda: readers.deep.packets().total() >= COUNT)
    assert readers.deep.packets() == wanted(*range(COUNT), streams=("c.single",))
    assert readers.socket.packets() == every


async def reorganize(station: Station, readers: Readers) -> None:
    """What a reorg takes back, and what is confirmed again, comes as status."""
    station.ask("POST", "/v1/chain/regtest/reorg", {"depth": 3})
    for state in ("pending", "confirmed"):
        for heard in readers.every:
            await heard.wait(lambda: heard.statuses()["c.single", state] >= COUNT)  # noqa: B023
            assert heard.statuses()["c.single", state] == COUNT
        if state == "pending":
            station.mine(3)
    assert readers.socket.packets() == readers.events.packets() == wanted(*range(COUNT))
    assert readers.deep.packets() == wanted(*range(COUNT), streams=("c.single",))


async def confirm_after_restart(station: Station, readers: Readers) -> None:
    """Packets that waited for a block while the node was started anew come once, too."""
    every = wanted(*range(COUNT + 5))
    station.mine()
    for heard in (readers.socket, readers.events):
        await heard.wait(lambda: heard.packets().total() >= every.total())  # noqa: B023
        assert heard.packets() == every
    assert readers.deep.packets() == wanted(*range(COUNT), streams=("c.single",))
    station.mine(2)
    await readers.deep.wait(lambda: readers.deep.packets().total() >= COUNT + 5)
    assert readers.deep.packets() == wanted(*range(COUNT + 5), streams=("c.single",))
    found = [packet["packet_id"] for packet in station.packets("c.single", deliver="confirmed")]
    assert found == [str(number) for number in range(COUNT + 5)]
    assert station.ask("GET", "/v1/streams/c.single")["confirmed_sequence"] == COUNT + 5


async def test_confirmed_packets_are_given_once(tmp_path: Path) -> None:
    """Each packet comes once at its depth, over WebSocket, SSE and as webhook, over a reorg and a restart."""
    sink, readers = Sink(), Readers()
    station = Station(tmp_path / "data")
    try:
        for stream, rule in STREAMS.items():
            station.ask("PUT", f"/v1/streams/{stream}", {"confirm": rule}, 201)
        hook = {
            "name": "h",
            "kind": "webhook",
            "streams": ["c.>"],
            "deliver": "confirmed",
            "webhook": {"url": sink.url},
        }
        station.ask("POST", "/v1/subscriptions", hook, 201)
        async with readers.of(station):
            for stream in STREAMS:
                station.publish(stream, range(COUNT))
            await station.wait_paid()
            await pause_async(0.2)
            assert sink.requests == []
            await confirm_first(station, readers)
            await reorganize(station, readers)
            for stream in STREAMS:
                station.publish(stream, range(COUNT, COUNT + 5))
            await station.wait_paid()
        station.stop()
        station = Station(tmp_path / "data")
        async with readers.of(station):
            await confirm_after_restart(station, readers)
        every = wanted(*range(COUNT + 5))
        await readers.socket.wait(lambda: given_to(sink).total() >= every.total())
        assert given_to(sink) == every
    finally:
        station.stop()
        sink.server.shutdown()
        sink.server.server_close()

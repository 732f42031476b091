"""Many packets on the embedded chain: each given once and only after its depth, over every way, through a kill."""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio
from real_waiting import pause_async, until_async
from test_confirmed_on_node import Heard, Station, follow_events, follow_socket
from test_subscriptions import Sink

from overlayd.bsv.chain_check import ChainCheck
from overlayd.bsv.known_headers import parse_headers_file
from overlayd.model.note import VerifierKey
from overlayd.model.proof import TrustedKeys, decode_proof, verify_proof

SINGLE, BATCH = "c.single", "c.batch"
DEPTH = 2


class Ways:
    """Whoever listens: a socket and an event stream, and two programs that are called."""

    def __init__(self) -> None:
        self.socket, self.events = Heard(), Heard()
        self.hook, self.agent = Sink(), Sink()

    def counts(self) -> list[Counter[tuple[str, str]]]:
        """What came over each, each packet as often as it came."""
        return [self.socket.packets(), self.events.packets(), given_to(self.hook), given_to(self.agent)]

    def close(self) -> None:
        for sink in (self.hook, self.agent):
            sink.server.shutdown()
            sink.server.server_close()

    @asynccontextmanager
    async def listening(self, url: str) -> AsyncIterator[None]:
        """The socket and the event stream, each from where it was."""
        async with trio.open_nursery() as nursery:
            ready = [trio.Event(), trio.Event()]
            nursery.start_soon(hear, lambda: follow_socket(url, self.socket, DEPTH, ready[0]))
            nursery.start_soon(hear, lambda: follow_events(url, self.events, ready[1]))
            for one in ready:
                await one.wait()
            await pause_async(0.2)
            yield
            nursery.cancel_scope.cancel()


def given_to(sink: Sink) -> Counter[tuple[str, str]]:
    """A receiver's packets. What was under way when the node was killed comes again, under the same id: that is one."""
    found = {(headers["webhook-id"], body["packet"]["stream_id"], body["packet"]["packet_id"])
             for headers, body in list(sink.requests)}  # fmt: skip
    return Counter((stream, packet_id) for _, stream, packet_id in found)


async def hear(follow: Callable[[], object]) -> None:
    """Until the node is gone."""
    try:
        await follow()  # type: ignore[misc]  # a coroutine
    except* (OSError, httpx.HTTPError):
        await trio.sleep_forever()


async def fund(station: Station, coins: int) -> None:
    """A coin for each packet, so that none waits for a block of another one's change."""
    station.mine()

    def has_coins() -> bool:
        if station.ask("GET", "/v1/wallet")["usable_coins"] >= coins:
            return True
        station.admin.post("/v1/wallet/fan-out", json={"coins": coins})  # refused until its coin is in a block
        station.mine()
        return False

    await until_async(has_coins, "a coin for each packet", each_s=0.2)


def subscribe(station: Station, ways: Ways) -> None:
    """Webhook and agent, for confirmed packets."""
    for kind, sink in (("webhook", ways.hook), ("agent", ways.agent)):
        agent = {"agent": {}} if kind == "agent" else {}
        body = {"name": kind, "kind": kind, "streams": ["c.>"], "deliver": "confirmed", **agent,
                "webhook": {"url": sink.url, "concurrency": 8}}  # fmt: skip
        station.ask("POST", "/v1/subscriptions", body, 201)


def publish(station: Station, first: int, count: int) -> None:
    """So many packets of each stream, which the node pays for."""
    for stream in (SINGLE, BATCH):
        packets = [{"data": number, "id": str(number)} for number in range(first, first + count)]
        station.ask("POST", f"/v1/streams/{stream}/packets", packets, 201)


async def wait_seen(station: Station, count: int) -> None:
    """Until the transactions of all of them are known to the chain."""

    def is_seen(stream: str) -> bool:
        found = station.packets(stream)
        return len(found) == count and not {one["confirmation_status"] for one in found} & {"none", "pending"}

    for stream in (SINGLE, BATCH):
        await until_async(partial(is_seen, stream), f"{stream} is seen", each_s=0.05)


def wanted(count: int) -> Counter[tuple[str, str]]:
    """Each packet once."""
    return Counter((stream, str(number)) for stream in (SINGLE, BATCH) for number in range(count))


async def wait_all(ways: Ways, count: int) -> None:
    """Until each way has them; then a little longer, for what is too much."""
    await until_async(lambda: all(found.total() >= 2 * count for found in ways.counts()), "each way has them")
    assert [found.total() for found in ways.counts()] == [2 * count] * 4
    await pause_async(0.3)
    assert ways.counts() == [wanted(count)] * 4


def verify_all(station: Station, count: int) -> Counter[str]:
    """Every packet's proof, offline, against headers and key that were saved before; what each block covers."""
    key = VerifierKey.parse(station.ask("GET", "/v1/log/keys")["keys"][0]["key"])
    headers = station.admin.get("/v1/chain/headers?from=100&limit=2000").content
    chain = ChainCheck(parse_headers_file(headers), allow_regtest=True)
    found: Counter[str] = Counter()
    for stream in (SINGLE, BATCH):
        for sequence in range(1, count + 1):
            raw = station.admin.get(f"/v1/streams/{stream}/packets/{sequence}/proof").content
            verdict = verify_proof(decode_proof(raw), TrustedKeys((key,)), chain)
            assert (verdict.level, verdict.stream, verdict.sequence) == ("anchored", stream, sequence)
            assert verdict.anchor is not None
            found[verdict.anchor.covers] += 1
    return found


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
async def test_packets_are_confirmed_once_through_a_kill(tmp_path: Path, count: int) -> None:
    """Published, mined, given once at depth two over WebSocket, SSE, webhook and agent; killed while the second half is
    being told; then every proof holds offline. `count`: of each of two streams."""
    ways, half = Ways(), count // 2
    station = Station(tmp_path / "data")
    try:
        for stream, commit in ((SINGLE, "packet"), (BATCH, "batch")):
            station.ask("PUT", f"/v1/streams/{stream}", {"confirm": {"commit": commit, "depths": [DEPTH]}}, 201)
        subscribe(station, ways)
        await fund(station, count + 20)
        async with ways.listening(station.node.url):
            publish(station, 0, half)
            await wait_seen(station, half)
            station.mine()
            await pause_async(0.5)
            assert [found.total() for found in ways.counts()] == [0, 0, 0, 0]
            station.mine()
            await wait_all(ways, half)
            publish(station, half, half)
            await wait_seen(station, count)
            ways.hook.answers.clear()  # or a quick node would be through with all of them before it is killed
            station.mine(2)
            station.node.process.kill()
            station.node.process.wait()
            ways.hook.answers.set()
            assert any(found.total() < 2 * count for found in ways.counts())
        station.stop()
        station = Station(tmp_path / "data")
        async with ways.listening(station.node.url):
            await wait_all(ways, count)
        assert verify_all(station, count) == {"commitment": count, "checkpoint": count}
    finally:
        station.stop()
        ways.close()

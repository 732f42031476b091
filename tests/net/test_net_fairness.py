"""Nobody keeps others waiting: what bounds a client's share of the loop, of a group and of the lanes. Counted, not timed."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from net_rig import RawClient
from publish_rig import HEAD, open_publishing, packets_in
from real_waiting import PATIENCE_S

from overlayd.access import Peer
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.push_stream import SocketPushStream
from overlayd.net.connection import Connection
from overlayd.net.turnstile import EVENTS_PER_LOOK, Stay, Turnstile

_PEER = Peer("unix")
POST = HEAD + b'Content-Type: application/json\r\nContent-Length: 10\r\n\r\n{"data":1}'
OTHER = POST.replace(b"/a/", b"/b/")


async def offset_after(client: RawClient, raw: bytes) -> int:
    """Publishes one packet; where it stands."""
    await client.send(raw)
    offset: int = (await client.read_answer()).json["offset"]
    return offset


@pytest.mark.parametrize("is_fast", [True, False], ids=["lane", "Quart"])
async def test_a_client_at_full_rate_has_one_request_in_a_group(tmp_path: Path, is_fast: bool) -> None:
    """A client that sends thousands of requests without waiting gets one into each commit; who sends a single one
    meanwhile waits for a few commits, not for thousands."""
    async with (
        open_publishing(tmp_path, Limits(), is_fast=is_fast) as (edge, log),
        await edge.connect() as greedy,
        await edge.connect() as modest,
        trio.open_nursery() as nursery,
    ):
        await offset_after(modest, OTHER)
        nursery.start_soon(greedy.send, POST * 5000)
        for _ in range(5):
            await greedy.read_answer()
        for _ in range(10):
            before = log.head
            assert await offset_after(modest, OTHER) - before <= 8
        assert packets_in(log) < 5000
        nursery.cancel_scope.cancel()


async def test_clients_that_never_read_hold_nobody_up(tmp_path: Path) -> None:
    """Connections whose answers pile up stop being read from; their stuck answers cost others nothing but their memory,
    which is a buffer each."""
    async with open_publishing(tmp_path, Limits(), is_fast=True) as (edge, log):
        stuck = [await edge.connect() for _ in range(10)]
        async with trio.open_nursery() as nursery:
            for client in stuck:
                nursery.start_soon(fill, client)
        async with await edge.connect() as modest:
            for _ in range(20):
                before = log.head
                assert await offset_after(modest, OTHER) - before <= 3 * (len(stuck) + 1)
        assert edge.count("overlayd_bodies_in_flight_bytes") == 0


async def fill(client: RawClient) -> None:
    """Sends requests and reads no answer, until the node takes no more of them."""
    client.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
    with trio.move_on_after(0.1):
        while True:
            await client.send(POST * 200)


class Took:
    """A quick server that takes every request and never answers."""

    def __init__(self, note: Callable[[], None]) -> None:
        self._note = note

    def take(self, stay: Stay, data: bytes) -> bool:
        self._note()
        return True


@pytest.mark.parametrize("step_s", [0.0, 0.001])
async def test_the_turnstile_lets_others_run(step_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of connections that have something to say at once are looked at a bounded number at a time, and fewer
    where each takes long."""
    now, since_tick, most = [0.0], [0], [0]

    def clock() -> float:
        return now[0]

    def note() -> None:
        now[0] += step_s
        since_tick[0] += 1
        most[0] = max(most[0], since_tick[0])

    async def tick() -> None:
        while True:
            since_tick[0] = 0
            await trio.lowlevel.checkpoint()

    monkeypatch.setattr("overlayd.net.turnstile.time.perf_counter", clock)
    limits, pairs = Limits(), [trio.socket.socketpair() for _ in range(200)]
    watched = Turnstile(Took(note), limits=limits, metrics=Metrics(), stop=trio.Event())
    async with trio.open_nursery() as nursery:
        for ours, theirs in pairs:
            connection = Connection(SocketPushStream(ours), _PEER, 30.0)
            nursery.start_soon(watched.stay, connection)
            os.write(theirs.fileno(), POST)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(tick)
        nursery.start_soon(watched.run)
        with trio.fail_after(PATIENCE_S):
            while now[0] < 200 * step_s or sum(stay.is_busy for stay in watched._stays.values()) < 200:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    for ours, theirs in pairs:
        ours.close()
        theirs.close()
    # Tasks of one round run in any order, so two looks may stand between two ticks.
    assert 1 <= most[0] <= 2 * (EVENTS_PER_LOOK if step_s == 0 else 3)

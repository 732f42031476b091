"""The guard: what a slow, silent or vanished peer can't do, and how the edge ends."""

import select
from pathlib import Path

import pytest
import trio
import trio.testing
from left_behind import nothing_left_of
from net_rig import GET_HEALTH, limits_with, open_edge
from real_waiting import PATIENCE_S
from tls_wire import in_clear_text

from overlayd.access import Principal
from overlayd.model.units import Duration
from overlayd.net.guard import INBOX_EVENTS, Exchange, Inbox, OneRequest
from overlayd.net.head import Head


async def test_slow_reader_is_cut(tmp_path: Path, patient_clock: trio.testing.MockClock) -> None:
    """A client that asks for much and reads nothing is cut after `stall_timeout`, and counted."""
    async with open_edge(tmp_path) as edge:
        async with await edge.connect() as client:
            await client.send(b"GET /big?bytes=20000000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            started = trio.current_time()
            await edge.wait_connections()
            assert (
                30 <= trio.current_time() - started < 600
            )  # the kernels still move some at first, each in its own time
        assert edge.count("overlayd_net_connection_stalls_total") == 1
        assert edge.count("overlayd_limit_hits_total", limit="stall_timeout") == 1


async def test_slow_stream_reader_is_cut(tmp_path: Path, patient_clock: trio.testing.MockClock) -> None:
    """The same for a client that stops reading an endless answer; its route is cancelled."""
    async with open_edge(tmp_path) as edge:
        async with await edge.connect() as client:
            client.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
            await client.send(b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await edge.wait_connections()
        assert edge.count("overlayd_net_connection_stalls_total") == 1


async def test_slow_but_moving_reader_survives(tmp_path: Path, patient_clock: trio.testing.MockClock) -> None:
    """A download that takes minutes but moves isn't cut."""
    async with open_edge(tmp_path) as edge:
        async with await edge.connect() as client:
            client.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 65536)
            await client.send(b"GET /big?bytes=800000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            got, wire = 0, client.stream.socket
            while got < 800_000:
                await trio.sleep(10)
                enough = got + 65_000
                while got < min(enough, 800_000):
                    # A window that was shut opens by the kernel's own timers; while a thread waits the clock stands.
                    await trio.to_thread.run_sync(select.select, [wire.fileno()], [], [], PATIENCE_S)
                    got += len(await client.stream.receive_some(65_000))
        assert edge.count("overlayd_net_connection_stalls_total") == 0


async def test_slow_websocket_reader_is_cut(tmp_path: Path, patient_clock: trio.testing.MockClock) -> None:
    """Writes of a live session end with BrokenResourceError once the peer has stalled."""
    broken = trio.Event()

    async def serve(stream: trio.abc.Stream, head: Head, principal: Principal) -> None:
        try:
            while True:
                await stream.send_all(b"x" * 200_000)
        except trio.BrokenResourceError:
            broken.set()

    async with open_edge(tmp_path, serve_websocket=serve) as edge, await edge.connect() as client:
        await client.send(
            b"GET /v1/live HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        await broken.wait()


async def test_silent_connection_is_closed(tmp_path: Path, patient_clock: trio.testing.MockClock) -> None:
    """A connection without a request ends after `keep_alive_timeout`, before the first request and between two."""
    async with open_edge(tmp_path) as edge:
        async with await edge.connect() as client:
            assert await client.is_closed_by_peer()
            assert trio.current_time() >= 75
        async with await edge.connect() as client:
            assert (await client.request("GET", "/healthz")).status == 200
            assert await client.is_closed_by_peer()
        assert edge.count("overlayd_limit_hits_total", limit="keep_alive_timeout") == 2


async def test_slow_head_is_408(tmp_path: Path, patient_clock: trio.testing.MockClock) -> None:
    """A head must be whole `head_timeout` after its first byte, however steadily it trickles."""
    async with open_edge(tmp_path) as edge:
        async with await edge.connect() as client, trio.open_nursery() as nursery:

            async def trickle() -> None:
                while True:
                    await client.send(b"G")
                    await trio.sleep(1)

            nursery.start_soon(trickle)
            answer = await client.read_answer()
            nursery.cancel_scope.cancel()
            assert (answer.status, answer.json["code"]) == (408, "request.timeout")
            assert 10 <= trio.current_time() < 13
        assert edge.count("overlayd_limit_hits_total", limit="head_timeout") == 1


async def test_half_closed_long_request_ends(tmp_path: Path, patient_clock: trio.testing.MockClock) -> None:
    """After a half close, a request that takes long is cancelled: its client may be gone."""
    async with open_edge(tmp_path) as edge, await edge.connect() as client:
        await client.send(b"GET /hang HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await client.stream.send_eof()
        assert await client.is_closed_by_peer()
        assert trio.current_time() < 5


async def test_half_closed_stream_ends(tmp_path: Path) -> None:
    """A client that leaves an endless answer ends it at once."""
    async with open_edge(tmp_path) as edge:
        client = await edge.connect()
        await client.send(b"GET /drip HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200" in await client.stream.receive_some(1000)
        await trio.aclose_forcefully(client.stream)
        await edge.wait_connections()


async def test_drain_lets_requests_finish(tmp_path: Path, patient_clock: trio.testing.MockClock) -> None:
    """On shutdown idle connections end at once, a running request gets its answer, a new one 503."""
    told: list[str] = []

    async def end_sessions() -> None:
        await trio.lowlevel.checkpoint()
        told.append("bye")

    async with open_edge(tmp_path, end_sessions=end_sessions) as edge:
        idle, busy, late = [await edge.connect() for _ in range(3)]
        assert (await idle.request("GET", "/healthz")).status == 200
        await late.send(GET_HEALTH[:20])
        await busy.send(b"GET /slow?seconds=2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await edge.wait_until(lambda: "/slow" in edge.calls)
        edge.stop.set()
        assert await idle.is_closed_by_peer()
        await late.send(GET_HEALTH[20:])
        refused = await late.read_answer()
        assert (refused.status, refused.json["code"]) == (503, "node.stopping")
        answer = await busy.read_answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert told == ["bye"]
        assert not edge.path.exists()
        with pytest.raises(OSError, match="connect"):
            await edge.connect()


async def test_drain_cuts_what_stays(tmp_path: Path, patient_clock: trio.testing.MockClock) -> None:
    """Requests, stalled readers and half heads that outlast `drain_timeout` are cut."""
    async with open_edge(tmp_path) as edge:
        clients = [await edge.connect() for _ in range(3)]
        for client, raw in zip(clients, (b"GET /hang", b"GET /big?bytes=20000000", b"GET /half"), strict=True):
            await client.send(raw + (b"" if raw.endswith(b"half") else b" HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        await edge.wait_until(lambda: {"/hang", "/big"} <= set(edge.calls))
        edge.stop.set()
        started = trio.current_time()
        await edge.wait_connections()
        assert trio.current_time() - started < 8
        assert edge.count("overlayd_limit_hits_total", limit="drain_timeout") == 1


@in_clear_text
async def test_connection_caps(tmp_path: Path) -> None:
    """Connections over `connections_per_address` or `connections_max` get 503 and are counted."""
    async with open_edge(tmp_path, limits=limits_with(connections_max=3, connections_per_address=2)) as edge:
        first, second = await edge.connect(), await edge.connect()
        assert (await first.request("GET", "/healthz")).status == 200
        assert (await second.request("GET", "/healthz")).status == 200
        async with await edge.connect() as third:
            answer = await third.read_answer()
            assert (answer.status, answer.json["code"]) == (503, "connections.full")
            assert answer.headers["retry-after"] == "1"
        async with await edge.connect_unix() as other:
            assert (await other.request("GET", "/healthz")).status == 200
            async with await edge.connect_unix() as fourth:
                assert (await fourth.read_answer()).json["subject"] == "connections_max"
        await trio.aclose_forcefully(first.stream)
        await edge.wait_connections(1)
        async with await edge.connect() as again:
            assert (await again.request("GET", "/healthz")).status == 200
        assert edge.count("overlayd_limit_hits_total", limit="connections_per_address") == 1


async def test_lane_bounds_requests(tmp_path: Path, patient_clock: trio.testing.MockClock) -> None:
    """With the lane and its queue full, requests are 503 but /healthz still answers."""
    async with open_edge(tmp_path, limits=limits_with(other_lane_concurrency=1, other_lane_queue=1)) as edge:
        clients = [await edge.connect() for _ in range(3)]
        for client in clients[:2]:
            await client.send(b"GET /slow?seconds=100&hold HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await edge.wait_until(lambda: "/slow" in edge.calls)
        await edge.wait_until(lambda: edge.count("overlayd_lane_waiting") == 1)
        assert (await clients[2].request("GET", "/echo")).json["code"] == "intake.busy"
        assert (await clients[2].request("GET", "/healthz")).status == 200
        for client in clients[:2]:
            await trio.aclose_forcefully(client.stream)
        await edge.wait_connections(1)
        assert (await clients[2].request("GET", "/echo")).status == 200


async def test_crash_is_counted_and_contained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unforeseen exception in one connection ends that connection only."""

    async def serve(stream: trio.abc.Stream, head: Head, principal: Principal) -> None:
        async with trio.open_nursery():
            raise RuntimeError("by design")

    async with open_edge(tmp_path, serve_websocket=serve) as edge:
        async with await edge.connect() as healthy, await edge.connect() as client:
            assert (await healthy.request("GET", "/healthz")).status == 200
            await client.send(
                b"GET /v1/live HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            )
            assert await client.is_closed_by_peer()
            assert (await healthy.request("GET", "/healthz")).status == 200
        assert edge.count("overlayd_net_connection_crashes_total") == 1


async def test_inbox_bounds_and_disconnect() -> None:
    """The way to the application holds so many messages; that the client left overtakes them and always fits."""
    inbox = Inbox()
    for _ in range(INBOX_EVENTS):
        await inbox.put({"type": "http.request", "body": b"x"})
    with trio.move_on_after(0) as scope:
        await inbox.put({"type": "http.request", "body": b"x"})
    assert scope.cancelled_caught
    assert (await inbox.receive())["type"] == "http.request"
    await inbox.put({"type": "http.disconnect"})
    assert (await inbox.receive())["type"] == "http.disconnect"
    with trio.testing.assert_checkpoints():
        await inbox.put({"type": "http.request", "body": b"dropped"})
    assert (await inbox.receive())["type"] == "http.disconnect"


async def test_drop_of_sends_is_a_checkpoint(tmp_path: Path) -> None:
    """A route that writes on and on after its client left is cancelled; it can't freeze the process."""
    async with open_edge(tmp_path) as edge:
        for path in (b"/flood", b"/drip"):
            client = await edge.connect()
            await client.send(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await client.stream.receive_some(1000)
            await trio.aclose_forcefully(client.stream)
            await edge.wait_connections()


async def test_timeout_of_the_drain_is_a_setting(tmp_path: Path, patient_clock: trio.testing.MockClock) -> None:
    """`drain_timeout` bounds the whole end."""
    async with open_edge(tmp_path, limits=limits_with(drain_timeout=Duration(60))) as edge:
        client = await edge.connect()
        await client.send(b"GET /slow?seconds=50 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await edge.wait_until(lambda: "/slow" in edge.calls)
        edge.stop.set()
        assert (await client.read_answer()).status == 200


async def test_nothing_is_left_of_a_request(tmp_path: Path) -> None:
    """Its buffers are free once it is answered: no cycle keeps them until the collector comes by."""
    async with open_edge(tmp_path) as edge, await edge.connect() as client:
        with nothing_left_of(Exchange, OneRequest, Inbox):
            for _ in range(3):
                assert (await client.request("GET", "/healthz")).status == 200
            await trio.testing.wait_all_tasks_blocked()

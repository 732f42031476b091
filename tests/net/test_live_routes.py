"""Live answers and sessions over HTTP, through Quart's test client and through the whole edge on sockets."""

import json
import struct
from pathlib import Path
from typing import Any

import httpx_sse
import pytest
import tls_wire
import trio
import trio_websocket
from httpx_sse._decoders import SSEDecoder
from live_rig import open_live, open_live_edge, wait_until
from net_rig import Edge, RawClient
from real_waiting import PATIENCE_S, SOON_S
from route_rig import principal_with

from overlayd.model.limits import Limits
from overlayd.model.units import Duration

SSE = "text/event-stream"


@pytest.fixture(params=[True, False], ids=["lane", "application"])
def is_fast(request: pytest.FixtureRequest) -> bool:
    """Whether live answers are given on the live lane."""
    return bool(request.param)


class SseClient:
    """Reads events off a raw connection as an EventSource does."""

    def __init__(self, client: RawClient) -> None:
        self.client = client
        self.status = 0
        self.headers: dict[str, str] = {}
        self._decoder = SSEDecoder()
        self._events: list[httpx_sse.ServerSentEvent] = []

    async def get(self, path: str, **headers: str) -> "SseClient":
        lines = [f"GET {path} HTTP/1.1", "Host: localhost", f"Accept: {SSE}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.client.send("\r\n".join(lines).encode() + b"\r\n\r\n")
        head = (await self.client._read_until(b"\r\n\r\n")).decode()
        self.status = int(head.split(" ")[1])
        self.headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        return self

    async def next(self) -> tuple[str, dict[str, Any], str]:
        """The next event: its name, data and last event id."""
        with trio.fail_after(SOON_S):
            while not self._events:
                size = int(await self.client._read_until(b"\r\n"), 16)
                chunk = (await self.client._read_exactly(size)).decode()
                await self.client._read_exactly(2)
                if not size:
                    raise EOFError("the answer has ended")
                for line in chunk.split("\n")[:-1]:
                    event = self._decoder.decode(line)
                    if event is not None and event.data:
                        self._events.append(event)
        event = self._events.pop(0)
        return event.event, json.loads(event.data), event.id


async def open_sse(edge: Edge, path: str, **headers: str) -> SseClient:
    """A connected event source, behind welcome and subscribed."""
    source = await SseClient(await edge.connect()).get(path, **headers)
    assert source.status == 200
    assert (await source.next())[0] == "welcome"
    assert (await source.next())[0] == "subscribed"
    return source


async def test_sse_on_sockets(tmp_path: Path, is_fast: bool) -> None:
    """An event source gets the past, then what is appended, then resumes where it stopped, and hears bye."""
    async with open_live_edge(tmp_path, is_fast=is_fast) as (live, edge):
        await live.append("s", b"1", b"2")
        source = await open_sse(edge, "/v1/live?stream=s&from=beginning")
        assert source.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert source.headers["x-accel-buffering"] == "no"
        events = [await source.next() for _ in range(2)]
        assert [(name, data["packet"]["data_payload"]) for name, data, _ in events] == [("packet", 1), ("packet", 2)]
        await live.append("s", b"3")
        assert (await source.next())[1]["packet"]["data_payload"] == 3
        again = await open_sse(edge, "/v1/live?stream=s&from=beginning", Last_Event_ID=events[0][2])
        assert (await again.next())[1]["packet"]["data_payload"] == 2
        other = await open_sse(edge, f"/v1/live?stream=s&last_event_id={events[1][2]}")
        assert (await other.next())[1]["packet"]["data_payload"] == 3
        assert len(live.registry) == 3
        await trio.aclose_forcefully(source.client.stream)
        await wait_until(lambda: len(live.registry) == 2)
        edge.stop.set()
        while True:
            name, data, _ = await again.next()
            if name != "packet":
                break
        assert (name, data) == ("bye", {"type": "bye", "reason": "shutdown", "retry_after": 2.0})
        await wait_until(lambda: len(live.registry) == 0)


async def test_ndjson_on_sockets(tmp_path: Path, is_fast: bool) -> None:
    """The same as lines; a message that is appended meanwhile arrives without another request."""
    async with open_live_edge(tmp_path, is_fast=is_fast) as (live, edge):
        client = await edge.connect()
        await client.send(b"GET /v1/live?stream=s HTTP/1.1\r\nHost: localhost\r\nAccept: application/x-ndjson\r\n\r\n")
        with trio.fail_after(SOON_S):
            head = await client._read_until(b"\r\n\r\n")
            assert b"content-type: application/x-ndjson; charset=utf-8" in head
            assert b'{"type":"subscribed"' in await client._read_until(b'"never":[]}\n')
            await live.append("s", b'{"live": true}')
            line = await client._read_until(b"}}\n")
        assert b'"data_payload":{"live": true}' in line


async def test_slow_event_source_costs_a_page(tmp_path: Path, is_fast: bool) -> None:
    """A reader that takes nothing is sent what the buffers hold and no more, and is cut after stall_timeout."""
    limits = Limits(stall_timeout=Duration(0.2))
    async with open_live_edge(tmp_path, limits, is_fast=is_fast) as (live, edge):
        for _ in range(20):
            await live.append("s", *[b'"%s"' % (b"x" * 40_000) for _ in range(20)])
        client = await edge.connect()
        client.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
        await client.send(b"GET /v1/live?stream=s&from=beginning HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await wait_until(lambda: len(live.registry) == 1)
        (body,) = live.registry.bodies(live.log.head)
        await wait_until(lambda: len(live.registry) == 0)
        assert body.subscriptions[0].lag_entries > 100


@pytest.mark.parametrize("transport", ["sse", "websocket"])
async def test_reset_in_the_middle_of_a_replay(tmp_path: Path, transport: str) -> None:
    """A client that resets its connection while it is being sent a long replay is gone at once, and others are served."""
    async with open_live_edge(tmp_path) as (live, edge):
        for _ in range(10):
            await live.append("s", *[b'"%s"' % (b"x" * 10_000) for _ in range(20)])
        upgrade = (
            b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        )
        client = await edge.connect()
        client.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
        extra = upgrade if transport == "websocket" else b""
        await client.send(b"GET /v1/live?stream=s&from=beginning HTTP/1.1\r\nHost: localhost\r\n" + extra + b"\r\n")
        await client.stream.receive_some(1000)
        assert len(live.registry) == 1
        client.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.stream.socket.close()
        await wait_until(lambda: len(live.registry) == 0)
        with trio.fail_after(PATIENCE_S):
            async with await edge.connect() as other:
                assert (await other.request("GET", "/v1/read?limit=1")).status == 200
        assert edge.count("overlayd_net_connection_crashes_total") == 0


@pytest.mark.parametrize(
    ("accept", "status", "content_type"),
    [
        (SSE, 200, SSE), ("*/*", 200, SSE), ("text/html, */*;q=0.8", 200, SSE),
        ("application/x-ndjson", 200, "application/x-ndjson"), ("application/ndjson", 200, "application/ndjson"),
        ("text/event-stream;q=0.5, application/x-ndjson", 200, "application/x-ndjson"),
        ("application/json", 406, ""), ("text/html", 406, ""),
    ],
)  # fmt: skip
async def test_accept(tmp_path: Path, accept: str, status: int, content_type: str) -> None:
    """Accept decides the form; anything else is 406 with the forms there are."""
    async with open_live(tmp_path) as live:
        reply = await live.ask("HEAD", "/v1/live", Accept=accept)
        assert reply.status == status
        assert len(live.registry) == 0
        if status == 200:
            assert reply.headers["content-type"] == f"{content_type}; charset=utf-8"
        else:
            reply = await live.ask("GET", "/v1/live", Accept=accept)
            assert reply.json["code"] == "content.accept"
            assert "text/event-stream" in reply.json["hint"]


@pytest.mark.parametrize(
    ("query", "headers", "status", "code"),
    [
        ("streem=a", {}, 400, "parameter.invalid"),
        ("after=x", {}, 400, "cursor.malformed"),
        ("last_event_id=x", {}, 400, "cursor.malformed"),
        ("", {"Last_Event_ID": "x"}, 400, "cursor.malformed"),
        ("", {"Last_Event_ID": "e1k7f3q2ma-1"}, 410, "cursor.epoch"),
        ("stream=s&deliver=confirmed", {}, 400, "parameter.invalid"),
        ("stream=s&seen=1:" + "0" * 64, {}, 409, "log.fork"),
        ("stream=s&seen=999:" + "0" * 64, {}, 409, "log.fork"),
        ("stream=s&from=beginning&on_gap=error", {}, 410, "cursor.expired"),
        ("filter=data..x", {}, 422, "filter.invalid"),
    ],
)
async def test_problems_before_the_answer(
    tmp_path: Path, query: str, headers: dict[str, str], status: int, code: str
) -> None:
    """What is wrong with a live query is told by the answer's status, and leaves no session behind."""
    async with open_live(tmp_path) as live:
        (receipt,) = await live.append("s", b"1")
        stream = live.log.find_stream("s")
        assert stream is not None
        await live.log.reduce(stream, receipt.offset, receipt.offset, "retention")
        reply = await live.ask("GET", f"/v1/live?{query}", **headers)
        assert (reply.status, reply.json["code"]) == (status, code)
        assert len(live.registry) == 0


async def test_bad_queries_are_told_in_plain_words(tmp_path: Path) -> None:
    """A query that can't be read is refused without the words of the language that the node is written in."""
    async with open_live(tmp_path) as live:
        for query, words in (("stream=%ff", "UTF-8"), ("stream", "name=value"), ("stream=a&" * 300, "at most 256")):
            reply = await live.ask("GET", f"/v1/live?{query}")
            assert (reply.status, reply.json["code"]) == (400, "parameter.invalid")
            assert words in reply.json["detail"]
            assert "codec" not in reply.json["detail"]


async def test_caps(tmp_path: Path, is_fast: bool) -> None:
    """Sessions over the cap are 429, counted, and asked to come back later."""
    async with open_live_edge(tmp_path, Limits(sessions_max=1), is_fast=is_fast) as (live, edge):
        await open_sse(edge, "/v1/live?stream=s")
        answer = await edge.say(b"GET /v1/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (answer.status, answer.json["code"]) == (429, "limit.reached")
        assert "retry-after" in answer.headers
        assert live.count("overlayd_limit_hits_total", limit="sessions_max") == 1


async def test_terms_over_the_limit_are_counted(tmp_path: Path) -> None:
    """A query that names too much is refused, and the limit's counter tells."""
    async with open_live(tmp_path, Limits(query_terms=2)) as live:
        reply = await live.ask("GET", "/v1/live?stream=a&stream=b&type=c")
        assert (reply.status, reply.json["subject"]) == (400, "query_terms")
        assert (await live.ask("GET", "/v1/read?stream=a&stream=b&type=c")).status == 400
        assert live.count("overlayd_limit_hits_total", limit="query_terms") == 2


async def test_rights(tmp_path: Path) -> None:
    """Live reading needs the right to subscribe, listing sessions manage, ending one admin."""
    async with open_live(tmp_path) as live:
        nobody = principal_with("read", "publish")
        for method, path in (("GET", "/v1/live"), ("GET", "/v1/sessions"), ("DELETE", "/v1/sessions/x")):
            reply = await live.ask(method, path, who=nobody)
            assert (reply.status, reply.json["code"]) == (403, "access.forbidden")
        assert (await live.ask("GET", "/v1/sessions", who=principal_with("manage"))).json == {"sessions": []}


async def test_sessions_are_listed_and_ended(tmp_path: Path, is_fast: bool) -> None:
    """Admins see who reads what, where it stands and how far it lags, and can end a session."""
    async with open_live_edge(tmp_path, is_fast=is_fast) as (live, edge):
        await live.append("s", b"1")
        source = await open_sse(edge, "/v1/live?stream=s&type=t&from=beginning&heartbeat=1s")
        async with await edge.connect_unix() as admin:
            await admin.request("GET", "/v1/sessions")  # which is noted, once: an entry that nobody here reads
            await trio.testing.wait_all_tasks_blocked()
            listed = (await admin.request("GET", "/v1/sessions")).json["sessions"]
            assert len(listed) == 1
            session = listed[0]
            assert (session["transport"], session["principal"], session["address"]) == ("sse", "loopback", "127.0.0.1")
            assert session["bytes_sent"] > 0
            (subscription,) = session["subscriptions"]
            assert subscription["query"]["streams"] == ["s"]
            assert subscription["query"]["types"] == ["t"]
            assert subscription["lag_entries"] == 0
            assert (await admin.request("DELETE", f"/v1/sessions/{session['id']}")).status == 204
            name, data, _ = await source.next()
            assert (name, data["reason"]) == ("bye", "ended by an administrator")
            await wait_until(lambda: len(live.registry) == 0)
            gone = await admin.request("DELETE", f"/v1/sessions/{session['id']}")
            assert (gone.status, gone.json["code"]) == (404, "session.unknown")


async def test_websocket_on_sockets(tmp_path: Path) -> None:
    """A WebSocket through the door: read, publish with many in flight and in order, resume, bye with 1001."""
    async with open_live_edge(tmp_path) as (live, edge):
        await live.append("s", b"0")
        url = f"ws://127.0.0.1:{edge.port}/v1/live?stream=s&from=beginning"
        async with tls_wire.open_websocket(url, subprotocols=["overlayd.v1"]) as socket:
            kinds = [json.loads(await socket.get_message())["type"] for _ in range(3)]
            assert kinds == ["welcome", "subscribed", "packet"]
            for number in range(1, 201):
                await socket.send_message(
                    json.dumps({"type": "publish", "ref": number, "stream": "s", "packets": [{"data": number}]})
                )
            refs, payloads, cursor = [], [], ""
            with trio.fail_after(SOON_S):
                while len(refs) < 200 or len(payloads) < 200:
                    message = json.loads(await socket.get_message())
                    if message["type"] == "receipt":
                        refs.append(message["ref"])
                        assert message["receipts"][0]["durability"] == "full"
                    else:
                        payloads.append(message["packet"]["data_payload"])
                        cursor = message["cursor"] if len(payloads) == 150 else cursor
            assert sorted(refs) == list(range(1, 201))
            assert payloads == list(range(1, 201)), "they were appended in the order they were sent"
        url = f"ws://127.0.0.1:{edge.port}/v1/live?stream=s&after={cursor}"
        async with tls_wire.open_websocket(url) as socket:
            rest = [json.loads(await socket.get_message()) for _ in range(52)][2:]
            assert [message["packet"]["data_payload"] for message in rest] == list(range(151, 201))
            edge.stop.set()
            assert json.loads(await socket.get_message())["type"] == "bye"
            with pytest.raises(trio_websocket.ConnectionClosed) as closed:
                await socket.get_message()
            assert closed.value.reason is not None
            assert closed.value.reason.code == 1001
            await socket._stream.aclose()  # which trio-websocket leaves open when the server closed first


async def test_publishes_of_one_socket_keep_their_order(tmp_path: Path) -> None:
    """Small messages, large ones that take the way through a thread, and several streams: each keeps its order."""
    async with open_live_edge(tmp_path) as (_, edge):
        url = f"ws://127.0.0.1:{edge.port}/v1/live"
        async with tls_wire.open_websocket(url, subprotocols=["overlayd.v1"]) as socket:
            await socket.get_message()
            for number in range(90):
                pad = "x" * (200_000 if number % 30 == 7 else 20_000 if number % 10 == 3 else 10)
                await socket.send_message(
                    json.dumps({
                        "type": "publish", "ref": number, "stream": f"s{number % 3}",
                        "packets": [{"data": {"n": number, "pad": pad}}],
                    })
                )  # fmt: skip
            with trio.fail_after(SOON_S):
                refs = {json.loads(await socket.get_message())["ref"] for _ in range(90)}
        assert refs == set(range(90))
        for stream in range(3):
            packets: list[int] = []
            while len(packets) < 30:
                after = len(packets)
                async with await edge.connect() as reader:
                    page = (await reader.request("GET", f"/v1/streams/s{stream}/packets?after={after}")).json
                packets += [packet["data_payload"]["n"] for packet in page["packets"]]
            assert packets == list(range(stream, 90, 3))


async def test_a_publish_without_packets_is_told(tmp_path: Path) -> None:
    """An empty list of packets is an error like a bad packet, with its ref; the socket goes on."""
    async with open_live_edge(tmp_path) as (_, edge):
        url = f"ws://127.0.0.1:{edge.port}/v1/live"
        async with tls_wire.open_websocket(url, subprotocols=["overlayd.v1"]) as socket:
            await socket.get_message()
            for ref, packets in (("r" * 128, []), ("b", [{"data": 1}])):
                await socket.send_message(
                    json.dumps({"type": "publish", "ref": ref, "stream": "s", "packets": packets})
                )
            error = json.loads(await socket.get_message())
            assert (error["type"], error["code"], error["ref"]) == ("error", "packet.invalid", "r" * 128)
            assert error["errors"][0]["pointer"] == "/packets"
            assert json.loads(await socket.get_message())["accepted"] == 1


async def test_seen_is_proven_on_sockets(tmp_path: Path) -> None:
    """A client that tells what it saw gets a consistency path to a signed checkpoint in welcome."""
    async with open_live_edge(tmp_path) as (live, edge):
        await live.append("s", b"1", b"2")
        size = live.log.head
        root = (await live.log.root_at(size)).hex()
        await live.append("s", b"3")
        source = await SseClient(await edge.connect()).get(f"/v1/live?seen={size}:{root}")
        _, welcome, _ = await source.next()
        assert (welcome["consistency"]["from"], welcome["consistency"]["from_root"]) == (size, f"sha256:{root}")
        assert welcome["consistency"]["checkpoint"].startswith(live.log.origin)


async def test_deleted_stream_on_sockets(tmp_path: Path) -> None:
    """Readers of a stream that is deleted hear of it by a gap, stay, and get what comes under the name again."""
    async with open_live_edge(tmp_path) as (live, edge):
        await live.append("s", b"1")
        source = await open_sse(edge, "/v1/live?stream=s&from=beginning")
        assert (await source.next())[0] == "packet"
        await live.log.delete_stream("s")
        name, data, _ = await source.next()
        assert (name, data["reason"]) == ("gap", "deleted")
        await live.append("s", b"2")
        name, data, _ = await source.next()
        assert (name, data["packet"]["packet_sequence"]) == ("packet", 1)


async def test_many_readers_see_one_order(tmp_path: Path) -> None:
    """Thirty live readers of three transports get every packet once, in the log's order."""
    async with open_live_edge(tmp_path) as (live, edge):
        finished = 0

        async def event_source() -> None:
            nonlocal finished
            source = await open_sse(edge, "/v1/live?stream=s")
            ready.release()
            assert [(await source.next())[1]["packet"]["data_payload"] for _ in range(20)] == list(range(20))
            finished += 1

        async def socket() -> None:
            nonlocal finished
            async with tls_wire.open_websocket(f"ws://127.0.0.1:{edge.port}/v1/live?stream=*") as client:
                await client.get_message()
                await client.get_message()
                ready.release()
                found = [json.loads(await client.get_message())["packet"]["data_payload"] for _ in range(20)]
                assert found == list(range(20))
            finished += 1

        ready = trio.Semaphore(0)
        with trio.fail_after(SOON_S):
            async with trio.open_nursery() as nursery:
                for number in range(30):
                    nursery.start_soon(event_source if number % 2 else socket)
                for _ in range(30):
                    await ready.acquire()
                for number in range(20):
                    await live.append("s", b"%d" % number)
        assert finished == 30
        assert live.count("overlayd_frames_encoded_total", format="packet") == 20

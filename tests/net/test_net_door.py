"""The door on real sockets: requests, kept connections, other protocols, WebSocket, refusals."""

import socket
from pathlib import Path

import trio
from net_rig import GET_HEALTH, Edge, add_probe_routes, limits_with, open_edge
from quart_trio import QuartTrio

from overlayd.access import Principal
from overlayd.model.limits import Limits
from overlayd.model.units import Duration, Size
from overlayd.net.head import Head
from overlayd.net.lane import Lane
from overlayd.net.settings import ListenSettings

HANDSHAKE = (
    b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def test_requests_on_one_connection(edge: Edge) -> None:
    """A kept connection serves request after request, over TCP and over the Unix socket."""
    for connect in (edge.connect, edge.connect_unix):
        async with await connect() as client:
            for number in range(5):
                answer = await client.request("POST", f"/echo?n={number}", b"body %d" % number)
                assert answer.status == 200
                assert (answer.json["query"], answer.json["body"]) == (f"n={number}", f"body {number}")
                assert answer.headers["x-request-id"]
                assert answer.headers["x-content-type-options"] == "nosniff"
                assert "server" not in answer.headers


async def test_pipelined_requests(edge: Edge) -> None:
    """Requests sent without waiting are answered one by one, in order, bodies kept apart."""
    async with await edge.connect() as client:
        post = b"POST /echo?n=%d HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nab%d"
        await client.send(b"".join(post % (n, n) for n in range(8)) + GET_HEALTH)
        for number in range(8):
            assert (await client.read_answer()).json["body"] == f"ab{number}"
        assert (await client.read_answer()).json == {"alive": True}


async def test_bytes_one_by_one(edge: Edge) -> None:
    """A head and body that trickle in byte by byte are read all the same."""
    async with await edge.connect() as client:
        for byte in b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody":
            await client.send(bytes((byte,)))
        assert (await client.read_answer()).json["body"] == "body"


async def test_chunked_body(edge: Edge) -> None:
    """Chunks, chunk extensions and trailers are taken, and the next request is found behind them."""
    async with await edge.connect() as client:
        head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        await client.send(head + b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 1\r\n\r\n" + GET_HEALTH)
        assert (await client.read_answer()).json["body"] == "abcde"
        assert (await client.read_answer()).status == 200


async def test_broken_chunks(edge: Edge) -> None:
    """Chunks that make no sense are 400, with a problem, and end the connection."""
    answer = await edge.say(
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nGET / HTTP/1.1\r\n"
    )
    assert (answer.status, answer.json["code"]) == (400, "request.malformed")
    assert "a chunk's size" in answer.json["detail"]
    assert "bytearray" not in answer.json["detail"]
    assert answer.headers["connection"] == "close"


async def test_http_1_0(edge: Edge) -> None:
    """A client of HTTP/1.0 gets its answer without chunks and the connection's end."""
    async with await edge.connect() as client:
        await client.send(b"GET /healthz HTTP/1.0\r\n\r\n")
        answer = await client.read_answer()
        assert (answer.status, answer.json) == (200, {"alive": True})
        assert await client.is_closed_by_peer()


async def test_expect_continue(edge: Edge) -> None:
    """A client that waits for 100 Continue gets it when its body is wanted, and never when it is refused before."""
    head = b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    async with await edge.connect() as client:
        await client.send(b"POST /timed" + head)
        assert await client.stream.receive_some(1000) == b"HTTP/1.1 100 \r\n\r\n"
        await client.send(b"body")
        assert (await client.read_answer()).body == b"body"
    async with await edge.connect() as client:
        await client.send(b"POST /refuse" + head)
        assert (await client.read_rest()).startswith(b"HTTP/1.1 413")


async def test_connection_close_is_kept(edge: Edge) -> None:
    """A client that asks for the connection's end gets it."""
    async with await edge.connect() as client:
        assert (await client.request("GET", "/healthz", connection="close")).status == 200
        assert await client.is_closed_by_peer()


async def test_h2_preface(edge: Edge) -> None:
    """HTTP/2 with prior knowledge is 505, in words that HTTP/1.1 can carry."""
    answer = await edge.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
    assert (answer.status, answer.json["code"]) == (505, "request.version")


async def test_h2c_upgrade_is_ignored(edge: Edge) -> None:
    """`Upgrade: h2c` is served as HTTP/1.1, on the first and on every later request."""
    wish = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2_Settings": "AAMAAABkAARAAAAAAAIAAAAA"}
    async with await edge.connect() as client:
        for _ in range(3):
            assert (await client.request("GET", "/echo", **wish)).json["method"] == "GET"
            assert (await client.request("POST", "/echo", b"abc", **wish)).json["body"] == "abc"


async def test_websocket_gets_the_exact_bytes(edge: Edge) -> None:
    """A WebSocket handshake on the live path is handed on byte for byte, with what came behind it."""
    async with await edge.connect() as client:
        await client.send(HANDSHAKE % b"/v1/live?stream=a" + b"early")
        assert (await client.read_answer()).status == 101
        assert await client.read_rest() == HANDSHAKE % b"/v1/live?stream=a" + b"early"


async def test_websocket_as_a_later_request(edge: Edge) -> None:
    """A kept connection may turn into a WebSocket, too."""
    async with await edge.connect() as client:
        assert (await client.request("GET", "/healthz")).status == 200
        await client.send(HANDSHAKE % b"/v1/live")
        assert (await client.read_answer()).status == 101


async def test_websocket_elsewhere(edge: Edge) -> None:
    """A WebSocket handshake on another path is 426 and names the path that takes one."""
    answer = await edge.say(HANDSHAKE % b"/v1/node")
    assert (answer.status, answer.json["code"]) == (426, "websocket.upgrade")
    assert "/v1/live" in answer.json["hint"]


async def test_websocket_principal(tmp_path: Path) -> None:
    """The session learns who asks and what was asked."""
    seen: list[tuple[Head, Principal]] = []

    async def serve(stream: trio.abc.Stream, head: Head, principal: Principal) -> None:
        seen.append((head, principal))
        await stream.aclose()

    async with open_edge(tmp_path, serve_websocket=serve) as edge, await edge.connect() as client:
        await client.send(HANDSHAKE % b"/v1/live?stream=a.*&from=last")
        await client.read_rest()
    head, principal = seen[0]
    assert head.query == "stream=a.*&from=last"
    assert (principal.name, principal.may_create) == ("loopback", True)


async def test_unknown_path_and_method(edge: Edge) -> None:
    """404 and 405 are problems, and 405 says what is allowed."""
    async with await edge.connect() as client:
        answer = await client.request("GET", "/v1/nothing")
        assert (answer.status, answer.json["code"]) == (404, "route.unknown")
        assert answer.json["instance"] == answer.headers["x-request-id"]
        answer = await client.request("DELETE", "/echo")
        assert (answer.status, answer.json["code"]) == (405, "route.method")
        assert set(answer.headers["allow"].split(", ")) >= {"GET", "POST", "PUT"}


async def test_head_and_options(edge: Edge) -> None:
    """HEAD gives GET's headers without a body; OPTIONS names the methods, also for `*`."""
    async with await edge.connect() as client:
        answer = await client.request("HEAD", "/healthz")
        assert (answer.status, answer.headers["content-length"]) == (200, "14")
        assert "POST" in (await client.request("OPTIONS", "/echo")).headers["allow"]
        assert "POST" in (await client.request("OPTIONS", "*")).headers["allow"]
        assert (await client.request("GET", "/healthz")).status == 200


async def test_odd_paths(edge: Edge) -> None:
    """Paths with encoded, doubled or odd characters find nothing, and nothing breaks."""
    async with await edge.connect() as client:
        for path in ("/healthz/", "/%00", "/%ff%fe", "/..%2f..%2fetc", "/%", "/" + "a" * 5000):
            assert (await client.request("GET", path)).status == 404
        assert (await client.request("GET", "/healthz")).status == 200


async def test_route_crash_is_a_problem(edge: Edge) -> None:
    """An unforeseen exception is 500 without a traceback; the connection goes on."""
    async with await edge.connect() as client:
        answer = await client.request("GET", "/crash")
        assert (answer.status, answer.json["code"]) == (500, "internal")
        assert b"by design" not in answer.body
        assert (await client.request("GET", "/healthz")).status == 200


async def test_early_answer_to_an_upload(edge: Edge) -> None:
    """An answer that comes before the body's end says that the connection closes, and arrives in spite of unread bytes."""
    async with await edge.connect() as client:
        await client.send(
            b"POST /refuse HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000\r\n\r\n" + b"x" * 300_000
        )
        answer = await client.read_answer()
        assert (answer.status, answer.headers["connection"]) == (413, "close")


async def test_half_close_gets_its_answer(edge: Edge) -> None:
    """A client that sends its request and closes its side (`nc -N`) still gets the answer."""
    async with await edge.connect() as client:
        await client.send(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi")
        await client.stream.send_eof()
        assert (await client.read_answer()).json["body"] == "hi"


async def test_leaving_ends_the_request(edge: Edge) -> None:
    """When the client resets, or sends half a body and goes, its request is cancelled."""
    gone = await edge.connect()
    await gone.send(b"GET /hang HTTP/1.1\r\nHost: localhost\r\n\r\n")
    gone.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await trio.aclose_forcefully(gone.stream)
    half = await edge.connect()
    await half.send(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200\r\n\r\nhalf")
    await trio.aclose_forcefully(half.stream)
    await edge.wait_connections()


async def test_requests_per_connection(tmp_path: Path) -> None:
    """After `requests_per_connection` the answer says that the connection closes."""
    limits = limits_with(requests_per_connection=2)
    async with open_edge(tmp_path, limits=limits) as edge, await edge.connect() as client:
        assert "connection" not in (await client.request("GET", "/healthz")).headers
        assert (await client.request("GET", "/healthz")).headers["connection"] == "close"
        assert await client.is_closed_by_peer()
        assert edge.count("overlayd_limit_hits_total", limit="requests_per_connection") == 1


async def test_unread_body_stays_small(tmp_path: Path) -> None:
    """A body that no route reads isn't taken in: the sender is held back after a few buffers."""

    def add_routes(app: QuartTrio, lane: Lane) -> None:
        add_probe_routes(app, lane)

        @app.post("/ignore")
        async def ignore() -> str:
            async with lane.step_out():
                await trio.sleep_forever()
            raise AssertionError

    limits = Limits(drain_timeout=Duration(0.1))
    async with open_edge(tmp_path, add_routes=add_routes, limits=limits) as edge, await edge.connect() as client:
        await client.send(b"POST /ignore HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n")
        sent = 0
        with trio.move_on_after(0.1):
            while True:
                await client.send(b"x" * 65536)
                sent += 65536
        assert sent < 20_000_000


async def test_hosts_and_unix_names(tmp_path: Path) -> None:
    """Listed hosts are taken on TCP; on the Unix socket the Host doesn't matter."""
    settings = ListenSettings(tcp=("127.0.0.1:0",), hosts=("node.example",))
    async with open_edge(tmp_path, settings=settings) as edge:
        async with await edge.connect() as client:
            assert (await client.request("GET", "/healthz", host="node.example:80")).status == 200
            assert (await client.request("GET", "/healthz", host="other.example")).json["code"] == "access.host"
        async with await edge.connect_unix() as client:
            assert (await client.request("GET", "/healthz", host="whatever")).status == 200


async def test_huge_heads(tmp_path: Path) -> None:
    """Heads over the limits are 431, counted under the limit's name."""
    async with open_edge(tmp_path, limits=limits_with(head_bytes=Size(2000), head_lines=10)) as edge:
        lines = b"".join(b"X-%d: 1\r\n" % n for n in range(20))
        assert (await edge.say(b"GET / HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n")).status == 431
        assert (await edge.say(b"GET /" + b"a" * 4000)).status == 431
        assert edge.count("overlayd_limit_hits_total", limit="head_bytes") == 1
        assert edge.count("overlayd_limit_hits_total", limit="head_lines") == 1

"""A node as small as can be: answers from a script, on a real socket, by h11 and trio-websocket."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import h11
import msgspec
import trio
import trio.socket
from blake3 import blake3
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

Live = Callable[[WebSocketConnection, dict[str, str]], Awaitable[None]]


class Request(msgspec.Struct):
    """What came in."""

    method: str
    path: str
    params: dict[str, str]
    headers: dict[str, str]
    body: bytes


class Answer(msgspec.Struct):
    """What goes out. `is_dropped`: the connection is closed instead; `is_held`: nothing ever comes."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = {}
    is_dropped: bool = False
    is_held: bool = False


DROP = Answer(is_dropped=True)
HOLD = Answer(is_held=True)
Handler = Callable[[Request], Answer]


def json_answer(value: Any, status: int = 200, **headers: str) -> Answer:
    """An answer with a JSON body."""
    return Answer(status, msgspec.json.encode(value), {"content-type": "application/json", **headers})


def problem(
    code: str, status: int, *, retryable: bool = False, headers: dict[str, str] | None = None, **rest: Any
) -> Answer:
    """An RFC 9457 answer."""
    members = {
        "type": f"/docs/errors#{code}", "title": code, "status": status, "detail": f"about {code}",
        "instance": "r-1", "code": code, "retryable": retryable,
    }  # fmt: skip
    return json_answer(members | rest, status, **({"content-type": "application/problem+json"} | (headers or {})))


def receipt_of(stream: str, sequence: int, packet_id: str = "", **rest: Any) -> dict[str, Any]:
    """A receipt as it travels."""
    return {
        "stream": stream, "sequence": sequence, "offset": sequence + 1, "cursor": f"e1aaaaaaaa-{sequence + 1}",
        "id": packet_id or f"1aaaaaaaa-{sequence + 1}", "content_hash": "blake3:" + "0" * 64,
        "leaf_hash": "sha256:" + "0" * 64, "appended_at": "2026-01-01T00:00:00.000000Z",
    } | rest  # fmt: skip


def packet_of(stream: str, sequence: int, payload: str = '{"t":21}', **rest: Any) -> dict[str, Any]:
    """A packet as it travels; its content hash fits its payload."""
    return {
        "stream_id": stream, "packet_sequence": sequence, "packet_id": f"p-{sequence}", "offset": sequence + 1,
        "appended_at": "2026-01-01T00:00:00.000000Z", "data_payload": msgspec.Raw(payload.encode()),
        "content_hash": "blake3:" + blake3(payload.encode()).hexdigest(), "leaf_hash": "sha256:" + "1" * 64,
    } | rest  # fmt: skip


def packet_message(stream: str, sequence: int, **rest: Any) -> str:
    """A packet message as it travels."""
    packet = packet_of(stream, sequence, **rest)
    message = {"type": "packet", "stream_id": stream, "cursor": f"e1aaaaaaaa-{sequence + 1}", "packet": packet}
    return msgspec.json.encode(message).decode()


def message(kind: str, **members: Any) -> str:
    """Any other message."""
    return msgspec.json.encode({"type": kind, **members}).decode()


WELCOME = message("welcome", node="fake", epoch="1aaaaaaaa", head=7, session="s-1")


class FakeNode:
    """`requests` are all that came; `handler` and `live` may be changed at any time."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self.handler: Handler = lambda request: problem("route.unknown", 404)
        self.live: Live | None = None
        self.url = ""

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection, until it ends."""
        self.connections += 1
        try:
            async with stream:
                await self._serve(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            return

    async def _serve(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        while True:
            raw = b""
            request, body = None, b""
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    data = await stream.receive_some(65536)
                    raw += data
                    connection.receive_data(data)
                elif isinstance(event, h11.Request):
                    request = event
                    if any(name == b"upgrade" for name, _ in event.headers):
                        await self._serve_live(stream, raw, event)
                        return
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    return
            answer = self._answer(request, body)
            if answer.is_dropped:
                return
            if answer.is_held:
                await trio.sleep_forever()
            await self._send(stream, connection, answer)
            if connection.our_state is h11.MUST_CLOSE:
                return
            connection.start_next_cycle()

    def _answer(self, request: h11.Request, body: bytes) -> Answer:
        parts = urlsplit(request.target.decode())
        headers = {name.decode(): value.decode() for name, value in request.headers}
        taken = Request(request.method.decode(), parts.path, dict(parse_qsl(parts.query)), headers, body)
        self.requests.append(taken)
        return self.handler(taken)

    async def _send(self, stream: trio.SocketStream, connection: h11.Connection, answer: Answer) -> None:
        headers = [*answer.headers.items(), ("content-length", str(len(answer.body)))]
        head = h11.Response(status_code=answer.status, headers=headers)
        data = connection.send(head) + connection.send(h11.Data(data=answer.body))
        await stream.send_all(data + connection.send(h11.EndOfMessage()))

    async def _serve_live(self, stream: trio.SocketStream, raw: bytes, request: h11.Request) -> None:
        params = dict(parse_qsl(urlsplit(request.target.decode()).query))
        headers = {name.decode(): value.decode() for name, value in request.headers}
        self.requests.append(Request("GET", "/v1/live", params, headers, b""))
        if self.live is None:
            answer = self.handler(self.requests[-1])
            if not answer.is_dropped:
                head = f"HTTP/1.1 {answer.status} x\r\ncontent-length: {len(answer.body)}\r\n"
                head += "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
                await stream.send_all(head.encode() + b"\r\n" + answer.body)
            return
        async with trio.open_nursery() as nursery:
            proposal = await wrap_server_stream(nursery, _Replayed(stream, raw))
            socket = await proposal.accept(subprotocol="overlayd.v1")
            with suppress(ConnectionClosed):  # the client left
                await self.live(socket, params)
            nursery.cancel_scope.cancel()


class _Replayed(trio.abc.Stream):
    """A stream whose first bytes were read already."""

    def __init__(self, stream: trio.SocketStream, begun: bytes) -> None:
        self._stream, self._begun = stream, begun

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._begun:
            begun, self._begun = self._begun, b""
            await trio.lowlevel.checkpoint()
            return begun
        return bytes(await self._stream.receive_some(max_bytes))

    async def send_all(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


@asynccontextmanager
async def fake_node(socket_path: Path | None = None) -> AsyncIterator[FakeNode]:
    """A fake node on a free loopback port, or on a Unix socket."""
    node = FakeNode()
    async with trio.open_nursery() as nursery:
        if socket_path is None:
            listeners = await nursery.start(trio.serve_tcp, node.serve, 0)
            node.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        else:
            sock = trio.socket.socket(trio.socket.AF_UNIX)
            await sock.bind(str(socket_path))
            sock.listen(16)
            await nursery.start(trio.serve_listeners, node.serve, [trio.SocketListener(sock)])
            node.url = f"unix:{socket_path}"
        yield node
        nursery.cancel_scope.cancel()

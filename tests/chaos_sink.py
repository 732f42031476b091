"""A server that behaves as badly as it is told, request by request, over real sockets. For tests of whoever calls.

    async with open_sink(nursery) as sink:
        sink.play(hang, answer(500), answer(200))   # one step per request, the last one again and again
        ... call sink.url ...
        assert [turn.path for turn in sink.turns] == [...]

`sink.play_at("/path", ...)` gives a path steps of its own. A step is an async function of a `Turn`.
"""

import gzip
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import trio

Step: TypeAlias = "Callable[[Turn], Awaitable[None]]"


class Turn:
    """One request as it arrives, and the way to answer it."""

    def __init__(self, stream: trio.abc.Stream, socket: trio.socket.SocketType, rest: bytearray) -> None:
        self._stream = stream
        self._socket = socket
        self._rest = rest
        self._body: bytes | None = None
        self.method = self.path = ""
        self.headers: dict[str, str] = {}
        """Names in lower case."""
        self.at_s = 0.0
        self.connection = 0
        self.is_closing = False

    async def read_head(self) -> bool:
        """False when the caller is gone instead."""
        while b"\r\n\r\n" not in self._rest:
            data = await self._stream.receive_some(65_536)
            if not data:
                return False
            self._rest += data
        head, _, rest = bytes(self._rest).partition(b"\r\n\r\n")
        self._rest[:] = rest
        first, *lines = head.decode("latin-1").split("\r\n")
        self.method, self.path, _ = first.split(" ")
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip()
        self.at_s = trio.current_time()
        return True

    async def body(self) -> bytes:
        """All of the request's body."""
        if self._body is None:
            length = int(self.headers.get("content-length", "0"))
            while len(self._rest) < length:
                data = await self._stream.receive_some(65_536)
                if not data:
                    raise trio.BrokenResourceError("the caller went away")
                self._rest += data
            self._body = bytes(self._rest[:length])
            del self._rest[:length]
        return self._body

    async def send(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def close(self) -> None:
        """Ends the connection in order."""
        self.is_closing = True
        await self._stream.aclose()

    def reset(self) -> None:
        """Ends the connection with a TCP reset."""
        self.is_closing = True
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()


class ChaosSink:
    """What `open_sink` gives."""

    def __init__(self, port: int, scheme: str, host: str) -> None:
        self.port = port
        self.origin = f"{scheme}://{host}:{port}"
        self.url = f"{self.origin}/hook"
        self.turns: list[Turn] = []
        """Requests whose heads came, in order."""
        self.connections = 0
        self._steps: dict[str, list[Step]] = {"": [answer(200)]}

    def play(self, *steps: Step) -> None:
        """What the next requests get, one each; the last step is repeated."""
        self._steps[""] = list(steps)

    def play_at(self, path: str, *steps: Step) -> None:
        """As `play`, for requests of one path (its query apart)."""
        self._steps[path] = list(steps)

    def next_step(self, path: str) -> Step:
        steps = self._steps.get(path.partition("?")[0], self._steps[""])
        return steps.pop(0) if len(steps) > 1 else steps[0]

    async def serve(self, stream: trio.SocketStream, context: ssl.SSLContext | None) -> None:
        """One connection, as the steps say."""
        self.connections += 1
        number, rest = self.connections, bytearray()
        served: trio.abc.Stream = stream
        if context is not None:
            served = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        try:
            while True:
                turn = Turn(served, stream.socket, rest)
                turn.connection = number
                if not await turn.read_head():
                    break
                self.turns.append(turn)
                await self.next_step(turn.path)(turn)
                if turn.is_closing:
                    break
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass  # the caller had enough
        finally:
            stream.socket.close()


@asynccontextmanager
async def open_sink(
    *, context: ssl.SSLContext | None = None, host: str = "127.0.0.1", name: str = ""
) -> AsyncIterator[ChaosSink]:
    """A sink on a free port. `context` makes it speak TLS; `name` is the host in its URL."""
    listener = (await trio.open_tcp_listeners(0, host=host, backlog=1024))[0]
    sink = ChaosSink(listener.socket.getsockname()[1], "https" if context else "http", name or host)
    async with trio.open_nursery() as nursery:

        async def accept() -> None:
            while True:
                stream = await listener.accept()
                nursery.start_soon(sink.serve, stream, context)

        nursery.start_soon(accept)
        try:
            yield sink
        finally:
            nursery.cancel_scope.cancel()
            listener.socket.close()


def raw(data: bytes, *, is_last: bool = True) -> Step:
    """Sends these bytes for an answer, and closes."""

    async def step(turn: Turn) -> None:
        await turn.body()
        await turn.send(data)
        if is_last:
            await turn.close()

    return step


def answer(status: int, body: bytes = b"", **headers: str) -> Step:
    """A well-formed answer, the connection kept. Header names with _ for -."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = "\r\n".join((f"HTTP/1.1 {status} Said", *lines, f"content-length: {len(body)}", "", ""))
    return raw(head.encode() + body, is_last=False)


def answer_and_close(status: int, body: bytes = b"") -> Step:
    """As `answer`, with `Connection: close`."""
    head = f"HTTP/1.1 {status} Said\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    return raw(head.encode() + body)


def chunked(status: int, *pieces: bytes, extension: str = "") -> Step:
    """An answer in chunks, the connection kept."""
    body = b"".join(b"%x%s\r\n%s\r\n" % (len(piece), extension.encode(), piece) for piece in (*pieces, b""))
    return raw(f"HTTP/1.1 {status} Said\r\ntransfer-encoding: chunked\r\n\r\n".encode() + body, is_last=False)


def zipped(status: int, body: bytes) -> Step:
    """A compressed answer that nobody asked for."""
    return answer(status, gzip.compress(body), content_encoding="gzip")


def gzip_bomb(status: int, inflated_bytes: int) -> Step:
    """A few bytes that inflate to many."""
    return zipped(status, bytes(inflated_bytes))


async def hang(turn: Turn) -> None:
    """Takes the request and says nothing, ever."""
    await turn.body()
    await trio.sleep_forever()


async def hang_unread(turn: Turn) -> None:
    """Doesn't even read the body."""
    await trio.sleep_forever()


def trickle(data: bytes, pause_s: float = 1.0) -> Step:
    """A byte, a pause, a byte, and so on."""

    async def step(turn: Turn) -> None:
        await turn.body()
        for at in range(len(data)):
            await turn.send(data[at : at + 1])
            await trio.sleep(pause_s)
        await turn.close()

    return step


def trickle_body(data: bytes, pause_s: float = 1.0) -> Step:
    """The head at once, then the body by the byte."""

    async def step(turn: Turn) -> None:
        await turn.body()
        await turn.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(data))
        await trickle(data, pause_s)(turn)

    return step


async def close_silently(turn: Turn) -> None:
    """Takes the request and closes without a word."""
    await turn.body()
    await turn.close()


async def reset(turn: Turn) -> None:
    """Takes the request and resets the connection."""
    await turn.body()
    turn.reset()


async def reset_at_head(turn: Turn) -> None:
    """Resets the connection before the body was read."""
    turn.reset()


def early(status: int, body: bytes = b"") -> Step:
    """Answers before the body was read, and closes."""

    async def step(turn: Turn) -> None:
        head = f"HTTP/1.1 {status} Early\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        await turn.send(head.encode() + body)
        await trio.sleep_forever()  # and leaves the rest where it is

    return step


async def endless_head(turn: Turn) -> None:
    """Header after header."""
    await turn.body()
    await turn.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await turn.send(b"x-more: " + b"a" * 1000 + b"\r\n")


async def endless_header(turn: Turn) -> None:
    """One header without an end."""
    await turn.body()
    await turn.send(b"HTTP/1.1 200 OK\r\nx-more: ")
    while True:
        await turn.send(b"a" * 4096)


async def endless_interim(turn: Turn) -> None:
    """Interim answers, and never the final one."""
    await turn.body()
    while True:
        await turn.send(b"HTTP/1.1 102 Processing\r\nx: y\r\n\r\n")


def endless_body(status: int) -> Step:
    """A body without an end, in chunks."""

    async def step(turn: Turn) -> None:
        await turn.body()
        await turn.send(f"HTTP/1.1 {status} Said\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        while True:
            await turn.send(b"1000\r\n" + b"b" * 4096 + b"\r\n")

    return step


def endless_extensions(status: int) -> Step:
    """Chunks of a byte each with long extensions."""

    async def step(turn: Turn) -> None:
        await turn.body()
        await turn.send(f"HTTP/1.1 {status} Said\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        while True:
            await turn.send(b"1;x=" + b"y" * 4000 + b"\r\nb\r\n")

    return step


def after(pause_s: float, step: Step) -> Step:
    """A step, later."""

    async def delayed(turn: Turn) -> None:
        await trio.sleep(pause_s)
        await step(turn)

    return delayed

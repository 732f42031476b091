"""Answers that the node signs whole: held until they are complete, within bounds, and never empty.

Clients that verify such answers want a body, and an end: nothing that goes on for ever can be signed, and an answer
without a body is read differently by different clients.
"""

from collections.abc import AsyncIterable, Iterable
from typing import Any

import msgspec
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable

from overlayd.access.gate import Seal
from overlayd.model.errors import AnswerTooLarge, Forbidden, OverlaydError
from overlayd.net.content import Bodies
from overlayd.net.head import Head
from overlayd.net.problem import complete_headers, problem_body, problem_headers

NOTHING = b"{}"
_JSON = (b"content-type", b"application/json")
_ENCODING = frozenset((b"accept-encoding",))
_CONDITIONS = _ENCODING | {
    b"if-none-match", b"if-modified-since", b"if-match", b"if-unmodified-since", b"if-range", b"range",
}  # fmt: skip
_EMPTY_STATUS = frozenset((204, 205, 304))
_LENGTHS = frozenset((b"content-length", b"transfer-encoding"))
_Pairs = list[tuple[bytes, bytes]]


def asking_plainly(head: Head) -> Head:
    """The head without what could make the answer another one than the client verifies: compressed, which its HTTP
    library undoes before it looks, and for a GET without a body (304) or with a part of it."""
    refused = _CONDITIONS if head.method == "GET" else _ENCODING
    kept = [pair for pair in head.headers if pair[0] not in refused]
    return head if len(kept) == len(head.headers) else msgspec.structs.replace(head, headers=tuple(kept))


def refuse_endless(path: str) -> Forbidden:
    """For what goes on for as long as the client stays."""
    return Forbidden(
        f"an answer of {path} has no end, so it can't be signed", subject=path,
        hint="POST /v1/tickets with mutual authentication gives a ticket for one live connection",
    )  # fmt: skip


def refuse_large(bytes_max: int) -> AnswerTooLarge:
    """For an answer that is complete but too large. What was asked for has been done."""
    return AnswerTooLarge(
        f"the answer is over {bytes_max} bytes and can't be signed; what the request asked for is done",
        subject="signed_answer_bytes", hint="ask for less at a time (limit=), or use a ticket or a key",
    )  # fmt: skip


async def gather(pieces: AsyncIterable[bytes], seal: Seal) -> bytes:
    """All pieces as one. Raises AnswerTooLarge. A checkpoint when the pieces are."""
    whole = bytearray()
    is_large = False
    async for piece in pieces:
        is_large = is_large or len(whole) + len(piece) > seal.bytes_max
        if not is_large:
            whole += piece
    if is_large:
        seal.count_hit()
        raise refuse_large(seal.bytes_max)
    return bytes(whole)


def whole_answer(status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> tuple[int, _Pairs, bytes]:
    """The answer with its length, and with a body: an empty object where there was none."""
    kept = [pair for pair in headers if pair[0].lower() not in _LENGTHS]
    if not body:
        status, body = 200 if status in _EMPTY_STATUS else status, NOTHING
        kept = [*(pair for pair in kept if pair[0].lower() != _JSON[0]), _JSON]
    return status, [*kept, (b"content-length", str(len(body)).encode())], body


class SealedApp:
    """An application around the application, for one request whose answer is signed."""

    def __init__(self, app: ASGIFramework, seal: Seal, bodies: Bodies) -> None:
        self._app = app
        self._seal = seal
        self._bodies = bodies

    async def __call__(self, scope: Any, receive: ASGIReceiveCallable, send: Any) -> None:
        with self._bodies.hold() as hold:
            answer = _Held(scope, send, self._seal, hold)
            await self._app(scope, receive, answer.take)


class _Held:
    """An answer that is being put together."""

    def __init__(self, scope: Any, send: Any, seal: Seal, hold: Any) -> None:
        self._scope = scope
        self._send = send
        self._seal = seal
        self._hold = hold
        self._status = 0
        self._headers: _Pairs = []
        self._body = bytearray()
        self._trouble: OverlaydError | None = None

    async def take(self, message: Any) -> None:
        """A message of the application's; the last one sends everything."""
        if message["type"] == "http.response.start":
            self._status = int(message["status"])
            self._headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
        elif message["type"] == "http.response.body":
            self._add(message.get("body", b""))
            if not message.get("more_body", False):
                await self._finish()

    def _add(self, piece: bytes) -> None:
        if self._trouble is not None or not piece:
            return
        try:
            if len(self._body) + len(piece) > self._seal.bytes_max:
                self._seal.count_hit()
                raise refuse_large(self._seal.bytes_max)
            self._hold.resize(len(self._body) + len(piece))
        except OverlaydError as error:
            self._trouble = error
            self._body.clear()
        else:
            self._body += piece

    async def _finish(self) -> None:
        status, headers, body = self._status, self._headers, bytes(self._body)
        if self._trouble is not None:
            request_id = self._scope["state"]["request_id"]
            status, body = self._trouble.status, problem_body(self._trouble, request_id)
            named = [(name.encode(), value.encode("latin-1")) for name, value in problem_headers(self._trouble)]
            headers = complete_headers(named, request_id)
        status, headers, body = whole_answer(status, headers, body)
        headers += self._seal.headers(status, headers, body)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

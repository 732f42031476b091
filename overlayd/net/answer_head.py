"""Heads of answers that no framework writes."""

from collections.abc import Iterable, Sequence
from email.utils import formatdate
from http import HTTPStatus

import trio

from overlayd.net.problem import complete_headers

_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_COMMON = b"".join(name + b": " + value + b"\r\n" for name, value in complete_headers([], "")[1:])

_JSON = (("content-type", "application/json"),)
_RECEIPTS = {
    status: _LINES[status] + b"content-type: application/json\r\ncontent-length: %d\r\nx-request-id: %b\r\n"
    for status in (200, 201)
}


class AnswerHeads:
    """Writes heads. Keeps the date for a second."""

    def __init__(self) -> None:
        self._date = b""
        self._date_until = 0.0
        self._receipt_end = b""

    def encode(
        self, status: int, headers: Iterable[tuple[str, str]], length: int | None, request_id: str, *, is_closing: bool,
        more: Sequence[tuple[bytes, bytes]] = (),
    ) -> bytes:  # fmt: skip
        """The head with the headers that every answer carries. `length` None: the body comes in chunks, or ends
        with the connection. `headers` set none of the common ones. `more`: what the request's origin asks for."""
        named = "".join(f"{name}: {value}\r\n" for name, value in headers)
        if length is not None:
            named += f"content-length: {length}\r\n"
        extra = b"".join(name + b": " + value + b"\r\n" for name, value in more) if more else b""
        return b"".join((
            _LINES[status], named.encode("latin-1"), b"x-request-id: ", request_id.encode("ascii"), b"\r\n", _COMMON, extra,
            self._date_line(), b"connection: close\r\n\r\n" if is_closing else b"\r\n",
        ))  # fmt: skip

    def encode_receipt(
        self, status: int, length: int, request_id: str, now: float, *, is_closing: bool,
        more: Sequence[tuple[bytes, bytes]],
    ) -> bytes:  # fmt: skip
        """The head of JSON that is nothing but a receipt; the same as `encode` gives. `now`: of Trio's clock."""
        if is_closing or more:
            return self.encode(status, _JSON, length, request_id, is_closing=is_closing, more=more)
        if now >= self._date_until:
            self._date_line()
        return _RECEIPTS[status] % (length, request_id.encode("ascii")) + self._receipt_end

    def _date_line(self) -> bytes:
        now = trio.current_time()
        if now >= self._date_until:
            self._date = f"date: {formatdate(usegmt=True)}\r\n".encode("ascii")
            self._date_until = now + 1.0
            self._receipt_end = _COMMON + self._date + b"\r\n"
        return self._date

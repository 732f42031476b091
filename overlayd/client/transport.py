"""How requests travel: httpx over TCP, TLS or a Unix socket, with bounds on time, connections and answers."""

import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

import overlayd
from overlayd.client.address import Address
from overlayd.client.calls import Answer, Call
from overlayd.model.errors import NodeUnreachable, UnexpectedAnswer

CONNECT_S = 5.0
IO_S = 30.0
POOL_S = 30.0
ANSWER_BYTES_MAX = 512 << 20
LIMITS = httpx.Limits(max_connections=64, max_keepalive_connections=16, keepalive_expiry=30.0)
"""Idle connections go before the node closes them, which would leave a request's fate open."""

_ABSENT_HINT = "is the node running, and is this its address?"
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


def headers_of(key: str | None) -> list[tuple[str, str]]:
    """What every request carries."""
    headers = [("User-Agent", f"overlayd-client/{overlayd.__version__}")]
    return [*headers, ("Authorization", f"Bearer {key}")] if key else headers


def ssl_context_of(address: Address, given: ssl.SSLContext | None) -> ssl.SSLContext:
    """The system's trust for https; a context that trusts nobody where none is needed (it is quick to make)."""
    if given is not None:
        return given
    return ssl.create_default_context() if address.is_tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def async_transport(address: Address, context: ssl.SSLContext | None) -> httpx.AsyncHTTPTransport:
    """For httpx.AsyncClient."""
    return httpx.AsyncHTTPTransport(
        verify=ssl_context_of(address, context), limits=LIMITS, uds=address.socket_path or None
    )


def sync_transport(address: Address, context: ssl.SSLContext | None) -> httpx.HTTPTransport:
    """For httpx.Client."""
    return httpx.HTTPTransport(verify=ssl_context_of(address, context), limits=LIMITS, uds=address.socket_path or None)


def check_socket(address: Address) -> None:
    """Raises NodeUnreachable when there is no Unix socket. httpcore would too, but leave its own socket open."""
    if address.socket_path and not os.path.exists(address.socket_path):
        raise NodeUnreachable(
            f"there is no socket at {address.socket_path}", is_sent=False, subject=str(address), hint=_ABSENT_HINT
        )


def client_arguments(headers: list[tuple[str, str]]) -> dict[str, Any]:
    """For httpx.Client and AsyncClient. Proxies from the environment aren't used: the WebSocket couldn't follow."""
    return {"headers": headers, "trust_env": False, "follow_redirects": False}


def request_arguments(address: Address, call: Call[Any]) -> dict[str, Any]:
    """For `stream()` of either client."""
    return {
        "method": call.method,
        "url": address.base_url + call.path,
        "params": call.params or None,
        "headers": call.headers,
        "content": call.content or None,
        "timeout": httpx.Timeout(connect=CONNECT_S, read=IO_S + call.hold_s, write=IO_S, pool=POOL_S),
    }


class BytesBody(httpx.AsyncByteStream):
    """A request's body. httpx's own is an async generator, which a cancelled request leaves to the collector."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __aiter__(self) -> "_OnePart":
        return _OnePart(self._content)


class _OnePart:
    def __init__(self, content: bytes) -> None:
        self._left = [content]

    def __aiter__(self) -> "_OnePart":
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


@contextmanager
def translated_errors(address: Address) -> Iterator[None]:
    """httpx's errors as NodeUnreachable, which says whether the request may have arrived."""
    try:
        yield
    except _NOT_SENT as err:
        raise NodeUnreachable(
            f"no connection to {address}: {words_of(err)}", is_sent=False, subject=str(address),
            hint=_ABSENT_HINT,
        ) from err  # fmt: skip
    except httpx.TransportError as err:
        raise NodeUnreachable(
            f"the connection to {address} broke: {words_of(err)}", is_sent=True, subject=str(address)
        ) from err
    except httpx.DecodingError as err:
        raise UnexpectedAnswer(f"the answer of {address} can't be decoded: {err}") from err


def words_of(error: BaseException) -> str:
    """What it says, or what its cause says: Trio and httpx often wrap an error without repeating its words."""
    cause: BaseException | None = error
    while cause is not None:
        if str(cause):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


class AnswerReader:
    """Collects an answer up to a bound."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        self._status = status
        self._headers = {name.lower(): value for name, value in headers.items()}
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, part: bytes) -> None:
        """Raises UnexpectedAnswer over the bound."""
        self._size += len(part)
        if self._size > ANSWER_BYTES_MAX:
            raise UnexpectedAnswer(f"the answer is over {ANSWER_BYTES_MAX} bytes")
        self._parts.append(part)

    def finish(self) -> Answer:
        return Answer(self._status, self._headers, b"".join(self._parts))

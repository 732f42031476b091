"""The live path over WebSocket: the handshake, then the session that delivery runs."""

import base64
import hashlib
from collections.abc import Iterable

import msgspec

from overlayd.access import Principal, require_some
from overlayd.delivery.deflate import negotiate
from overlayd.delivery.query import Format, LiveQuery
from overlayd.delivery.session import Session
from overlayd.delivery.socket import SocketParts, SocketSession
from overlayd.model.errors import BadRequest, Forbidden, OverlaydError
from overlayd.model.push_stream import PushStream
from overlayd.net.head import Head
from overlayd.net.live_query import split_query

SUBPROTOCOLS: dict[str, Format | None] = {"overlayd.v1": None, "cloudevents.json": "cloudevents"}
"""Each subprotocol and the format that it demands."""

WEBSOCKET_VERSION = "13"
_EXTENSIONS = b"sec-websocket-extensions"
_PROTOCOL = b"sec-websocket-protocol"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Accepted(msgspec.Struct):
    """A WebSocket whose handshake is right, and what it is going to be."""

    session: Session
    principal: Principal
    query: LiveQuery | OverlaydError | None
    answer: bytes
    format: Format | None
    is_compressed: bool


class LiveSockets:
    """Serves WebSockets on the live path. Everything of `accept` is followed by `serve`."""

    def __init__(self, parts: SocketParts) -> None:
        self._parts = parts

    def accept(self, head: Head, principal: Principal, more: Iterable[tuple[bytes, bytes]] = ()) -> Accepted:
        """Judges a handshake, and enters a session for it. `more`: headers of the answer. Raises OverlaydErrors."""
        key = _check_handshake(head)
        _require_some(principal)
        offers = ", ".join(value.decode("ascii") for name, value in head.headers if name == _EXTENSIONS)
        extension = negotiate(offers) if offers else None
        proposed = (
            name.strip() for known, value in head.headers if known == _PROTOCOL for name in value.decode("ascii").split(",")
        )  # fmt: skip
        protocol = next((name for name in proposed if name in SUBPROTOCOLS), None)
        query = self._parse_query(head.query)
        session = self._parts.registry.enter("websocket", principal.name, principal.address, principal)
        return Accepted(
            session, principal, query, _answer(key, protocol, extension, more),
            SUBPROTOCOLS[protocol] if protocol is not None else None, extension is not None,
        )  # fmt: skip

    async def serve(self, accepted: Accepted, stream: PushStream, unread: bytes) -> None:
        """Answers the handshake and serves until the connection has ended. `unread` came behind the handshake.
        Checkpoint. Raises BrokenResourceError when the peer is gone before that."""
        try:
            await stream.send_all(accepted.answer)
            query, accepted.query, accepted.answer = accepted.query, None, b""
            protocol = SocketSession(
                stream, accepted.session, parts=self._parts, principal=accepted.principal, format=accepted.format,
                is_compressed=accepted.is_compressed,
            )  # fmt: skip
            await protocol.run(query, unread)
        finally:
            self._parts.registry.leave(accepted.session)

    def _parse_query(self, query: str) -> LiveQuery | OverlaydError | None:
        """The URL's subscription, None without arguments, or what is wrong with it."""
        if not query:
            return None
        try:
            return self._parts.lane.delivery.parse_arguments(split_query(query))
        except OverlaydError as error:
            return error


def _answer(key: str, protocol: str | None, extension: str | None, more: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The handshake's answer (RFC 6455, 4.2.2)."""
    accept = base64.b64encode(hashlib.sha1(key.encode("latin-1") + _GUID, usedforsecurity=False).digest()).decode()
    lines = ["HTTP/1.1 101 Switching Protocols", "upgrade: websocket", "connection: Upgrade"]
    lines.append(f"sec-websocket-accept: {accept}")
    if protocol is not None:
        lines.append(f"sec-websocket-protocol: {protocol}")
    if extension is not None:
        lines.append(f"sec-websocket-extensions: {extension}")
    lines += [f"{name.decode('latin-1')}: {value.decode('latin-1')}" for name, value in more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _check_handshake(head: Head) -> str:
    """The handshake's key. Raises BadRequest for a handshake that can't be accepted (RFC 6455, 4.2.1)."""
    if head.version != "1.1":
        raise BadRequest(f"a WebSocket needs HTTP/1.1, not HTTP/{head.version}", subject="HTTP")
    for name, value in head.headers:
        if name.startswith(b"sec-websocket-") and not value.isascii():
            raise BadRequest(f"{name.decode()} isn't ASCII", subject=name.decode())
    if sum(name == b"sec-websocket-key" for name, _ in head.headers) > 1:
        raise BadRequest("there is more than one Sec-WebSocket-Key header", subject="Sec-WebSocket-Key")
    version, key = head.get(b"sec-websocket-version"), head.get(b"sec-websocket-key")
    if version != WEBSOCKET_VERSION:
        raise BadRequest(
            f"Sec-WebSocket-Version is {version or 'missing'}", subject="Sec-WebSocket-Version",
            hint=f"this node speaks version {WEBSOCKET_VERSION}",
        )  # fmt: skip
    if key is None or len(key) != 24:
        raise BadRequest("Sec-WebSocket-Key isn't 16 bytes in base64", subject="Sec-WebSocket-Key")
    return key


def _require_some(principal: Principal) -> None:
    """A socket serves for reading and for publishing; whoever may do neither gets none. Raises Forbidden."""
    try:
        require_some(principal, "subscribe")
    except Forbidden:
        require_some(principal, "publish")

"""The live path over WebSocket: the handshake, then the session that delivery runs."""

from collections.abc import Callable
from urllib.parse import parse_qsl

import trio
from trio_websocket import ConnectionClosed, WebSocketRequest

from overlayd.access import Principal, require
from overlayd.delivery.delivery import Delivery
from overlayd.delivery.query import Format, LiveQuery
from overlayd.delivery.session import Registry, Session
from overlayd.delivery.socket import PublishPackets, SocketSession
from overlayd.delivery.websocket import InputBudget, LiveSocket, PacedStream
from overlayd.model.errors import BadParameter, BadRequest, Forbidden, OverlaydError
from overlayd.net.head import Head
from overlayd.net.problem import plain_answer

SUBPROTOCOLS: dict[str, Format | None] = {"overlayd.v1": None, "cloudevents.json": "cloudevents"}
"""Each subprotocol and the format that it demands."""

WEBSOCKET_VERSION = "13"
_ARGUMENTS_MAX = 256


class LiveSockets:
    """Serves WebSockets on the live path; `serve` is what the door calls."""

    def __init__(
        self, *, delivery: Delivery, registry: Registry, publish: PublishPackets, node: str,
        next_request_id: Callable[[], str],
    ) -> None:  # fmt: skip
        self._delivery = delivery
        self._registry = registry
        self._publish = publish
        self._node = node
        self._next_request_id = next_request_id
        self._budget = InputBudget(delivery.limits.sockets_unread_bytes)

    async def serve(self, stream: trio.abc.Stream, head: Head, principal: Principal) -> None:
        """Takes the connection over, whose next bytes are the handshake, until it has ended. Checkpoint."""
        try:
            _check_handshake(head)
            _require_some(principal)
            session = self._registry.enter("websocket", principal.name, principal.address)
        except OverlaydError as error:
            await stream.send_all(plain_answer(error, self._next_request_id()))
            return
        try:
            await self._serve_session(stream, session, head, principal)
        finally:
            self._registry.leave(session)

    async def _serve_session(self, stream: trio.abc.Stream, session: Session, head: Head, principal: Principal) -> None:
        limits = self._delivery.limits
        paced = PacedStream(stream, limits.stall_timeout)
        connection = LiveSocket(paced, limits=limits, budget=self._budget, metrics=self._delivery.metrics)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            request = await self._shake_hands(connection)
            if request is not None:
                await self._serve_accepted(connection, request, session, head, principal)
            await connection.cut()
            nursery.cancel_scope.cancel()

    async def _shake_hands(self, connection: LiveSocket) -> WebSocketRequest | None:
        """The handshake, None when it can't be read. The door saw the head, so this takes no time."""
        with trio.move_on_after(self._delivery.limits.head_timeout):
            return await connection.read_handshake()
        return None

    async def _serve_accepted(
        self, connection: LiveSocket, request: WebSocketRequest, session: Session, head: Head, principal: Principal
    ) -> None:
        chosen = next((name for name in request.proposed_subprotocols if name in SUBPROTOCOLS), None)
        try:
            await request.accept(subprotocol=chosen)
        except ConnectionClosed:
            return
        protocol = SocketSession(
            connection, session, delivery=self._delivery, registry=self._registry, publish=self._publish,
            principal=principal, node=self._node, format=SUBPROTOCOLS[chosen] if chosen else None,
        )  # fmt: skip
        await protocol.run(self._parse_query(head.query))

    def _parse_query(self, query: str) -> LiveQuery | OverlaydError | None:
        """The URL's subscription, None without arguments, or what is wrong with it."""
        if not query:
            return None
        try:
            return self._delivery.parse_arguments(split_query(query))
        except OverlaydError as error:
            return error


def split_query(query: str) -> list[tuple[str, str]]:
    """A URL's query, percent-decoded, in pairs. Raises BadParameter."""
    try:
        return parse_qsl(
            query, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=_ARGUMENTS_MAX
        )
    except UnicodeDecodeError as err:
        raise BadParameter("the URL's query isn't percent-encoded UTF-8", subject="query") from err
    except ValueError as err:
        raise BadParameter(
            f"the URL's query can't be read: it must be at most {_ARGUMENTS_MAX} pairs of name=value, joined by &",
            subject="query",
        ) from err


def _check_handshake(head: Head) -> None:
    """Raises BadRequest for a handshake that can't be accepted (RFC 6455, 4.2.1)."""
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


def _require_some(principal: Principal) -> None:
    """A socket serves for reading and for publishing; whoever may do neither gets none. Raises Forbidden."""
    try:
        require(principal, "subscribe")
    except Forbidden:
        require(principal, "publish")

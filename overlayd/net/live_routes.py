"""The live path over HTTP: server-sent events or NDJSON; and the list of live sessions."""

from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from overlayd.access import require
from overlayd.delivery.delivery import Delivery
from overlayd.delivery.event_stream import LiveStream, StreamTransport
from overlayd.delivery.query import LiveQuery
from overlayd.delivery.session import CLOSE_POLICY, Ending, Registry
from overlayd.model.cursor import Cursor
from overlayd.model.errors import BadCursor, NotAcceptable
from overlayd.model.wire import SessionList, encode_wire
from overlayd.net.app import answer, principal_of
from overlayd.net.live_socket import split_query
from overlayd.net.parameters import Parameters

CONTENT_TYPES: dict[str, StreamTransport] = {
    "text/event-stream": "sse", "application/x-ndjson": "ndjson", "application/ndjson": "ndjson",
}  # fmt: skip
"""What a live answer can be; the first is what a client gets that takes anything."""
LAST_EVENT_ID = "last_event_id"


def add_live_routes(app: QuartTrio, *, delivery: Delivery, registry: Registry, node: str) -> None:
    """Adds `/v1/live` (but for WebSocket, which the door serves) and `/v1/sessions`."""
    routes = _LiveRoutes(delivery, registry, node)
    app.add_url_rule("/v1/live", "live.stream", routes.stream, methods=["GET"])
    app.add_url_rule("/v1/sessions", "sessions.list", routes.list_sessions, methods=["GET"])
    app.add_url_rule("/v1/sessions/<session>", "sessions.end", routes.end_session, methods=["DELETE"])


class _LiveRoutes:
    """The routes with what they need."""

    def __init__(self, delivery: Delivery, registry: Registry, node: str) -> None:
        self._delivery = delivery
        self._registry = registry
        self._node = node

    async def stream(self) -> Response:
        """An endless answer. What is wrong with the query is told by a status, before it begins."""
        principal = principal_of(request)
        require(principal, "subscribe")
        content_type = _choose(request.headers.get("Accept", "*/*"))
        transport = CONTENT_TYPES[content_type]
        query = self._parse()
        session = self._registry.enter(transport, principal.name, principal.address)
        try:
            self._registry.check_query(session, query)
            opened = await self._delivery.open_reader(query, principal.name)
            self._registry.add_reader(session, "", opened)
            body = LiveStream(
                transport, session, opened, delivery=self._delivery, registry=self._registry, node=self._node
            )
            await body.prepare()
        except BaseException:
            self._registry.leave(session)
            raise
        if request.method == "HEAD":
            body.close()
        response = Response(b"" if request.method == "HEAD" else body, content_type=f"{content_type}; charset=utf-8")
        response.timeout = None
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Accel-Buffering"] = "no"
        return response

    async def list_sessions(self) -> Response:
        """Live connections, oldest first."""
        require(principal_of(request), "manage")
        Parameters(request, ())
        return answer(encode_wire(SessionList(sessions=self._registry.bodies(self._delivery.log.head))))

    async def end_session(self, session: str) -> Response:
        """Tells one live connection to end; it won't be asked to come back."""
        require(principal_of(request), "admin")
        Parameters(request, ())
        self._registry.end(session, Ending(CLOSE_POLICY, "ended by an administrator"))
        return Response(b"", status=204)

    def _parse(self) -> LiveQuery:
        """The live query; where a browser says that it got to beats what its URL says. Raises BadParameter and others."""
        pairs = split_query(request.query_string.decode("ascii", "replace")) if request.query_string else []
        asked = [value for name, value in pairs if name == LAST_EVENT_ID]
        pairs = [(name, value) for name, value in pairs if name != LAST_EVENT_ID]
        last_event_id = request.headers.get("Last-Event-ID") or (asked[-1] if asked else "")
        if last_event_id:
            try:
                Cursor.parse(last_event_id)
            except BadCursor as err:
                raise BadCursor(f"Last-Event-ID: {err.detail}", subject="Last-Event-ID", hint=err.hint) from err
            pairs = [(name, value) for name, value in pairs if name not in ("after", "from")]
            pairs.append(("after", last_event_id))
        return self._delivery.parse_arguments(pairs)


def _choose(accept: str) -> str:
    """The content type to answer with. Raises NotAcceptable."""
    chosen = parse_accept_header(accept, MIMEAccept).best_match(CONTENT_TYPES)
    if chosen is None:
        raise NotAcceptable(
            f"live packets don't come as {accept[:100]}", subject="Accept",
            hint="Accept: text/event-stream or application/x-ndjson, or a WebSocket with subprotocol overlayd.v1",
        )  # fmt: skip
    return chosen

"""The live path over HTTP: server-sent events or NDJSON; and the list of live sessions."""

import trio
from quart import Response, request
from quart_trio import QuartTrio

from overlayd.access import require
from overlayd.access.audit import AuditTrail
from overlayd.delivery.delivery import Delivery
from overlayd.delivery.event_stream import LiveStream
from overlayd.delivery.session import CLOSE_POLICY, Ending, Registry
from overlayd.model.wire import SessionList, encode_wire
from overlayd.net.app import answer, author_of, principal_of
from overlayd.net.lane import Lane
from overlayd.net.live_query import LIVE_PATH, stream_ask
from overlayd.net.parameters import Parameters

SESSIONS_PER_TURN = 100


def add_live_routes(
    app: QuartTrio, *, delivery: Delivery, registry: Registry, node: str, trail: AuditTrail, lane: Lane
) -> None:
    """Adds `/v1/live` (but for WebSocket, which the door serves) and `/v1/sessions`."""
    routes = _LiveRoutes(delivery, registry, node, trail, lane)
    app.add_url_rule(LIVE_PATH, "live.stream", routes.stream, methods=["GET"])
    app.add_url_rule("/v1/sessions", "sessions.list", routes.list_sessions, methods=["GET"])
    app.add_url_rule("/v1/sessions/<session>", "sessions.end", routes.end_session, methods=["DELETE"])


class _LiveRoutes:
    """The routes with what they need."""

    def __init__(
        self, delivery: Delivery, registry: Registry, node: str, trail: AuditTrail, lane: Lane
    ) -> None:  # fmt: skip
        self._trail = trail
        self._lane = lane
        self._delivery = delivery
        self._registry = registry
        self._node = node

    async def stream(self) -> Response:
        """An endless answer. What is wrong with the query is told by a status, before it begins."""
        principal = principal_of(request)
        headers = {name.lower(): value for name, value in request.headers.items()}
        query = request.query_string.decode("ascii", "replace") if request.query_string else ""
        ask = stream_ask(self._delivery, query, headers, is_chunked=False)
        wanted = self._delivery.see(ask.query, principal)
        session = self._registry.enter(ask.form.transport, principal.name, principal.address, principal)
        try:
            self._registry.check_query(session, wanted)
            opened = await self._delivery.open_reader(wanted, principal.name)
            self._registry.add_reader(session, "", opened)
            body = LiveStream(
                ask.form, session, opened, delivery=self._delivery, registry=self._registry, node=self._node
            )
            await body.prepare()
        except BaseException:
            self._registry.leave(session)
            raise
        if request.method == "HEAD":
            body.close()
        response = Response(b"" if request.method == "HEAD" else body)
        response.timeout = None
        for name, value in ask.headers:
            response.headers[name] = value
        response.headers["Cache-Control"] = "no-store"
        return response

    async def list_sessions(self) -> Response:
        """Live connections, oldest first."""
        require(principal_of(request), "manage")
        Parameters(request, ())
        async with self._lane.step_out():
            await self._trail.write_once(author_of(request).record("sessions.read", "sessions"))
        sessions = []
        for number, session in enumerate(self._registry.sessions(), 1):
            sessions.append(session.body(self._delivery.log.head))
            if number % SESSIONS_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
        return answer(encode_wire(SessionList(sessions=sessions)))

    async def end_session(self, session: str) -> Response:
        """Tells one live connection to end; it won't be asked to come back."""
        require(principal_of(request), "admin")
        Parameters(request, ())
        self._registry.known(session)
        async with self._lane.step_out():
            await self._trail.write(author_of(request).record("session.end", session))
        self._registry.end(session, Ending(CLOSE_POLICY, "ended by an administrator"))
        return Response(b"", status=204)

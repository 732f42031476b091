"""What happens to every request around the application: id, headers, a place in the lane, one access line.

An ASGI wrapper around Quart, so that it also covers what Quart answers by itself.
"""

from typing import Any

import structlog
import trio
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable

from overlayd.model.errors import OverlaydError
from overlayd.net.access_log import RequestLog
from overlayd.net.lane import Lane
from overlayd.net.problem import complete_headers, problem_body, problem_headers

UNHURRIED = frozenset(("/healthz", "/readyz"))
"""Answered without a place in the lane: whoever asks wants to know how a busy node is, too."""
_log = structlog.get_logger("net.edge")


class Edge:
    """The wrapper. The door puts `principal`, `request_id` and `started` into the scope's state."""

    def __init__(self, app: ASGIFramework, *, lane: Lane, request_log: RequestLog) -> None:
        self._app = app
        self._lane = lane
        self._request_log = request_log

    async def __call__(self, scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        state = scope.setdefault("state", {})
        state.setdefault("request_id", "-")
        state.setdefault("started", trio.current_time())
        answer = _Answer(self, scope, state, send)
        try:
            try:
                if scope["path"] not in UNHURRIED:
                    answer.place = await self._lane.enter()
                await self._app(scope, receive, answer.send)
            except Exception as error:  # the last stop before the connection; Quart handles what routes raise
                await answer.fail(error)
        finally:
            answer.end()


class _Answer:
    """One answer on its way out."""

    def __init__(self, edge: Edge, scope: Any, state: dict[str, Any], send: Any) -> None:
        self.place: Any = None
        self._edge = edge
        self._scope = scope
        self._state = state
        self._send = send
        self._status = 0
        self._sent_bytes = 0

    async def send(self, message: Any) -> None:
        """Passes a message on; with the first one the lane's place is free for somebody else."""
        if message["type"] == "http.response.start":
            self._status = int(message["status"])
            self._leave()
            self._edge._request_log.answer_begun(self._route, self._state["started"])
            headers = complete_headers(list(message.get("headers", ())), self._state["request_id"])
            headers += self._state.get("answer_headers", ())
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body":
            self._sent_bytes += len(message.get("body", b""))
        await self._send(message)

    async def fail(self, error: Exception) -> None:
        """Turns what nobody handled into a problem, if the answer hasn't begun."""
        if isinstance(error, OverlaydError):
            problem = error
        else:
            _log.error("request failed", request_id=self._state["request_id"], exc_info=error)
            problem = OverlaydError("something went wrong; the node's log has it under this request's id")
        if self._status:
            return
        body = problem_body(problem, self._state["request_id"])
        headers = [(name.encode("ascii"), value.encode("latin-1")) for name, value in problem_headers(problem)]
        headers.append((b"content-length", str(len(body)).encode("ascii")))
        await self.send({"type": "http.response.start", "status": problem.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    def end(self) -> None:
        self._leave()
        principal = self._state.get("principal")
        self._edge._request_log.record(
            method=self._scope["method"], path=self._scope["raw_path"].decode("ascii", "replace"), route=self._route,
            status=self._status or 499, sent_bytes=self._sent_bytes, started=self._state["started"],
            principal=principal.name if principal else "-", request_id=self._state["request_id"],
        )  # fmt: skip

    @property
    def _route(self) -> str:
        return str(self._state.get("route", "unknown"))

    def _leave(self) -> None:
        if self.place is not None:
            self._edge._lane.leave(self.place)

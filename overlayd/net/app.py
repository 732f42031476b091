"""The Quart application: routes are added to it by the `*_routes` modules, with their parts as arguments."""

from collections.abc import Awaitable, Callable
from typing import Any, cast

import structlog
import trio
from hypercorn.typing import ASGIReceiveCallable
from quart import Request, Response, request
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers.request import TrioBody, TrioRequest
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import MethodNotAllowed as WrongMethod

from overlayd.access import Principal
from overlayd.access.key_changes import Author
from overlayd.access.principal import check_standing
from overlayd.model.errors import BadRequest, MethodNotAllowed, NotFound, OverlaydError, Unauthorized
from overlayd.net.access_log import RequestLog
from overlayd.net.content import Bodies, BodyReader, Hold
from overlayd.net.edge import Edge
from overlayd.net.lane import Lane
from overlayd.net.problem import problem_body, problem_headers

BODY_BUFFER_BYTES = 64 << 10
_log = structlog.get_logger("net.app")


class PulledBody(TrioBody):
    """A request's body that comes no faster than the route takes it."""

    def __init__(self, expected_content_length: int | None, max_content_length: int | None) -> None:
        super().__init__(expected_content_length, max_content_length)
        self._taken = trio.Event()
        self.want: Callable[[], Awaitable[None]] | None = None
        """Called before the first wait for bytes: tells a client that waits to be asked (100 Continue)."""

    async def feed(self, data: bytes) -> None:
        """Adds bytes, then waits until there is room for more."""
        self.append(data)
        while len(self._data) >= BODY_BUFFER_BYTES:
            await self._taken.wait()

    def take(self) -> bytes:
        """What has arrived; b"" when nothing waits."""
        data = bytes(self._data)
        self._data.clear()
        if not self._complete.is_set():
            self._has_data.clear()
        self._taken.set()
        self._taken = trio.Event()
        return data

    @property
    def is_ready(self) -> bool:
        """Whether `receive` would give something, or the end, at once."""
        return bool(self._data) or self._complete.is_set()

    def receive_nowait(self) -> None:
        """None: bytes come from another task, which must have its turn."""

    async def receive(self) -> bytes:
        """The next bytes; b"" at the end. Checkpoint."""
        await trio.lowlevel.checkpoint()
        if not self._data and not self._complete.is_set():
            if self.want is not None:
                want, self.want = self.want, None
                await want()
            await self._has_data.wait()
        return self.take()


class EdgeRequest(TrioRequest):
    """Quart's request with a body that is pulled."""

    body_class = PulledBody


class PulledHTTPConnection(TrioASGIHTTPConnection):
    """Quart's ASGI side, which would otherwise take a body in as fast as it comes."""

    async def handle_messages(  # type: ignore[override]  # as quart_trio's own does
        self, nursery: trio.Nursery, request: Request, receive: ASGIReceiveCallable
    ) -> None:
        body = cast(PulledBody, request.body)
        while True:
            message = await receive()
            if message["type"] == "http.request":
                await body.feed(message.get("body", b""))
                if not message.get("more_body", False):
                    body.set_complete()
            elif message["type"] == "http.disconnect":
                nursery.cancel_scope.cancel()
                return


class EdgeApp(QuartTrio):
    """Quart with pulled bodies. Its nursery, lifespan tricks and globals aren't used."""

    asgi_http_class = PulledHTTPConnection
    request_class = EdgeRequest


def create_app(*, lane: Lane, request_log: RequestLog) -> QuartTrio:
    """The application without routes: errors become problems, and the edge is around it."""
    app = EdgeApp("overlayd", static_folder=None, template_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=None, BODY_TIMEOUT=None, RESPONSE_TIMEOUT=None, PROPAGATE_EXCEPTIONS=False)
    app.url_map.strict_slashes = True
    app.url_map.merge_slashes = False
    app.before_request(_note_route)
    app.register_error_handler(OverlaydError, _answer_error)
    app.register_error_handler(HTTPException, _answer_http_exception)
    app.register_error_handler(Exception, _answer_unforeseen)
    app.asgi_app = Edge(app.asgi_app, lane=lane, request_log=request_log)  # type: ignore[method-assign]
    return app


def principal_of(asked: Request) -> Principal:
    """Who asks. Raises Unauthorized for a request that didn't come through the door."""
    principal = _state_of(asked).get("principal")
    if not isinstance(principal, Principal):
        raise Unauthorized("the request has no principal")
    return principal


def author_of(asked: Request) -> Author:
    """Who asks, and with which request: for audit records. Raises as `principal_of`."""
    return Author(principal_of(asked), request_id_of(asked))


def request_id_of(asked: Request) -> str:
    """The request's id, as in X-Request-Id."""
    return str(_state_of(asked).get("request_id", "-"))


def body_reader(asked: Request, bodies: Bodies, bytes_max: int, limit: str) -> BodyReader:
    """Reads the request's body, up to so many inflated bytes. Raises WrongContentEncoding."""
    body = cast(PulledBody, asked.body)
    body.want = _state_of(asked).get("want_body")
    return bodies.reader(body, asked.headers.get("Content-Encoding", ""), bytes_max, limit)


async def read_body(asked: Request, bodies: Bodies, hold: Hold, bytes_max: int, limit: str) -> bytes:
    """The whole body. A body may come slowly, and its sender's credential may end meanwhile: so that is looked at again,
    for whoever was judged by the head. Checkpoint. Raises as `BodyReader.read_all`, and Unauthorized."""
    raw = await body_reader(asked, bodies, bytes_max, limit).read_all(hold)
    check_standing(principal_of(asked))
    return raw


def answer(body: bytes, status: int = 200, *, content_type: str = "application/json", **headers: str) -> Response:
    """A whole answer. Keywords are header names with `_` for `-`."""
    response = Response(body, status=status, content_type=content_type)
    for name, value in headers.items():
        response.headers[name.replace("_", "-")] = value
    return response


def problem_answer(error: OverlaydError, asked: Request) -> Response:
    """The error as a problem."""
    response = Response(problem_body(error, request_id_of(asked)), status=error.status)
    for name, value in problem_headers(error):
        response.headers[name] = value
    return response


def _state_of(asked: Request) -> dict[str, Any]:
    return cast(dict[str, Any], asked.scope.get("state") or {})


async def _note_route() -> None:
    """The pattern that matched, for the metrics."""
    if request.url_rule is not None:
        _state_of(request)["route"] = request.url_rule.rule


async def _answer_error(error: OverlaydError) -> Response:
    return problem_answer(error, request)


async def _answer_http_exception(error: HTTPException) -> Response:
    """What Quart itself refuses: unknown paths and methods, mostly."""
    path = request.path[:200]
    if isinstance(error, WrongMethod):
        allowed = sorted(error.valid_methods or ())
        problem: OverlaydError = MethodNotAllowed(
            f"{request.method} isn't allowed on {path}", subject=request.method, extra={"allow": allowed}
        )
    elif error.code == 404:
        problem = NotFound(f"there is nothing at {path}", subject=path, hint="/docs lists what there is")
    elif error.code is not None and 400 <= error.code < 500:
        problem = BadRequest(error.description or error.name)
    else:
        return await _answer_unforeseen(error)
    return problem_answer(problem, request)


async def _answer_unforeseen(error: Exception) -> Response:
    """A fault of ours: the log gets the traceback, the client gets the request's id."""
    _log.error("request failed", request_id=request_id_of(request), exc_info=error)
    return problem_answer(OverlaydError("something went wrong; the node's log has it under this request's id"), request)

"""AgentPipe's surface put together from the node's parts. The daemon makes it when the configuration asks for it."""

import random
from collections.abc import Callable

import msgspec
import structlog
import trio
from quart import Blueprint, Response, request
from quart_trio import QuartTrio

from overlayd.access.key_records import KeyRecord, SecretRecord
from overlayd.access.node_access import NodeAccess
from overlayd.access.rates import RateBook, RateSettings
from overlayd.access.secret_text import digest_of
from overlayd.delivery.lane import LiveLane
from overlayd.delivery.session import Registry
from overlayd.dialects.agentpipe.answers import Answered, error_answer, error_body, error_headers
from overlayd.dialects.agentpipe.events import PATTERN
from overlayd.dialects.agentpipe.follower import Follower
from overlayd.dialects.agentpipe.ingest import add_ingest_routes
from overlayd.dialects.agentpipe.live import PATHS, AgentPipeLive, Listeners
from overlayd.dialects.agentpipe.operations import OPERATIONS
from overlayd.dialects.agentpipe.read_routes import add_read_routes
from overlayd.dialects.agentpipe.session_routes import add_session_routes
from overlayd.dialects.agentpipe.settings import AgentPipeSettings
from overlayd.dialects.agentpipe.surface import Surface
from overlayd.dialects.agentpipe.tables import AGENTPIPE_FEATURE
from overlayd.dialects.agentpipe.throttle import RETRIEVAL, UPLOAD, Throttle, rules_of
from overlayd.dialects.agentpipe.upload_route import add_upload_routes
from overlayd.model.clock import Clock, Entropy
from overlayd.model.definition import Definition
from overlayd.model.errors import OverlaydError
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.supervise import supervise
from overlayd.net.access_log import RequestLog
from overlayd.net.app import principal_of, request_id_of
from overlayd.net.content import Bodies
from overlayd.net.door import ServeLive
from overlayd.net.head import Head
from overlayd.net.lane import Lane
from overlayd.net.problem import Words
from overlayd.net.publish import Publisher
from overlayd.storage import Log

__all__ = ["AGENTPIPE_FEATURE", "LIVE_PATHS", "OPEN_PATHS", "OPERATIONS", "AgentPipe"]

API = "/api/"
LIVE_PATHS = PATHS
"""What a ticket opens, because a browser's EventSource can't send a key."""
OPEN_PATHS = frozenset(("/api/health",))
BRIDGE_KEY = "agentpipe-bridge"
_UPLOAD = "agentpipe.upload"
_OWN_RATES = frozenset(("agentpipe.ingest", "agentpipe.health", "agentpipe.rebuild"))
"""Endpoints that tell their rate themselves, or have none."""
_encode = msgspec.json.Encoder().encode
_log = structlog.get_logger("agentpipe")


class AgentPipe:
    """The whole surface. Adds its routes when it is made; `start` and `run` belong inside the engine's nursery."""

    def __init__(
        self, *, settings: AgentPipeSettings, app: QuartTrio, log: Log, limits: Limits, lane: Lane, bodies: Bodies,
        publisher: Publisher, access: NodeAccess, live: LiveLane, registry: Registry, request_log: RequestLog,
        rates: RateSettings, defaults: Definition, trouble: Callable[[], str], clock: Clock, entropy: Entropy,
        metrics: Metrics,
    ) -> None:  # fmt: skip
        """`trouble`: why the node can't take packets now, "" when it can."""
        self._settings = settings
        self._access = access
        self._live = live
        self._registry = registry
        self._request_log = request_log
        self._clock = clock
        self._crashes = metrics.counter(
            "overlayd_agentpipe_crashes", "Times that following the log was ended by a fault"
        )
        self._chance = random.Random(entropy.draw(8))  # noqa: S311 - spreads restarts, keeps no secret
        self.follower = Follower(log, metrics)
        book = RateBook(
            rules_of(settings), now=trio.current_time, metrics=metrics, secret=entropy.draw(32), count=rates.buckets
        )
        self.surface = Surface(
            settings=settings, log=log, limits=limits, lane=lane, bodies=bodies, publisher=publisher,
            streams=access.streams, follower=self.follower,
            throttle=Throttle(book, clock, is_local=rates.local), defaults=defaults, clock=clock, entropy=entropy,
            metrics=metrics,
        )  # fmt: skip
        self.listeners = Listeners(self.surface)
        blueprint = Blueprint("agentpipe", __name__)
        blueprint.register_error_handler(OverlaydError, self._answer_error)
        blueprint.register_error_handler(Answered, _answer_early)
        blueprint.register_error_handler(Exception, self._answer_unforeseen)
        blueprint.after_request(self._tell_rate)
        add_ingest_routes(blueprint, self.surface)
        add_upload_routes(blueprint, self.surface)
        add_read_routes(blueprint, self.surface)
        add_session_routes(
            blueprint, self.surface, self.listeners, registry=registry, trail=access.trail, trouble=trouble
        )  # fmt: skip
        app.register_blueprint(blueprint)

    def live_door(self, inner: ServeLive) -> ServeLive:
        """The node's live door with AgentPipe's live paths before it."""
        return AgentPipeLive(
            inner, self.surface, self.listeners, lane=self._live, registry=self._registry,
            request_log=self._request_log,
        )  # fmt: skip

    def word(self, head: Head, error: OverlaydError) -> Words | None:
        """How the door tells errors of AgentPipe's paths."""
        if not head.path.startswith(API):
            return None
        named = [("content-type", "application/json"), *error_headers(error, self._clock).items()]
        return _encode(error_body(error)), named

    def declare_key(self) -> None:
        """The bridge's key counts from now on, if the settings hold one."""
        if not self._settings.bridge_key:
            return
        scopes = tuple(f"{right}:{PATTERN}" for right in ("publish", "read", "subscribe"))
        secret = SecretRecord(digest_of(self._settings.bridge_key), "", self._clock.now_us())
        record = KeyRecord(
            id=BRIDGE_KEY, kind="ap", owner="agentpipe", scopes=scopes, created_us=self._clock.now_us(),
            secrets=(secret,), title="AgentPipe's bridge", created_by="config",
        )  # fmt: skip
        self._access.keys.put(record, declared_in="agentpipe.bridge_key")
        self._access.gate.refresh()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keeps the sessions, until cancelled. Started once it knows where it stands."""
        await self.follower.start()
        task_status.started()
        await supervise(
            "agentpipe", self.follower.run, chance=self._chance, on_crash=lambda name: self._crashes.inc()
        )  # fmt: skip

    async def _tell_rate(self, response: Response) -> Response:
        """What is left of a read's or an upload's rate, whatever became of it. Events tell theirs themselves."""
        endpoint = request.endpoint or ""
        if endpoint not in _OWN_RATES and "X-RateLimit-Limit" not in response.headers:
            name = UPLOAD if endpoint == _UPLOAD else RETRIEVAL
            response.headers.update(self.surface.throttle.headers(name, principal_of(request)))
        return response

    async def _answer_error(self, error: OverlaydError) -> Response:
        return error_answer(error, self._clock)

    async def _answer_unforeseen(self, error: Exception) -> Response:
        """A fault of ours: the log gets the traceback, the client gets the request's id."""
        id = request_id_of(request)
        _log.error("request failed", request_id=id, exc_info=error)
        return error_answer(OverlaydError(f"something went wrong; the node's log has it under {id}"), self._clock)


async def _answer_early(answered: Answered) -> Response:
    return answered.response

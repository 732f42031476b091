"""The routes over a real log, asked through Quart's test client."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from lane_rig import ask_lane, target_of
from quart_trio import QuartTrio

from overlayd.access import AccessRules, Principal
from overlayd.access.key_records import ACCESS_FEATURE
from overlayd.access.node_access import NodeAccess
from overlayd.access.principal import EVERYDAY, EVERYTHING, Standing
from overlayd.access.scopes import Right, grants_of, parse_scope
from overlayd.access.settings import AccessSettings
from overlayd.model.clock import Entropy, SystemClock
from overlayd.model.definition import Definition
from overlayd.model.draft import AppendRequest, Draft, Receipt
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.names import StreamName
from overlayd.model.units import Size
from overlayd.net.access_log import RequestLog
from overlayd.net.app import create_app
from overlayd.net.content import Bodies
from overlayd.net.lane import Lane
from overlayd.net.log_key_routes import add_log_key_routes
from overlayd.net.log_routes import add_log_routes
from overlayd.net.node_routes import add_node_routes
from overlayd.net.publish import Publisher
from overlayd.net.publish_lane import PublishLane
from overlayd.net.publish_routes import add_publish_routes
from overlayd.net.stream_routes import add_stream_routes
from overlayd.pipeline.intake import Intake
from overlayd.pipeline.own_streams import AUDIT, OwnStream
from overlayd.pipeline.schema import SchemaCache
from overlayd.storage import Log, StorageSettings, open_log

ADMIN = Principal(name="unix:0", kind="unix", rights=EVERYTHING, address="uid:0", may_create=True)
LOOPBACK = Principal(name="loopback", kind="loopback", rights=EVERYDAY, address="127.0.0.1", may_create=True)
STRANGER = Principal(name="open:192.0.2.9", kind="open", rights=EVERYDAY, address="192.0.2.9")


def principal_with(*rights: Right) -> Principal:
    """Somebody with these rights only."""
    return Principal(name="test", kind="open", rights=frozenset(rights), address="192.0.2.9")


def scoped(*scopes: str, owner: str = "alice") -> Principal:
    """Somebody with a key that has these scopes."""
    grants = grants_of(map(parse_scope, scopes))
    return Principal(
        name=f"key:{owner}", kind="key", rights=grants.everywhere, address="192.0.2.9", grants=grants, owner=owner,
        standing=Standing(),
    )  # fmt: skip


class Reply:
    """A route's answer."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = {name.lower(): value for name, value in headers.items()}
        self.body = body

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    def __repr__(self) -> str:
        return f"Reply({self.status}, {self.body[:500]!r})"


class Node:
    """A log with routes over it."""

    def __init__(
        self, app: QuartTrio, log: Log, lane: Lane, limits: Limits, metrics: Metrics, access: NodeAccess
    ) -> None:
        self.access = access
        self.app = app
        self.log = log
        self.lane = lane
        self.limits = limits
        self.metrics = metrics
        self.publish_lane: PublishLane | None = None
        self.troubles: dict[str, str] = {"storage": ""}
        self.stopped: list[str] = []

    async def ask(
        self, method: str, path: str, body: bytes | str = b"", *, who: Principal = ADMIN, **headers: str
    ) -> Reply:
        """One request through the application. Keywords are headers with `_` for `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.publish_lane is not None and target_of(method, path) is not None:
            raw = body.encode() if isinstance(body, str) else body
            answer = await ask_lane(self.publish_lane, path, raw, named, who=who, limits=self.limits)
            return Reply(answer.status, answer.headers, answer.body)
        response = await self.app.test_client().open(
            path,
            method=method,
            data=body or None,
            headers=named,
            scope_base={"state": {"principal": who, "request_id": "r-1"}},
        )
        return Reply(response.status_code, dict(response.headers.items()), await response.get_data(as_text=False))

    async def append(self, stream: str, *bodies: bytes, ids: tuple[str, ...] = ()) -> list[Receipt]:
        """Packets straight into the log."""
        drafts = [Draft(index, body, body, id=ids[index] if ids else "") for index, body in enumerate(bodies)]
        found = self.log.find_stream(stream)
        version = 0 if found is None else found.definition_version
        asked = AppendRequest(StreamName(stream), drafts, may_create=True, definition_version=version)
        result = await self.log.append(asked)
        return [outcome for outcome in result.outcomes if isinstance(outcome, Receipt)]


@asynccontextmanager
async def open_node(
    directory: Path, limits: Limits | None = None, defaults: Definition | None = None, *, is_fast: bool = False,
    warnings: dict[str, Callable[[], str]] | None = None,
) -> AsyncIterator[Node]:  # fmt: skip
    """A node without listeners. `is_fast`: with a publish lane before the application. `warnings`: of its readiness."""
    limits, metrics = limits or Limits(), Metrics()
    lane = Lane(limits.other_lane_concurrency, limits.other_lane_queue, metrics)
    settings = StorageSettings(reserve=Size(0), disk_high_water=Size(0), disk_low_water=Size(0))
    async with open_log(
        directory, settings=settings, limits=limits, defaults=defaults or Definition(), clock=SystemClock(),
        entropy=Entropy(), metrics=metrics, features=(ACCESS_FEATURE,),
    ) as log:  # fmt: skip
        request_log = RequestLog(metrics)
        app = create_app(lane=lane, request_log=request_log)
        access = NodeAccess(
            log=log, rules=AccessRules(service_uid=0), settings=AccessSettings(), declared=(), environ={},
            make_audit=OwnStream(AUDIT, log.append_own).packet, clock=SystemClock(), entropy=Entropy(),
            metrics=metrics,
        )  # fmt: skip
        await access.load()
        node = Node(app, log, lane, limits, metrics, access)
        bodies = Bodies(limits, lane, metrics)
        schemas = SchemaCache(limits, metrics)
        add_stream_routes(
            app, log=log, limits=limits, lane=lane, bodies=bodies, schemas=schemas, streams=node.access.streams,
            changes=node.access.stream_changes,
            count_subscribers=lambda stream: 0, on_stopped=node.stopped.append,
        )  # fmt: skip
        intake = Intake(log=log, limits=limits, schemas=schemas, metrics=metrics)
        publisher = Publisher(intake=intake, log=log, limits=limits, lane=lane, bodies=bodies, streams=access.streams)
        add_publish_routes(app, publisher=publisher, spool_directory=directory)
        if is_fast:
            node.publish_lane = PublishLane(publisher=publisher, spool_directory=directory, request_log=request_log)
        add_log_key_routes(app, log=log, lane=lane, trail=access.trail)
        add_log_routes(app, log=log, lane=lane, streams=access.streams, trail=access.trail)
        checks = {"storage": lambda: node.troubles["storage"]}
        add_node_routes(
            app, log=log, node_name="test", metrics=metrics, ready_checks=checks, ready_warnings=warnings or {}
        )
        yield node

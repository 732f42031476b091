"""The daemon: every part is made here and handed to the parts that need it. Nothing else knows them all."""

import gc
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import trio
from quart_trio import QuartTrio

from overlayd.access.callbacks import CallbackScheme
from overlayd.access.identity.tables import IDENTITY_FEATURE
from overlayd.access.jwt.published import Fetch
from overlayd.access.key_records import ACCESS_FEATURE
from overlayd.access.metering import METERING_FEATURES, Metering
from overlayd.access.node_access import NodeAccess
from overlayd.access.node_schemes import NodeSchemes, named_policies
from overlayd.access.streaming_sessions import StreamingSessions
from overlayd.chain.engine import CHAIN_FEATURES, ChainEngine, open_engine
from overlayd.chain.sources.remote import callback_tokens
from overlayd.config import Settings
from overlayd.config.dialects import agentpipe_features, agentpipe_operations, load_agentpipe
from overlayd.delivery.agents.replies import Replies
from overlayd.delivery.agents.switch import FEATURE as AGENTS_FEATURE
from overlayd.delivery.agents.switch import AgentSwitch
from overlayd.delivery.delivery import Delivery
from overlayd.delivery.frames import packet_body
from overlayd.delivery.lane import LiveLane
from overlayd.delivery.review import review_sessions
from overlayd.delivery.session import Ending, Registry
from overlayd.delivery.session_usage import SessionUsage
from overlayd.delivery.socket import SocketParts
from overlayd.delivery.subscriptions.declaring import declare_subscriptions
from overlayd.delivery.subscriptions.owners import Owners
from overlayd.delivery.subscriptions.parts import DurableSubscriptions
from overlayd.delivery.subscriptions.tables import FEATURE as SUBSCRIPTIONS_FEATURE
from overlayd.delivery.webhooks import WEBHOOKS_FEATURE, Webhooks
from overlayd.delivery.websocket import InputBudget
from overlayd.model.access_lines import access_writer
from overlayd.model.audit import AuditRecord
from overlayd.model.clock import Clock, Entropy, SystemClock
from overlayd.model.errors import ConfigInvalid
from overlayd.model.logs import configure_logs
from overlayd.model.metrics import Metrics
from overlayd.model.names import is_node_name
from overlayd.model.process_metrics import register_process_metrics
from overlayd.model.systemd import Notifier, watchdog_interval_s
from overlayd.net.access_log import RequestLog
from overlayd.net.agent_routes import add_agent_routes
from overlayd.net.app import create_app
from overlayd.net.chain_callback_routes import OnHint, add_chain_callback_routes
from overlayd.net.chain_routes import add_chain_routes
from overlayd.net.content import Bodies
from overlayd.net.cors import OriginHeaders, methods_of
from overlayd.net.docs_routes import add_docs_routes
from overlayd.net.door import Door, ServeLive
from overlayd.net.exposure import Credentials
from overlayd.net.json_body import JsonBodies
from overlayd.net.key_routes import add_key_routes
from overlayd.net.lane import Lane
from overlayd.net.listeners import Bound, close_listeners, raise_descriptor_limit
from overlayd.net.live_lane import LiveDoor
from overlayd.net.live_publish import live_publisher
from overlayd.net.live_routes import add_live_routes
from overlayd.net.live_socket import LiveSockets
from overlayd.net.log_key_routes import add_log_key_routes
from overlayd.net.log_routes import add_log_routes
from overlayd.net.metering_routes import add_metering_routes
from overlayd.net.mutual_routes import add_mutual_routes
from overlayd.net.node_routes import ReadyChecks, add_node_routes
from overlayd.net.ports import Ports
from overlayd.net.publish import Publisher
from overlayd.net.publish_lane import PublishLane
from overlayd.net.publish_routes import add_publish_routes
from overlayd.net.read_routes import add_read_routes
from overlayd.net.server import Admission, RequestIds, serve_connections
from overlayd.net.stream_routes import add_stream_routes
from overlayd.net.subscription_routes import add_subscription_routes
from overlayd.net.ticket_routes import add_ticket_routes
from overlayd.net.wallet_routes import add_wallet_routes
from overlayd.outbound import Outbound
from overlayd.outbound.documents import fetch_document
from overlayd.pipeline.definitions import check_definition
from overlayd.pipeline.filters import FilterBook
from overlayd.pipeline.intake import Intake
from overlayd.pipeline.own_streams import AUDIT, EVENTS, OwnStream
from overlayd.pipeline.schema import SchemaCache
from overlayd.signers import NodeCheckpointKeys
from overlayd.storage import Log, open_log
from overlayd.storage.sealing import read_sealing_key

SWITCH_INTERVAL_S = 0.0005
"""A thread that comes back from the disk waits at most this long for the interpreter beside a busy event loop.
With CPython's own 5 ms a commit of 100 rows took 197 ms there, with this 1.5 ms (measured on two cores)."""

GARBAGE_THRESHOLD = 10_000
"""Containers made before the collector looks at the youngest. With CPython's own 700, and without freezing what start-up
left behind, a packet of a million bytes that holds nothing but empty lists took 187 ms to decode; now 18 (measured)."""

GOING_AWAY = 1001
FEATURES = (
    *METERING_FEATURES,
    *CHAIN_FEATURES,
    ACCESS_FEATURE,
    IDENTITY_FEATURE,
    WEBHOOKS_FEATURE,
    SUBSCRIPTIONS_FEATURE,
    AGENTS_FEATURE,
)
_log = structlog.get_logger("daemon")


class Parts:
    """What is made of a log and the settings before anything listens. Built once, read by `serve` and by tests."""

    def __init__(
        self, log: Log, settings: Settings, metrics: Metrics, clock: Clock, entropy: Entropy, *,
        outbound: Outbound | None = None, chain: ChainEngine | None = None,
    ) -> None:  # fmt: skip
        limits, agentpipe = settings.limits, load_agentpipe(settings.agentpipe)
        self.log = log
        self.settings = settings
        self.metrics = metrics
        self.clock = clock
        self.entropy = entropy
        self.stop = trio.Event()
        self.on_chain_hint: OnHint = chain.watcher.hint if chain else lambda txid: None
        """Gets the transactions that sources call back about; whoever watches some sets it."""
        self.ports = Ports(settings.listen, limits=limits, clock=clock, metrics=metrics)
        self.outbound = outbound or Outbound(limits, settings.webhooks.outbound, metrics)
        self.chain = chain
        confirmations = chain.reads if chain else None
        self.schemes = NodeSchemes(
            settings=settings.access, directory=Path(settings.storage.dir), environ=os.environ, store=log, clock=clock,
            fetch=self._fetch_keys(), entropy=entropy, metrics=metrics, may_create=settings.defaults.auto_create,
            certificates=self.ports.certificate_scheme(settings.access), identity_key=settings.node.keys.identity_key,
        )  # fmt: skip
        self.access = NodeAccess(
            log=log, rules=self.ports.rules(auto_create=settings.defaults.auto_create), settings=settings.access,
            declared=settings.keys, environ=os.environ, make_audit=OwnStream(AUDIT, log.append_own).packet, clock=clock,
            entropy=entropy, metrics=metrics, schemes=(*self.schemes.all, self._callback_scheme()),
            open_paths=agentpipe.OPEN_PATHS if agentpipe else frozenset(),
            ticket_paths=agentpipe.LIVE_PATHS if agentpipe else frozenset(),
        )  # fmt: skip
        self.access.on_review = self.review
        self.schemes.on_change = self.access.note_change
        self.request_ids = RequestIds(entropy)
        self.request_log = RequestLog(
            metrics, access_writer(settings.log, clock=clock, environ=os.environ, stream=sys.stderr)
        )
        self.lane = Lane(limits.other_lane_concurrency, limits.other_lane_queue, metrics)
        self.bodies = Bodies(limits, self.lane, metrics)
        self.schemas = SchemaCache(limits, metrics)
        self.filters = FilterBook(limits=limits, metrics=metrics, describe=packet_body)
        self.intake = Intake(
            log=log, limits=limits, schemas=self.schemas, metrics=metrics, defaults=settings.defaults.definition,
            confirmations=confirmations,
        )  # fmt: skip
        self.metering = Metering(
            log=log, rates=settings.rates, quotas=settings.quotas, usage=settings.usage, clock=clock, entropy=entropy,
            metrics=metrics,
        )  # fmt: skip
        self.publisher = Publisher(
            intake=self.intake, log=log, limits=limits, lane=self.lane, bodies=self.bodies, metering=self.metering,
            streams=self.access.streams,
        )  # fmt: skip
        self.registry = Registry(limits=limits, clock=clock, entropy=entropy, metrics=metrics)
        self.webhooks = Webhooks(
            log, self.outbound, settings.webhooks, limits=limits, clock=clock, entropy=entropy, metrics=metrics,
            sealing_key=read_sealing_key(Path(settings.storage.dir), entropy),
        )  # fmt: skip
        self.delivery = Delivery(
            log=log, limits=limits, settings=settings.delivery, clock=clock, metrics=metrics,
            lease_filter=self.filters.lease, streams=self.access.streams, confirmations=confirmations,
        )  # fmt: skip
        self.durable = self._make_durable()
        self.agents = AgentSwitch(log, self.durable, clock)
        self.metering.fold_with(SessionUsage(
            registry=self.registry, usage=self.metering.sink, clock=clock, read_head=lambda: log.head,
            check_open=self.metering.check_open, exceeded=self.metering.exceeded,
        ).fold)  # fmt: skip
        self.live = LiveLane(self.delivery, random.Random(entropy.draw(8)))  # noqa: S311 - spreads restarts, keeps no secret
        self.live_sockets = self._make_sockets()
        self.app = self._build_app()
        self.agentpipe = agentpipe and self._build_agentpipe(agentpipe)

    def _build_agentpipe(self, module: Any) -> Any:
        """AgentPipe's surface; its routes are added to the application."""
        settings = self.settings
        return module.AgentPipe(
            settings=settings.agentpipe, app=self.app, log=self.log, limits=settings.limits, lane=self.lane,
            bodies=self.bodies, publisher=self.publisher, access=self.access, live=self.live, registry=self.registry,
            request_log=self.request_log, rates=settings.rates, defaults=settings.defaults.definition,
            trouble=lambda: next(filter(None, (check() for check in self._ready_checks().values())), ""),
            clock=self.clock, entropy=self.entropy, metrics=self.metrics,
        )  # fmt: skip

    def _make_durable(self) -> DurableSubscriptions:
        """Durable subscriptions, with what carries their packets and takes agents' replies."""
        limits, entropy = self.settings.limits, self.entropy
        owners = Owners(self.access.streams, self.access.keys.get, self.schemes.find_grants)
        return DurableSubscriptions(
            self.delivery, entropy=entropy, lease_filter=self.filters.lease, check_webhook=self.webhooks.judge.check,
            outlets={"webhook": self.webhooks.outlet}, secrets={"webhook": self.webhooks.secrets}, owners=owners,
            replies=Replies(self.log, self.intake.publish_made, owners.may_reply, limits=limits, metrics=self.metrics),
            announce=OwnStream(EVENTS, self.log.append_own).append,
            chance=random.Random(entropy.draw(8)),  # noqa: S311 - spreads retries, keeps no secret
            usage=self.metering.sink,
        )  # fmt: skip

    def _make_sockets(self) -> LiveSockets:
        """WebSockets, which also publish and attach to durable subscriptions."""
        limits = self.settings.limits
        parts = SocketParts(
            lane=self.live, registry=self.registry, budget=InputBudget(limits.sockets_unread_bytes),
            publish=live_publisher(self.intake, self.log, limits, self.metering, self.access.streams),
            node=self.settings.node.name, control=self.metering.control, attach_named=self.durable.live.attach,
        )  # fmt: skip
        return LiveSockets(parts)

    def _build_app(self) -> QuartTrio:
        log, limits, node = self.log, self.settings.limits, self.settings.node.name
        app = create_app(lane=self.lane, request_log=self.request_log)
        add_publish_routes(app, publisher=self.publisher, spool_directory=Path(self.settings.storage.dir))
        add_stream_routes(
            app, log=log, limits=limits, lane=self.lane, bodies=self.bodies, schemas=self.schemas,
            streams=self.access.streams, changes=self.access.stream_changes,
            count_subscribers=self.registry.count_subscribers, on_stopped=self.registry.look_again,
            confirmations=self.delivery.confirmations,
        )  # fmt: skip
        add_read_routes(
            app, delivery=self.delivery, registry=self.registry, lane=self.lane, streams=self.access.streams
        )
        add_live_routes(
            app, delivery=self.delivery, registry=self.registry, node=node, trail=self.access.trail, lane=self.lane
        )
        add_log_routes(app, log=log, lane=self.lane, streams=self.access.streams, trail=self.access.trail)
        add_log_key_routes(app, log=log, lane=self.lane, trail=self.access.trail)
        json_bodies = JsonBodies(self.bodies, limits)
        add_key_routes(
            app, keys=self.access.keys, changes=self.access.changes, trail=self.access.trail, clock=self.clock,
            lane=self.lane, bodies=json_bodies,
        )  # fmt: skip
        add_subscription_routes(
            app, durable=self.durable, bodies=json_bodies, lane=self.lane,
            audit=self.access.trail.note,
        )  # fmt: skip
        add_chain_routes(app, chain=self.chain, lane=self.lane, bodies=json_bodies, trail=self.access.trail)
        add_wallet_routes(app, chain=self.chain, lane=self.lane, bodies=json_bodies, trail=self.access.trail)
        add_agent_routes(app, switch=self.agents, lane=self.lane, audit=self.access.trail.note)
        add_ticket_routes(app, tickets=self.access.tickets, clock=self.clock, bodies=json_bodies)
        add_mutual_routes(
            app, peer=self.schemes.mutual, gate=self.access.gate, bodies=self.bodies,
            bytes_max=int(self.settings.access.mutual.handshake_bytes),
        )  # fmt: skip
        add_chain_callback_routes(
            app, bodies=self.bodies, settings=self.settings.chain.asking, metrics=self.metrics,
            on_hint=lambda txid: self.on_chain_hint(txid),
        )  # fmt: skip
        add_metering_routes(
            app, metering=self.metering, clock=self.clock, lane=self.lane, bodies=self.bodies, limits=limits,
            sessions=StreamingSessions(log=log, metering=self.metering, clock=self.clock, entropy=self.entropy),
            count_sessions=self.registry.count_of, audit=self.access.trail.write,
        )  # fmt: skip
        add_node_routes(
            app, log=log, node_name=node, metrics=self.metrics, ready_checks=self._ready_checks(),
            ready_notes={"access": self.ports.exposure, **({"chain": self.chain.describe} if self.chain else {})},
            network=self.settings.chain.network,
            identity_key=self.schemes.mutual.key if self.schemes.mutual else "",
            is_metrics_served=self.settings.metrics.enabled,
        )  # fmt: skip
        add_docs_routes(app, agentpipe_operations(self.settings.agentpipe))
        return app

    def _callback_scheme(self) -> CallbackScheme:
        """How sources of the chain are known that call back."""
        key = read_sealing_key(Path(self.settings.storage.dir), self.entropy)
        return CallbackScheme(callback_tokens(self.settings.chain, key))

    def _ready_checks(self) -> ReadyChecks:
        return {
            "storage": lambda: "the disk is nearly full; publishing is refused" if self.log.stats().is_full else "",
            "checkpoint_key": lambda: self.log.keys.trouble,
            "stopping": lambda: "the node is shutting down" if self.stop.is_set() else "",
        }

    def door(self) -> Door:
        """The door, with what the settings say about who may come in."""
        listen = self.settings.listen
        return Door(
            app=self.app, live=self._live_door(), gate=self.access.gate, bodies=self.bodies.without_lane(),
            limits=self.settings.limits, signed_body_max=int(self.settings.access.signed_body_max),
            origin_headers=OriginHeaders(listen, methods_of(self.app)), ask_live=self.metering.connect,
            metrics=self.metrics, request_log=self.request_log, next_request_id=self.request_ids.draw, stop=self.stop,
            publish_lane=self._publish_lane() if listen.fast_lanes else None,
            word=self.agentpipe.word if self.agentpipe else None,
        )  # fmt: skip

    def _live_door(self) -> ServeLive:
        live = LiveDoor(
            lane=self.live, registry=self.registry, sockets=self.live_sockets, request_log=self.request_log,
            node=self.settings.node.name, is_fast=self.settings.listen.fast_lanes,
        )  # fmt: skip
        return self.agentpipe.live_door(live) if self.agentpipe else live

    def _publish_lane(self) -> PublishLane:
        return PublishLane(
            publisher=self.publisher, spool_directory=Path(self.settings.storage.dir), request_log=self.request_log
        )

    def _fetch_keys(self) -> Fetch:
        """How an issuer's keys are fetched."""
        access = self.settings.access
        return partial(
            fetch_document, self.outbound, timeout_s=float(access.jwks_timeout), bytes_max=int(access.jwks_bytes)
        )

    def note_credentials(self) -> None:
        """By what clients can show who they are, for what is said about the ports."""
        self.ports.credentials = Credentials(
            keys=self.access.keys.count_living(), jwt_issuers=self.schemes.issuers,
            has_identities=self.schemes.has_identities, certificates=len(self.schemes.certificates),
        )  # fmt: skip

    async def review(self) -> int | None:
        """Who is in may not be allowed to stay: rights, keys or streams changed. As `NodeAccess.on_review`."""
        self.note_credentials()
        return await review_sessions(self.registry, self.access.streams, self.clock.now_us())

    async def end_sessions(self) -> None:
        """Tells every live session goodbye, and where to come back. Returns when they are gone. Checkpoint."""
        await self.registry.stop(Ending(GOING_AWAY, "shutdown", float(self.settings.delivery.bye_retry)))


async def serve(settings: Settings, *, on_ready: Callable[[list[str]], None]) -> None:
    """Runs the node until SIGTERM or SIGINT. `on_ready` gets the listeners' URLs once packets can be taken.

    Raises ConfigInvalid, DirectoryInUse, NewerSchema, LogInconsistent at start; CommitFailed when the disk
    fails later, so that the process ends and its service manager starts it anew.
    """
    tune_interpreter()
    clock, entropy, metrics = SystemClock(), Entropy(), Metrics()
    configure_logs(settings.log, clock=clock, environ=os.environ, stream=sys.stderr)
    register_process_metrics(metrics)
    directory = Path(settings.storage.dir)
    notifier, outbound = Notifier(os.environ), Outbound(settings.limits, settings.webhooks.outbound, metrics)
    async with (
        open_log(
            directory, settings=settings.storage, limits=settings.limits, defaults=settings.defaults.definition,
            clock=clock, entropy=entropy, metrics=metrics, features=(*FEATURES, *agentpipe_features(settings.agentpipe)),
            keys=NodeCheckpointKeys(settings.node.keys, directory, os.environ, entropy),
        ) as log,
        _stopping_on_signals() as stop_asked,
        open_engine(
            settings.chain, log, directory, outbound=outbound, secret=read_sealing_key(directory, entropy),
            environ=os.environ, clock=clock, entropy=entropy, metrics=metrics,
            chance=random.Random(entropy.draw(8)),  # noqa: S311 - spreads retries, keeps no secret
            wallet_key=settings.node.keys.wallet_key,
        ) as chain,
    ):  # fmt: skip
        parts = Parts(log, settings, metrics, clock, entropy, outbound=outbound, chain=chain)
        await declare_streams(log, settings, parts.schemas)
        await parts.schemes.start()
        await parts.access.load()
        if parts.agentpipe:
            parts.agentpipe.declare_key()
        parts.note_credentials()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(parts.access.run)
            nursery.start_soon(parts.schemes.run)
            await parts.metering.start()
            parts.metering.require_policies(named_policies(settings.access, settings.keys))
            nursery.start_soon(parts.metering.run)
            nursery.start_soon(parts.outbound.keep_house)
            if chain is not None:
                await nursery.start(chain.run)
            await parts.agents.load()
            await nursery.start(parts.durable.run)
            if parts.agentpipe:
                await nursery.start(parts.agentpipe.run)
            await declare_subscriptions(parts.durable.book, settings.subscriptions)
            nursery.start_soon(_feed_watchdog, notifier)
            nursery.start_soon(_reload_on_hangup, parts)
            nursery.start_soon(_stop_when_asked, stop_asked, parts.stop, notifier)
            await serve_edge(parts, directory, partial(_announce, on_ready, notifier, log))
            nursery.cancel_scope.cancel()
        await parts.metering.stop()
    _log.info("stopped")


def tune_interpreter() -> None:
    """What a process that serves a busy event loop beside threads wants of Python. Once, after everything is imported."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD, 10, 10)


async def serve_edge(parts: Parts, directory: Path, announce: Callable[[list[str]], None]) -> None:
    """Listens, serves until `parts.stop`, drains. Raises ConfigInvalid for listeners that can't be opened."""
    limits = parts.settings.limits
    connections_max = raise_descriptor_limit(limits)
    await parts.app.startup()
    listeners = parts.ports.open(directory)
    try:
        async with trio.open_nursery() as live:
            live.start_soon(parts.live.run)
            await _serve_listeners(parts, listeners, connections_max, announce)
            live.cancel_scope.cancel()
    finally:
        close_listeners(listeners)


async def _serve_listeners(
    parts: Parts, listeners: Sequence[Bound], connections_max: int, announce: Callable[[list[str]], None]
) -> None:
    """Returns when everything has been drained. Checkpoint."""
    limits = parts.settings.limits
    async with trio.open_nursery() as nursery:
        urls: list[str] = await nursery.start(
            partial(
                serve_connections, listeners, parts.door(),
                admission=Admission(limits, parts.metrics, connections_max), limits=limits, metrics=parts.metrics,
                next_request_id=parts.request_ids.draw, stop=parts.stop, end_sessions=parts.end_sessions,
                clock=parts.clock,
            )
        )  # fmt: skip
        announce(urls)


async def declare_streams(log: Log, settings: Settings, schemas: SchemaCache) -> None:
    """Brings the streams of the configuration into the log. One that is declared no more keeps its packets and
    definition, and may be changed through the API again. Raises InvalidDefinition."""
    declared = {stream.name for stream in settings.streams}
    for stream in settings.streams:
        await check_definition(stream.definition, schemas, settings.limits)
        await log.define_stream(stream.name, stream.definition, owner="config", principal="config")
    for found in log.list_streams():
        if found.owner == "config" and found.name not in declared and not is_node_name(found.name):
            await log.release_stream(found.name)


def _announce(on_ready: Callable[[list[str]], None], notifier: Notifier, log: Log, urls: list[str]) -> None:
    _log.info("taking packets", listeners=urls, log=log.log_id, head=log.head)
    notifier.ready(f"taking packets at {', '.join(urls)}")
    on_ready(urls)


@asynccontextmanager
async def _stopping_on_signals() -> AsyncIterator[trio.Event]:
    """An event that a TERM or INT sets; from here on they don't end the process in any other way."""
    asked = trio.Event()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                async for number in signals:
                    _log.info("stopping", signal=signal.Signals(number).name)
                    asked.set()

            nursery.start_soon(receive)
            yield asked
            nursery.cancel_scope.cancel()


async def _stop_when_asked(asked: trio.Event, stop: trio.Event, notifier: Notifier) -> None:
    await asked.wait()
    notifier.stopping("telling clients, then closing the log")
    stop.set()


async def _reload_on_hangup(parts: Parts) -> None:
    """Reads certificates anew on SIGHUP; what is wrong with them is logged, and changes nothing."""
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        async for _ in signals:
            try:
                listeners = parts.ports.reload()
            except ConfigInvalid as error:
                _log.error("not reloaded", subject=error.subject, reason=error.detail, hint=error.hint)
                parts.access.trail.note(AuditRecord("certificates.reload", "failed", detail={"reason": error.detail}))
            else:
                parts.access.trail.note(AuditRecord("certificates.reload", subject=", ".join(listeners)))


async def _feed_watchdog(notifier: Notifier) -> None:
    """Says that the event loop turns, when the service manager wants to hear it."""
    interval_s = watchdog_interval_s(os.environ, os.getpid())
    if interval_s is None:
        return
    while True:
        notifier.alive()
        await trio.sleep(interval_s)

"""The parts of a node: every one is made here and handed to the parts that need it. Nothing else knows them all."""

import os
import random
import sys
from functools import partial
from pathlib import Path
from typing import Any

import trio

from overlayd.access.callbacks import CallbackScheme
from overlayd.access.jwt.published import Fetch
from overlayd.access.metering import Metering
from overlayd.access.node_access import NodeAccess
from overlayd.access.node_schemes import NodeSchemes
from overlayd.chain.engine import ChainEngine
from overlayd.chain.sources.remote import callback_tokens
from overlayd.config import Settings
from overlayd.config.dialects import load_agentpipe
from overlayd.daemon.erasing import make_erasures
from overlayd.daemon.reload_steps import reload_steps
from overlayd.daemon.reloading import LoadSettings, Reloader
from overlayd.daemon.surface import build_app
from overlayd.delivery.agents.replies import Replies
from overlayd.delivery.agents.switch import AgentSwitch
from overlayd.delivery.delivery import Delivery
from overlayd.delivery.frames import packet_body
from overlayd.delivery.lane import LiveLane
from overlayd.delivery.review import review_sessions
from overlayd.delivery.session import Ending, Registry
from overlayd.delivery.session_usage import SessionUsage
from overlayd.delivery.socket import SocketParts
from overlayd.delivery.subscriptions.owners import Owners
from overlayd.delivery.subscriptions.parts import DurableSubscriptions
from overlayd.delivery.webhooks import Webhooks
from overlayd.delivery.websocket import InputBudget
from overlayd.model.access_lines import access_writer
from overlayd.model.clock import Clock, Entropy
from overlayd.model.confirmation import ConfirmationReads
from overlayd.model.memory_budget import PUBLISHING, MemoryBudget
from overlayd.model.metrics import Metrics
from overlayd.net.access_log import RequestLog
from overlayd.net.chain_callback_routes import OnHint
from overlayd.net.content import Bodies
from overlayd.net.cors import OriginHeaders, methods_of
from overlayd.net.door import Door, ServeLive
from overlayd.net.exposure import Credentials
from overlayd.net.lane import Lane
from overlayd.net.live_lane import LiveDoor
from overlayd.net.live_publish import live_publisher
from overlayd.net.live_socket import LiveSockets
from overlayd.net.node_routes import ReadyChecks
from overlayd.net.ports import Ports
from overlayd.net.publish import Publisher
from overlayd.net.publish_lane import PublishLane
from overlayd.net.server import RequestIds
from overlayd.outbound import Outbound
from overlayd.outbound.documents import fetch_document
from overlayd.pipeline.filters import FilterBook
from overlayd.pipeline.intake import Intake
from overlayd.pipeline.own_streams import AUDIT, EVENTS, OwnStream
from overlayd.pipeline.schema import SchemaCache
from overlayd.privacy.people import People
from overlayd.storage import Log
from overlayd.storage.backup.runner import BackupRunner
from overlayd.storage.sealing import read_sealing_key
from overlayd.telemetry.stream_statistics import StreamStatistics
from overlayd.telemetry.telemetry import Telemetry

GOING_AWAY = 1001


class Parts:
    """What is made of a log and the settings before anything listens. Built once, read by `serve` and by tests."""

    def __init__(
        self, log: Log, settings: Settings, metrics: Metrics, clock: Clock, entropy: Entropy, *,
        outbound: Outbound | None = None, chain: ChainEngine | None = None, load: LoadSettings | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:  # fmt: skip
        """`load`: reads the configuration anew. `telemetry`: None where nothing is told. Raises ConfigInvalid."""
        self.spans = None if telemetry is None else telemetry.spans
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
        self.sealing_key = read_sealing_key(Path(settings.storage.dir), entropy)
        self.callbacks = CallbackScheme(callback_tokens(settings.chain, self.sealing_key))
        self.schemes = NodeSchemes(
            settings=settings.access, directory=Path(settings.storage.dir), environ=os.environ, store=log, clock=clock,
            fetch=self._fetch_keys(), entropy=entropy, metrics=metrics, may_create=settings.defaults.auto_create,
            certificates=self.ports.certificate_scheme(settings.access), identity_key=settings.node.keys.identity_key,
        )  # fmt: skip
        self.access = NodeAccess(
            log=log, rules=self.ports.rules(auto_create=settings.defaults.auto_create), settings=settings.access,
            declared=settings.keys, environ=os.environ, make_audit=OwnStream(AUDIT, log.append_own).packet, clock=clock,
            entropy=entropy, metrics=metrics, schemes=(*self.schemes.all, self.callbacks),
            open_paths=agentpipe.OPEN_PATHS if agentpipe else frozenset(),
            ticket_paths=agentpipe.LIVE_PATHS if agentpipe else frozenset(),
        )  # fmt: skip
        self.access.on_review = self.review
        self.access.stream_changes.declared_at = self.declared_at
        self.schemes.on_change = self.access.note_change
        self.request_ids = RequestIds(entropy)
        self.request_log = RequestLog(
            metrics, access_writer(settings.log, clock=clock, environ=os.environ, stream=sys.stderr)
        )
        self.lane = Lane(limits.other_lane_concurrency, limits.other_lane_queue, metrics)
        self.bodies = Bodies(limits, self.lane, metrics)
        self.schemas = SchemaCache(limits, metrics)
        self.filters = FilterBook(limits=limits, metrics=metrics, describe=packet_body)
        self._make_intake(confirmations)
        self.metering = Metering(
            log=log, rates=settings.rates, quotas=settings.quotas, usage=settings.usage, clock=clock, entropy=entropy,
            metrics=metrics,
        )  # fmt: skip
        self.publisher = Publisher(
            intake=self.intake, log=log, limits=limits, lane=self.lane, bodies=self.bodies, metering=self.metering,
            streams=self.access.streams,
        )  # fmt: skip
        self._make_delivery(confirmations)
        self.live = LiveLane(self.delivery, random.Random(entropy.draw(8)))  # noqa: S311 - spreads restarts, keeps no secret
        self.live_sockets = self._make_sockets()
        self.reloader = Reloader(
            settings, load, steps=reload_steps(self), reread=self.ports.reload, audit=self.access.trail.write,
            metrics=metrics,
        )  # fmt: skip
        self.announce = OwnStream(EVENTS, log.append_own).append
        self.backups = BackupRunner(
            log, Path(settings.storage.dir), settings.backup, clock=clock, metrics=metrics, announce=self.announce
        )
        self.erasures = make_erasures(self)
        self.app = build_app(self)
        self.agentpipe = agentpipe and self._build_agentpipe(agentpipe)

    def _make_intake(self, confirmations: ConfirmationReads | None) -> None:
        """Everything by which packets come in, up to the log."""
        settings, limits, metrics = self.settings, self.settings.limits, self.metrics
        self.people = People(self.log, self.sealing_key, limits=limits, clock=self.clock, metrics=metrics)
        self.statistics = StreamStatistics(self.log, metrics)
        self.intake = Intake(
            log=self.log, limits=limits, schemas=self.schemas, metrics=metrics, defaults=settings.defaults.definition,
            confirmations=confirmations, privacy=self.people, tally=self.statistics.tally,
            spans=self.spans,
        )  # fmt: skip

    def _make_delivery(self, confirmations: ConfirmationReads | None) -> None:
        """Everything by which packets leave."""
        settings, limits, clock, metrics = self.settings, self.settings.limits, self.clock, self.metrics
        log, entropy = self.log, self.entropy
        self.memory = MemoryBudget(limits, metrics)
        self.registry = Registry(limits=limits, clock=clock, entropy=entropy, metrics=metrics, memory=self.memory)
        self.webhooks = Webhooks(
            log, self.outbound, settings.webhooks, limits=limits, clock=clock, entropy=entropy, metrics=metrics,
            sealing_key=self.sealing_key, spans=self.spans,
        )  # fmt: skip
        self.delivery = Delivery(
            log=log, limits=limits, settings=settings.delivery, clock=clock, metrics=metrics,
            lease_filter=self.filters.lease, streams=self.access.streams, confirmations=confirmations, memory=self.memory,
            tally=self.statistics.tally, spans=self.spans,
        )  # fmt: skip
        self.durable = self._make_durable()
        self.agents = AgentSwitch(log, self.durable, clock)
        self.metering.fold_with(SessionUsage(
            registry=self.registry, usage=self.metering.sink, clock=clock, read_head=lambda: log.head,
            check_open=self.metering.check_open, exceeded=self.metering.exceeded,
            pace_of=self.metering.bandwidth_of,
        ).fold)  # fmt: skip

    def _build_agentpipe(self, module: Any) -> Any:
        """AgentPipe's surface; its routes are added to the application."""
        settings = self.settings
        return module.AgentPipe(
            settings=settings.agentpipe, app=self.app, log=self.log, limits=settings.limits, lane=self.lane,
            bodies=self.bodies, publisher=self.publisher, access=self.access, live=self.live, registry=self.registry,
            request_log=self.request_log, rates=settings.rates, defaults=settings.defaults.definition,
            trouble=lambda: next(filter(None, (check() for check in self.ready_checks().values())), ""),
            clock=self.clock, entropy=self.entropy, metrics=self.metrics,
        )  # fmt: skip

    def _make_durable(self) -> DurableSubscriptions:
        """Durable subscriptions, with what carries their packets and takes agents' replies."""
        limits, entropy = self.settings.limits, self.entropy
        owners = Owners(self.access.streams, self.access.keys.get, self.schemes.find_grants)
        return DurableSubscriptions(
            self.delivery, entropy=entropy, lease_filter=self.filters.lease, check_webhook=self.webhooks.judge.check,
            outlets={"webhook": self.webhooks.outlet}, secrets={"webhook": self.webhooks.secrets}, owners=owners,
            headers=self.webhooks.headers,
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

    def ready_checks(self) -> ReadyChecks:
        """What keeps the node from taking packets, by name; an empty text is nothing."""
        return {
            "storage": lambda: "the disk is nearly full; publishing is refused" if self.log.stats().is_full else "",
            "intake": lambda: (
                "the node is short of memory; publishing is refused" if self.memory.level >= PUBLISHING else ""
            ),
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

    def declared_at(self, name: str) -> str:
        """File and line of a stream that the configuration declares, "" for others."""
        return next((stream.declared_in for stream in self.settings.streams if stream.name == name), "")

    def note_credentials(self) -> None:
        """By what clients can show who they are, for what is said about the ports."""
        self.ports.credentials = Credentials(
            keys=self.access.keys.count_living(), jwt_issuers=self.schemes.issuers,
            has_identities=self.schemes.has_identities, certificates=len(self.schemes.certificates),
        )  # fmt: skip

    async def watch_memory(self) -> None:
        """Holds off what there is no memory for. Until cancelled."""
        await self.memory.run(lambda level: self.log.hold_back(level >= PUBLISHING))

    async def review(self) -> int | None:
        """Who is in may not be allowed to stay: rights, keys or streams changed. As `NodeAccess.on_review`."""
        self.note_credentials()
        return await review_sessions(self.registry, self.access.streams, self.clock.now_us())

    async def end_sessions(self) -> None:
        """Tells every live session goodbye, and where to come back. Returns when they are gone. Checkpoint."""
        await self.registry.stop(Ending(GOING_AWAY, "shutdown", float(self.settings.delivery.bye_retry)))

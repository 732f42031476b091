"""The node's life: opens the log, makes the parts, serves until it is told to stop, drains."""

import os
import random
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import structlog
import trio

from overlayd.access.identity.tables import IDENTITY_FEATURE
from overlayd.access.key_records import ACCESS_FEATURE
from overlayd.access.metering import METERING_FEATURES
from overlayd.access.node_schemes import named_policies
from overlayd.chain.engine import CHAIN_FEATURES, open_engine
from overlayd.config import Settings
from overlayd.config.dialects import agentpipe_features
from overlayd.daemon.declaring import declare_streams
from overlayd.daemon.interpreter import tune_interpreter
from overlayd.daemon.parts import Parts
from overlayd.daemon.pulse import Pulse, asking_for_time
from overlayd.daemon.reloading import LoadSettings
from overlayd.daemon.retaining import prepare_retention
from overlayd.daemon.signals import reload_on_hangup, stop_when_asked, stopping_on_signals
from overlayd.delivery.agents.switch import FEATURE as AGENTS_FEATURE
from overlayd.delivery.subscriptions.declaring import declare_subscriptions
from overlayd.delivery.subscriptions.tables import FEATURE as SUBSCRIPTIONS_FEATURE
from overlayd.delivery.webhooks import WEBHOOKS_FEATURE
from overlayd.model.clock import Entropy, SystemClock
from overlayd.model.logs import configure_logs
from overlayd.model.metrics import Metrics
from overlayd.model.process_metrics import register_process_metrics
from overlayd.model.systemd import Notifier
from overlayd.net.listeners import Bound, close_listeners, raise_descriptor_limit
from overlayd.net.server import Admission, serve_connections
from overlayd.outbound import Outbound
from overlayd.privacy.keeping import keep_privacy
from overlayd.privacy.tables import PRIVACY_FEATURE
from overlayd.signers import NodeCheckpointKeys
from overlayd.storage import Log, open_log
from overlayd.storage.sealing import read_sealing_key
from overlayd.telemetry.tables import STATISTICS_FEATURE
from overlayd.telemetry.telemetry import open_telemetry

FEATURES = (
    *METERING_FEATURES,
    *CHAIN_FEATURES,
    ACCESS_FEATURE,
    IDENTITY_FEATURE,
    WEBHOOKS_FEATURE,
    SUBSCRIPTIONS_FEATURE,
    AGENTS_FEATURE,
    PRIVACY_FEATURE,
    STATISTICS_FEATURE,
)
_log = structlog.get_logger("daemon")


async def serve(settings: Settings, *, on_ready: Callable[[list[str]], None], load: LoadSettings | None = None) -> None:
    """Runs the node until SIGTERM or SIGINT. `on_ready` gets the listeners' URLs once packets can be taken.
    `load` reads the configuration anew, for a reload; without it there is only what is read anew on the way.

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
        asking_for_time(notifier),
        open_telemetry(
            settings.traces, settings.sentry, outbound, node=settings.node.name, clock=clock, entropy=entropy,
            metrics=metrics,
        ) as telemetry,
        open_log(
            directory, settings=settings.storage, limits=settings.limits, defaults=settings.defaults.definition,
            features=(*FEATURES, *agentpipe_features(settings.agentpipe)), retention=settings.retention, clock=clock,
            keys=NodeCheckpointKeys(settings.node.keys, directory, os.environ, entropy), entropy=entropy, metrics=metrics,
        ) as log,
        stopping_on_signals() as stop_asked,
        open_engine(
            settings.chain, log, directory, outbound=outbound, secret=read_sealing_key(directory, entropy),
            environ=os.environ, clock=clock, entropy=entropy, metrics=metrics,
            chance=random.Random(entropy.draw(8)),  # noqa: S311 - spreads retries, keeps no secret
            wallet_key=settings.node.keys.wallet_key,
        ) as chain,
    ):  # fmt: skip
        parts = Parts(
            log, settings, metrics, clock, entropy, outbound=outbound, chain=chain, load=load, telemetry=telemetry
        )
        await _load(parts)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(telemetry.run)
            nursery.start_soon(parts.watch_memory)
            nursery.start_soon(parts.access.run)
            nursery.start_soon(parts.schemes.run)
            await parts.metering.start()
            parts.metering.require_policies(named_policies(settings.access, settings.keys))
            nursery.start_soon(parts.metering.run)
            nursery.start_soon(parts.outbound.keep_house)
            nursery.start_soon(parts.backups.run)
            nursery.start_soon(log.damage.run, parts.announce)
            nursery.start_soon(parts.statistics.run)
            if chain is not None:
                await nursery.start(chain.run)
            await parts.agents.load()
            await nursery.start(parts.durable.run)
            prepare_retention(log, parts.durable, chain.reads if chain else None)
            nursery.start_soon(log.retention.run)
            if parts.agentpipe:
                await nursery.start(parts.agentpipe.run)
            chance = random.Random(entropy.draw(8))  # noqa: S311 - spreads restarts, keeps no secret
            await nursery.start(keep_privacy, parts.people, parts.erasures, parts.log, metrics, chance)
            await declare_subscriptions(parts.durable.book, settings.subscriptions)
            pulse = Pulse(
                notifier, log, count_sent=lambda: parts.delivery.meters.sent, count_sessions=lambda: len(parts.registry)
            )
            nursery.start_soon(pulse.run, os.environ, os.getpid())
            nursery.start_soon(reload_on_hangup, parts.reloader, notifier)
            nursery.start_soon(stop_when_asked, stop_asked, parts.stop, notifier)
            await serve_edge(parts, directory, partial(_announce, on_ready, notifier, log))
            nursery.cancel_scope.cancel()
        await parts.metering.stop()
        await parts.statistics.flush()
    _log.info("stopped")


async def _load(parts: Parts) -> None:
    """Reads everything that a first request may ask for. Raises InvalidDefinition, ConfigInvalid."""
    await declare_streams(parts.log, parts.settings, parts.schemas)
    await parts.schemes.start()
    await parts.access.load()
    if parts.agentpipe:
        parts.agentpipe.declare_key()
    parts.note_credentials()
    await parts.people.load()
    await parts.statistics.load()


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


def _announce(on_ready: Callable[[list[str]], None], notifier: Notifier, log: Log, urls: list[str]) -> None:
    log.damage.settle()
    _log.info("taking packets", listeners=urls, log=log.log_id, head=log.head)
    notifier.ready(f"taking packets at {', '.join(urls)}")
    on_ready(urls)

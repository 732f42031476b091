"""The routes of the node: each feature adds its own, and gets exactly the parts it needs."""

from pathlib import Path
from typing import TYPE_CHECKING

from quart_trio import QuartTrio

from overlayd.access.streaming_sessions import StreamingSessions
from overlayd.config.dialects import agentpipe_operations
from overlayd.net.agent_routes import add_agent_routes
from overlayd.net.app import create_app
from overlayd.net.backup_routes import add_backup_routes
from overlayd.net.chain_callback_routes import add_chain_callback_routes
from overlayd.net.chain_routes import add_chain_routes
from overlayd.net.docs_routes import add_docs_routes
from overlayd.net.json_body import JsonBodies
from overlayd.net.key_routes import add_key_routes
from overlayd.net.live_routes import add_live_routes
from overlayd.net.log_key_routes import add_log_key_routes
from overlayd.net.log_routes import add_log_routes
from overlayd.net.metering_routes import add_metering_routes
from overlayd.net.mutual_routes import add_mutual_routes
from overlayd.net.node_routes import add_node_routes
from overlayd.net.privacy_routes import add_privacy_routes
from overlayd.net.publish_routes import add_publish_routes
from overlayd.net.read_routes import add_read_routes
from overlayd.net.reload_routes import add_reload_routes
from overlayd.net.retention_routes import add_retention_routes
from overlayd.net.statistics_routes import add_statistics_routes
from overlayd.net.stream_routes import add_stream_routes
from overlayd.net.subscription_routes import add_subscription_routes
from overlayd.net.ticket_routes import add_ticket_routes
from overlayd.net.wallet_routes import add_wallet_routes
from overlayd.privacy.planning import Planner

if TYPE_CHECKING:
    from overlayd.daemon.parts import Parts


def build_app(parts: "Parts") -> QuartTrio:
    """Every route, on what it needs."""
    log, limits, node = parts.log, parts.settings.limits, parts.settings.node.name
    app = create_app(lane=parts.lane, request_log=parts.request_log)
    json_bodies = JsonBodies(parts.bodies, limits)
    _add_stream_routes(app, parts, json_bodies)
    add_live_routes(
        app, delivery=parts.delivery, registry=parts.registry, node=node, trail=parts.access.trail, lane=parts.lane
    )
    add_log_routes(
        app, log=log, lane=parts.lane, streams=parts.access.streams, trail=parts.access.trail,
        confirmations=parts.delivery.confirmations,
    )  # fmt: skip
    add_log_key_routes(app, log=log, lane=parts.lane, trail=parts.access.trail)
    add_backup_routes(app, backups=parts.backups, lane=parts.lane, trail=parts.access.trail)
    add_key_routes(
        app, keys=parts.access.keys, changes=parts.access.changes, trail=parts.access.trail, clock=parts.clock,
        lane=parts.lane, bodies=json_bodies,
    )  # fmt: skip
    add_subscription_routes(
        app, durable=parts.durable, bodies=json_bodies, lane=parts.lane,
        audit=parts.access.trail.packet,
    )  # fmt: skip
    add_chain_routes(app, chain=parts.chain, lane=parts.lane, bodies=json_bodies, trail=parts.access.trail)
    add_wallet_routes(app, chain=parts.chain, lane=parts.lane, bodies=json_bodies, trail=parts.access.trail)
    add_agent_routes(app, switch=parts.agents, lane=parts.lane, audit=parts.access.trail.packet)
    add_privacy_routes(
        app, log=log, people=parts.people, planner=Planner(log, parts.people.subjects, limits, parts.metrics),
        erasures=parts.erasures, streams=parts.access.streams, trail=parts.access.trail,
        reads=parts.delivery.confirmations, clock=parts.clock, limits=limits, lane=parts.lane, bodies=json_bodies,
    )  # fmt: skip
    add_ticket_routes(app, tickets=parts.access.tickets, clock=parts.clock, bodies=json_bodies)
    add_mutual_routes(
        app, peer=parts.schemes.mutual, gate=parts.access.gate, bodies=parts.bodies,
        bytes_max=int(parts.settings.access.mutual.handshake_bytes),
    )  # fmt: skip
    add_chain_callback_routes(
        app, bodies=parts.bodies, settings=parts.settings.chain.asking, metrics=parts.metrics,
        on_hint=lambda txid: parts.on_chain_hint(txid),
    )  # fmt: skip
    add_metering_routes(
        app, metering=parts.metering, clock=parts.clock, lane=parts.lane, bodies=parts.bodies, limits=limits,
        sessions=StreamingSessions(log=log, metering=parts.metering, clock=parts.clock, entropy=parts.entropy),
        count_sessions=parts.registry.count_of, audit=parts.access.trail.packet,
    )  # fmt: skip
    add_statistics_routes(
        app, log=log, node=node, statistics=parts.statistics, streams=parts.access.streams, clock=parts.clock,
        count_subscribers=parts.registry.count_subscribers,
        show_sessions=lambda: parts.registry.show_figures(log.head),
        show_subscriptions=parts.durable.engine.show_figures,
    )  # fmt: skip
    add_node_routes(
        app, log=log, node_name=node, metrics=parts.metrics, ready_checks=parts.ready_checks(),
        ready_notes={"access": parts.ports.exposure, "damage": parts.log.damage.describe, "config": parts.reloader.describe, "memory": parts.memory.describe, "disk": log.retention.describe_disk, **({"chain": parts.chain.describe} if parts.chain else {})},
        ready_warnings={"chain": parts.chain.describe_staleness} if parts.chain else {},
        network=parts.settings.chain.network,
        identity_key=parts.schemes.mutual.key if parts.schemes.mutual else "",
        is_metrics_served=parts.settings.metrics.enabled,
    )  # fmt: skip
    add_reload_routes(app, reload=parts.reloader.reload, lane=parts.lane)
    add_docs_routes(app, agentpipe_operations(parts.settings.agentpipe))
    return app


def _add_stream_routes(app: QuartTrio, parts: "Parts", json_bodies: JsonBodies) -> None:
    """Streams: publishing, definitions, reading, what nobody may take away."""
    log, limits = parts.log, parts.settings.limits
    add_publish_routes(app, publisher=parts.publisher, spool_directory=Path(parts.settings.storage.dir))
    add_stream_routes(
        app, log=log, limits=limits, lane=parts.lane, bodies=parts.bodies, schemas=parts.schemas,
        streams=parts.access.streams, changes=parts.access.stream_changes,
        count_subscribers=parts.registry.count_subscribers, on_stopped=parts.registry.look_again,
        confirmations=parts.delivery.confirmations,
    )  # fmt: skip
    add_read_routes(
        app, delivery=parts.delivery, registry=parts.registry, lane=parts.lane, streams=parts.access.streams
    )
    add_retention_routes(
        app, log=log, lane=parts.lane, bodies=json_bodies, streams=parts.access.streams, trail=parts.access.trail
    )

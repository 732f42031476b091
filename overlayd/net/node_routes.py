"""`/healthz`, `/readyz`, `/metrics` and `/v1/node`."""

import platform
import sqlite3
from collections.abc import Callable, Mapping
from importlib.metadata import version

from msgspec import UNSET
from prometheus_client.exposition import choose_encoder
from quart import Response, request
from quart_trio import QuartTrio

from overlayd import __version__
from overlayd.access.principal import check_standing, require_some
from overlayd.model.clock import format_time_us
from overlayd.model.cursor import Cursor, format_epoch
from overlayd.model.errors import NotFound
from overlayd.model.metrics import Metrics
from overlayd.model.wire import CheckBody, EpochBody, NetworkName, NodeBody, ReadyBody, encode_wire
from overlayd.net.app import answer, principal_of
from overlayd.storage import Log

ReadyChecks = Mapping[str, Callable[[], str]]
"""By name: gives "" when all is well, else what is wrong."""
_PARTS = ("trio", "hypercorn", "quart", "quart-trio", "wsproto", "blake3", "cryptography", "msgspec")


def add_node_routes(
    app: QuartTrio,
    *,
    log: Log,
    node_name: str,
    metrics: Metrics,
    ready_checks: ReadyChecks,
    ready_notes: ReadyChecks | None = None,
    ready_warnings: ReadyChecks | None = None,
    is_metrics_served: bool = True,
    network: NetworkName = "none",
    identity_key: str = "",
) -> None:
    """Adds the routes about the node itself. `ready_notes`: what is told beside the checks, in words. `ready_warnings`:
    checks that may fail while packets are taken, so that they don't make the node unready.
    `is_metrics_served`: `[metrics] enabled`. `network`: of `[chain]`. `identity_key`: the node's, where it signs
    answers."""
    versions = {"overlayd": __version__, "python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    versions.update((part, version(part)) for part in _PARTS)

    @app.get("/healthz")
    async def healthz() -> Response:
        """Answers while the process is alive, whatever else is wrong."""
        return answer(b'{"alive":true}')

    @app.get("/readyz")
    async def readyz() -> Response:
        """200 while the node can take packets, else 503; the checks say why, to those who are let in."""
        principal = principal_of(request)
        is_known = bool(principal.rights or principal.grants.rights)
        troubles = {name: check() for name, check in ready_checks.items()}
        checks = {
            name: CheckBody(ok=not trouble, detail=(is_known and trouble) or UNSET)
            for name, trouble in troubles.items()
        }
        for name, check in (ready_warnings or {}).items():
            trouble = check()
            checks[name] = CheckBody(ok=not trouble, detail=(is_known and trouble) or UNSET)
        if is_known:
            checks |= {
                name: CheckBody(ok=name not in checks or checks[name].ok, detail=tell())
                for name, tell in (ready_notes or {}).items()
            }
        is_ready = not any(troubles.values())
        return answer(encode_wire(ReadyBody(ready=is_ready, checks=checks)), 200 if is_ready else 503)

    @app.get("/metrics")
    async def show_metrics() -> Response:
        """OpenMetrics or the Prometheus text format, as the Accept header asks."""
        require_some(principal_of(request), "read")
        if not is_metrics_served:
            raise NotFound("metrics are switched off", subject="/metrics", hint="[metrics] enabled")
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return answer(encode(metrics.registry), content_type=content_type)

    @app.get("/v1/node")
    async def node() -> Response:
        """Who this node is and where its log stands."""
        check_standing(principal_of(request))
        return answer(encode_wire(_node_body(log, node_name, versions, network, identity_key)))


def _node_body(log: Log, node_name: str, versions: dict[str, str], network: NetworkName, identity_key: str) -> NodeBody:
    return NodeBody(
        node=node_name,
        log=log.log_id,
        origin=log.origin,
        keys=[log.vkey],
        identity_key=identity_key or UNSET,
        network=network,
        epoch=format_epoch(log.epoch),
        ancestry=[EpochBody(epoch=format_epoch(epoch), last_offset=offset) for epoch, offset in log.ancestry],
        head=log.head,
        cursor=str(Cursor(log.epoch, log.head)),
        minimum_index=log.minimum_index,
        started_at=format_time_us(log.started_us),
        versions=versions,
    )

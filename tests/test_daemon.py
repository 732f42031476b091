"""How the daemon is put together: its routes against the document, its metrics against the page, its declared streams."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from overlayd.config import Settings, StreamSettings
from overlayd.daemon import Parts, declare_streams
from overlayd.model.clock import Entropy, SystemClock
from overlayd.model.definition import Definition
from overlayd.model.errors import ConfigInvalid
from overlayd.model.metrics import Metrics
from overlayd.model.names import StreamName
from overlayd.model.process_metrics import register_process_metrics
from overlayd.net.openapi import OPERATIONS
from overlayd.storage import open_log

UNDOCUMENTED = {("get", "/docs/style.css")}
OF_DIALECTS = ("agentpipe_", "overlayd_agentpipe_")
"""Registered when the dialect is switched on."""
METRICS_PAGE = Path(__file__).parent.parent / "docs" / "metrics.md"


@asynccontextmanager
async def open_parts(directory: Path) -> AsyncIterator[Parts]:
    """Everything but listeners, over a log in a directory."""
    settings = Settings()
    settings = msgspec.structs.replace(settings, storage=msgspec.structs.replace(settings.storage, dir=str(directory)))
    clock, entropy, metrics = SystemClock(), Entropy(), Metrics()
    register_process_metrics(metrics)
    async with open_log(
        directory, settings=settings.storage, limits=settings.limits, defaults=Definition(), clock=clock,
        entropy=entropy, metrics=metrics,
    ) as log:  # fmt: skip
        yield Parts(log, settings, metrics, clock, entropy)


def _declaring(**streams: Definition) -> Settings:
    declared = tuple(StreamSettings(StreamName(name), one, "config.toml:1") for name, one in streams.items())
    return Settings(streams=declared)


async def test_every_route_is_in_the_document_and_nothing_else(tmp_path: Path) -> None:
    """An operation without a route, or a route without an operation, would mislead a client."""
    async with open_parts(tmp_path) as parts:
        routed = {
            (method.lower(), re.sub(r"<(?:[^:>]+:)?(\w+)>", r"{\1}", rule.rule))
            for rule in parts.app.url_map.iter_rules()
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        }
    assert routed - UNDOCUMENTED == {(operation.method, operation.path) for operation in OPERATIONS}


async def test_every_metric_is_on_the_page_and_nothing_else(tmp_path: Path) -> None:
    """docs/metrics.md names what a built daemon registers, no more and no less."""
    async with open_parts(tmp_path) as parts:
        parts.door()
        registered = {family.name for family in parts.metrics.registry.collect()}
    page = METRICS_PAGE.read_text()
    named = set(re.findall(r"^\| `([a-z_]+?)(?:_total)?(?:\{[^`]*\})?` \|", page, re.MULTILINE))
    # The listeners' own are registered when they open, the chain's and those of two schemes when there is one.
    late = (
        "overlayd_net_",
        "overlayd_tls_",
        "overlayd_chain_",
        "overlayd_wallet_",
        "overlayd_anchor_",
        "overlayd_access_jwks_",
        "overlayd_access_mutual_",
        "overlayd_trace_",
        "overlayd_fault_",
        "overlayd_privacy_crashes",
        *OF_DIALECTS,
    )
    absent = {name for name in named - registered if not name.startswith(late)}
    assert absent == set()
    assert registered - named == set()


async def test_declared_streams_come_and_go_without_losing_packets(tmp_path: Path) -> None:
    """A declared stream is owned by the file; one that is declared no more stays, owned by the API."""
    async with open_parts(tmp_path) as parts:
        await declare_streams(parts.log, _declaring(a=Definition(title="one"), b=Definition()), parts.schemas)
        found = parts.log.find_stream("a")
        assert found is not None
        assert (found.owner, found.definition.title) == ("config", "one")
        head = parts.log.head
        await declare_streams(parts.log, _declaring(a=Definition(title="one"), b=Definition()), parts.schemas)
        assert parts.log.head == head
        await declare_streams(parts.log, _declaring(b=Definition()), parts.schemas)
        assert (found.owner, found.definition.title) == ("api", "one")


async def test_a_declared_stream_that_cannot_be_used_is_an_error_at_start(tmp_path: Path) -> None:
    """A bad schema in the file is named before anything listens."""
    async with open_parts(tmp_path) as parts:
        with pytest.raises(ConfigInvalid):
            await declare_streams(parts.log, _declaring(a=Definition(schema={"type": "nonsense"})), parts.schemas)


async def test_fast_lanes_can_be_switched_off(tmp_path: Path) -> None:
    """`[listen] fast_lanes` decides whether the door takes packets itself; it does by default."""
    async with open_parts(tmp_path) as parts:
        assert parts.door()._publish_lane is not None
    (tmp_path / "other").mkdir()
    async with open_parts(tmp_path / "other") as parts:
        listen = msgspec.structs.replace(parts.settings.listen, fast_lanes=False)
        parts.settings = msgspec.structs.replace(parts.settings, listen=listen)
        assert parts.door()._publish_lane is None

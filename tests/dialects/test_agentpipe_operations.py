"""The served OpenAPI document and AgentPipe's routes are of one mind."""

import re
from pathlib import Path

import msgspec

from overlayd.config import Settings
from overlayd.daemon import Parts
from overlayd.dialects.agentpipe.live import PATHS
from overlayd.dialects.agentpipe.operations import OPERATIONS
from overlayd.dialects.agentpipe.settings import AgentPipeSettings
from overlayd.dialects.agentpipe.tables import AGENTPIPE_FEATURE
from overlayd.model.clock import Entropy, SystemClock
from overlayd.model.definition import Definition
from overlayd.model.metrics import Metrics
from overlayd.net.openapi import build_openapi
from overlayd.storage import open_log

DOCS = Path(__file__).parents[2] / "docs"


async def test_every_route_is_in_the_document_and_nothing_else(tmp_path: Path) -> None:
    """But for the two live paths, which the door serves."""
    settings = Settings(agentpipe=AgentPipeSettings(enabled=True))
    settings = msgspec.structs.replace(settings, storage=msgspec.structs.replace(settings.storage, dir=str(tmp_path)))
    clock, entropy, metrics = SystemClock(), Entropy(), Metrics()
    async with open_log(
        tmp_path, settings=settings.storage, limits=settings.limits, defaults=Definition(), clock=clock,
        entropy=entropy, metrics=metrics, features=(AGENTPIPE_FEATURE,),
    ) as log:  # fmt: skip
        parts = Parts(log, settings, metrics, clock, entropy)
        routed = {
            (method.lower(), re.sub(r"<(\w+)>", r"{\1}", rule.rule))
            for rule in parts.app.url_map.iter_rules()
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
            if rule.rule.startswith("/api/")
        }
        registered = {family.name for family in metrics.registry.collect() if "agentpipe" in family.name}
    told = {(operation.method, operation.path) for operation in OPERATIONS}
    assert told - {("get", path) for path in PATHS} == routed
    page = (DOCS / "metrics.md").read_text()
    assert {name for name in registered if f"`{name}" not in page} == set()


def test_the_document_tells_errors_in_agentpipes_words() -> None:
    """Not as problems."""
    document = build_openapi(OPERATIONS)
    responses = document["paths"]["/api/ingest"]["post"]["responses"]
    assert set(responses["400"]["content"]) == {"application/json"}
    assert "agentpipe" in [tag["name"] for tag in document["tags"]]


def test_the_page_names_every_route() -> None:
    """Or the beginning that several share."""
    page = (DOCS / "agentpipe.md").read_text()
    for operation in OPERATIONS:
        tail = operation.path.rsplit("}", 1)[-1]
        assert operation.path.split("/{")[0] in page or tail in page, operation.path

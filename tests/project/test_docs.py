"""The documents say what the code does: errors, metrics, links, and nothing of the machine they were written on."""

import ast
import re
from pathlib import Path

import msgspec
import pytest

from overlayd.config import Settings
from overlayd.config.schema import shape_of
from overlayd.model.definition import StreamLimits
from overlayd.model.errors import error_classes
from overlayd.model.metrics import Metrics
from overlayd.model.process_metrics import register_process_metrics
from overlayd.model.quota import QuotaPolicy

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SOURCES = sorted((ROOT / "overlayd").rglob("*.py"))
KINDS = ("counter", "gauge", "histogram")

AGENTPIPE_METRICS = {
    "agentpipe_active_conversations", "agentpipe_ingest_duration_seconds", "agentpipe_ingest_events_total",
    "agentpipe_sse_connections",
}  # fmt: skip


def read_table(document: str) -> dict[str, list[str]]:
    """The rows of a document's tables whose first cell is a `name`, by name."""
    rows = {}
    for line in (ROOT / document).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if line.startswith("| `") and len(cells) > 1:
            rows[cells[0].strip("`")] = cells[1:]
    return rows


def declared_metrics() -> dict[str, tuple[str, list[str]]]:
    """Name to kind and labels of every metric that the source declares."""
    found = {}
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            kind = node.func.attr.removeprefix("loop_")
            if kind not in KINDS or file.name == "process_metrics.py":  # which are made and looked at below
                continue
            name, _, *labels = node.args
            assert isinstance(name, ast.Constant), f"{file.name}: the name of a metric is written where it is declared"
            suffix = "_total" if kind == "counter" else ""
            texts = [label.value for label in labels if isinstance(label, ast.Constant)]
            assert len(texts) == len(labels), f"{name.value}: labels are written where the metric is declared"
            found[str(name.value).removesuffix("_total") + suffix] = (kind, [str(text) for text in texts])
    return found


def process_metrics() -> dict[str, str]:
    """Name to kind of the metrics of the process itself."""
    metrics = Metrics()
    register_process_metrics(metrics)
    families = [family for family in metrics.registry.collect() if not family.name.startswith("overlayd_limit")]
    return {family.name + ("_total" if family.type == "counter" else ""): family.type for family in families}


def test_every_error_code_is_explained() -> None:
    """docs/errors.md lists each code with its status and whether it is retryable, and no others."""
    rows = read_table("docs/errors.md")
    expected = {}
    for error in error_classes():
        status = "none" if error.code.startswith("client.") else str(error.status)
        expected[error.code] = [status, "yes" if error.retryable else "no"]
    assert {code: cells[:2] for code, cells in rows.items()} == expected
    codes = [error.code for error in error_classes()]
    assert len(codes) == len(set(codes)), "a code stands for two errors"


def test_every_metric_is_explained() -> None:
    """docs/metrics.md lists each metric with its kind and labels, and no others."""
    rows = read_table("docs/metrics.md")
    expected = {name: [kind, ", ".join(f"`{label}`" for label in labels) or "none"] for name, (kind, labels) in declared_metrics().items()}  # fmt: skip
    for name, kind in process_metrics().items():
        expected[name] = [kind, rows.get(name, ["", ""])[1]]
    assert {name: cells[:2] for name, cells in rows.items()} == expected
    assert all(len(cells[-1]) > 10 for cells in rows.values())


def test_every_metric_has_a_unit() -> None:
    """The page names it, and names that end in one agree."""
    ends = {
        "seconds": ("seconds", "seconds since 1970"),
        "bytes": ("bytes",),
        "packets": ("packets",),
        "entries": ("entries",),
    }
    for name, (_, _, unit, _) in read_table("docs/metrics.md").items():
        assert re.fullmatch(r"[a-z0-9 ]+", unit), name
        for end, units in ends.items():
            if name.removesuffix("_total").endswith(f"_{end}"):
                assert unit in units, name


def test_metric_names_follow_the_rules() -> None:
    """Every metric of ours begins with overlayd_ and names its unit as Prometheus does; AgentPipe's documents name four."""
    for name, (kind, _) in declared_metrics().items():
        assert re.fullmatch(r"overlayd_[a-z_]+", name) or name in AGENTPIPE_METRICS, name
        assert not name.endswith(("_ms", "_us", "_kb", "_count")), name
        assert kind == "counter" or not name.endswith("_total"), name


def test_counted_limits_exist() -> None:
    """Every limit whose hits are counted is a setting, or a member of a stream's limits or of a quota policy."""
    known = {field.name for struct in (StreamLimits, QuotaPolicy) for field in msgspec.structs.fields(struct)}
    known |= {path[-1] for path in shape_of(Settings).keys}
    for file in SOURCES:
        named = re.findall(r"count_limit_hit\(\s*\"([a-z_]+)\"", file.read_text("utf-8"))
        assert set(named) <= known, file.name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    """Each relative link of a document names a file of the project."""
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        path = target.split("#")[0]
        if path and "://" not in target and not target.startswith(("mailto:", "/")):
            assert (document.parent / path).exists(), f"{document.name}: {target}"


def test_no_text_holds_a_path_of_somebodys_machine() -> None:
    """No document, source or recipe names a home directory or a package index."""
    suspicious = re.compile(r"/(?:home|root|Users)/\w|index-url|find-links[ =]\S*/")
    files = [*DOCUMENTS, *SOURCES, ROOT / "pyproject.toml", ROOT / ".ci/run", ROOT / "config.example.toml"]
    assert [file.name for file in files if suspicious.search(file.read_text("utf-8"))] == []

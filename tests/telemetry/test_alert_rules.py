"""The alert rules and the dashboard: what they name exists, each alert fires when it should, and leads to its chapter."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from alert_cases import CASES, Case

ROOT = Path(__file__).parents[2]
RULES = ROOT / "observability" / "prometheus" / "overlayd.rules.yml"
DASHBOARD = ROOT / "observability" / "grafana" / "overlayd.json"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool isn't installed (Debian: apt-get install prometheus)"
)
INSTALLED = "file:///usr/share/doc/overlayd/docs"
"""Where the package puts the documentation."""
BASE = f"{{{{ with $externalLabels.overlayd_docs }}}}{{{{ . }}}}{{{{ else }}}}{INSTALLED}{{{{ end }}}}"
NODE_LABELS = {"job", "instance", "le"}
"""What Prometheus adds, and what histograms have."""
QUICK = {name for name, case in CASES.items() if case.late <= 100}


def rules() -> list[dict[str, Any]]:
    """All alerts."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def documented() -> dict[str, set[str]]:
    """The labels of each series that docs/metrics.md promises."""
    found = {"up": set[str]()}
    for name, kind, labels in re.findall(
        r"^\| `([a-z_]+)` \| (\w+) \| ([^|]+) \|", (ROOT / "docs/metrics.md").read_text(), re.M
    ):
        for end in ("_bucket", "_sum", "_count") if kind == "histogram" else ("",):
            found[name + end] = set(re.findall(r"`(\w+)`", labels))
    return found


def series_of(expression: str) -> list[tuple[str, set[str]]]:
    """The metrics that an expression names, with the labels that it selects them by."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    found = re.findall(r"\b((?:overlayd|process|agentpipe)_[a-z_]+|up)\b(?:\{([^}]*)\})?", bare)
    return [(name, set(re.findall(r"(\w+)\s*[=!]", labels))) for name, labels in found]


def grouped_by(expression: str) -> set[str]:
    """The labels that an expression keeps or matches on."""
    lists = re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", expression)
    return {label.strip() for text in lists for label in text.split(",") if label.strip()}


def expressions() -> list[tuple[str, str]]:
    """Every expression of the rules and the dashboard, with where it stands."""
    found = [(rule["alert"], rule["expr"]) for rule in rules()]
    for panel in panels():
        found += [(panel["title"], target["expr"]) for target in panel.get("targets", [])]
    return found


def panels() -> list[dict[str, Any]]:
    """All panels of the dashboard."""
    return list(json.loads(DASHBOARD.read_text())["panels"])


@pytest.mark.parametrize(("place", "expression"), expressions(), ids=lambda text: str(text)[:40])
def test_only_metrics_that_exist_are_named(place: str, expression: str) -> None:
    """Each metric is in docs/metrics.md, which is held against the source, and has the labels that are asked for."""
    known = documented()
    named = series_of(expression)
    assert named, place
    for name, labels in named:
        assert name in known, f"{place}: there is no {name}"
        assert labels - NODE_LABELS <= known[name], f"{place}: {name} has no {labels - known[name]}"
    everything = set().union(*(known[name] for name, _ in named)) | NODE_LABELS
    assert grouped_by(expression) <= everything, place


def test_each_alert_leads_to_its_chapter() -> None:
    """Names are unlike, severities three, and the chapter is called like the alert."""
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        name, notes = rule["alert"], rule["annotations"]
        assert re.fullmatch(r"Overlayd[A-Za-z]+", name)
        assert notes["runbook_url"] == f"{BASE}/operations.md#{name.lower()}"
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert "{{ $labels.instance }}" in notes["summary"]
        assert notes["description"].endswith(".")
    assert set(CASES) == set(names), "each alert has its case"
    chapters = re.findall(r"^#+ (\w+)$", (ROOT / "docs/operations.md").read_text(), re.M)
    assert set(names) <= set(chapters), "each alert has its chapter"


@needs_promtool
def test_promtool_accepts_the_rules() -> None:
    """As Prometheus reads them."""
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(CASES)} rules found" in done.stdout


@needs_promtool
def test_promtool_can_read_what_the_dashboard_asks(tmp_path: Path) -> None:
    """Each expression, with Grafana's variables filled in."""
    assert PROMTOOL is not None
    asked = [target["expr"] for panel in panels() for target in panel.get("targets", [])]
    asked = [expression.replace("$__rate_interval", "1m") for expression in asked]
    found = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(asked)]
    assert len(found) > 50
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": found}]}))
    done = subprocess.run([PROMTOOL, "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_panels_have_places_of_their_own() -> None:
    """Nothing lies on anything else, and each says what it shows."""
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["description"]


@needs_promtool
def test_each_alert_fires_for_the_ill_node_alone(tmp_path: Path) -> None:
    """Not before its time, and not for a node that is well. `promtool test rules` judges."""
    assert PROMTOOL is not None
    by_name = {rule["alert"]: rule for rule in rules()}
    for interval, names in (("1m", [*QUICK]), ("10m", [*(CASES.keys() - QUICK)])):  # every rule is judged at every step
        groups = [{"name": name, "rules": [by_name[name]]} for name in names]
        judged_rules, file = tmp_path / f"{interval}.rules.yml", tmp_path / f"{interval}.test.yml"
        judged_rules.write_text(yaml.safe_dump({"groups": groups}))
        tests = [judged(by_name[name], CASES[name]) for name in names]
        told = {"rule_files": [str(judged_rules)], "evaluation_interval": interval, "tests": tests}
        file.write_text(json.dumps(told))
        done = subprocess.run([PROMTOOL, "test", "rules", str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def judged(rule: dict[str, Any], case: Case) -> dict[str, Any]:
    """One case in promtool's words."""
    node = {"job": "overlayd", "instance": "ill:7878"}
    labels = node | case.labels
    notes = {
        name: re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels[found[1]], text)
        for name, text in rule["annotations"].items()
    }
    # Every other Prometheus says where it keeps the documentation.
    docs = {"overlayd_docs": "https://wiki.example/overlayd"} if len(rule["alert"]) % 2 else {}
    notes["runbook_url"] = notes["runbook_url"].replace(BASE, docs.get("overlayd_docs", INSTALLED))
    expected = {"exp_labels": labels | rule["labels"], "exp_annotations": notes}
    times = [{"eval_time": f"{case.late}m", "alertname": rule["alert"], "exp_alerts": [expected]}]
    if case.early is not None:
        times.append({"eval_time": f"{case.early}m", "alertname": rule["alert"], "exp_alerts": []})
    series = [
        {"series": name.replace("}", f'job="overlayd",instance="{instance}"}}'), "values": values}
        for instance, found in (("ill:7878", case.ill), ("well:7878", case.well))
        for name, values in found.items()
    ]
    return {
        "name": rule["alert"],
        "interval": "1m",
        "input_series": series,
        "alert_rule_test": times,
        "external_labels": docs,
    }

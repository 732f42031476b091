"""The comparison with the peers still runs; what it measures is of no interest here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TINY = ["--clients", "2", "--readers", "2", "--rounds", "1", "--seconds", "0.1", "--warm-up", "0"]


def test_a_tiny_run_of_the_node_alone_leaves_a_table_data_and_a_chart(tmp_path: Path) -> None:
    """Two clients publish, as used and bare, without a single error; the three files are written."""
    command = [sys.executable, "-m", "benchmarks.compare", "publish", *TINY, "--peers", "sqlite"]
    done = subprocess.run(
        [*command, "--results", str(tmp_path / "results")],
        cwd=ROOT, env=os.environ | {"PATH": ""}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]

    found = json.loads((tmp_path / "results/publish.json").read_text())
    assert found["machine"]["fdatasync_per_second"] > 0
    assert [row["title"] for row in found["rows"]] == ["single packets, 2 clients", "single packets, 2 clients, bare"]
    for row in found["rows"]:
        node, limit = row["contenders"]
        assert node["name"] == "overlayd"
        assert limit["name"].startswith("SQLite")
        assert node["medians"]["rate"] > 0
        assert node["rounds"][0]["errors"] == 0
        assert "own generator" in node["remarks"]
    assert "fdatasync/s" in (tmp_path / "results/publish.txt").read_text()
    assert (tmp_path / "results/publish.png").read_bytes().startswith(b"\x89PNG\r\n")


def run(part: str, results: Path, *more: str) -> list[dict[str, Any]]:
    """The rows of a tiny run of one part."""
    command = [sys.executable, "-m", "benchmarks.compare", part, *TINY, "--peers", "", "--results", str(results), *more]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PATH": ""}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows: list[dict[str, Any]] = json.loads((results / f"{part}.json").read_text())["rows"]
    return rows


@pytest.mark.parametrize("part", ["fairness", "busy"])
def test_rows_of_one_publisher_beside_others(part: str, tmp_path: Path) -> None:
    """Each row holds a quiet contender and a disturbed one, and both measured something."""
    rows = run(part, tmp_path)
    assert len(rows) == 2
    for row in rows:
        assert [contender["medians"]["p99_ms"] > 0 for contender in row["contenders"]] == [True, True]


@pytest.mark.slow
def test_rows_of_growth(tmp_path: Path) -> None:
    """Many streams, many entries, and opening the log again: every row is measured without errors."""
    rows = run("growth", tmp_path, "--streams", "30", "--entries", "1000")
    assert [row["title"].partition(",")[0] for row in rows] == [
        "single packets", "single packets", "single packets", "arrays of 100", "opening a log of 1",
    ]  # fmt: skip
    for row in rows:
        assert all(contender["medians"][row["main"]] > 0 for contender in row["contenders"])
        assert all(turn["errors"] == 0 for contender in row["contenders"] for turn in contender["rounds"])


def test_rows_of_commitments(tmp_path: Path) -> None:
    """The kit with and without the packets' signatures; what is installed beside it comes after."""
    (row,) = run("commitments", tmp_path)
    kit, signing, *_ = row["contenders"]
    assert "kit" in kit["name"]
    assert kit["medians"]["rate"] > signing["medians"]["rate"] > 0


def test_rows_of_confirmation(tmp_path: Path) -> None:
    """A block's packets reach a reader, those that wait are asked about, and memory is held against an empty node's."""
    block, asking, memory = run("confirmed", tmp_path, "--confirmed", "40", "--stored", "200")
    assert block["contenders"][0]["medians"]["rate"] > 0
    assert asking["contenders"][0]["medians"]["rate"] > 0
    assert memory["contenders"][0]["medians"]["kib"] >= 0


def test_rows_of_access(tmp_path: Path) -> None:
    """The gate with few keys and many; mutual authentication on a node, whose answers are verified, beside a key."""
    rows = run("access", tmp_path, "--keys", "300")
    assert [row["title"].partition(",")[0] for row in rows] == [
        "who asks and may they publish", "who asks", "POST of one packet (publish lane)", "GET of /v1/node (Quart)",
    ]  # fmt: skip
    assert all(contender["medians"]["rate"] > 0 for row in rows for contender in row["contenders"])


def test_rows_of_fan_out_over_tls(tmp_path: Path) -> None:
    """Encrypted subscribers get every packet, beside those in clear text."""
    (row,) = run("fanout", tmp_path, "--subscribers", "30", "--only", "TLS")
    assert [contender["name"] for contender in row["contenders"]] == ["overlayd, TLS", "overlayd, clear text"]
    assert all(contender["medians"]["p50_ms"] > 0 for contender in row["contenders"])


def test_row_of_deliveries(tmp_path: Path) -> None:
    """Webhooks to one that is behind; the other rows are of the same kind, and take their time."""
    (row,) = run("deliveries", tmp_path, "--deliveries", "100", "--only", "unordered")
    assert row["contenders"][0]["medians"]["rate"] > 0


@pytest.mark.slow
def test_rows_of_deliveries(tmp_path: Path) -> None:
    """Webhooks to many and to one, a restart after a kill, and good subscriptions beside bad ones."""
    rows = run("deliveries", tmp_path, "--deliveries", "200", "--undelivered", "200", "--subscriptions", "20")
    assert [row["title"] for row in rows] == [
        "webhooks, 100 subscriptions", "webhooks, one subscription, unordered", "webhooks, one subscription, in order",
        "restart with 200 undelivered after kill -9", "bad endpoints among 20",
    ]  # fmt: skip
    assert all(contender["medians"][row["main"]] > 0 for row in rows for contender in row["contenders"])
    assert [contender["rounds"][0]["note"].split()[0] for contender in rows[-1]["contenders"]] == ["7", "7"]

"""Packets' own transactions in evidence exports: a packet of a stream that commits each is dated by its own block."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner, Result
from export_rig import changed_copy, export
from watch_rig import watching

from overlayd.cli import cli
from overlayd.cli.exits import BROKEN, OK, REGTEST
from overlayd.model.names import StreamName

BATCHED = StreamName("batched")


async def make_log(data: Path) -> None:
    """Four packets with a transaction of their own, of which a block holds three; and one that none was asked for."""
    async with watching(data) as node:
        await node.define()
        await node.define(BATCHED, commit="batch")
        await node.append(1, BATCHED)
        await node.publish_many(3)
        await node.settle()
        await node.mine(2)
        await node.publish_many(1)
        await node.log.checkpoint(min_size=node.log.head)
        (data / "vkey").write_text(node.log.vkey)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The data directory, and an export of all of it."""
    data = tmp_path_factory.mktemp("transactions")
    trio.run(make_log, data)
    out = data / "out"
    done = export(data, out)
    assert done.exit_code == OK, done.output
    assert "3 packets with a transaction of their own in a block" in done.output
    return data, out


def verify(exported: tuple[Path, Path], out: Path, *arguments: str) -> Result:
    """With the log's key and the headers that the node holds."""
    data, _ = exported
    asked = ["verify", str(out), "--log-key", (data / "vkey").read_text(), "--data", str(data), "--json", *arguments]
    return CliRunner().invoke(cli, asked)


def test_each_is_held_against_its_row(exported: tuple[Path, Path]) -> None:
    """Those that a block holds are there, in the rows' order; regtest counts for nothing unless it is asked for."""
    _, out = exported
    lines = [json.loads(line) for line in (out / "transactions.ndjson").read_bytes().splitlines()]
    rows = [json.loads(line) for line in (out / "rows.ndjson").read_bytes().splitlines()]
    own = [row["offset"] for row in rows if row["stream"] != BATCHED]
    assert len(own) == 4
    assert [line["offset"] for line in lines] == own[:3]
    assert verify(exported, out).exit_code == REGTEST
    done = verify(exported, out, "--allow-regtest", "--accept", "signed")
    assert done.exit_code == OK, done.output
    verdict = json.loads(done.output)["verdict"]
    assert (verdict["transactions"], verdict["transactions_in_chain"], verdict["level"]) == (3, 3, "signed")


def test_a_log_without_any_has_no_such_file(exported: tuple[Path, Path], tmp_path: Path) -> None:
    """Nor does the evidence speak of one."""
    data, _ = exported
    assert export(data, tmp_path / "out", "..1").exit_code == OK
    assert not (tmp_path / "out" / "transactions.ndjson").exists()
    assert "transactions" not in json.loads((tmp_path / "out" / "evidence.json").read_bytes())


def _rewrite(out: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    path = out / "transactions.ndjson"
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    change(lines)
    path.write_bytes(b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines))


def _exchange(lines: list[dict[str, Any]]) -> None:
    lines[0]["anchor"], lines[1]["anchor"] = lines[1]["anchor"], lines[0]["anchor"]


CHANGES: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "one is missing": lambda lines: lines.pop(),
    "one stands twice": lambda lines: lines.append(lines[-1]),
    "those of two packets are exchanged": _exchange,
    "another packet's": lambda lines: lines[2].update(offset=1),
    "of a row that isn't there": lambda lines: lines[2].update(offset=999),
    "another output": lambda lines: lines[0]["anchor"].update(output_index=1),
    "another height": lambda lines: lines[0]["anchor"].update(height=lines[0]["anchor"]["height"] + 1),
    "a byte of the transaction": lambda lines: lines[0]["anchor"].update(tx="02" + lines[0]["anchor"]["tx"][2:]),
    "upper case": lambda lines: lines[0]["anchor"].update(tx=lines[0]["anchor"]["tx"].upper()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_found(
    exported: tuple[Path, Path], tmp_path: Path, change: Callable[[list[dict[str, Any]]], Any]
) -> None:
    """Whatever is done to the lines."""
    out = changed_copy(exported[1], tmp_path / "changed", lambda place: _rewrite(place, change))
    done = verify(exported, out, "--allow-regtest", "--accept", "signed")
    assert done.exit_code == BROKEN, done.output


def test_the_file_is_there_as_the_evidence_says(exported: tuple[Path, Path], tmp_path: Path) -> None:
    """Taken away whole, it is missed; beside an export that has none, it is no part of it."""
    out = changed_copy(exported[1], tmp_path / "less", lambda place: (place / "transactions.ndjson").unlink())
    assert verify(exported, out, "--allow-regtest").exit_code == BROKEN
    assert export(exported[0], tmp_path / "none", "..1").exit_code == OK
    shutil.copy(exported[1] / "transactions.ndjson", tmp_path / "none")
    assert verify(exported, tmp_path / "none", "--allow-regtest").exit_code == BROKEN

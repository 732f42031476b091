"""Checking a log whose beginning was cut: intact, and broken in what the cut left."""

import random
import sqlite3
from pathlib import Path

import pytest
from damage_rig import pages_of, read_everything
from storage_rig import Rig, append, draft

from overlayd.cli.log_check import check_log
from overlayd.cli.log_report import LogReport
from overlayd.model.definition import DedupRule, Definition, RetentionRule
from overlayd.model.errors import LogCut
from overlayd.model.merkle import verify_consistency
from overlayd.model.proof import TrustedKeys
from overlayd.model.units import Duration
from overlayd.storage.damage.schema import load_schema
from overlayd.storage.retention import RetentionSettings

SETTINGS = RetentionSettings(trust_clock=True, share=1.0, cut_entries=256)


@pytest.fixture
async def cut_log(tmp_path: Path) -> Path:
    """About 6,000 entries, of which the first 3,500 or so were cut, with checkpoints among them."""
    rig = Rig(tmp_path)
    rig.set_settings(flush_entries=256)
    definition = Definition(retention=RetentionRule(max_age=Duration(10)), dedup=DedupRule(window=Duration(1)))
    async with rig.open(retention=SETTINGS) as log:
        await log.define_stream("s", definition)
        for _ in range(60):
            await append(log, "s", [draft() for _ in range(97)])
            rig.clock.advance(3600)
            await log.checkpoint(log.head)
    async with rig.open(retention=SETTINGS) as log:  # a stop in order has written everything out
        await log.retention.look()
        assert log.minimum_index > 2000
    return tmp_path


def check(directory: Path) -> LogReport:
    """With the directory's own keys."""
    return check_log(directory, TrustedKeys(()))


async def test_a_cut_log_is_intact(cut_log: Path) -> None:
    """Everything that is left fits, also the checkpoints of what was cut."""
    report = check(cut_log)
    assert report.faults == []
    assert report.cut > 2000
    assert (report.checkpoints > 25, report.cut_checkpoints) == (True, 0)
    assert report.log_id


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("UPDATE tile SET hashes = zeroblob(length(hashes)) WHERE id >> 55 = 6", "another root"),
        ("DELETE FROM tile WHERE id >> 55 = 6", "missing"),
        ("UPDATE kept_node SET hash = zeroblob(32)", "another root"),
        ("UPDATE state SET value = value - 256 WHERE key = 'minimum_index'", "missing"),
    ],
)
async def test_damage_of_what_a_cut_left_is_found(cut_log: Path, statement: str, fault: str) -> None:
    """Tiles, kept nodes and the minimum index are held against what was signed."""
    with sqlite3.connect(cut_log / "log.sqlite3") as connection:
        connection.execute(statement)
    connection.close()
    report = check(cut_log)
    assert any(fault in found for found in report.faults), report.faults


async def test_proofs_from_sizes_that_were_cut(cut_log: Path) -> None:
    """Sizes that were signed keep theirs; others below the beginning are refused by name, not taken for damage."""
    rig = Rig(cut_log)
    async with rig.open() as log:
        size, minimum = log.head, log.minimum_index
        root = await log.root_at(size)
        signed = await log.read(lambda c: {size for (size,) in c.execute("SELECT size FROM checkpoint")})
        refused = []
        for old in (*range(0, minimum, 61), *sorted(signed), minimum, minimum + 1, size - 1):
            try:
                verify_consistency(old, await log.root_at(old), size, root, await log.consistency_path(old, size))
            except LogCut as error:
                refused.append((old, error.status, error.extra))
        assert all(old < minimum and old not in signed for old, _status, _extra in refused)
        assert {status for _old, status, _extra in refused} == {410}
        assert all(extra == {"minimum_index": minimum} for _old, _status, extra in refused)
        assert len(refused) > 20


async def test_kept_nodes_may_be_gone(cut_log: Path) -> None:
    """Without them old checkpoints can't be compared, which is said and is no fault."""
    with sqlite3.connect(cut_log / "log.sqlite3") as connection:
        connection.execute("DELETE FROM kept_node")
    connection.close()
    report = check(cut_log)
    assert (report.faults, report.cut_checkpoints > 10) == ([], True)


@pytest.mark.parametrize("seed", range(6))
async def test_a_damaged_cut_log_is_mended(cut_log: Path, seed: int) -> None:
    """What was cut stays cut, what is left is served but for the pages that were hit, and the root is the one of before."""
    rig = Rig(cut_log)
    async with rig.open() as log:
        minimum, head, root = log.minimum_index, log.head, await log.root_at(log.head)
        sound, _ = await read_everything(log, minimum)
    hit_of = pages_of(cut_log)
    path = cut_log / "log.sqlite3"
    entry_root = next(row.root for row in load_schema(cut_log).rows if row.name == "entry")
    content, chance = bytearray(path.read_bytes()), random.Random(seed)
    hit = {entry_root, *chance.sample(range(2, len(content) // 4096), seed)}
    for page in hit:
        content[(page - 1) * 4096 : page * 4096] = bytes(4096)
    path.write_bytes(content)
    async with rig.open() as log:
        assert log.minimum_index == minimum
        served, lost = await read_everything(log, minimum)
        assert {offset for low, high in lost for offset in range(low, high + 1)} == {
            offset for offset, pages in hit_of.items() if pages & hit - {entry_root}
        }
        assert all(served[offset] == sound[offset] for offset in sound if offset in served)
        assert await log.root_at(head) == root
    assert check(cut_log).is_intact


async def test_time_goes_on_behind_entries_that_are_lost(cut_log: Path) -> None:
    """No entry is appended before the newest that is left, wherever the wall clock stands by then."""
    hit_of = pages_of(cut_log)
    path = cut_log / "log.sqlite3"
    entry_root = next(row.root for row in load_schema(cut_log).rows if row.name == "entry")
    content = bytearray(path.read_bytes())
    for page in {entry_root, *hit_of[max(hit_of)]}:
        content[(page - 1) * 4096 : page * 4096] = bytes(4096)
    path.write_bytes(content)
    async with Rig(cut_log).open() as log:  # its clock is where the log's was at the beginning
        _, lost = await read_everything(log, log.minimum_index)
        assert max(hit_of) in {offset for low, high in lost for offset in range(low, high + 1)}
        await append(log, "s")
    assert check(cut_log).faults == []

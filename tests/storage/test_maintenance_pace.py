"""How much of the merges a transaction carries."""

import random
import sqlite3
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from overlayd.storage import hashindex, hashrun
from overlayd.storage.hashindex import Family, HashIndex
from overlayd.storage.maintenance import IDLE_ROWS, ROWS_MAX, ROWS_MIN, ROWS_PER_ENTRY, Maintenance


def group_of(entries: int) -> Any:
    """A transaction of so many entries."""
    return SimpleNamespace(entries=[None] * entries)


def test_small_transactions_pass_a_step_on() -> None:
    """A step comes once it is worth its own cost, and then has as many rows as the entries since the last one ask for."""
    maintenance = Maintenance(SimpleNamespace(), 65_536)  # type: ignore[arg-type]
    wanted = -(-ROWS_MIN // ROWS_PER_ENTRY)
    for _ in range(2):
        steps = [maintenance.step(group_of(1)) for _ in range(wanted)]
        assert steps[:-1] == [None] * (len(steps) - 1)
        assert steps[-1] is not None
        assert steps[-1]._rows == wanted * ROWS_PER_ENTRY
    large, huge, idle = (
        maintenance.step(group_of(ROWS_MIN)),
        maintenance.step(group_of(ROWS_MAX)),
        maintenance.step(group_of(0), True),
    )
    assert large is not None
    assert huge is not None
    assert idle is not None
    assert (large._rows, huge._rows, idle._rows) == (ROWS_MIN * ROWS_PER_ENTRY, ROWS_MAX, IDLE_ROWS)


def test_without_packets_there_is_a_step_now_and_then() -> None:
    """Transactions of rows alone count as one entry each, so that merges end without packets as well."""
    maintenance = Maintenance(SimpleNamespace(), 65_536)  # type: ignore[arg-type]
    assert any(maintenance.step(group_of(0)) for _ in range(1 + ROWS_MIN // ROWS_PER_ENTRY))


def test_merges_keep_up_with_what_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the pairs that each entry pays for, no size ever has twice as many runs as one merge takes: every filter is
    asked about every new id, so merges that are put off cost more than they save."""
    monkeypatch.setattr(hashindex, "_TIER_PAIRS", 32)
    monkeypatch.setattr(hashrun, "BLOCK_PAIRS", 16)
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for step in hashindex.STEPS:
        connection.executescript(step)
    index, chance, group, most = HashIndex(Family.ID, bytes(32)), random.Random(1), 32, 0
    index.load(connection)
    for first in range(1, 60_000, group):
        index.add_each([(chance.getrandbits(64), offset) for offset in range(first, first + group)])
        index.merge_step(connection, ROWS_PER_ENTRY * group)
        index.adopt()
        if not index.is_flushing and index.recent_count >= 512:
            index.begin_flush(first + group - 1)
        sizes = Counter(hashindex._tier_of(run) for run in index._runs)
        most = max(most, *sizes.values(), 0)
    assert max(sizes) - min(sizes) >= 2, "merged runs were merged again"
    assert hashindex.FAN_OUT <= most < 2 * hashindex.FAN_OUT

"""How much of the merges a transaction carries."""

from types import SimpleNamespace
from typing import Any

from overlayd.storage.maintenance import ROWS_MAX, ROWS_MIN, ROWS_PER_ENTRY, Maintenance


def group_of(entries: int) -> Any:
    """A transaction of so many entries."""
    return SimpleNamespace(entries=[None] * entries)


def test_small_transactions_pass_a_step_on() -> None:
    """A step comes once it is worth its own cost, and then has as many rows as the entries since the last one ask for."""
    maintenance = Maintenance(SimpleNamespace(), 65_536)  # type: ignore[arg-type]
    for _ in range(2):
        steps = [maintenance.step(group_of(1)) for _ in range(ROWS_MIN // ROWS_PER_ENTRY)]
        assert steps[:-1] == [None] * (len(steps) - 1)
        assert steps[-1] is not None
        assert steps[-1]._rows == ROWS_MIN
    large, huge, idle = (
        maintenance.step(group_of(100)),
        maintenance.step(group_of(1000)),
        maintenance.step(group_of(0), True),
    )
    assert large is not None
    assert huge is not None
    assert idle is not None
    assert (large._rows, huge._rows, idle._rows) == (100 * ROWS_PER_ENTRY, ROWS_MAX, ROWS_MAX)


def test_without_packets_there_is_a_step_now_and_then() -> None:
    """Transactions of rows alone count as one entry each, so that merges end without packets as well."""
    maintenance = Maintenance(SimpleNamespace(), 65_536)  # type: ignore[arg-type]
    assert any(maintenance.step(group_of(0)) for _ in range(ROWS_MIN // ROWS_PER_ENTRY))

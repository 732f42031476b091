"""Reorgs, restarts and cuts, looked at through the entries that they leave."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from chain_rig import FixedClock
from watch_rig import Node, watching

from overlayd.chain import item_tables, watch_tables
from overlayd.chain.regtest_ledger import Returned
from overlayd.model.confirmation import MOVES
from overlayd.storage.migrations import migrate


@pytest.mark.parametrize("depth", range(1, 7))
@pytest.mark.parametrize("returned", ["return", "remine", "drop"])
@pytest.mark.parametrize("is_restarted", [False, True], ids=["running", "restarted"])
async def test_reorg_matrix_of_entries(tmp_path: Path, depth: int, returned: Returned, is_restarted: bool) -> None:
    """Each packet is told as confirmed once; one that a reorg took back is told so, and as confirmed again, not anew.

    Blocks hold a packet each. Those that left the best chain are taken back whether or not the node ran meanwhile, and
    come again, since what only the node still has is broadcast once more.
    """
    clock = FixedClock()
    async with watching(tmp_path, clock=clock) as node:
        await node.define()
        made = []
        for _ in range(6):
            made += await node.publish_many(1)
            await node.settle()
            await node.mine()
        assert await node.told() == [f"{receipt.offset} confirmed1" for receipt, _ in made]
        if not is_restarted:
            await node.chain.reorg(depth, transactions=returned)
            await check_taken_back(node, made, depth)
        else:
            await node.chain.reorg(depth, transactions=returned)
    async with watching(tmp_path, clock=clock) as node:
        await check_taken_back(node, made, depth)


async def check_taken_back(node: Node, made: list, depth: int) -> None:
    """The last packets were taken back and come again; the others weren't touched."""
    await node.settle()
    await node.mine(2)
    kept, lost = made[:-depth], made[-depth:]
    for receipt, _ in kept:
        assert await node.told(receipt.offset) == ["confirmed1"]
    for receipt, _ in lost:
        assert [line for line in await node.told(receipt.offset) if line != "mined"] == [
            "confirmed1", "pending", "confirmed1!",
        ]  # fmt: skip
        now = await node.now(receipt.offset)
        held = await node.book.read_at(now.height or 0)
        assert (now.state, now.block_hash) == ("confirmed", held.hash if held else None)
    orphans = await node.log.read(lambda c: [watch_tables.read_orphans(c, tx_id) for tx_id in range(1, 7)])
    assert [len(one) for one in orphans] == [0] * (6 - depth) + [1] * depth
    assert await node.settled() == node.log.head


async def test_proofs_that_were_orphaned_are_kept_but_not_for_ever(tmp_path: Path) -> None:
    """After eight reorgs the last five proofs that held once are still there, and none of them is taken for the present."""
    async with watching(tmp_path) as node:
        await node.define()
        ((receipt, _),) = await node.publish_many(1)
        await node.settle()
        await node.mine()
        for _ in range(8):
            node.clock.us += 1_000_000
            await node.chain.reorg(1, transactions="remine")
            await node.settle()
        orphans = await node.log.read(lambda c: watch_tables.read_orphans(c, 1))
        assert len(orphans) == watch_tables.ORPHANS_KEPT
        told = await node.told(receipt.offset)
        assert told == ["confirmed1"] + ["pending", "confirmed1!"] * 8
        assert (await node.now(receipt.offset)).block_hash not in [block for _, _, block, _ in orphans]


async def test_a_reorg_before_the_next_depth_starts_over(tmp_path: Path) -> None:
    """Depth 3 is told once, after depth 1 was taken back and told again."""
    async with watching(tmp_path) as node:
        await node.define(depths=(1, 3))
        ((receipt, _),) = await node.publish_many(1)
        await node.settle()
        await node.mine(2)
        await node.chain.reorg(2, transactions="return")
        await node.settle()
        await node.mine(4)
        told = [line for line in await node.told(receipt.offset) if line != "mined"]
        assert told == ["confirmed1", "pending", "confirmed1!", "confirmed3"]


async def test_a_watcher_that_is_cut_between_two_writes_tells_everything_once(tmp_path: Path) -> None:
    """Cut before each of its writes in turn and opened anew, the engine leaves the same entries as one that ran through."""

    base, clock = tmp_path / "base", FixedClock()
    base.mkdir()
    async with watching(base, clock=clock) as node:
        await node.define(depths=(1, 2))
        made = await node.publish_many(3)
        await node.settle()
        await node.mine()
        await node.chain.reorg(1, transactions="remine")
    for writes in range(40):
        directory = tmp_path / str(writes)
        shutil.copytree(base, directory)
        is_cut = await watch_until(directory, clock, writes)
        async with watching(directory, clock=clock) as node:
            await node.settle()
            await node.mine(3)
            for receipt, _ in made:
                told = [line for line in await node.told(receipt.offset) if line != "mined"]
                assert told == ["confirmed1", "pending", "confirmed1!", "confirmed2"]
        if not is_cut:
            assert writes > 5
            return
    raise AssertionError("it never ran through")


class Cut(Exception):
    """The process ends here."""


async def watch_until(directory: Path, clock: FixedClock, writes: int) -> bool:
    """Looks at a reorg and at more blocks, but ends before a write; whether it came to that."""
    left = [writes]

    def cutting(original: Callable[..., Any]) -> Callable[..., Any]:
        async def call(*args: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise Cut
            return await original(*args)

        return call

    async with watching(directory, clock=clock) as node:
        for name in ("write", "append_statuses"):
            setattr(node.log, name, cutting(getattr(node.log, name)))
        with suppress(Cut):
            await node.settle()
            await node.mine(2)
        for name in ("write", "append_statuses"):
            delattr(node.log, name)
    return left[0] < 0


async def test_rows_refuse_moves_that_the_table_does_not_know(tmp_path: Path) -> None:
    """The guard in the database lets exactly the moves of the model's table through."""
    connection = sqlite3.connect(tmp_path / "rows.sqlite3", isolation_level=None)
    migrate(connection, (watch_tables.WATCH_FEATURE,))
    for number, (old, after) in enumerate(MOVES.items()):
        for place, new in enumerate(MOVES):
            offset = 100 * number + place + 1
            item_tables.insert_item(
                connection, item_tables.NewItem(offset, offset, b"s" * 32, b"c" * 32, None, None, old, 1)
            )
            update = ("UPDATE chain_item SET state = ? WHERE offset = ?", (new, offset))
            if new in after or new == old:
                connection.execute(*update)
            else:
                with pytest.raises(sqlite3.IntegrityError, match="no such move"):
                    connection.execute(*update)
    connection.close()

"""Whatever the chain does, the entries of a packet are a walk through the table of moves, and none is told twice."""

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import trio
from chain_rig import FixedClock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from watch_rig import Node, watching

from overlayd.model.confirmation import AGAIN, FINAL_STATES, MOVES, ConfirmationState, check_move
from overlayd.model.errors import RegtestRefused

ACTS = st.one_of(
    st.tuples(st.just("publish"), st.integers(1, 3)),
    st.tuples(st.just("mine"), st.integers(1, 2)),
    st.tuples(st.just("reorg"), st.tuples(st.integers(1, 4), st.sampled_from(["return", "remine", "drop"]))),
    st.tuples(st.just("drop"), st.integers(0, 5)),
    st.tuples(st.just("restart"), st.none()),
)


async def act(node: Node, made: list[Any], what: str, value: Any) -> None:
    """One thing happens, and the watcher looks."""
    if what == "publish":
        made += await node.publish_many(value)
    elif what == "mine":
        await node.chain.mine(value)
    elif what == "reorg":
        await node.chain.reorg(value[0], transactions=value[1])
    elif what == "drop" and made:
        with contextlib.suppress(RegtestRefused):
            await node.chain.drop(made[value % len(made)][1].txid)
    await node.settle()


async def play(base: Path, acts: list[tuple[str, Any]], order: str) -> None:
    """Plays a history and looks at its entries."""
    with tempfile.TemporaryDirectory() as name:
        directory, clock = Path(name) / "data", FixedClock()
        shutil.copytree(base, directory)
        made: list[Any] = []
        runs: list[list[tuple[str, Any]]] = [[]]
        for one in acts:
            runs[-1].append(one) if one[0] != "restart" else runs.append([])
        coins = None
        for number, run in enumerate(runs):
            async with watching(directory, clock=clock) as node:
                if not number:
                    await node.define(depths=(1, 3), order=order)
                    await node.coin()
                    await node.chain.mine(5)  # so that no reorg takes the coins themselves
                    coins = node.coins
                assert coins is not None
                node.coins = coins
                for what, value in run:
                    await act(node, made, what, value)
                if number == len(runs) - 1:
                    await node.settle()
                    await node.mine(4)
                    await check(node, made, order)


async def check(node: Node, made: list[Any], order: str) -> None:
    """Every packet ended up confirmed at both depths, by moves of the table, each depth told anew once."""
    entries = await node.entries()
    for receipt, _ in made:
        state: ConfirmationState = "pending"
        firsts: list[int | None] = []
        for entry, body in entries:
            if entry.target_from != receipt.offset:
                continue
            if body.state == "confirmed" and state in ("pending", "seen"):
                check_move(state, "mined")
                state = "mined"
            if body.state == "pending" and state == "pending":
                # Taken back before anybody was told that it was mined.
                check_move(state, "mined")
                state = "mined"
            if body.state != state:
                check_move(state, body.state)
            state = body.state
            if body.state == "confirmed" and body.reason != AGAIN:
                firsts.append(body.depth)
        assert firsts == [1, 3]
        now = await node.now(receipt.offset)
        assert (now.state, now.depth, state) == ("confirmed", 3, "confirmed")
    if order == "sequence":
        told = [
            entry.target_from
            for entry, body in entries
            if body.depth == 1 and body.state == "confirmed" and not body.reason
        ]
        assert told == sorted(told)
    assert await node.settled(3) == node.log.head


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=st.lists(ACTS, min_size=3, max_size=9), order=st.sampled_from(["sequence", "confirmation"]))
def test_any_history_is_a_walk_through_the_moves(tmp_path: Path, acts: list[tuple[str, Any]], order: str) -> None:
    """Packets, blocks, reorgs, lost transactions and restarts in any order; the end is the same for every packet."""
    base = tmp_path / "base"
    if not base.exists():

        async def make() -> None:
            base.mkdir()
            async with watching(base, clock=FixedClock()):
                pass

        trio.run(make)
    trio.run(play, base, acts, order)


@given(st.lists(st.sampled_from(sorted(MOVES)), max_size=30))
def test_moves_only_lead_where_the_table_says(wanted: list[ConfirmationState]) -> None:
    """From `none`, taking each wish that is allowed: a block is left only by a reorg, an end only by a proof."""
    state: ConfirmationState = "none"
    for new in wanted:
        if new not in MOVES[state]:
            continue
        if state in FINAL_STATES:
            assert new == "mined"
        if state in ("mined", "confirmed"):
            assert new in ("confirmed", "pending")
        if new == "confirmed":
            assert state in ("mined", "confirmed")
        assert new != "none"
        state = new

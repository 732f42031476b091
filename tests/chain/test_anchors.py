"""Batch anchors: one transaction for everything since the last one, nothing for nothing, and what reorgs do to ranges."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import trio
from chain_rig import FixedClock
from trio.testing import MockClock
from watch_rig import STREAM, Node, watching

from overlayd.bsv.anchor import AnchorKind, list_anchors
from overlayd.bsv.bump import parse_bump
from overlayd.bsv.header import parse_header
from overlayd.bsv.tx import parse_transaction
from overlayd.chain.anchorer import Anchorer
from overlayd.chain.engine_settings import AnchorSettings, WalletSettings
from overlayd.model.bodies import Heads, decode_node_body
from overlayd.model.confirmation import AnchorProof
from overlayd.model.entry import Z32, Kind, heads_root
from overlayd.model.merkle import verify_inclusion
from overlayd.model.metrics import Metrics
from overlayd.model.names import StreamName
from overlayd.model.note import CheckpointText
from overlayd.model.units import Duration

POOL = WalletSettings(pool_coins=1)


async def prove(node: Node, offset: int) -> AnchorProof:
    """The proof on the chain of a packet of the batch stream."""
    stream = node.log.find_stream(STREAM)
    assert stream is not None
    proof = await node.reads.proof_of(stream.stream_hash, stream.definition.confirm, offset)
    assert proof is not None
    return proof


async def test_one_anchor_covers_everything_since_the_last(tmp_path: Path) -> None:
    """A range from the first offset to the checkpoint's size, confirmed by one entry; each packet's proof leads from its
    leaf to the anchored root, from that to the output, and from the transaction to our block."""
    async with watching(tmp_path, wallet=POOL) as node:
        await node.define(commit="batch", depths=(1, 2))
        await node.fund()
        receipts = await node.append(300)
        assert await node.engine.anchorer.anchor()
        await node.settle()
        await node.mine(3)
        entries = await node.entries()
        assert [(entry.target_from, body.state, body.depth) for entry, body in entries] == [
            (1, "confirmed", 1), (1, "confirmed", 2),
        ]  # fmt: skip
        entry, body = entries[0]
        assert entry.stream_hash == Z32
        assert entry.target_to == body.anchor_size >= receipts[-1].offset
        assert {(await node.now(receipt.offset)).state for receipt in receipts[::50]} == {"confirmed"}
        assert await node.settled(2) >= receipts[-1].offset
        proof = await prove(node, receipts[123].offset)
        text = CheckpointText.parse("\n".join(proof.checkpoint.split("\n")[:3]) + "\n")
        path = await node.log.inclusion_path(receipts[123].offset - 1, proof.size)
        verify_inclusion(receipts[123].leaf, receipts[123].offset - 1, proof.size, path, text.root)
        tx = parse_transaction(proof.raw_tx)
        ((place, anchor),) = list_anchors(tx)
        assert (place, anchor.kind) == (proof.output_index, AnchorKind.CHECKPOINT)
        assert anchor.hash == sha256(str(text).encode()).digest()
        parse_bump(proof.bump).verify(tx.txid, parse_header(proof.header).merkle_root)


async def test_heads_are_written_before_each_anchor(tmp_path: Path) -> None:
    """The entry states each stream's last packet at its size, and the anchored checkpoint covers it."""
    async with watching(tmp_path, wallet=POOL) as node:
        await node.define(commit="batch")
        await node.define(StreamName("other"), commit="none")
        await node.fund()
        (first,) = await node.append()
        (second,) = await node.append(name=StreamName("other"))
        await node.engine.anchorer.anchor()
        page = (await node.log.read_page(0)).entries
        nodes = [(entry.offset, decode_node_body(entry.body)) for entry in page if entry.kind == Kind.NODE]
        ((offset, heads),) = [(offset, body) for offset, body in nodes if isinstance(body, Heads)]
        rows = [
            ((await node.log.read_entry(receipt.offset)).stream_hash, receipt.sequence, receipt.leaf)
            for receipt in (first, second)
        ]
        assert (heads.size, heads.streams, heads.root) == (offset - 1, 2, "sha256:" + heads_root(rows).hex())
        stored = await node.log.read(lambda c: c.execute("SELECT size FROM chain_anchor").fetchall())
        assert stored[0][0] >= offset


async def test_an_idle_node_pays_once(tmp_path: Path) -> None:
    """One packet, then a hundred intervals with blocks and status entries: exactly one transaction, and nothing more."""
    async with watching(tmp_path, wallet=POOL) as node:
        await node.define(commit="batch", depths=(1, 4))
        await node.fund()
        await node.append()
        for number in range(101):
            assert await node.engine.anchorer.anchor()
            await node.settle()
            if number % 20 == 0:
                await node.mine()
        assert await node.told() == ["1 confirmed1", "1 confirmed4"]
        roles = [line.role for line in await node.wallet.read_history(1 << 62, 100)]
        assert roles.count("anchor") == 1


async def test_packets_that_wait_are_known_after_a_restart(tmp_path: Path) -> None:
    """That there is an unanchored packet is known from the disk."""
    clock = FixedClock()
    async with watching(tmp_path, clock=clock, wallet=POOL) as node:
        await node.define(commit="batch")
        await node.fund()
        assert not await node.engine.anchorer.is_waiting()
        await node.append()
    async with watching(tmp_path, clock=clock, wallet=POOL) as node:
        assert await node.engine.anchorer.is_waiting()
        assert await node.engine.anchorer.anchor()
        assert not await node.engine.anchorer.is_waiting()


class Schedule:
    """An anchorer whose packets and anchors are counted in memory."""

    def __init__(self, **settings: Any) -> None:
        nothing: Any = None
        self.anchorer = Anchorer(nothing, nothing, nothing, AnchorSettings(**settings), FixedClock(), Metrics(), print)
        self.anchorer.is_waiting = self.is_waiting  # type: ignore[method-assign]
        self.anchorer.anchor = self.anchor  # type: ignore[method-assign]
        self.packets = 0
        self.anchored_at: list[float] = []
        self.can_pay = True

    async def is_waiting(self) -> bool:
        await trio.lowlevel.checkpoint()
        return self.packets > 0

    async def anchor(self) -> bool:
        await trio.lowlevel.checkpoint()
        if self.can_pay:
            self.anchored_at.append(trio.current_time())
            self.packets = 0
        return self.can_pay

    def publish(self, count: int = 1) -> None:
        self.packets += count
        self.anchorer.note_packets(count, self.packets)


async def test_the_interval_counts_from_the_first_packet_that_waits(autojump_clock: MockClock) -> None:
    """Nothing is anchored while nothing waits; then once an interval, whatever comes in between."""
    schedule = Schedule(anchor_interval=Duration(600))
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(schedule.anchorer.run)
        await trio.sleep(5000)
        schedule.publish()
        await trio.sleep(500)
        schedule.publish(3)
        await trio.sleep(60_000)
        nursery.cancel_scope.cancel()
    assert [moment - start for moment in schedule.anchored_at] == [5600]


async def test_many_packets_are_anchored_before_the_time(autojump_clock: MockClock) -> None:
    """With `anchor_packets` waiting nobody waits for the interval."""
    schedule = Schedule(anchor_interval=Duration(1e6), anchor_packets=10)
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(schedule.anchorer.run)
        await trio.sleep(1)
        schedule.publish(9)
        await trio.sleep(100)
        schedule.publish(1)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert [moment - start for moment in schedule.anchored_at] == [101]


async def test_what_could_not_be_paid_is_tried_again(autojump_clock: MockClock) -> None:
    """An empty wallet is looked at again, and the anchor made once it can be paid."""
    schedule = Schedule(anchor_interval=Duration(10))
    schedule.can_pay = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(schedule.anchorer.run)
        schedule.publish()
        await trio.sleep(1000)
        assert schedule.anchored_at == []
        schedule.can_pay = True
        await trio.sleep(100)
        assert len(schedule.anchored_at) == 1
        nursery.cancel_scope.cancel()


async def test_an_empty_wallet_makes_no_entries(tmp_path: Path) -> None:
    """Without a coin nothing is written, however often it is tried; the packets say why they wait."""
    async with watching(tmp_path) as node:
        await node.define(commit="batch")
        (receipt,) = await node.append()
        head = node.log.head
        for _ in range(3):
            assert not await node.engine.anchorer.anchor()
        assert node.log.head == head
        now = await node.now(receipt.offset)
        assert now.state == "pending"
        assert node.wallet.address in now.reason


async def test_an_anchor_that_a_reorg_took_back_is_broadcast_again(tmp_path: Path) -> None:
    """The range returns to pending and is confirmed again, by the same transaction; that costs nothing."""
    async with watching(tmp_path, wallet=POOL) as node:
        await node.define(commit="batch")
        await node.fund()
        (receipt,) = await node.append()
        await node.engine.anchorer.anchor()
        await node.settle()
        await node.mine(2)
        txid = (await node.now(receipt.offset)).txid
        await node.chain.reorg(2, transactions="drop")
        await node.settle()
        assert (await node.now(receipt.offset)).state in ("pending", "seen")
        assert await node.engine.anchorer.anchor()
        await node.mine(2)
        assert await node.told() == ["1 confirmed1", "1 pending", "1 confirmed1!"]
        assert (await node.now(receipt.offset)).txid == txid


async def test_a_conflicted_anchor_joins_the_next_one(tmp_path: Path) -> None:
    """Its range is covered by the next anchor, beside the new range; who was told before is told that it is again."""
    async with watching(tmp_path, wallet=POOL) as node:
        await node.define(commit="batch")
        await node.fund()
        (first,) = await node.append()
        await node.engine.anchorer.anchor()
        await node.settle()
        await node.mine()
        lost = (await node.now(first.offset)).txid
        await node.chain.reorg(1, transactions="return")
        await node.chain.double_spend(lost, [node.wallet._key._key._key])
        await node.settle()
        await node.mine(7)
        assert (await node.now(first.offset)).txid is None
        (second,) = await node.append()
        assert await node.engine.anchorer.anchor()
        await node.settle()
        await node.mine()
        now = [await node.now(receipt.offset) for receipt in (first, second)]
        assert {one.state for one in now} == {"confirmed"}
        assert now[0].txid == now[1].txid != lost
        told = await node.told()
        assert told[:2] == ["1 confirmed1", "1 pending"]
        assert [line.partition(" ")[2] for line in told[2:]] == ["confirmed1!", "confirmed1"]
        assert (await prove(node, first.offset)).size >= second.offset


@pytest.mark.parametrize("count", [10_000, pytest.param(1_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
async def test_many_packets_add_a_few_entries(tmp_path: Path, count: int) -> None:
    """However many packets an anchor covers, it adds the heads, and one entry per depth."""
    async with watching(tmp_path, wallet=POOL) as node:
        await node.define(commit="batch", depths=(1, 3, 6))
        await node.fund()
        for _ in range(count // 1000):
            await node.append(1000)
        head = node.log.head
        await node.engine.anchorer.anchor()
        await node.settle()
        await node.mine(8)
        assert node.log.head - head == 1 + 3

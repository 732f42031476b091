"""What the chain's tables hold of packets that are gone goes, once nothing can happen to their confirmations any more."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from chain_rig import FixedClock
from watch_rig import STREAM, Node, keep_books, watching

from overlayd.chain import clearing
from overlayd.chain.engine_settings import WalletSettings
from overlayd.model.draft import Receipt
from overlayd.model.names import StreamName
from overlayd.storage import Stream

POOL = WalletSettings(pool_coins=8, coin_sat=2000, alarm_sat=0)
TABLES = ("chain_item", "chain_tx", "chain_coin", "chain_orphan")


@pytest.fixture(autouse=True)
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three blocks settle a confirmation, and slices are of four packets."""
    monkeypatch.setattr(clearing, "SETTLED_BLOCKS", 3)
    monkeypatch.setattr(clearing, "PACKETS_AT_ONCE", 4)


def stream_of(node: Node, name: StreamName = STREAM) -> Stream:
    """One that is there."""
    stream = node.log.find_stream(name)
    assert stream is not None
    return stream


async def take_away(node: Node, receipts: Sequence[Receipt]) -> None:
    """As retention does, up to the last of some packets."""
    await node.log.reduce(stream_of(node), receipts[0].offset, receipts[-1].offset, "retention")


async def clear(node: Node) -> None:
    """Until there is nothing more to clear."""
    node.watcher.clearing.ask()
    while await node.watcher.clearing.step():
        pass


async def count(node: Node) -> dict[str, int]:
    """Rows by table."""
    return await node.log.read(
        lambda c: {table: c.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES}
    )


async def offsets_of(node: Node) -> list[int]:
    """The packets that the tables know."""
    return await node.log.read(
        lambda c: [offset for (offset,) in c.execute("SELECT offset FROM chain_item WHERE NOT is_range ORDER BY 1")]
    )


async def test_growth_is_bounded_by_what_is_kept(tmp_path: Path) -> None:
    """Round after round of packets, brought and paid for, confirmed and then taken away: the tables stay as they were, and
    the wallet's books are in order."""
    async with watching(tmp_path, wallet=POOL) as node:
        await node.define()
        await node.fund(2)
        counts = []
        for _ in range(4):
            receipts = [receipt for receipt, _ in await node.publish_many(2)] + await node.append(3)
            await node.engine.payer.pay_all()
            await node.settle()
            await node.mine(4)
            assert all([(await node.now(receipt.offset)).state == "confirmed" for receipt in receipts])
            await take_away(node, receipts)
            await clear(node)
            assert await offsets_of(node) == []
            counts.append(await count(node))
        assert counts[-1]["chain_tx"] <= counts[1]["chain_tx"] + 1
        assert counts[-1]["chain_coin"] <= counts[1]["chain_coin"] + 1
        assert counts[-1]["chain_orphan"] == 0
        assert node.metrics.registry.get_sample_value("overlayd_chain_cleared_total") == 4 * 5
    keep_books(tmp_path)
    async with watching(tmp_path, wallet=POOL) as node:
        (receipt,) = await node.append()
        await node.engine.payer.pay_all()
        await node.settle()
        await node.mine()
        assert (await node.now(receipt.offset)).state == "confirmed"
    keep_books(tmp_path)


async def test_what_is_kept_or_may_change_stays(tmp_path: Path) -> None:
    """A packet that is kept, however old, and one that is gone in a block that may still be left."""
    async with watching(tmp_path) as node:
        await node.define(depths=(1, 3))
        old = [receipt for receipt, _ in await node.publish_many(6)]
        await node.settle()
        await node.mine(2)
        await take_away(node, old[:5])
        await clear(node)
        assert len(await offsets_of(node)) == 6, "depth 3 isn't told"
        await node.mine()
        await clear(node)
        assert len(await offsets_of(node)) == 6, "told, but not deep"
        await node.mine()
        await clear(node)
        assert await offsets_of(node) == [old[5].offset]
        assert await node.reads.proof_of(stream_of(node).stream_hash, stream_of(node).definition.confirm, old[5].offset)
        await node.chain.reorg(4)
        await node.settle()
        await node.mine(4)
        assert (await node.now(old[5].offset)).state == "confirmed"
        assert [line for line in await node.told(old[5].offset) if line.startswith("confirmed")] == [
            "confirmed1", "confirmed3", "confirmed1!", "confirmed3!",
        ]  # fmt: skip


async def test_what_went_between_packets_that_are_kept_is_found(tmp_path: Path) -> None:
    """As behind one under a legal hold; again when more of them go, and once a block is deep enough."""
    async with watching(tmp_path) as node:
        await node.define()
        made = [receipt for receipt, _ in await node.publish_many(12)]
        await node.settle()
        await node.mine(4)
        await take_away(node, made[2:7])
        await clear(node)
        assert await offsets_of(node) == [one.offset for one in made[:2] + made[7:]]
        late = [receipt for receipt, _ in await node.publish_many(2)]
        await node.settle()
        await node.mine(1)
        await take_away(node, [made[8], made[9]])
        await take_away(node, late[:1])
        await clear(node)
        left = [*made[:2], made[7], *made[10:]]
        assert await offsets_of(node) == [one.offset for one in left + late]
        await node.mine(3)
        await clear(node)
        assert await offsets_of(node) == [one.offset for one in left + late[1:]]


async def test_what_was_never_paid_for_is_not_paid_once_it_is_gone(tmp_path: Path) -> None:
    """The wallet was empty for longer than the packets were kept; those that are left are paid for."""
    async with watching(tmp_path, wallet=POOL) as node:
        await node.define()
        receipts = await node.append(6)
        assert await node.engine.payer.pay_all()
        await take_away(node, receipts[:5])
        await clear(node)
        assert await offsets_of(node) == [receipts[5].offset]
        await node.fund()
        assert not await node.engine.payer.pay_all()
        await node.settle()
        await node.mine()
        assert await node.told() == [f"{receipts[5].offset} confirmed1"]
        assert await node.settled() == node.log.head


async def test_packets_of_a_deleted_stream_go(tmp_path: Path) -> None:
    """Confirmed ones once they are deep, those that wait for a transaction at once."""
    async with watching(tmp_path) as node:
        await node.define()
        await node.publish_many(3)
        await node.settle()
        await node.mine(4)
        await node.append(2)
        await node.log.delete_stream(STREAM)
        await node.settle()
        await clear(node)
        assert await offsets_of(node) == []
        assert (await count(node))["chain_tx"] == 0


async def test_a_deposit_told_twice_is_no_new_money(tmp_path: Path) -> None:
    """Its coins were spent for packets that are long gone."""
    async with watching(tmp_path, wallet=POOL) as node:
        await node.define()
        deposit = await node.fund(2, satoshis=3000)
        receipts = await node.append(4)
        while await node.engine.payer.pay_all():
            await node.mine()
        await node.settle()
        await node.mine(5)
        await take_away(node, receipts)
        await clear(node)
        before = await node.wallet.read_balance()
        await node.wallet.receive(deposit.raw)
        assert await node.wallet.read_balance() == before
    keep_books(tmp_path)


async def test_packets_that_failed_go_once_nobody_is_asked_about_them(tmp_path: Path) -> None:
    """A proof may still come for a week of blocks."""
    clock = FixedClock()
    async with watching(tmp_path, clock=clock) as node:
        await node.define(timeout_blocks=1)
        ((receipt, _),) = await node.publish_many(1, is_named=True)
        await node.settle()
        await node.mine(3)
        assert await node.told(receipt.offset) == ["dropped"]
        await take_away(node, [receipt])
        await clear(node)
        assert await offsets_of(node) == [receipt.offset]
        await node.log.write(lambda c: c.execute("UPDATE chain_tx SET is_open = 0"))
        await clear(node)
        assert await count(node) == dict.fromkeys(TABLES, 0)

"""The watcher on the embedded chain: what it tells of packets with a transaction of their own, and what it doesn't."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from watch_rig import STREAM, watching

from overlayd.chain import item_tables
from overlayd.chain.engine_settings import WatchSettings
from overlayd.model.chain_source import SourceState, SourceStatus
from overlayd.model.errors import SourceUnavailable
from overlayd.model.txid import TxId


async def test_a_packet_is_broadcast_seen_mined_and_confirmed_once(tmp_path: Path) -> None:
    """A transaction that came with its packet reaches the chain; its confirmation is one entry, at the listed depth."""
    async with watching(tmp_path) as node:
        await node.define()
        receipt, tx = await node.publish()
        assert (await node.now(receipt.offset)).state == "pending"
        await node.settle()
        assert (await node.chain.look_up([tx.txid]))[0].state is SourceState.SEEN
        assert (await node.now(receipt.offset)).state == "seen"
        assert await node.told() == []
        await node.mine(3)
        ((entry, body),) = await node.entries()
        assert (body.state, body.depth, body.txid, body.vout) == ("confirmed", 1, tx.txid[::-1].hex(), 0)
        assert (entry.target_from, entry.target_to, entry.stream_hash) == (
            receipt.offset, receipt.offset, node.log.find_stream(STREAM).stream_hash,
        )  # fmt: skip
        now = await node.now(receipt.offset)
        assert (now.state, now.confirmations, now.depth, now.height) == ("confirmed", 3, 1, body.height)


@pytest.mark.parametrize("is_stepped", [True, False], ids=["each-block", "at-once"])
async def test_every_listed_depth_is_told_once_and_in_order(tmp_path: Path, is_stepped: bool) -> None:
    """With depths 1, 3 and 6 three entries come, whether blocks are seen one by one or all after an absence."""
    async with watching(tmp_path) as node:
        await node.define(depths=(6, 1, 3))
        receipt, _ = await node.publish()
        await node.settle()
        if is_stepped:
            await node.mine(8)
        else:
            await node.chain.mine(8)
            await node.settle()
        assert await node.told(receipt.offset) == ["confirmed1", "confirmed3", "confirmed6"]


async def test_a_packet_ready_early_waits_for_its_turn(tmp_path: Path) -> None:
    """In sequence, the third packet stays mined until the second, which nobody mined yet, is confirmed."""
    async with watching(tmp_path) as node:
        await node.define()
        first, second, third = await node.publish_many(3)
        await node.settle()
        await node.chain.drop(second[1].txid)
        await node.chain.mine()
        await node.settle()
        assert await node.told() == [f"{first[0].offset} confirmed1", f"{third[0].offset} mined"]
        assert (await node.now(third[0].offset)).state == "mined"
        assert await node.settled() == first[0].offset
        await node.mine(2)
        assert await node.told() == [
            f"{first[0].offset} confirmed1", f"{third[0].offset} mined", f"{second[0].offset} confirmed1",
            f"{third[0].offset} confirmed1",
        ]  # fmt: skip
        assert await node.settled() == node.log.head


async def test_order_of_confirmation_does_not_wait(tmp_path: Path) -> None:
    """With `order: confirmation` packets are told as blocks hold them."""
    async with watching(tmp_path) as node:
        await node.define(order="confirmation")
        first, second = await node.publish_many(2)
        await node.settle()
        await node.chain.drop(first[1].txid)
        await node.mine()
        assert await node.told() == [f"{second[0].offset} confirmed1"]
        await node.mine(2)
        assert await node.told() == [f"{second[0].offset} confirmed1", f"{first[0].offset} confirmed1"]


async def test_a_packet_that_nobody_knows_is_dropped_in_its_turn(tmp_path: Path) -> None:
    """A name that no source knows for `timeout_blocks` is dropped; those behind it then have their turn."""
    async with watching(tmp_path) as node:
        await node.define(timeout_blocks=5)
        named, _ = await node.publish(is_named=True)
        later, _ = await node.publish()
        await node.settle()
        await node.mine(4)
        assert await node.told() == [f"{later.offset} mined"]
        await node.mine(2)
        assert await node.told() == [f"{later.offset} mined", f"{named.offset} dropped", f"{later.offset} confirmed1"]
        assert (await node.now(named.offset)).state == "dropped"
        assert await node.settled() == node.log.head


async def test_a_dropped_packet_is_confirmed_late(tmp_path: Path) -> None:
    """A proof that comes after all still confirms, and says that it is late."""
    async with watching(tmp_path) as node:
        await node.define(timeout_blocks=2)
        ((receipt, tx),) = await node.publish_many(1, is_named=True)
        await node.mine(4)
        assert await node.told() == [f"{receipt.offset} dropped"]
        made = node.unsent[tx.txid]
        await node.send(made)
        await node.mine()
        entries = await node.entries()
        assert [(body.state, body.late) for _, body in entries] == [("dropped", False), ("confirmed", True)]
        assert (await node.now(receipt.offset)).late


async def test_a_name_is_not_confirmed_before_its_bytes_were_checked(tmp_path: Path) -> None:
    """A transaction that was only named is fetched; one that commits to something else fails its packet."""
    async with watching(tmp_path) as node:
        await node.define()
        good, tx = await node.publish(is_named=True)
        bad, other = await node.publish(is_named=True, commits=False)
        for txid in (tx.txid, other.txid):
            await node.send(node.unsent[txid])
        await node.mine(2)
        assert await node.told() == [f"{good.offset} confirmed1", f"{bad.offset} failed"]
        assert "commit" in (await node.now(bad.offset)).reason


async def test_a_double_spend_is_a_reason_until_it_is_deep(tmp_path: Path) -> None:
    """A conflicting spend fails the packet only once a proof of it is six blocks deep."""
    async with watching(tmp_path) as node:
        await node.define()
        receipt, tx = await node.publish()
        await node.settle()
        await node.chain.double_spend(tx.txid, [node.key])
        node.watcher.hint_all()
        await node.settle()
        now = await node.now(receipt.offset)
        assert now.state in ("pending", "seen")
        assert "double spend" in now.reason
        await node.mine(5)
        assert await node.told() == []
        await node.mine()
        ((_, body),) = await node.entries()
        assert body.state == "failed"
        assert "spends the same coins" in body.reason


async def test_verbose_streams_hear_of_everything(tmp_path: Path) -> None:
    """With `verbose`, the first pending and being seen are entries, too."""
    async with watching(tmp_path) as node:
        await node.define(verbose=True, depths=(2,))
        receipt, _ = await node.publish()
        await node.settle()
        await node.mine(2)
        assert await node.told(receipt.offset) == ["pending", "seen", "mined", "confirmed2"]


async def test_a_depth_that_is_added_is_told_of_older_packets(tmp_path: Path) -> None:
    """Packets that were told at every listed depth are told at one that is listed later, in order."""
    async with watching(tmp_path) as node:
        await node.define()
        made = await node.publish_many(3)
        await node.settle()
        await node.mine(3)
        await node.define(depths=(1, 2, 5))
        await node.settle()
        offsets = [receipt.offset for receipt, _ in made]
        assert (await node.told())[3:] == [f"{offset} confirmed2" for offset in offsets]
        await node.mine(2)
        assert (await node.told())[6:] == [f"{offset} confirmed5" for offset in offsets]


async def test_hints_beyond_their_bound_become_one_look_at_everything(tmp_path: Path) -> None:
    """Too many hints are no loss: all that is open is asked about instead, and the hit is counted."""
    async with watching(tmp_path, watch=WatchSettings(hints_max=3)) as node:
        await node.define()
        ((receipt, _),) = await node.publish_many(1)
        await node.settle()
        await node.chain.mine()
        await node.book.follow(node.chain)
        for number in range(4):
            node.watcher.hint(TxId(bytes([number]) * 32))
        hits = node.metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": "hints_max"})
        assert hits == 1
        assert await node.watcher.step()
        assert (await node.now(receipt.offset)).state == "confirmed"


async def test_a_hint_is_looked_at_without_a_block(tmp_path: Path) -> None:
    """One transaction is asked about when a source hints at it, and nothing else is."""
    async with watching(tmp_path) as node:
        await node.define()
        named, other = await node.publish_many(2, is_named=True)
        await node.settle()
        asked: list[int] = []
        look_up = node.chain.look_up

        async def counting(txids: Sequence[TxId]) -> list[SourceStatus]:
            asked.append(len(txids))
            return await look_up(txids)

        node.chain.look_up = counting  # type: ignore[method-assign]
        await node.send(node.unsent[named[1].txid])
        node.watcher.hint(named[1].txid)
        assert await node.watcher.step()
        assert asked == [1]
        assert (await node.now(named[0].offset)).state == "seen"
        assert (await node.now(other[0].offset)).state == "pending"


async def test_a_source_that_is_away_holds_nothing_back_but_answers(tmp_path: Path) -> None:
    """What our own headers say is told all the same; the rest is tried again."""
    async with watching(tmp_path) as node:
        await node.define(depths=(1, 2))
        ((receipt, _),) = await node.publish_many(1)
        await node.settle()
        await node.mine()
        look_up, submit = node.chain.look_up, node.chain.submit

        async def away(*_: object) -> list[SourceStatus]:
            raise SourceUnavailable("gone", subject="source regtest")

        node.chain.look_up = node.chain.submit = away  # type: ignore[method-assign]
        ((late, _),) = await node.publish_many(1)
        await node.chain.mine()
        await node.book.follow(node.chain)
        assert not await node.watcher.step()
        assert await node.told(receipt.offset) == ["confirmed1", "confirmed2"]
        node.chain.look_up, node.chain.submit = look_up, submit  # type: ignore[method-assign]
        await node.settle()
        await node.mine()
        assert (await node.now(late.offset)).state == "confirmed"


async def test_a_deleted_stream_waits_for_nothing(tmp_path: Path) -> None:
    """Its packets' transactions may come into blocks; nobody is told of them any more."""
    async with watching(tmp_path) as node:
        await node.define()
        await node.publish()
        await node.settle()
        await node.log.delete_stream(STREAM)
        await node.mine(2)
        assert await node.told() == []
        assert await node.log.read(item_tables.read_open_streams) == []


async def test_who_cannot_be_sent_to_is_asked_all_the_same(tmp_path: Path) -> None:
    """With nobody to broadcast to, what others broadcast is found and confirmed."""
    async with watching(tmp_path) as node:
        await node.define(order="confirmation")
        ((unsent, _),) = await node.publish_many(1)
        ((receipt, tx),) = await node.publish_many(1)
        await node.send(node.unsent[tx.txid])
        await node.chain.mine()
        await node.book.follow(node.chain)
        submit = node.chain.submit

        async def away(*_: object) -> list[SourceStatus]:
            raise SourceUnavailable("nobody broadcasts", subject="sources")

        node.chain.submit = away  # type: ignore[method-assign]
        assert not await node.watcher.step()
        assert await node.told() == [f"{receipt.offset} confirmed1"]
        node.chain.submit = submit  # type: ignore[method-assign]
        await node.settle()
        await node.mine()
        assert (await node.now(unsent.offset)).state == "confirmed"

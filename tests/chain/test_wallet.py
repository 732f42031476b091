"""The wallet: packets that came without a transaction get one, coins are neither lost nor spent twice, and bounds hold."""

from pathlib import Path
from typing import Any

import pytest
import trio
from watch_rig import Node, watching

from overlayd.bsv.anchor import AnchorKind, list_anchors
from overlayd.bsv.tx import OutPoint, parse_transaction
from overlayd.chain import watch_tables
from overlayd.chain.engine_settings import WalletSettings
from overlayd.model.chain_source import SourcePolicy, SourceState, SourceStatus
from overlayd.model.errors import SignerUnavailable, WalletRefused
from overlayd.model.meta import COMMITMENT_NODE, decode_meta


async def test_a_packet_without_a_transaction_is_paid_for(tmp_path: Path) -> None:
    """Its commitment is over what is stored, with its own salt, and its transaction holds exactly that."""
    async with watching(tmp_path) as node:
        await node.define()
        await node.fund()
        (receipt,) = await node.append()
        assert not await node.engine.payer.pay_all()
        await node.settle()
        await node.mine()
        assert await node.told(receipt.offset) == ["confirmed1"]
        entry = await node.log.read_entry(receipt.offset)
        assert decode_meta(entry.meta).commitment_form == COMMITMENT_NODE
        assert entry.commitment == receipt.commitment
        stream = node.log.list_streams()[0]
        proof = await node.reads.proof_of(stream.stream_hash, stream.definition.confirm, receipt.offset)
        ((place, anchor),) = list_anchors(parse_transaction(proof.raw_tx))
        assert (place, anchor.kind, anchor.hash) == (proof.output_index, AnchorKind.COMMITMENT, entry.commitment)
        assert proof.network == "regtest"


async def test_an_empty_wallet_keeps_packets_waiting_with_the_reason(tmp_path: Path) -> None:
    """Publishing goes on; once there are coins, all that waited is paid for, in order."""
    async with watching(tmp_path) as node:
        await node.define()
        receipts = await node.append(30)
        assert await node.engine.payer.pay_all()
        await node.settle()
        now = await node.now(receipts[0].offset)
        assert now.state == "pending"
        assert node.wallet.address in now.reason
        await node.append()
        await node.fund(40)
        assert not await node.engine.payer.pay_all()
        await node.settle()
        await node.mine()
        assert await node.told() == [f"{receipt.offset} confirmed1" for receipt in receipts] + [
            f"{receipts[-1].offset + 1} confirmed1"
        ]


class LentKey:
    """The wallet's key on a token that may be away."""

    is_quick = can_derive = False

    def __init__(self, key: Any) -> None:
        self._key = key
        self.public_key = key.public_key
        self.trouble = ""
        self.is_away = True

    def sign_digest(self, digest: bytes, tweak: bytes = b"") -> bytes:
        self.trouble = "it was pulled out" if self.is_away else ""
        if self.is_away:
            raise SignerUnavailable(self.trouble, retry_after_s=5.0)
        signed: bytes = self._key.sign_digest(digest)
        return signed


async def test_a_key_that_is_away_keeps_packets_waiting_with_the_reason(tmp_path: Path) -> None:
    """Nothing is paid and nothing ends; once the token is back all that waited is paid for."""
    async with watching(tmp_path) as node:
        await node.define()
        await node.fund()
        lent: Any = LentKey(node.wallet._key._key)
        node.wallet._key._key = lent
        (receipt,) = await node.append()
        with pytest.raises(SignerUnavailable):
            await node.engine.payer.pay_all()
        assert "pulled out" in node.engine.describe()
        before = node.log.head
        assert await node.engine.payer.pay_all()
        assert not await node.engine.anchorer.anchor() or node.log.head == before
        assert "can't be reached" in node.wallet.why_not
        lent.is_away = False
        assert not await node.engine.payer.pay_all()
        await node.settle()
        await node.mine()
        assert await node.told(receipt.offset) == ["confirmed1"]


async def test_change_is_passed_on_only_so_often_before_a_block(tmp_path: Path) -> None:
    """With one coin and two unconfirmed steps, two packets are paid for, and the third waits for a block."""
    async with watching(tmp_path, wallet=WalletSettings(unconfirmed_max=1, pool_coins=1)) as node:
        await node.define()
        await node.fund(1)
        receipts = await node.append(5)
        assert await node.engine.payer.pay_all()
        await node.settle()
        await node.mine()
        assert len(await node.told()) == 2
        assert await node.engine.payer.pay_all()
        await node.settle()
        await node.mine()
        assert await node.told() == [f"{receipt.offset} confirmed1" for receipt in receipts[:4]]


async def test_a_pool_is_fanned_out_of_a_coin_in_a_block(tmp_path: Path) -> None:
    """A large coin becomes as many small ones as are missing; packets then don't wait for each other."""
    async with watching(tmp_path, wallet=WalletSettings(pool_coins=50, coin_sat=1000)) as node:
        await node.define()
        await node.fund(1, 10_000_000)
        made = await node.wallet.fan_out()
        assert made is not None
        assert sum(output.satoshis == 1000 for output in made.outputs) == 49
        await node.settle()
        await node.append(49)
        assert not await node.engine.payer.pay_all()
        await node.settle()
        await node.mine()
        assert len(await node.told()) == 49
        lines = await node.wallet.read_history(1 << 62, 100)
        spent = {item.outpoint for line in lines if line.role == "funded" for item in await inputs_of(node, line.txid)}
        assert spent == {OutPoint(made.txid, place) for place in range(49)}
        assert await node.wallet.fan_out() is None


async def inputs_of(node: Node, txid: Any) -> Any:
    """What one of the wallet's transactions spends."""
    (tx,) = await node.log.read(lambda c: watch_tables.find_txs(c, [txid]))
    return parse_transaction(tx.raw).inputs


async def test_fees_are_bounded_by_rate_and_day(tmp_path: Path) -> None:
    """Nothing is paid above the rate that is allowed, nor beyond the day's sum; the next day it goes on."""
    async with watching(tmp_path, wallet=WalletSettings(day_sat_max=5, fee_sat_per_kb_max=10, pool_coins=1)) as node:
        await node.define()
        await node.fund()
        await node.append(8)
        assert await node.engine.payer.pay_all()
        assert await node.wallet.read_fees_today() == 5
        assert "today" in node.wallet.why_not
        hits = node.metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": "day_sat_max"})
        assert hits
        node.clock.us += 86_400_000_000

        async def dear() -> SourcePolicy:
            return SourcePolicy(11, 1000, 1_000_000)

        node.chain.read_policy = dear  # type: ignore[method-assign]
        node.wallet._rate = None
        assert await node.engine.payer.pay_all()
        assert "11 satoshis" in node.wallet.why_not
        del node.chain.read_policy
        node.wallet._rate = None
        assert not await node.engine.payer.pay_all()
        assert await node.wallet.read_fees_today() == 3
        assert node.metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": "fee_sat_per_kb_max"})


async def test_a_low_balance_is_told_once(tmp_path: Path) -> None:
    """Below the alarm, a gauge says so, and a log line does, once."""
    async with watching(tmp_path, wallet=WalletSettings(alarm_sat=5000)) as node:
        await node.wallet.read_balance()
        assert node.metrics.registry.get_sample_value("overlayd_wallet_low") == 1
        await node.fund(2, 3000)
        balance = await node.wallet.read_balance()
        assert (balance.confirmed, balance.unconfirmed, balance.usable_coins) == (6000, 0, 2)
        assert node.metrics.registry.get_sample_value("overlayd_wallet_low") == 0


async def test_a_transaction_that_pays_nobody_here_is_refused(tmp_path: Path) -> None:
    """Only what pays the wallet's own address is taken note of."""
    async with watching(tmp_path) as node:
        tx, _ = await node.coin()
        with pytest.raises(WalletRefused, match=node.wallet.address):
            await node.wallet.receive(tx.raw.hex())


async def test_a_foreign_payment_is_spent_only_from_a_block(tmp_path: Path) -> None:
    """What somebody else broadcast may still be taken back; until a block holds it, it isn't spent."""
    async with watching(tmp_path) as node:
        await node.define()
        paid = await node.chain.pay(node.wallet.script, 100_000, 3)
        await node.wallet.receive(paid.raw)
        await node.append()
        assert await node.engine.payer.pay_all()
        await node.settle()
        await node.mine()
        assert not await node.engine.payer.pay_all()


async def test_a_conflicted_payment_is_made_anew_of_another_coin(tmp_path: Path) -> None:
    """When another spend of its coin is six blocks deep, the packet waits for another transaction, and gets it."""
    async with watching(tmp_path) as node:
        await node.define()
        await node.fund(3)
        (receipt,) = await node.append()
        await node.engine.payer.pay_all()
        await node.settle()
        first = (await node.now(receipt.offset)).txid
        await node.chain.double_spend(first, [node.wallet._key._key._key])
        node.watcher.hint_all()
        await node.settle()
        await node.mine(7)
        assert (await node.now(receipt.offset)).txid is None
        assert not await node.engine.payer.pay_all()
        await node.settle()
        await node.mine()
        now = await node.now(receipt.offset)
        assert now.state == "confirmed"
        assert now.txid != first
        assert await node.told(receipt.offset) == ["confirmed1"]


async def test_coins_that_sources_refuse_are_set_aside(tmp_path: Path) -> None:
    """A coin that somebody else spent with the same key is refused; after six blocks the packet is paid of another one."""
    async with watching(tmp_path, wallet=WalletSettings(pool_coins=1)) as node:
        await node.define()
        await node.fund(2)
        (receipt,) = await node.append()
        refused = node.chain.submit
        kept = node.chain.look_up

        async def submit(items: Any) -> Any:
            return [SourceStatus(item.txid, SourceState.REJECTED, "no") for item in items]

        async def look_up(txids: Any) -> Any:
            return [SourceStatus(txid, SourceState.REJECTED, "no") for txid in txids]

        node.chain.submit, node.chain.look_up = submit, look_up  # type: ignore[method-assign]
        await node.engine.payer.pay_all()
        await node.settle()
        await node.mine(7)
        assert (await node.now(receipt.offset)).txid is None
        node.chain.submit, node.chain.look_up = refused, kept  # type: ignore[method-assign]
        balance = await node.wallet.read_balance()
        assert balance.doubtful >= 100_000
        assert not await node.engine.payer.pay_all()
        await node.settle()
        await node.mine()
        assert (await node.now(receipt.offset)).state == "confirmed"


async def test_the_key_is_in_a_file_for_nobody_else(tmp_path: Path) -> None:
    """The wallet's key lies in `keys/wallet.key`, mode 0600, and the same address comes of it after a restart."""
    async with watching(tmp_path) as node:
        address = node.wallet.address
        path = tmp_path / "keys" / "wallet.key"
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.read_bytes().hex() not in repr(node.wallet._key._key)
    async with watching(tmp_path) as node:
        assert node.wallet.address == address


async def test_coins_that_a_block_holds_wake_the_payer(tmp_path: Path) -> None:
    """The block is known before the deposit's proof is: who looked for coins in between is told when they have come."""
    async with watching(tmp_path) as node:
        paid = await node.chain.pay(node.wallet.script, 100_000, 2)
        await node.wallet.receive(paid.raw)
        await node.settle()
        await node.chain.mine()
        await node.book.follow(node.chain)
        node.engine.payer._is_woken = trio.Event()
        await node.settle()
        assert node.engine.payer._is_woken.is_set()

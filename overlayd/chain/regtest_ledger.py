"""The embedded chain's rules, as statements on its file: what enters the mempool, blocks, reorgs.

Plain functions over a connection inside a transaction; regtest.py runs them in a thread.
"""

import sqlite3
from collections.abc import Sequence
from typing import Literal

from overlayd.bsv.blocktree import merkle_root
from overlayd.bsv.header import encode_header, parse_header
from overlayd.bsv.keys import PrivateKey
from overlayd.bsv.network import REGTEST
from overlayd.bsv.octets import U32_MAX
from overlayd.bsv.script import encode_push, lock_to_key, parse_p2pkh
from overlayd.bsv.spending import Spendable, build_spend, fee_of, is_final, verify_spending
from overlayd.bsv.tx import (
    NULL_OUTPOINT,
    TRANSACTION_BYTES_MAX,
    ExtendedTransaction,
    Transaction,
    TxInput,
    TxOutput,
    parse_transaction,
)
from overlayd.chain import regtest_tables as tables
from overlayd.chain.regtest_tables import StoredTx
from overlayd.model.errors import RegtestRefused, TransactionInvalid
from overlayd.model.txid import BlockHash, TxId, format_hash

SUBSIDY_SAT = 50 * 100_000_000
"""New coins of a block. It never halves: a chain that runs for weeks must go on paying."""
MATURITY_BLOCKS = 100
"""Blocks on top of a coinbase before its coins may be spent."""
PAY_COINS_MAX = 500
"""Coins that one payment of the miner's puts together."""
REFUSALS_KEPT = 10_000
BLOCK_VERSION = 0x20000000

Returned = Literal["return", "remine", "drop"]
"""What a reorg does with the transactions of the blocks it takes back: to the mempool, into the new branch, or away."""


class Refused(Exception):
    """A transaction isn't taken; `competing` are those that spend the same."""

    def __init__(self, reason: str, competing: Sequence[TxId] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.competing = tuple(competing)


def accept(c: sqlite3.Connection, tx: Transaction, sat_per_kb: int) -> None:
    """Takes a transaction that isn't known into the mempool, as a node would. Raises Refused."""
    tip_height = tables.read_tip(c)[0]
    if tx.is_coinbase:
        raise Refused("coinbase")
    if len(tx.raw) > TRANSACTION_BYTES_MAX:
        raise Refused("tx-size")
    extended = ExtendedTransaction(tx, _find_spent(c, tx, tip_height))
    try:
        verify_spending(extended)
    except TransactionInvalid as err:
        raise Refused(f"invalid: {err.detail}") from err
    for output in tx.outputs:
        if output.satoshis and output.script.startswith(b"\x00\x6a"):
            raise Refused("an output that can't be spent holds coins")
    wanted = fee_of(len(tx.raw), sat_per_kb)
    if extended.fee_sat < wanted:
        raise Refused(f"fee too low: {extended.fee_sat} of {wanted} satoshis")
    if not is_final(tx, tip_height + 1, _median_time(c, tip_height)):
        raise Refused("non-final")
    insert(c, tx, extended.fee_sat, height=None)


def _find_spent(c: sqlite3.Connection, tx: Transaction, tip_height: int) -> tuple[TxOutput, ...]:
    spent, competing = [], set()
    for item in tx.inputs:
        coin = tables.read_coin(c, item.outpoint)
        if coin is None:
            raise Refused(f"missing-inputs: {item.outpoint}")
        if coin.spent_by is not None:
            competing.add(coin.spent_by)
        source = tables.read_tx(c, item.outpoint.txid)
        assert source is not None, "coins go with their transaction"
        if source.is_coinbase and (source.height or 0) + MATURITY_BLOCKS > tip_height + 1:
            raise Refused("premature spend of a coinbase")
        spent.append(coin.output)
    if competing:
        raise Refused("double spend", sorted(competing))
    return tuple(spent)


def insert(c: sqlite3.Connection, tx: Transaction, fee_sat: int, *, height: int | None) -> None:
    """Writes down a transaction that was judged: its coins, and whose it spends."""
    c.execute(
        "INSERT INTO tx (txid, raw, is_coinbase, fee_sat, height) VALUES (?, ?, ?, ?, ?)",
        (tx.txid, tx.raw, tx.is_coinbase, fee_sat, height),
    )
    if not tx.is_coinbase:
        c.executemany(
            "UPDATE coin SET spent_by = ? WHERE txid = ? AND place = ?",
            [(tx.txid, item.outpoint.txid, item.outpoint.index) for item in tx.inputs],
        )
    c.executemany(
        "INSERT INTO coin (txid, place, satoshis, script, is_miners) SELECT ?1, ?2, ?3, ?4, ?4 = script FROM miner",
        [
            (tx.txid, place, output.satoshis, output.script) for place, output in enumerate(tx.outputs)
            if not output.script.startswith(b"\x00\x6a")
        ],
    )  # fmt: skip
    c.execute("DELETE FROM refused WHERE txid = ?", (tx.txid,))


def evict(c: sqlite3.Connection, txid: TxId) -> list[TxId]:
    """Forgets a transaction and all that build on it; gives their txids."""
    gone, waiting = {txid: None}, [txid]
    while waiting:
        for spender in tables.read_spenders(c, waiting.pop()):
            if spender not in gone:
                gone[spender] = None
                waiting.append(spender)
    for one in gone:
        c.execute("UPDATE coin SET spent_by = NULL WHERE spent_by = ?", (one,))
        c.execute("DELETE FROM coin WHERE txid = ?", (one,))
        c.execute("DELETE FROM tx WHERE txid = ?", (one,))
    return list(gone)


def mine_block(c: sqlite3.Connection, now_s: int, payee: bytes, transactions: Sequence[StoredTx]) -> None:
    """Puts a block with these transactions of the mempool on top, its coinbase paying a script."""
    tip_height, tip_hash = tables.read_tip(c)
    height = tip_height + 1
    fees = sum(item.fee_sat for item in transactions)
    # The height first, as blocks have it; then a number of their own, so that no two coinbases are one.
    tag = encode_push(height.to_bytes(4, "little")) + encode_push(tables.next_made(c).to_bytes(8, "little"))
    coinbase = Transaction((TxInput(NULL_OUTPOINT, tag, U32_MAX),), (TxOutput(SUBSIDY_SAT + fees, payee),))
    txids = [coinbase.txid, *(item.txid for item in transactions)]
    time_s = max(now_s, _median_time(c, tip_height) + 1)
    raw = _find_nonce(tip_hash, merkle_root(txids), time_s)
    insert(c, coinbase, 0, height=height)
    c.executemany("UPDATE tx SET height = ? WHERE txid = ?", [(height, item.txid) for item in transactions])
    c.execute("INSERT INTO block VALUES (?, ?, ?, ?, 1)", (parse_header(raw).hash, height, raw, b"".join(txids)))


def _find_nonce(previous: BlockHash, root: bytes, time_s: int) -> bytes:
    """A header with regtest's work: every second one has it."""
    for nonce in range(U32_MAX):
        raw = encode_header(
            version=BLOCK_VERSION,
            previous=previous,
            merkle_root=root,
            time_s=time_s,
            bits=REGTEST.limit_bits,
            nonce=nonce,
        )
        header = parse_header(raw)
        if int.from_bytes(header.hash, "little") <= header.target:
            return raw
    raise AssertionError("half of all nonces serve")


def _median_time(c: sqlite3.Connection, height: int) -> int:
    raws = tables.read_raw_headers(c, max(0, height - 10), 11)
    times = sorted(parse_header(raw).time_s for raw in raws)
    return times[len(times) // 2]


def begin(c: sqlite3.Connection, secret: bytes) -> None:
    """Writes the first block, and the key that coinbases pay."""
    script = lock_to_key(PrivateKey(secret).public_key.encoded)
    c.execute("INSERT INTO miner VALUES (1, ?, ?, 0)", (secret, script))
    header = REGTEST.genesis
    c.execute("INSERT INTO block VALUES (?, 0, ?, ?, 1)", (header.hash, header.raw, header.merkle_root))


def disconnect(c: sqlite3.Connection, depth: int, returned: Returned) -> None:
    """Takes back the newest blocks. What builds on their coinbases goes; the rest as asked for."""
    tip_height = tables.read_tip(c)[0]
    for height in range(tip_height, tip_height - depth, -1):
        block = tables.read_block(c, height)
        assert block is not None
        c.execute("UPDATE block SET is_best = 0 WHERE hash = ?", (block.header.hash,))
        c.executemany("UPDATE tx SET height = NULL WHERE txid = ?", [(txid,) for txid in block.txids])
        evict(c, block.txids[0])
        if returned == "drop":
            for txid in block.txids[1:]:
                if tables.read_tx(c, txid) is not None:
                    evict(c, txid)


def pay(
    c: sqlite3.Connection, key: PrivateKey, script: bytes, satoshis: int, count: int, sat_per_kb: int
) -> Transaction:
    """Pays a script from the miner's coins, `count` times the amount, in one transaction that enters the mempool.

    Raises RegtestRefused when the miner hasn't enough coins that may be spent.
    """
    own = lock_to_key(key.public_key.encoded)
    wanted, gathered, spendables = satoshis * count, 0, []
    for coin in tables.read_miners_coins(c, tables.read_tip(c)[0] + 1 - MATURITY_BLOCKS, PAY_COINS_MAX):
        spendables.append(Spendable(TxInput(coin.outpoint), coin.output, key))
        gathered += coin.output.satoshis
        if gathered >= wanted + fee_of(34 * count + 148 * len(spendables) + 100, sat_per_kb):
            tx = build_spend(spendables, [TxOutput(satoshis, script)] * count, own, sat_per_kb).tx
            accept(c, tx, sat_per_kb)
            return tx
    raise RegtestRefused(
        f"the miner has {gathered} satoshis to spend, not {wanted}", subject="miner",
        hint=f"mine more blocks: coins may be spent {MATURITY_BLOCKS} blocks later",
    )  # fmt: skip


def conflict_with(c: sqlite3.Connection, txid: TxId, keys: Sequence[PrivateKey], sat_per_kb: int) -> Transaction:
    """Spends an input of a mempool transaction elsewhere, to the owner of the coin; the first goes, with all it bears.

    Needs a key of one of its inputs: without one nobody can, here as little as elsewhere. Raises RegtestRefused.
    """
    stored = tables.read_tx(c, txid)
    subject = f"txid {format_hash(txid)}"
    if stored is None:
        raise RegtestRefused("the chain has no such transaction", subject=subject)
    if stored.height is not None:
        raise RegtestRefused("it is in a block", subject=subject, hint="reorganize the block away first")
    by_hash = {key.public_key.key_hash: key for key in keys}
    for item in parse_transaction(stored.raw).inputs:
        coin = tables.read_coin(c, item.outpoint)
        assert coin is not None
        key = by_hash.get(parse_p2pkh(coin.output.script) or b"")
        if key is None:
            continue
        evicted = evict(c, txid)
        spendable = Spendable(TxInput(item.outpoint), coin.output, key)
        try:
            other = build_spend([spendable], [], coin.output.script, sat_per_kb).tx
            accept(c, other, sat_per_kb)
        except (TransactionInvalid, Refused) as err:
            raise RegtestRefused(f"its coin can't be spent otherwise: {err}", subject=subject) from err
        for one in evicted:
            tables.write_refusal(c, one, "double spend", (other.txid,), REFUSALS_KEPT)
        return other
    raise RegtestRefused("none of its inputs is spent by a key that is at hand", subject=subject)


def submit(c: sqlite3.Connection, transactions: Sequence[Transaction], sat_per_kb: int, mempool_max: int) -> int:
    """Takes transactions in their order, remembering why one was refused; how many found the mempool full."""
    overflow = 0
    room = mempool_max - tables.count_waiting(c)
    for tx in transactions:
        if tables.read_tx(c, tx.txid) is not None:
            continue
        try:
            if room <= 0:
                overflow += 1
                raise Refused("mempool full")
            accept(c, tx, sat_per_kb)
            room -= 1
        except Refused as err:
            tables.write_refusal(c, tx.txid, err.reason, err.competing, REFUSALS_KEPT)
    return overflow

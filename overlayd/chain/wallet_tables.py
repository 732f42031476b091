"""Where the wallet's coins are kept: outputs of its own transactions and of those that pay it, and what spends them.

A coin is spent in the very transaction of ours that writes down what spends it, signed, before anybody is told. So no
kill loses a coin or spends it twice: what is written down is broadcast sooner or later, what isn't never was.
"""

import sqlite3
from collections.abc import Iterable, Sequence

import msgspec

from overlayd.bsv.tx import OutPoint
from overlayd.model.txid import TxId
from overlayd.storage import Feature

WALLET_FEATURE = Feature(
    "chain_wallet",
    (
        """
CREATE TABLE chain_coin (
    tx_id INTEGER NOT NULL,
    vout INTEGER NOT NULL,
    satoshis INTEGER NOT NULL,
    rank INTEGER NOT NULL,  -- transactions of ours, itself included, that no block held when it was made
    spent_by INTEGER,
    is_lost INTEGER NOT NULL DEFAULT 0,  -- somebody else spent it, or whoever is asked refuses what spends it
    PRIMARY KEY (tx_id, vout)
) STRICT, WITHOUT ROWID;
CREATE INDEX chain_coin_free ON chain_coin (satoshis) WHERE spent_by IS NULL AND NOT is_lost;
CREATE INDEX chain_coin_spent ON chain_coin (spent_by) WHERE spent_by IS NOT NULL;
CREATE TABLE chain_wallet_day (day INTEGER PRIMARY KEY, fee_sat INTEGER NOT NULL) STRICT;
""",
    ),
)

FOREIGN_RANK = 1000
"""Of a coin in somebody else's transaction: it is spent only once a block holds it."""
_USABLE = "c.spent_by IS NULL AND NOT c.is_lost AND (t.height IS NOT NULL OR (t.verdict = '' AND c.rank <= ?1))"
_COINS = "SELECT c.tx_id, c.vout, t.txid, c.satoshis, t.height IS NOT NULL, c.rank FROM chain_coin c JOIN chain_tx t ON t.id = c.tx_id"
_COUNT = "SELECT count(*) FROM chain_coin c JOIN chain_tx t ON t.id = c.tx_id"


class Coin(msgspec.Struct, frozen=True):
    """One of the wallet's outputs. `rank` counts only while no block holds it."""

    tx_id: int
    vout: int
    txid: TxId
    satoshis: int
    is_confirmed: bool
    rank: int

    @property
    def outpoint(self) -> OutPoint:
        """Its name."""
        return OutPoint(self.txid, self.vout)

    @property
    def next_rank(self) -> int:
        """The rank of what is made of it."""
        return 1 if self.is_confirmed else self.rank + 1


class Balance(msgspec.Struct, frozen=True):
    """What the wallet has, in satoshis. `doubtful`: in coins that can't be spent as it seems. `usable_coins`: those that
    may be spent now."""

    confirmed: int
    unconfirmed: int
    doubtful: int
    usable_coins: int


class WalletLine(msgspec.Struct, frozen=True):
    """One transaction of the wallet's history."""

    id: int
    txid: TxId
    role: str
    fee_sat: int
    height: int | None
    verdict: str
    reason: str
    created_us: int


def read_usable(c: sqlite3.Connection, satoshis_min: int, unconfirmed_max: int, limit: int) -> list[Coin]:
    """Coins to spend: those in blocks first, small ones first."""
    rows = c.execute(
        f"{_COINS} WHERE c.satoshis >= ?2 AND {_USABLE} ORDER BY t.height IS NULL, c.rank, c.satoshis LIMIT ?3",
        (unconfirmed_max, satoshis_min, limit),
    )
    return [_coin(row) for row in rows]


def read_largest(c: sqlite3.Connection) -> Coin | None:
    """The largest coin in a block: what a fan-out is made of."""
    row = c.execute(f"{_COINS} WHERE {_USABLE} ORDER BY c.satoshis DESC LIMIT 1", (-1,)).fetchone()
    return None if row is None else _coin(row)


def count_usable(c: sqlite3.Connection, satoshis_min: int, unconfirmed_max: int) -> int:
    """Coins of that size at least that may be spent now."""
    return int(
        c.execute(f"{_COUNT} WHERE c.satoshis >= ?2 AND {_USABLE}", (unconfirmed_max, satoshis_min)).fetchone()[0]
    )


def spend(c: sqlite3.Connection, coin: Coin, tx_id: int) -> None:
    """It is spent by a transaction. Raises AssertionError when it was before."""
    changed = c.execute(
        "UPDATE chain_coin SET spent_by = ? WHERE tx_id = ? AND vout = ? AND spent_by IS NULL AND NOT is_lost",
        (tx_id, coin.tx_id, coin.vout),
    ).rowcount
    assert changed == 1, f"{coin.outpoint} was spent before"


def add_coins(c: sqlite3.Connection, tx_id: int, coins: Iterable[tuple[int, int]], rank: int) -> None:
    """Outputs (place, satoshis) that pay the wallet; those that it knows stay as they are."""
    c.executemany(
        "INSERT OR IGNORE INTO chain_coin (tx_id, vout, satoshis, rank) VALUES (?, ?, ?, ?)",
        [(tx_id, vout, satoshis, rank) for vout, satoshis in coins],
    )


def release(c: sqlite3.Connection, tx_id: int, *, is_lost: bool) -> None:
    """A transaction came to nothing: its coins may be spent anew, or are lost for all that one can tell."""
    if is_lost:
        c.execute("UPDATE chain_coin SET is_lost = 1 WHERE spent_by = ?", (tx_id,))
    else:
        c.execute("UPDATE chain_coin SET spent_by = NULL WHERE spent_by = ?", (tx_id,))


def add_fees(c: sqlite3.Connection, day: int, fee_sat: int) -> None:
    """Fees of a day since 1970 (UTC)."""
    c.execute(
        "INSERT INTO chain_wallet_day VALUES (?, ?) ON CONFLICT DO UPDATE SET fee_sat = fee_sat + excluded.fee_sat",
        (day, fee_sat),
    )


def read_fees(c: sqlite3.Connection, day: int) -> int:
    """What was paid on a day."""
    row = c.execute("SELECT fee_sat FROM chain_wallet_day WHERE day = ?", (day,)).fetchone()
    return 0 if row is None else int(row[0])


def read_balance(c: sqlite3.Connection, unconfirmed_max: int) -> Balance:
    """All unspent coins."""
    row = c.execute(
        "SELECT coalesce(sum(CASE WHEN NOT is_lost AND height IS NOT NULL THEN satoshis END), 0),"
        " coalesce(sum(CASE WHEN NOT is_lost AND height IS NULL AND verdict = '' THEN satoshis END), 0),"
        " coalesce(sum(CASE WHEN is_lost OR (height IS NULL AND verdict <> '') THEN satoshis END), 0)"
        " FROM chain_coin c JOIN chain_tx t ON t.id = c.tx_id WHERE spent_by IS NULL OR is_lost"
    ).fetchone()
    return Balance(row[0], row[1], row[2], count_usable(c, 1, unconfirmed_max))


def read_history(c: sqlite3.Connection, before: int, limit: int) -> list[WalletLine]:
    """Transactions of the wallet, the newest first."""
    rows = c.execute(
        "SELECT id, txid, role, fee_sat, height, verdict, reason, created_us FROM chain_tx"
        " WHERE role <> 'brought' AND id < ? ORDER BY id DESC LIMIT ?",
        (before, limit),
    )
    return [WalletLine(*row) for row in rows]


def _coin(row: Sequence[object]) -> Coin:
    tx_id, vout, txid, satoshis, is_confirmed, rank = row
    return Coin(tx_id, vout, txid, satoshis, bool(is_confirmed), rank)  # type: ignore[arg-type]  # the columns' types

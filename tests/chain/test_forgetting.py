"""What the tables of the chain hold of erased packets goes; what others share stays."""

import sqlite3

import pytest

from overlayd.chain import item_tables as items
from overlayd.chain import watch_tables as txs
from overlayd.chain.forgetting import forget_blank, forget_packets, has_blank
from overlayd.chain.wallet_tables import WALLET_FEATURE, add_coins
from overlayd.model.txid import BlockHash, TxId
from overlayd.storage.migrations import migrate

STREAM = b"s" * 32


@pytest.fixture
def tables() -> sqlite3.Connection:
    """Three packets: two share a transaction that was brought, one has one of the wallet."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection, (txs.WATCH_FEATURE, WALLET_FEATURE))
    brought = txs.insert_tx(connection, txs.NewTx(TxId(b"b" * 32), "brought", b"raw-brought", 144, b"ef", b"beef"), 1)
    funded = txs.insert_tx(connection, txs.NewTx(TxId(b"f" * 32), "funded", b"raw-funded", 144), 1)
    for offset, tx in ((5, brought), (7, brought), (9, funded)):
        item = items.NewItem(offset, offset, STREAM, b"c" * 31 + bytes((offset,)), tx, 0, "pending", 1)
        items.insert_item(connection, item)
    return connection


def texts(connection: sqlite3.Connection) -> str:
    """Everything that the tables hold."""
    rows = [connection.execute(f"SELECT * FROM {table}").fetchall() for table in ("chain_tx", "chain_item")]
    return repr(rows)


def test_a_shared_transaction_stays_for_the_others(tables: sqlite3.Connection) -> None:
    """The packet's commitment goes at once, the transaction with the last packet that it confirms."""
    forget_packets(tables, [5])
    assert items.find_items(tables, [5, 7]).keys() == {7}
    assert repr(b"raw-brought")[2:-1] in texts(tables)
    forget_packets(tables, [7])
    for gone in (b"raw-brought", b"beef", b"b" * 32, b"c" * 31 + b"\x05", b"c" * 31 + b"\x07"):
        assert repr(gone)[2:-1] not in texts(tables)
    rows = tables.execute("SELECT is_open, to_send, verdict FROM chain_tx WHERE role = 'brought'").fetchall()
    assert rows == [(0, 0, "dropped")]


def test_what_the_wallet_paid_for_stays(tables: sqlite3.Connection) -> None:
    """It spends the change; the packet's own row goes. Again does nothing."""
    for _ in range(2):
        forget_packets(tables, [9])
        assert items.find_items(tables, [5, 7, 9]).keys() == {5, 7}
        assert repr(b"raw-funded")[2:-1] in texts(tables)


def test_nothing_is_written_to_what_was_erased(tables: sqlite3.Connection) -> None:
    """Whoever works on the transaction at that moment leaves nothing of it; the row goes with the watcher's next look."""
    (id,) = tables.execute("SELECT id FROM chain_tx WHERE role = 'brought'").fetchone()
    forget_packets(tables, [5, 7])
    before = tables.execute("SELECT * FROM chain_tx").fetchall()
    txs.note_raw(tables, id, b"raw-brought")
    txs.note_answers(tables, [txs.Answered(id, True, "raw-brought", 1, 1, True)], 1)
    txs.note_mined(tables, [txs.Mined(id, 3, BlockHash(b"h" * 32), b"raw-brought")], 1)
    txs.note_verdict(tables, id, "failed", "raw-brought", 1)
    txs.note_orphaned(tables, [id], 1)
    assert tables.execute("SELECT * FROM chain_tx").fetchall() == before
    assert not tables.execute("SELECT * FROM chain_orphan").fetchall()
    assert has_blank(tables)
    forget_blank(tables, 10)
    assert not has_blank(tables)
    assert tables.execute("SELECT role FROM chain_tx").fetchall() == [("funded",)]


def test_a_transaction_that_pays_the_wallet_stays(tables: sqlite3.Connection) -> None:
    """The producer's transaction was a deposit, too: its coins go by its name."""
    (id,) = tables.execute("SELECT id FROM chain_tx WHERE role = 'brought'").fetchone()
    add_coins(tables, id, [(1, 5000)], 1)
    forget_packets(tables, [5, 7])
    assert tables.execute("SELECT txid FROM chain_tx WHERE id = ?", (id,)).fetchall() == [(b"b" * 32,)]
    assert not items.find_items(tables, [5, 7])

"""What the engine asks of its tables at every block is answered through an index, however much lies in them."""

import re
import sqlite3

from overlayd.chain import forgetting
from overlayd.chain import item_tables as items
from overlayd.chain import wallet_tables as coins
from overlayd.chain import watch_tables as txs
from overlayd.storage.migrations import migrate

STREAM = b"s" * 32
ITEM = items.Item(0, 1, 1, STREAM, 1, 0, 1, "mined", "", ",", ",", 1, 0, None, None, "", None, None)


def ask_everything(c: sqlite3.Connection) -> None:
    """Every question and change that comes at each block, step or payment."""
    items.read_turns(c, STREAM, 1, 10)
    items.read_ready(c, STREAM, 1, 5, 10)
    items.read_judged(c, STREAM, 10)
    items.read_untold(c, 0, 10)
    items.read_unsaid(c, 10)
    items.read_open_streams(c)
    items.read_items_of(c, [1])
    items.note_seen(c, [1])
    items.note_unseen(c, [1])
    items.read_untold_streams(c)
    items.find_items(c, [1])
    items.find_range(c, 1)
    items.read_anchored_to(c)
    items.read_unfunded(c, is_range=False, after=0, limit=1)
    items.read_streams_of(c, [1])
    items.find_first_unsettled(c, STREAM, 1)
    items.write_tellings(c, [items.tell_mined(ITEM)])
    items.find_offsets(c, txs.TxId(STREAM), 1)
    items.release_items(c, 1)
    txs.read_to_send(c, 0, 10)
    txs.read_open(c, 0, 10)
    txs.read_blocks(c, 3)
    txs.read_mined_in(c, 1, txs.BlockHash(STREAM), 1)
    txs.note_mined(c, [txs.Mined(1, 1, txs.BlockHash(STREAM), b"")], 1)
    txs.note_orphaned(c, [1], 1)
    txs.find_txs(c, [txs.TxId(STREAM)])
    items.read_ended(c, STREAM, 0, 10, 5, 10)
    items.read_unpaid(c, STREAM, 10, 10)
    forgetting.has_blank(c)
    forgetting.forget_blank(c, 10)
    forgetting.forget_ended(c, [1], [1], 5)
    coins.read_usable(c, 1, 3, 10)
    coins.release(c, 1, is_lost=True)


def test_no_table_is_read_whole() -> None:
    """No plan scans transactions, items, coins or orphans without an index that holds only what is open."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection, (txs.WATCH_FEATURE, coins.WALLET_FEATURE))
    asked: list[str] = []
    connection.set_trace_callback(asked.append)
    ask_everything(connection)
    connection.set_trace_callback(None)
    statements = [text for text in asked if re.match("SELECT|UPDATE|DELETE|INSERT", text) and "INSERT OR" not in text]
    assert len(statements) > 25
    for text in statements:
        plan = [row[3] for row in connection.execute("EXPLAIN QUERY PLAN " + text)]
        assert not [step for step in plan if re.match(r"SCAN (?!.*INDEX|CONSTANT ROW)", step)], (text, plan)
    connection.close()

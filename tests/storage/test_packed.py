"""Many rows in, many values out, in few statements."""

import sqlite3

import pytest

from overlayd.storage.packed import insert_rows, select_each


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 255, 256, 1_111])
def test_rows_come_back_one_value_each(count: int) -> None:
    """Any number of rows goes in whole, and each parameter gets its own value, or None."""
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE pair (key INTEGER PRIMARY KEY, value BLOB)")
    rows = [(at, b"%d" % at) for at in range(count)]
    insert_rows(connection, "INSERT INTO pair VALUES", rows)
    assert connection.execute("SELECT count(*) FROM pair").fetchone() == (count,)
    found = select_each(connection, "SELECT value FROM pair WHERE key = ?", [(at,) for at in range(-1, count)])
    assert found == [None, *(value for _key, value in rows)]


def test_few_statements_are_enough() -> None:
    """A thousand rows take a handful of steps, wide rows no more variables than SQLite allows."""
    connection = sqlite3.connect(":memory:")
    statements: list[str] = []
    connection.execute("CREATE TABLE wide (" + ", ".join(f"c{at}" for at in range(500)) + ")")
    connection.set_trace_callback(statements.append)
    insert_rows(connection, "INSERT INTO wide VALUES", [tuple(range(500))] * 100)
    assert len([text for text in statements if text.startswith("INSERT")]) == 7
    statements.clear()
    assert select_each(connection, "SELECT ?", [(at,) for at in range(1_024)]) == list(range(1_024))
    assert len(statements) == 4

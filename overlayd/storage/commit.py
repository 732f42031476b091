"""The function that the writer's thread runs: one transaction with as few statements as can be.

sqlite3 gives the interpreter lock up and takes it back at every step, and beside a busy loop each retake costs a
switch interval; so rows go in by the hundreds per statement.
"""

import sqlite3
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import msgspec

from overlayd.storage.errors import is_of_the_database
from overlayd.storage.tree import TILE_INSERT, Tile

ENTRY_INSERT = "INSERT INTO entry (offset, e, leaf, sealed) VALUES "
ROWS_PER_STATEMENT_MAX = 512
PLAIN_ROWS_MAX = 96
"""Entries up to which each number of them has a prepared statement of its own."""
STATEMENTS_KEPT = 256
"""Prepared statements that the writing connection keeps: those, and all others."""
ROW_WIDTH = 4


class Call(msgspec.Struct):
    """A function that runs in the group's transaction under its own savepoint, and what came of it."""

    run: Callable[[sqlite3.Connection], Any]
    answer: Any = None
    error: Exception | None = None


def commit_group(
    connection: sqlite3.Connection,
    row_values: Sequence[Any],
    tiles: Sequence[Tile],
    statements: Sequence[tuple[str, tuple[Any, ...]]],
    calls: Sequence[Call],
    actions: Sequence[Callable[[sqlite3.Connection], None]] = (),
) -> None:
    """All of it, durable when it returns, or none of it. Raises sqlite3.Error."""
    is_plain = 0 < len(row_values) <= ROW_WIDTH * PLAIN_ROWS_MAX and not (tiles or statements or calls or actions)
    try:
        if is_plain:
            # A statement outside of a transaction is one of its own: entries alone are committed in a single step.
            connection.execute(_insert_sql(ENTRY_INSERT, ROW_WIDTH, len(row_values) // ROW_WIDTH), row_values)
            return
        connection.execute("BEGIN IMMEDIATE")
        _insert(connection, ENTRY_INSERT, ROW_WIDTH, row_values)
        if tiles:
            _insert(connection, TILE_INSERT, 2, [value for tile in tiles for value in (tile.id, tile.hashes)])
        for statement, values in statements:
            connection.execute(statement, values)
        for action in actions:
            action(connection)
        for call in calls:
            run_call(connection, call)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _insert(connection: sqlite3.Connection, prefix: str, width: int, values: Sequence[Any]) -> None:
    at, rows = 0, len(values) // width
    while rows:
        count = min(ROWS_PER_STATEMENT_MAX, 1 << (rows.bit_length() - 1))
        end = at + count * width
        connection.execute(_insert_sql(prefix, width, count), values[at:end])
        at, rows = end, rows - count


@cache
def _insert_sql(prefix: str, width: int, count: int) -> str:
    """Few texts, because counts are powers of two, so that prepared statements are found again."""
    row = f"({','.join('?' * width)})"
    return prefix + ",".join([row] * count)


def run_call(connection: sqlite3.Connection, call: Call) -> None:
    """The call's own failure undoes the call alone; the database's failure undoes the group."""
    connection.execute("SAVEPOINT call")
    try:
        call.answer = call.run(connection)
    except Exception as err:
        if not connection.in_transaction or is_of_the_database(err):
            raise
        call.error = err
        connection.execute("ROLLBACK TO call")
    connection.execute("RELEASE call")

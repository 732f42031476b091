"""SQL in few steps.

Python gives the GIL up and takes it back at every step of a statement, and beside a busy loop each retake waits a
switch interval. So rows go in as one statement with many VALUES, and single values come back as the columns of one
row. Statements come in a few fixed widths, so that the connection's statement cache keeps them.
"""

import sqlite3
from collections.abc import Sequence
from itertools import chain
from typing import Any

__all__ = ["insert_rows", "select_each"]

_WIDTHS = (256, 64, 16, 4, 1)
_VARIABLES_MAX = 8_000


def insert_rows(connection: sqlite3.Connection, insert: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows of equal length; `insert` is the statement up to and including `VALUES`."""
    if not rows:
        return
    place = f"({', '.join('?' * len(rows[0]))})"
    at = 0
    for width in _fitting_widths(len(rows), len(rows[0])):
        statement = f"{insert} {', '.join([place] * width)}"
        connection.execute(statement, list(chain.from_iterable(rows[at : at + width])))
        at += width


def select_each(connection: sqlite3.Connection, select: str, parameters: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The value that `select` (one column) gives for each tuple of parameters; None where it gives no row."""
    found: list[Any] = []
    at = 0
    for width in _fitting_widths(len(parameters), len(parameters[0]) if parameters else 1):
        statement = "SELECT " + ", ".join([f"({select})"] * width)
        arguments = list(chain.from_iterable(parameters[at : at + width]))
        found.extend(connection.execute(statement, arguments).fetchone())
        at += width
    return found


def _fitting_widths(count: int, columns: int) -> list[int]:
    """Widths that add up to `count`, the widest first."""
    widths = []
    for width in _WIDTHS:
        while count >= width and width * columns <= _VARIABLES_MAX:
            widths.append(width)
            count -= width
    return widths

"""The daemon with its durability taken away, for the tests that must then fail. Never installed."""

import sqlite3
from typing import Any

_connect = sqlite3.connect


class _UnsyncedConnection(sqlite3.Connection):
    """Turns every choice of a synchronous level into OFF."""

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        """As sqlite3's own."""
        if sql.lower().startswith("pragma synchronous") and "=" in sql:
            sql = "PRAGMA synchronous = OFF"
        return super().execute(sql, *parameters)


def connect(*arguments: Any, **keywords: Any) -> sqlite3.Connection:
    """sqlite3.connect, un-synced."""
    connection = _connect(*arguments, **({"factory": _UnsyncedConnection} | keywords))
    connection.execute("PRAGMA synchronous = OFF")
    return connection


if __name__ == "__main__":
    sqlite3.connect = connect  # type: ignore[assignment]
    from overlayd.cli import main

    main()

"""The webhooks' own tables: sealed secrets, and sealed values of headers."""

import sqlite3

from overlayd.storage.migrations import Feature

WEBHOOKS_FEATURE = Feature(
    "webhooks",
    (
        """
        CREATE TABLE webhook_secret (
            subscription_id TEXT NOT NULL,
            number INTEGER NOT NULL,  -- the newest is the highest
            sealed BLOB NOT NULL,
            until_us INTEGER,  -- NULL: as long as the subscription
            PRIMARY KEY (subscription_id, number)
        ) STRICT, WITHOUT ROWID;
        """,
        """
        CREATE TABLE webhook_headers (
            subscription_id TEXT PRIMARY KEY,
            sealed BLOB NOT NULL  -- JSON: values by name
        ) STRICT, WITHOUT ROWID;
        """,
    ),
)


def add_secret(
    connection: sqlite3.Connection, subscription_id: str, sealed: bytes, *, now_us: int, grace_us: int, count_max: int
) -> bool:
    """Makes a secret the newest; those before it count until `now_us + grace_us` at the latest.

    Whether one had to go earlier than that because more than `count_max` would have counted.
    """
    connection.execute(
        "UPDATE webhook_secret SET until_us = min(coalesce(until_us, ?1), ?1) WHERE subscription_id = ?2",
        (now_us + grace_us, subscription_id),
    )
    connection.execute(
        "DELETE FROM webhook_secret WHERE subscription_id = ? AND until_us <= ?", (subscription_id, now_us)
    )
    connection.execute(
        "INSERT INTO webhook_secret SELECT ?1, coalesce(max(number), 0) + 1, ?2, NULL FROM webhook_secret"
        " WHERE subscription_id = ?1",
        (subscription_id, sealed),
    )
    dropped = connection.execute(
        "DELETE FROM webhook_secret WHERE subscription_id = ?1 AND number <="
        " (SELECT max(number) FROM webhook_secret WHERE subscription_id = ?1) - ?2",
        (subscription_id, count_max),
    )
    return dropped.rowcount > 0


def remove_secrets(connection: sqlite3.Connection, subscription_id: str) -> None:
    """All of a subscription's."""
    connection.execute("DELETE FROM webhook_secret WHERE subscription_id = ?", (subscription_id,))


def read_secrets(connection: sqlite3.Connection, subscription_id: str) -> list[tuple[bytes, int | None]]:
    """Sealed secrets and until when they count (Unix µs), the newest first."""
    rows = connection.execute(
        "SELECT sealed, until_us FROM webhook_secret WHERE subscription_id = ? ORDER BY number DESC",
        (subscription_id,),
    )
    return [(bytes(sealed), until_us) for sealed, until_us in rows]


def put_headers(connection: sqlite3.Connection, subscription_id: str, sealed: bytes | None) -> None:
    """Replaces what is kept of a subscription's headers; None takes it away."""
    if sealed is None:
        connection.execute("DELETE FROM webhook_headers WHERE subscription_id = ?", (subscription_id,))
    else:
        connection.execute("INSERT OR REPLACE INTO webhook_headers VALUES (?, ?)", (subscription_id, sealed))


def read_headers(connection: sqlite3.Connection) -> list[tuple[str, bytes]]:
    """Every subscription's, sealed."""
    rows = connection.execute("SELECT subscription_id, sealed FROM webhook_headers")
    return [(subscription_id, bytes(sealed)) for subscription_id, sealed in rows]

"""Quota policies, bursts, receipts and agents' streaming sessions on the disk."""

import sqlite3
from collections.abc import Mapping

import msgspec

from overlayd.model.quota import SEEDED_POLICIES, QuotaPolicy
from overlayd.storage.migrations import Feature
from overlayd.storage.own import Statement

QUOTAS_FEATURE = Feature(
    "quotas",
    (
        """
CREATE TABLE quota_policy (name TEXT PRIMARY KEY, body TEXT NOT NULL, changed_us INTEGER NOT NULL) STRICT;
CREATE TABLE quota_seeded (is_done INTEGER PRIMARY KEY) STRICT;
CREATE TABLE quota_burst (account TEXT PRIMARY KEY, hour INTEGER NOT NULL, until_us INTEGER NOT NULL) STRICT;
CREATE TABLE receipt (
    receipt_id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    policy TEXT NOT NULL,
    created_us INTEGER NOT NULL
) STRICT;
CREATE TABLE agent_streaming_session (
    id TEXT PRIMARY KEY,
    agent_id TEXT NOT NULL,
    receipt_id TEXT NOT NULL,
    owner TEXT NOT NULL,
    kind TEXT NOT NULL,
    status TEXT NOT NULL,
    quality TEXT NOT NULL,
    estimated_bytes INTEGER NOT NULL,
    estimated_cost_satoshis INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    packets INTEGER NOT NULL,
    last_sequence INTEGER NOT NULL,
    updates INTEGER NOT NULL,
    created_us INTEGER NOT NULL,
    updated_us INTEGER NOT NULL
) STRICT;
CREATE INDEX agent_streaming_session_open ON agent_streaming_session (receipt_id) WHERE status = 'active';
CREATE INDEX agent_streaming_session_by_time ON agent_streaming_session (updated_us);
""",
    ),
    # Lost policies come back as they are seeded, so that nobody is without any.
    on_loss=("DELETE FROM quota_seeded",),
    sound={"quota_policy": lambda row: msgspec.json.decode(row["body"], type=QuotaPolicy).name == row["name"]},
)


class StreamingSession(msgspec.Struct, frozen=True):
    """What an agent, or somebody for it, says about its own taking of packets. The node counts it on the receipt."""

    id: str
    agent_id: str
    receipt_id: str
    owner: str
    kind: str
    status: str
    quality: str
    estimated_bytes: int
    estimated_cost_satoshis: int
    bytes: int
    packets: int
    last_sequence: int
    updates: int
    created_us: int
    updated_us: int


class Receipt(msgspec.Struct, frozen=True):
    """An account of its own that somebody opened, with the policy it had then."""

    receipt_id: str
    owner: str
    policy: str
    created_us: int


def read_policies(connection: sqlite3.Connection) -> dict[str, QuotaPolicy]:
    """All policies by name."""
    rows = connection.execute("SELECT body FROM quota_policy ORDER BY name")
    policies = [msgspec.json.decode(body, type=QuotaPolicy) for (body,) in rows]
    return {policy.name: policy for policy in policies}


def seed_policies(connection: sqlite3.Connection, now_us: int) -> None:
    """Puts the documented policies in, once in a data directory's life: what was deleted stays deleted."""
    if connection.execute("INSERT OR IGNORE INTO quota_seeded VALUES (1)").rowcount:
        for policy in SEEDED_POLICIES:
            statement, values = store_policy(policy, now_us)
            connection.execute(statement.replace("OR REPLACE", "OR IGNORE"), values)  # damage may have left others


def store_policy(policy: QuotaPolicy, now_us: int) -> Statement:
    """Writes the policy, in the place of an earlier form of it."""
    body = msgspec.json.encode(policy).decode()
    return "INSERT OR REPLACE INTO quota_policy VALUES (?, ?, ?)", (policy.name, body, now_us)


def drop_policy(name: str) -> Statement:
    """Takes the policy away."""
    return "DELETE FROM quota_policy WHERE name = ?", (name,)


def read_burst(connection: sqlite3.Connection, account: str) -> tuple[int, int]:
    """(hour, until when) of the account's last burst; zeros when there was none."""
    row = connection.execute("SELECT hour, until_us FROM quota_burst WHERE account = ?", (account,)).fetchone()
    return (0, 0) if row is None else (int(row[0]), int(row[1]))


def write_bursts(connection: sqlite3.Connection, bursts: Mapping[str, tuple[int, int]]) -> None:
    """Each account's last burst."""
    connection.executemany(
        "INSERT OR REPLACE INTO quota_burst VALUES (?, ?, ?)", [(name, *burst) for name, burst in bursts.items()]
    )


def read_receipt(connection: sqlite3.Connection, receipt_id: str) -> Receipt | None:
    """None when it isn't known."""
    row = connection.execute("SELECT * FROM receipt WHERE receipt_id = ?", (receipt_id,)).fetchone()
    return None if row is None else Receipt(*row)


def write_receipt(connection: sqlite3.Connection, receipt: Receipt) -> Receipt:
    """The receipt that is stored: the first one of its id."""
    values = (receipt.receipt_id, receipt.owner, receipt.policy, receipt.created_us)
    connection.execute("INSERT OR IGNORE INTO receipt VALUES (?, ?, ?, ?)", values)
    found = read_receipt(connection, receipt.receipt_id)
    assert found is not None
    return found


def read_session(connection: sqlite3.Connection, session_id: str) -> StreamingSession | None:
    """None when it isn't known."""
    row = connection.execute("SELECT * FROM agent_streaming_session WHERE id = ?", (session_id,)).fetchone()
    return None if row is None else StreamingSession(*row)


def write_session(connection: sqlite3.Connection, session: StreamingSession) -> None:
    """A new session, or the new state of one."""
    connection.execute(
        f"INSERT OR REPLACE INTO agent_streaming_session VALUES ({', '.join('?' * 15)})",  # noqa: S608 - question marks
        msgspec.structs.astuple(session),
    )


def count_open(connection: sqlite3.Connection, receipt_id: str = "") -> int:
    """Active sessions, of one receipt or in all."""
    if receipt_id:
        query, values = (
            "SELECT count(*) FROM agent_streaming_session WHERE status = 'active' AND receipt_id = ?",
            (receipt_id,),
        )
        return int(connection.execute(query, values).fetchone()[0])
    return int(connection.execute("SELECT count(*) FROM agent_streaming_session WHERE status = 'active'").fetchone()[0])


def prune_sessions(connection: sqlite3.Connection, before_us: int, at_once: int) -> int:
    """Takes sessions away that nobody touched for long, open or not; gives how many."""
    return connection.execute(
        "DELETE FROM agent_streaming_session WHERE id IN"
        " (SELECT id FROM agent_streaming_session WHERE updated_us < ? ORDER BY updated_us LIMIT ?)",
        (before_us, at_once),
    ).rowcount

"""The schema's own guards: an entry can be reduced, a cut prefix deleted, and nothing else."""

import sqlite3

import pytest
from storage_rig import Rig, append, draft

from overlayd.storage.migrations import split_statements
from overlayd.storage.start import open_database


@pytest.fixture
async def connection(rig: Rig) -> sqlite3.Connection:
    """The writer's kind of connection to a log of five entries."""
    async with rig.open() as log:
        await append(log, "s", [draft(), draft()])
        assert log.head == 5
    opened = open_database(rig.directory / "log.sqlite3", "full", ())
    yield opened  # type: ignore[misc]
    opened.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entry SET e = zeroblob(146) WHERE offset = 5",
        "UPDATE entry SET leaf = zeroblob(32) WHERE offset = 5",
        "UPDATE entry SET offset = 9 WHERE offset = 5",
        "UPDATE entry SET sealed = x'00' WHERE offset = 5",
        "UPDATE entry SET sealed = NULL, e = zeroblob(146) WHERE offset = 5",
        "UPDATE OR REPLACE entry SET offset = 4 WHERE offset = 5",
        "DELETE FROM entry WHERE offset = 5",
        "DELETE FROM entry",
        "INSERT OR REPLACE INTO entry SELECT * FROM entry WHERE offset = 5",
        "REPLACE INTO entry VALUES (5, zeroblob(146), zeroblob(32), NULL)",
    ],
)
async def test_entries_cannot_be_changed(connection: sqlite3.Connection, statement: str) -> None:
    """Whatever the statement, what is hashed stays."""
    before = connection.execute("SELECT * FROM entry").fetchall()
    with pytest.raises(sqlite3.IntegrityError, match="can only be reduced"):
        connection.execute(statement)
    assert connection.execute("SELECT * FROM entry").fetchall() == before


async def test_entries_can_be_reduced(connection: sqlite3.Connection) -> None:
    """Taking the sealed part away is the one change; doing it twice does nothing."""
    for _ in range(2):
        connection.execute("UPDATE entry SET sealed = NULL WHERE offset = 5")
    assert connection.execute("SELECT sealed FROM entry WHERE offset = 5").fetchone() == (None,)
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute("UPDATE entry SET sealed = x'00' WHERE offset = 5")


async def test_a_cut_prefix_can_be_deleted(connection: sqlite3.Connection) -> None:
    """Leaf indexes below the minimum index, and not one more."""
    connection.execute("UPDATE state SET value = 2 WHERE key = 'minimum_index'")
    connection.execute("DELETE FROM entry WHERE offset <= 2")
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute("DELETE FROM entry WHERE offset = 3")


@pytest.mark.parametrize("values", ["(9, x'00', zeroblob(32), NULL)", "(9, zeroblob(146), x'00', NULL)"])
async def test_lengths_are_checked(connection: sqlite3.Connection, values: str) -> None:
    """E has 146 bytes and a leaf 32."""
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        connection.execute(f"INSERT INTO entry VALUES {values}")


async def test_settings_of_the_writing_connection(connection: sqlite3.Connection) -> None:
    """What durability and the file's shape rest on."""

    def pragma(name: str) -> object:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]

    assert pragma("journal_mode") == "wal"
    assert pragma("synchronous") == 2
    assert pragma("auto_vacuum") == 2
    assert pragma("page_size") == 4096
    assert pragma("wal_autocheckpoint") == 0
    assert pragma("mmap_size") == 0
    assert pragma("secure_delete") == 1


async def test_sync_extra(rig: Rig) -> None:
    """`sync = "extra"` reaches SQLite."""
    rig.directory.mkdir()
    opened = open_database(rig.directory / "log.sqlite3", "extra", ())
    assert opened.execute("PRAGMA synchronous").fetchone() == (3,)
    opened.close()


def test_scripts_are_split_into_statements() -> None:
    """Also where a trigger's body holds semicolons, and where the last one is missing."""
    script = "CREATE TABLE a (n);\n-- a; comment\nCREATE TRIGGER t AFTER INSERT ON a\nBEGIN SELECT 1; SELECT 2;\nEND;\nSELECT 1"
    assert [statement.split()[0:2] for statement in split_statements(script)] == [
        ["CREATE", "TABLE"], ["--", "a;"], ["SELECT", "1"],
    ]  # fmt: skip

"""Schema steps: in order, once, each whole or not at all."""

import sqlite3

import pytest

from overlayd.model.errors import NewerSchema
from overlayd.storage.migrations import FEATURES, Feature, migrate, prepare_database


@pytest.fixture
def connection() -> sqlite3.Connection:
    """An empty database."""
    opened = sqlite3.connect(":memory:", isolation_level=None)
    prepare_database(opened)
    return opened


def versions(connection: sqlite3.Connection) -> dict[str, int]:
    """What is recorded."""
    return dict(connection.execute("SELECT feature, version FROM schema_version"))


def test_steps_run_once(connection: sqlite3.Connection) -> None:
    """A second time there is nothing to do."""
    for _ in range(2):
        migrate(connection, FEATURES)
    assert versions(connection) == {feature.name: len(feature.steps) for feature in FEATURES}
    assert len({feature.name for feature in FEATURES}) == len(FEATURES)


def test_a_failing_step_leaves_nothing(connection: sqlite3.Connection) -> None:
    """Its statements are undone together; earlier steps stay."""
    steps = ("CREATE TABLE a (n);", "CREATE TABLE b (n);\nINSERT INTO nowhere VALUES (1);")
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, [Feature("f", steps)])
    assert versions(connection) == {"f": 1}
    assert [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE name IN ('a', 'b')")] == ["a"]
    migrate(connection, [Feature("f", (steps[0], "CREATE TABLE b (n);"))])
    assert versions(connection) == {"f": 2}


def test_a_newer_database_is_refused_before_anything_changes(connection: sqlite3.Connection) -> None:
    """Also where only one feature is newer."""
    migrate(connection, [Feature("f", ("CREATE TABLE a (n);", "CREATE TABLE b (n);"))])
    with pytest.raises(NewerSchema, match="'f' have version 2, this program knows 1"):
        migrate(connection, [Feature("g", ("CREATE TABLE c (n);",)), Feature("f", ("CREATE TABLE a (n);",))])
    assert versions(connection) == {"f": 2}

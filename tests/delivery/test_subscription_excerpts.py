"""What receivers answered, in the tables, when something is erased."""

import sqlite3
from collections.abc import Iterator

import pytest

from overlayd.delivery.subscriptions import tables
from overlayd.delivery.subscriptions.tables import AttemptBody, DeadBody, DeadRow, Round


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    """A database with the tables, a failed attempt of which something was answered, and a dead letter."""
    made = sqlite3.connect(":memory:", isolation_level=None)
    for step in tables.FEATURE.steps:
        assert isinstance(step, str)
        made.executescript(step)
    made.execute("BEGIN")
    made_round = Round()
    made_round.add_attempt(1, 0, AttemptBody(5, "d", 1, "retry", "said no", 500, 7, "you sent me ada", 1, 1))
    members: list[tuple[tuple[int, int, int], int, int | None]] = [((1, 0, 0), 1, None)]
    made_round.add_dead(
        DeadRow(3, 1, 5, False, DeadBody("d", "packets", "a", ("x", "y"), members, "no", 500, "you sent me ada", 2, 5))
    )
    made_round.write(made)
    made.execute("COMMIT")
    yield made
    made.close()


def test_nothing_but_the_answer_goes(connection: sqlite3.Connection) -> None:
    """The rest of what is kept about an attempt and a dead letter stays as it was."""
    (attempt,), (dead,) = tables.read_attempts(connection, 1), tables.read_dead(connection, 1)
    assert attempt.excerpt == dead.body.excerpt == "you sent me ada"
    tables.clear_excerpts(connection, [1])
    (attempt_after,), (dead_after,) = tables.read_attempts(connection, 1), tables.read_dead(connection, 1)
    attempt.excerpt = dead.body.excerpt = ""
    assert (attempt_after, dead_after) == (attempt, dead)


def test_rows_without_an_answer_are_not_written_again(connection: sqlite3.Connection) -> None:
    """An erasure asks for it several times; the log would grow by every attempt of the node each time."""
    tables.clear_excerpts(connection, [1])
    before = connection.total_changes
    tables.clear_excerpts(connection, [1])
    assert connection.total_changes == before


def test_what_others_answered_stays(connection: sqlite3.Connection) -> None:
    """Only excerpts of deliveries that were about an erased packet go: a batch around it, and older rows that don't say."""
    made_round = Round()
    for slot, (first, last) in enumerate([(2, 2), (5, 9), (10, 12)], 1):
        made_round.add_attempt(1, slot, AttemptBody(5, "d", 1, "retry", "no", 500, 7, f"about {first}", first, last))
    made_round.add_attempt(1, 4, AttemptBody(5, "d", 1, "retry", "no", 500, 7, "about something"))
    made_round.write(connection)
    tables.clear_excerpts(connection, [3, 7, 40])
    left = sorted(body.excerpt for body in tables.read_attempts(connection, 1))
    assert left == ["", "", "about 10", "about 2", "you sent me ada"]
    assert tables.read_dead(connection, 1)[0].body.excerpt


def test_answers_from_before_are_cleared_by_any_erasure() -> None:
    """A database whose attempts didn't say which packets they were about loses too much rather than too little."""
    first, second = tables.FEATURE.steps
    assert isinstance(first, str)
    assert isinstance(second, str)
    old = sqlite3.connect(":memory:", isolation_level=None)
    old.executescript(first)
    old.execute("""INSERT INTO subscription_attempt VALUES (1, 0, '[5,"d",1,"retry","no",500,7,"you sent me ada"]')""")
    old.executescript(second)
    assert tables.read_attempts(old, 1)[0].excerpt == "you sent me ada"
    tables.clear_excerpts(old, [7])
    assert tables.read_attempts(old, 1)[0].excerpt == ""
    old.close()

"""The error tree: every class can be told apart and shown."""

import re

import pytest

from overlayd.model.errors import OverlaydError, Violation, error_classes

CLASSES = [kind for kind in error_classes() if kind.__module__.startswith("overlayd.")]


def test_codes_are_unique():
    """No two classes share a code, so that a client can act on it."""
    codes = [kind.code for kind in CLASSES]
    assert sorted(codes) == sorted(set(codes))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.code)
def test_each_error_can_be_shown(kind):
    """Code, title and status have their form; retryable ones have a status that says so."""
    assert re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)*", kind.code)
    assert kind.title
    assert not kind.title.endswith(".")
    assert 400 <= kind.status <= 599
    assert not kind.retryable or kind.status in (408, 409, 429, 502, 503, 507)


@pytest.mark.parametrize(
    "kind", [kind for kind in CLASSES if not kind.code.startswith("client.")], ids=lambda kind: kind.code
)
def test_nothing_is_lost_on_the_way(kind):
    """What an error is raised with can be read from it. The client's own errors carry an answer instead."""
    violation = Violation("/a", "b", "c")
    error = kind("detail", subject="s", hint="h", violations=[violation], retry_after_s=2.0, extra={"oldest": 1})
    assert (str(error), error.subject, error.hint) == ("detail", "s", "h")
    assert (error.violations, error.retry_after_s, error.extra) == ((violation,), 2.0, {"oldest": 1})
    assert kind.code in repr(error)


def test_errors_keep_to_themselves():
    """Two errors don't share their extra members."""
    first, second = OverlaydError("a"), OverlaydError("b")
    first.extra["x"] = 1
    assert second.extra == {}

"""Scopes as texts, what patterns cover, and which patterns lie within which."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.access.scopes import NODE_RIGHTS, RIGHTS, Scope, grants_of, is_within, parse_scope
from overlayd.model.errors import BadParameter
from overlayd.model.names import Pattern

TOKENS = st.sampled_from(["a", "b", "overlayd", "*"])
PATTERNS = st.builds(
    lambda tokens, rest: ".".join([*tokens, *rest]),
    st.lists(TOKENS, min_size=1, max_size=3),
    st.sampled_from([[], [">"]]),
)
NAMES = st.lists(st.sampled_from(["a", "b", "overlayd"]), min_size=1, max_size=4).map(".".join)


@pytest.mark.parametrize(
    "text", ["read", "read:weather.*", "manage:@own", "publish:>", "subscribe:a.b.>", "admin", "audit", "agent"]
)
def test_a_scope_survives_its_text(text: str) -> None:
    """A scope is written as it was read, but for the pattern that means everything."""
    assert str(parse_scope(text)) == text.removesuffix(":>")


@pytest.mark.parametrize(
    "text", ["", "write", "read:", "read:A", "read:a..b", "read:>.a", "admin:a", "audit:>", ":a", "read:@me", "Read"]
)
def test_what_isnt_a_scope_is_refused(text: str) -> None:
    """With a hint that says what one looks like."""
    with pytest.raises(BadParameter, match="not a scope"):
        parse_scope(text)


@given(st.text(max_size=40))
def test_any_text_is_a_scope_or_refused(text: str) -> None:
    """Nothing else is raised."""
    with suppress(BadParameter):
        assert parse_scope(str(parse_scope(text))) == parse_scope(text)


def test_rights_over_the_node_take_no_pattern() -> None:
    """Every right is either over streams or over the node."""
    for right in RIGHTS:
        if right in NODE_RIGHTS:
            with pytest.raises(BadParameter):
                parse_scope(f"{right}:a")
        else:
            assert parse_scope(f"{right}:a") == Scope(right, "a")


def test_grants_of_equal_scopes_are_one_object() -> None:
    """So that a hundred thousand keys of one kind share their decisions."""
    one = grants_of([parse_scope("read:a"), parse_scope("publish")])
    assert grants_of([parse_scope("publish"), parse_scope("read:a"), parse_scope("read:a")]) is one


def test_no_wildcard_in_front_covers_the_nodes_own_streams() -> None:
    """A pattern has to begin with their first token."""
    assert not grants_of([parse_scope("read")]).is_over("read", "overlayd.events")
    assert not grants_of([parse_scope("read:*.events")]).is_over("read", "overlayd.events")
    assert grants_of([parse_scope("read:overlayd.*")]).is_over("read", "overlayd.events")


def test_remembered_decisions_are_bounded() -> None:
    """Names are the client's choice; what was decided about them is forgotten in time."""
    grants = grants_of([parse_scope("read:bounded.*")])
    for number in range(5000):
        assert grants.is_over("read", f"bounded.s{number}")
    assert len(grants._decisions) <= 4096


@given(PATTERNS, PATTERNS, NAMES)
def test_what_lies_within_covers_no_more(inner: str, outer: str, name: str) -> None:
    """If one pattern lies within another, every name under it is under the other."""
    if is_within(inner, outer) and Pattern(inner).is_match(name):
        assert Pattern(outer).is_match(name)


@given(PATTERNS)
def test_a_pattern_lies_within_itself(pattern: str) -> None:
    """Whatever it is."""
    assert is_within(pattern, pattern)


@pytest.mark.parametrize(
    ("scope", "held", "is_held"),
    [
        ("read:weather.a", "read:weather.*", True), ("read:weather.*", "read:weather.a", False),
        ("read:weather.a.b", "read:weather.>", True), ("read", "read:weather.>", False), ("read:@own", "read:@own", True),
        ("read:@own", "read", True), ("read:a", "publish", False), ("read:overlayd.events", "read", False),
    ],
)  # fmt: skip
def test_who_may_hand_a_scope_on(scope: str, held: str, is_held: bool) -> None:
    """Only what is covered whole."""
    assert grants_of([parse_scope(held)]).is_wider(parse_scope(scope)) is is_held

"""Stream names, patterns, and names for foreign ids."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.model.errors import BadParameter
from overlayd.model.names import Pattern, is_node_name, name_of_foreign_id, parse_stream_name

TOKENS = st.text("ab0_-", min_size=1, max_size=6)
NAMES = st.lists(TOKENS, min_size=1, max_size=4).map(".".join)
PATTERNS = st.tuples(
    st.lists(TOKENS | st.just("*"), min_size=1, max_size=4).map(".".join), st.sampled_from(["", ".>"])
).map("".join) | st.just(">")


@settings(deadline=None, max_examples=50)
@given(NAMES)
def test_names_are_kept(name):
    """A good name is its own parsed form and, as a pattern, matches itself alone."""
    assert parse_stream_name(name) == name
    assert Pattern(name).is_match(name)
    assert not Pattern(name).is_match(name + ".x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "A",
        "é",
        "a b",
        "a*",
        "*",
        ">",
        "a/b",
        "a\n",
        "a" * 65,
        "a" * 64 + "." + "b" * 64,
        "٣",
    ],
)
def test_bad_names_are_refused(text):
    """Empty tokens, capitals, wildcards, foreign letters, white space and too long ones are refused with a hint."""
    with pytest.raises(BadParameter) as caught:
        parse_stream_name(text)
    assert "a-z" in caught.value.hint


def test_longest_names():
    """128 characters in all and 64 in a token are the bounds."""
    assert parse_stream_name("a" * 64 + "." + "b" * 63)
    assert parse_stream_name("a" * 64)


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=30))
def test_parsing_raises_nothing_else(text):
    """Arbitrary text is a name or BadParameter, and a pattern or BadParameter."""
    for parse in (parse_stream_name, Pattern):
        try:
            parse(text)
        except BadParameter:
            continue


def token_match(pattern: str, name: str) -> bool:
    """What a pattern matches, by walking tokens."""
    tokens = name.split(".")
    for at, part in enumerate(pattern.split(".")):
        if part == ">":
            return at < len(tokens) and (at > 0 or tokens[0] != "overlayd")
        if at == len(tokens):
            return False
        if part == "*":
            if at == 0 and tokens[0] == "overlayd":
                return False
        elif part != tokens[at]:
            return False
    return len(tokens) == len(pattern.split("."))


@settings(deadline=None, max_examples=150)
@given(PATTERNS, NAMES | st.sampled_from(["overlayd", "overlayd.node", "overlayd.a.b", "overlaydx", "overlayd-x.a"]))
def test_patterns_match_token_by_token(pattern, name):
    """A pattern matches what a plain walk over its tokens says."""
    assert Pattern(pattern).is_match(name) == token_match(pattern, name)


def test_wildcards_leave_the_node_alone():
    """The node's own names need a pattern that begins with `overlayd`."""
    for pattern in ("*", ">", "*.node", "*.>"):
        assert not Pattern(pattern).is_match("overlayd.node")
        assert not Pattern(pattern).is_match("overlayd")
    assert Pattern("overlayd.>").is_match("overlayd.node")
    assert Pattern("overlayd.*").is_match("overlayd.node")
    assert Pattern(">").is_match("overlaydx")
    assert is_node_name("overlayd")
    assert is_node_name("overlayd.node")
    assert not is_node_name("overlaydx")


@pytest.mark.parametrize("text", ["", ">.a", "a.>.b", "a>", "*a", "a.*b", "a..*", "A.*", "a.>>", "a" * 129])
def test_bad_patterns_are_refused(text):
    """Wildcards stand for whole tokens, and > comes last."""
    with pytest.raises(BadParameter):
        Pattern(text)


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=80))
def test_foreign_ids_become_names(foreign_id):
    """Every id gives a good name, always the same one."""
    name = name_of_foreign_id(foreign_id)
    assert parse_stream_name(name) == name == name_of_foreign_id(foreign_id)


def test_foreign_ids_are_kept_where_they_fit():
    """A fitting id is only lower-cased; another becomes x- and 26 characters."""
    assert name_of_foreign_id("Sensor-7") == "sensor-7"
    assert re.fullmatch("x-[a-z2-7]{26}", name_of_foreign_id("urn:dev:7"))
    assert re.fullmatch("x-[a-z2-7]{26}", name_of_foreign_id("\ud800"))
    assert name_of_foreign_id("urn:dev:7") != name_of_foreign_id("urn:dev:8")


def test_patterns_show_themselves():
    """A pattern's repr is its text."""
    assert repr(Pattern("a.*")) == "Pattern('a.*')"

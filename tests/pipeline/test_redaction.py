"""Redaction: what a rule names is gone, and everything else is as it was sent."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.privacy import RedactAction, RedactRule, redact_pointer, subject_pointer
from overlayd.pipeline.redaction import Redaction

NAMES = st.sampled_from(["a", "b", "c/d", "e~f", "é", "0", "1"])
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(
    SCALARS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
ACTIONS = st.sampled_from(["drop", "mask", "pseudonymise"])


def escaped(name: str) -> str:
    """A step as it stands in a pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def redact(text: str, *rules: tuple[str, RedactAction]) -> bytes:
    """What is left of the data."""
    return Redaction([RedactRule(path, action) for path, action in rules]).apply("data", text.encode(), "<{}>".format)


def model(value: Any, steps: list[str], action: str) -> Any:
    """The same for one rule, the plain way; `...` for nothing."""
    if not steps:
        if action == "drop":
            return ...
        if action == "mask":
            return "***"
        return None if value is None else "<pseudonym>"
    step, rest = steps[0], steps[1:]
    if isinstance(value, dict):
        pairs = {name: model(one, rest, action) if step in (name, "*") else one for name, one in value.items()}
        return {name: one for name, one in pairs.items() if one is not ...}
    if isinstance(value, list):
        items = [model(one, rest, action) if step in (str(at), "*") else one for at, one in enumerate(value)]
        return [one for one in items if one is not ...]
    return value


@given(VALUES, st.lists(NAMES | st.just("*"), min_size=1, max_size=3), ACTIONS)
def test_a_rule_does_what_the_plain_way_does(value: Any, steps: list[str], action: RedactAction) -> None:
    """Any rule on any value leaves what the model leaves."""
    rule = RedactRule("/data/" + "/".join(map(escaped, steps)), action)
    text = json.dumps(value).encode()
    left = Redaction([rule]).apply("data", text, lambda _: "<pseudonym>")
    wanted = model(value, steps, action)
    assert json.loads(left) == wanted
    assert Redaction([rule]).apply("data", left, lambda _: "<pseudonym>") is not None


@given(VALUES, st.lists(st.tuples(st.lists(NAMES | st.just("*"), min_size=1, max_size=3), ACTIONS), max_size=4))
def test_no_secret_survives_under_a_rule(value: Any, rules: list[tuple[list[str], RedactAction]]) -> None:
    """However rules overlap, a text that one of them names isn't in what is left, and the rest still parses."""
    secret = "marker-7c1e"
    paths = [("/data/" + "/".join(map(escaped, steps)), action) for steps, action in rules]
    planted: Any = value
    for steps, _ in rules[:1]:
        planted = secret
        for step in reversed(steps):
            planted = {"a" if step == "*" else step: planted}
    left = Redaction([RedactRule(*pair) for pair in paths]).apply("data", json.dumps(planted).encode(), lambda _: "p")
    json.loads(left)
    assert not rules or secret.encode() not in left


def test_what_no_rule_names_stays_byte_for_byte() -> None:
    """Numbers, escapes and spaces inside of other members aren't written anew."""
    text = '{"n": 1.10, "big": 18446744073709551615, "e": "\\u00e9", "o": { "x" : [1,  2] }, "secret": "s"}'
    left = redact(text, ("/data/secret", "drop"))
    assert left == b'{"n":1.10,"big":18446744073709551615,"e":"\\u00e9","o":{ "x" : [1,  2] }}'


def test_nothing_to_take_out_is_the_same_object() -> None:
    """A packet that no rule concerns isn't copied."""
    text = b'{"a": 1}'
    assert Redaction([RedactRule("/data/b", "drop")]).apply("data", text, str) is text
    assert Redaction([RedactRule("/metadata/a", "drop")]).apply("data", text, str) is text
    assert Redaction([RedactRule("/data/a/b", "drop")]).apply("data", text, str) is text


def test_the_stronger_rule_wins() -> None:
    """Two rules at one place, and one above another."""
    assert redact('{"a":"x"}', ("/data/a", "pseudonymise"), ("/data/*", "mask")) == b'{"a":"***"}'
    assert redact('{"a":"x"}', ("/data/*", "drop"), ("/data/a", "pseudonymise")) == b"{}"
    assert redact('{"a":{"b":1,"c":2}}', ("/data/a/b", "drop"), ("/data/a", "mask")) == b'{"a":"***"}'
    assert redact('{"a":[{"b":1},{"b":2,"c":3}]}', ("/data/a/*/b", "drop")) == b'{"a":[{},{"c":3}]}'
    assert redact('{"a":[1,2,3]}', ("/data/a/1", "drop")) == b'{"a":[1,3]}'


def test_pseudonyms_are_of_texts_and_numbers() -> None:
    """A text without its quotes, a number by its digits, null stays null."""
    text = '{"a":"x\\u0041","b":12,"c":null,"d":true}'
    left = redact(text, ("/data/*", "pseudonymise"))
    assert json.loads(left) == {"a": "<xA>", "b": "<12>", "c": None, "d": "<true>"}


@pytest.mark.parametrize(
    "path", ["data/a", "", "/", "/data", "/metadata", "/key/a", "/source/a", "/id", "/data/" + "/".join("a" * 17)]
)
def test_a_path_that_cannot_be(path: str) -> None:
    """It must lead into data or metadata, or to key or source."""
    with pytest.raises(ValueError, match=r"pointer|steps|text"):
        redact_pointer(path)


@pytest.mark.parametrize("path", ["data/a", "/data", "/metadata", "/key/a", "/data/*/id", "/id"])
def test_a_subject_that_cannot_be(path: str) -> None:
    """A subject stands at one place inside of data or metadata, or is the key or the source."""
    with pytest.raises(ValueError, match=r"pointer|text|subject"):
        subject_pointer(path)


def test_a_subject_is_found() -> None:
    """Texts and integers count, through objects and arrays."""
    pointer = subject_pointer("/data/users/0/i~1d")
    assert pointer.find({"users": [{"i/d": "alice"}]}) == "alice"
    assert pointer.find({"users": [{"i/d": 7}]}) == "7"
    others: tuple[object, ...] = (
        {"users": []},
        {"users": [{"i/d": True}]},
        {"users": {"0": 1}},
        [],
        "x",
        {"users": [{"i/d": ""}]},
    )
    assert [pointer.find(other) for other in others] == [""] * len(others)


def test_raw_slices_are_what_is_assumed() -> None:
    """msgspec cuts a member from its first to its last byte."""
    cut = msgspec.json.decode(b'{ "a" :  [ 1 ] , "b" : "x" }', type=dict[str, msgspec.Raw])
    assert (bytes(cut["a"]), bytes(cut["b"])) == (b"[ 1 ]", b'"x"')

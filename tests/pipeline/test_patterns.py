"""Strangers' regular expressions: what they weigh, and which are refused."""

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.pipeline.patterns import GROUPS_DEEP, CompiledPattern, judge_pattern


def places_of(pattern: str) -> int:
    """How many places a pattern has."""
    return judge_pattern(pattern, chars_max=512, repeats_max=100).places


@pytest.mark.parametrize(
    ("pattern", "places"),
    [
        ("abc", 3), ("a{10}", 10), ("(ab){10}", 30), ("(a{5}b){3}", 21), ("a|b|c", 3), ("[a-z]{7}", 7), (r"\d{3}-\d{4}", 8),
        ("a{2,}", 2), ("a{2,9}", 9), ("a{", 2), ("{", 1), ("a{x}", 4), ("a+b*c?", 3), ("a+?", 1), ("(?:a)(?P<n>b)(?<m>c)", 6), ("(?i)ab", 2), ("(?i:ab)", 3),
        (r"\p{L}\p{Script=Greek}\pN", 61), (r"\x{41}\u{41}\u0041", 7), ("[)(]{4}", 4), ("[a{1000}]", 1), (r"[\]{9}]", 1), ("", 0),
        ("(a){0}", 2), (r"\{5}", 3),
    ],
)  # fmt: skip
def test_places_count_repetitions_written_out(pattern: str, places: int) -> None:
    """Counted repetitions multiply; braces that count nothing, and those in classes, are characters."""
    assert places_of(pattern) == places


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("a{101}", "101"), ("(a{11}){10}", "110"), ("((a{2}){8}){8}", "128"), ("a{10}{11}", "110"), ("(a{1,60}b?){2}", "120"),
        ("a" * 513, "513"), ("(", "isn't closed"), (")", "closes nothing"), ("[a", "isn't closed"), ("[]a]", "escape it"), ("[^]", "escape it"), ("a\\", "backslash"),
        (r"\p{L", "isn't closed"), ("(?x)a", "of a kind"), ("(?(1)a)", "of a kind"), ("(?#c)", "of a kind"),
        ("(" * (GROUPS_DEEP + 2), "nest"),
    ],
)  # fmt: skip
def test_what_is_refused_and_why(pattern: str, words: str) -> None:
    """Repetition over the bound, however it is nested, and what can't be weighed, is refused in words."""
    with pytest.raises(ValueError, match=re.escape(words)):
        judge_pattern(pattern, chars_max=512, repeats_max=100)


@pytest.mark.parametrize("pattern", ["(?=a)b", "(?!a)b", "(?<=a)b", "(?<!a)b", r"(a)\1", r"(?<n>a)\k<n>", "(?>a)"])
def test_backtracking_is_recognized(pattern: str) -> None:
    """Lookaround, back references and atomic groups need the other engine, which filters don't use."""
    cost = judge_pattern(pattern, chars_max=512, repeats_max=100)
    assert cost.is_backtracking
    with pytest.raises(ValueError, match="aren't taken"):
        CompiledPattern(pattern, cost)


@given(st.text(alphabet="ab1(){}[]?*+|\\^$.,:=!<>pPk-", max_size=30))
def test_any_text_is_weighed_or_refused(pattern: str) -> None:
    """No text makes the judge fail in another way, and what the engine then takes matches without ado."""
    with contextlib.suppress(ValueError):
        cost = judge_pattern(pattern, chars_max=512, repeats_max=100)
        compiled = CompiledPattern(pattern, cost)
        assert compiled.is_match("ab1" * 10) in (True, False)


def test_digits_and_word_characters_are_ascii() -> None:
    """Patterns are found anywhere unless anchored; \\d and \\w mean ASCII, as in RE2 and ECMAScript."""

    def is_match(pattern: str, text: str) -> bool:
        return CompiledPattern(pattern, judge_pattern(pattern, chars_max=512, repeats_max=100)).is_match(text)

    assert is_match("b+", "abbc")
    assert not is_match("^b+$", "abbc")
    assert not is_match(r"^\d$", "\u0661")
    assert not is_match(r"^\w$", "\u00e9")
    assert is_match(r"^\p{L}$", "\u00e9")

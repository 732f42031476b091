"""Canonical JSON against an independent implementation, the RFC's own vectors, and itself."""

import json
import struct
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.canonical_json import canonical_json, format_number

SAFE = 1 << 53

NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-SAFE + 1, SAFE - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5),
    max_leaves=20,
)


@given(VALUES, st.booleans())
def test_agrees_with_an_independent_implementation(value: Any, is_escaped: bool) -> None:
    """For every value that RFC 8785 covers the text is that of the rfc8785 package, however it was written before."""
    text = json.dumps(value, ensure_ascii=is_escaped, indent=1).encode()
    assert canonical_json(text) == rfc8785.dumps(value)


@given(VALUES)
def test_is_its_own_canonical_form(value: Any) -> None:
    """Making it canonical again changes nothing, and the value stays the same (numbers read as doubles)."""
    text = json.dumps(value)
    once = canonical_json(text.encode())
    assert canonical_json(once) == once
    assert json.loads(once, parse_int=float) == json.loads(text, parse_int=float)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_come_back(value: float) -> None:
    """The text of a double names that double."""
    assert float(format_number(value)) == value


@pytest.mark.parametrize(
    ("bits", "text"),
    [
        (0x0000000000000000, "0"), (0x8000000000000000, "0"), (0x0000000000000001, "5e-324"),
        (0x8000000000000001, "-5e-324"), (0x7FEFFFFFFFFFFFFF, "1.7976931348623157e+308"),
        (0xFFEFFFFFFFFFFFFF, "-1.7976931348623157e+308"), (0x4340000000000000, "9007199254740992"),
        (0xC340000000000000, "-9007199254740992"), (0x4430000000000000, "295147905179352830000"),
        (0x44B52D02C7E14AF5, "9.999999999999997e+22"), (0x44B52D02C7E14AF6, "1e+23"),
        (0x44B52D02C7E14AF7, "1.0000000000000001e+23"), (0x444B1AE4D6E2EF4E, "999999999999999700000"),
        (0x444B1AE4D6E2EF4F, "999999999999999900000"), (0x444B1AE4D6E2EF50, "1e+21"),
        (0x3EB0C6F7A0B5ED8C, "9.999999999999997e-7"), (0x3EB0C6F7A0B5ED8D, "0.000001"),
        (0x41B3DE4355555553, "333333333.3333332"), (0x41B3DE4355555557, "333333333.33333343"),
        (0xBECBF647612F3696, "-0.0000033333333333333333"), (0x43143FF3C1CB0959, "1424953923781206.2"),
    ],
)  # fmt: skip
def test_numbers_of_the_rfc(bits: int, text: str) -> None:
    """The table of RFC 8785, appendix B."""
    assert format_number(struct.unpack(">d", bits.to_bytes(8, "big"))[0]) == text


def test_large_integers_keep_their_digits() -> None:
    """Integers beyond 2^53, also those beyond 64 bits, are not rounded to a double."""
    text = b'{"b":18446744073709551615,"a":-9007199254740993,"c":123456789012345678901234567890}'
    expected = b'{"a":-9007199254740993,"b":18446744073709551615,"c":123456789012345678901234567890}'
    assert canonical_json(text) == expected


def test_keys_are_sorted_by_utf16_units() -> None:
    """The RFC's example: U+1F600 (a surrogate pair) comes before U+FB33, though its code point is higher."""
    text = json.dumps({"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\u0080": 6, "\u00f6": 7}).encode()
    assert list(json.loads(canonical_json(text))) == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_refuses_what_is_no_number(value: float) -> None:
    """Infinities and NaN have no JSON form."""
    with pytest.raises(ValueError, match="infinite or undefined"):
        format_number(value)
    with pytest.raises(ValueError, match="infinite or undefined"):
        canonical_json(b"[1e999]")

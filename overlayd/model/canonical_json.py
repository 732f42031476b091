"""RFC 8785 canonical JSON (JCS): one text per value, so that a signature doesn't depend on who wrote it down.

One deviation, which our own numbers need: integers beyond ±2^53 are written in plain digits, not rounded to a double.
"""

import re
from typing import Any

import msgspec

_SAFE_EXPONENTS = range(-6, 21)
"""Decimal exponents of the leading digit that ECMAScript writes without an `e`."""
_BEYOND_BMP = re.compile(rb"[\xf0-\xf4]|\\u[dD][89abAB]")
_SHORT_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ESCAPED = re.compile(r'["\\\x00-\x1f]')


def canonical_json(text: bytes) -> bytes:
    """The canonical form of a JSON text. Takes about 10 µs a kilobyte; give large texts to a thread.

    Raises msgspec.DecodeError for what isn't JSON, ValueError for a number that no double holds. Of equal keys the last
    counts, as everywhere.
    """
    if _BEYOND_BMP.search(text) is None:
        try:
            return _sorted_encode(_decode(text))
        except OverflowError:
            pass  # an integer beyond 64 bits
    return _write(_decode_numbers(text)).encode("utf-8", "surrogatepass")


def format_number(value: float) -> str:
    """A double as ECMAScript's Number::toString has it. Raises ValueError for infinities and NaN."""
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError("no JSON number is infinite or undefined")
    if value == 0:
        return "0"
    sign, shortest = ("-", repr(-value)) if value < 0 else ("", repr(value))
    mantissa, _, power = shortest.partition("e")
    whole, _, fraction = mantissa.partition(".")
    fraction = "" if fraction == "0" else fraction
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(power or 0) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")  # the value is 0.digits, shifted by `point` places
    exponent = point - 1
    if exponent not in _SAFE_EXPONENTS:
        tail = f".{digits[1:]}" if len(digits) > 1 else ""
        return f"{sign}{digits[0]}{tail}e{'+' if exponent > 0 else '-'}{abs(exponent)}"
    if point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    if point >= len(digits):
        return f"{sign}{digits}{'0' * (point - len(digits))}"
    return f"{sign}{digits[:point]}.{digits[point:]}"


def _write(value: Any) -> str:
    """For what msgspec doesn't write as RFC 8785 wants it: keys sorted by UTF-16 units, integers of any size."""
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return _write_text(value)
    if isinstance(value, float):
        return format_number(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return f"[{','.join(map(_write, value))}]"
    assert isinstance(value, dict)
    names = sorted(value, key=_utf16_units)
    return "{" + ",".join(f"{_write_text(name)}:{_write(value[name])}" for name in names) + "}"


def _utf16_units(name: str) -> bytes:
    return name.encode("utf-16-be", "surrogatepass")


def _write_text(text: str) -> str:
    return f'"{_ESCAPED.sub(_escape, text)}"'


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    return _SHORT_ESCAPES.get(character) or f"\\u{ord(character):04x}"


def _raw_number(text: str) -> msgspec.Raw:
    return msgspec.Raw(format_number(float(text)).encode())


_decode = msgspec.json.Decoder(float_hook=_raw_number).decode
_decode_numbers = msgspec.json.Decoder().decode
_sorted_encode = msgspec.json.Encoder(order="sorted").encode
"""Sorts keys by UTF-8 bytes, which is the order of UTF-16 units as long as nothing lies beyond the BMP."""

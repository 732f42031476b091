"""Judges JSON texts: what every consumer can parse passes, anything else is named with its place.

Native decoders are quick and lenient: they keep the last of two equal keys, turn 30-digit integers into
objects nobody else can read, and nest until the stack ends. So the nesting is counted before anything native
sees the text, and what the decoder gave is compared with the text it came from.
"""

import json
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import msgspec

from overlayd.model.errors import MalformedJson, OverlaydError, UnusableJson, Violation

INTEGER_MIN, INTEGER_MAX = -(1 << 63), (1 << 64) - 1
FLAWS_MAX = 10
"""Flaws named in one error; a text may hold any number of them."""

_BOM = b"\xef\xbb\xbf"
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"0" * 9)
_LONG_DIGITS = b"0" * 19  # the shortest run that may lie beyond 64 bits
_NO_MARKS = bytes(set(range(256)) - set(b'[]{}"'))
_BRACKET_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def parse_json(raw: bytes, depth_max: int) -> Any:
    """The value of a JSON text that every consumer can parse.

    Raises MalformedJson (not JSON) and UnusableJson (invalid UTF-8, numbers beyond a double or 64 bits,
    nesting over `depth_max`, equal keys in one object, lone surrogates).
    """
    if raw.count(b"[") + raw.count(b"{") > depth_max:
        check_depth(raw, depth_max)
    try:
        value = _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as err:
        raise diagnose(raw) or MalformedJson(f"not JSON: {err}") from err
    if _is_doubtful(raw, _encode(value)):
        flaw = diagnose(raw)
        if flaw is not None:
            raise flaw
    return value


def parse_each(texts: Sequence[bytes], depth_max: int) -> list[Any] | None:
    """The values of several texts, decoded at once, as `parse_json` gives them. None where that says nothing about one
    of them, which isn't JSON, is unusable or in doubt: then each is to be asked about alone.

    Each text must be known to be one JSON value at first sight, so that none can end inside another.
    """
    joined = b"[%b]" % b",".join(texts)
    if measure_depth(joined) > depth_max + 1:
        return None
    try:
        values: list[Any] = _decode(joined)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return None if len(values) != len(texts) or _is_doubtful(joined, _encode(values)) else values


def _is_doubtful(raw: bytes, encoded: bytes) -> bool:
    """Whether `diagnose` might find something in a text that was decoded, and encoded again."""
    # As many colons on both sides say so at once, where no string holds an escape; else they are counted with care.
    if (b"\\u" in raw or raw.count(b":") != encoded.count(b":")) and not _has_every_key(raw, encoded):
        return True
    return _LONG_DIGITS in raw.translate(_DIGITS_TO_ZERO)


def _has_every_key(raw: bytes, encoded: bytes) -> bool:
    """Whether no key was lost on the way. Each lost key takes at least its colon along.

    Strings hold the same colons in both texts unless one was written as an escape; only then they are
    taken out before counting.
    """
    if b"\\u" not in raw:
        return raw.count(b":") == encoded.count(b":")
    return outside_strings(raw).count(b":") == outside_strings(encoded).count(b":")


def check_depth(raw: bytes, depth_max: int) -> None:
    """Raises UnusableJson when the text nests deeper. Exact up to the first place where it isn't JSON."""
    if raw.count(b"[") + raw.count(b"{") <= depth_max:
        return
    if (depth := measure_depth(raw)) > depth_max:
        detail = f"nested {depth} levels deep; {depth_max} are taken"
        raise UnusableJson(detail, violations=[Violation("", "json.depth", detail)])


def measure_depth(raw: bytes) -> int:
    """The deepest nesting of arrays and objects."""
    marks = _without_escapes(raw).translate(None, _NO_MARKS)
    # Two quotes with no bracket between them say nothing, whether they are one string's or two neighbours'.
    marks = marks.replace(b'""', b"")
    if b'"' in marks:
        marks = b"".join(marks.split(b'"')[::2])
    return max(accumulate(array("b", marks.translate(_BRACKET_STEPS)), initial=0))


def outside_strings(raw: bytes) -> bytes:
    """The text without its strings."""
    return b"".join(_without_escapes(raw).split(b'"')[::2])


def _without_escapes(raw: bytes) -> bytes:
    """Every quote that is left begins or ends a string. Pairs of backslashes go first, so that `\\"` left over is an
    escaped quote."""
    return raw.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in raw else raw


def diagnose(raw: bytes) -> OverlaydError | None:
    """What is wrong with a JSON text, with its place; None when nothing is. Slow, for texts in doubt only.

    The nesting must have been checked before.
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError as err:
        detail = f"byte {err.start} isn't UTF-8"
        return UnusableJson(detail, violations=[Violation("", "json.utf8", detail)])
    if raw.startswith(_BOM):
        return _malformed("begins with a byte order mark", "send UTF-8 without one")
    try:
        value = json.loads(
            text, parse_int=_take_integer, parse_float=_take_float, parse_constant=_refuse_constant,
            object_pairs_hook=_take_object,
        )  # fmt: skip
    except json.JSONDecodeError as err:
        return _malformed(_place_of(err))
    except _NotJson as err:
        return _malformed(f"{err} isn't JSON", "write null, or a string")
    flaws = [flaw for _, flaw in zip(range(FLAWS_MAX), _find_flaws(value), strict=False)]
    return UnusableJson(flaws[0].detail, subject=flaws[0].pointer, violations=flaws) if flaws else None


def pointer_of(path: tuple[str | int, ...] | list[str | int]) -> str:
    """The JSON pointer (RFC 6901) of a path."""
    return "".join(
        "/" + str(part).replace("~", "~0").replace("/", "~1").encode("utf-8", "replace").decode() for part in path
    )


def _malformed(detail: str, hint: str = "") -> MalformedJson:
    return MalformedJson(detail, hint=hint, violations=[Violation("", "json.syntax", detail)])


def _place_of(err: json.JSONDecodeError) -> str:
    byte = len(err.doc[: err.pos].encode())
    what = err.msg[0].lower() + err.msg[1:]
    near = err.doc[err.pos : err.pos + 20]
    tail = f", near {near!r}" if near else ", at the end"
    return f"{what}: line {err.lineno}, column {err.colno} (byte {byte}){tail}"


class _NotJson(Exception):
    pass


class _Flaw(msgspec.Struct):
    """Stands in the decoded value where something is unusable. `key`: the key in question, if one is."""

    code: str
    detail: str
    key: str | None = None


def _refuse_constant(name: str) -> Any:
    raise _NotJson(name)


def _take_integer(text: str) -> Any:
    if len(text) > 21 or not INTEGER_MIN <= int(text) <= INTEGER_MAX:
        return _Flaw("json.number", f"the integer {_shorten(text)} is beyond 64 bits")
    return 0


def _take_float(text: str) -> Any:
    if float(text) in (float("inf"), float("-inf")):
        return _Flaw("json.number", f"the number {_shorten(text)} is beyond a double")
    return 0


def _shorten(text: str) -> str:
    return text if len(text) <= 30 else f"{text[:30]}… ({len(text)} characters)"


def _take_object(pairs: list[tuple[str, Any]]) -> Any:
    taken = dict(pairs)
    if len(taken) == len(pairs):
        return taken
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            return _Flaw("json.duplicate_key", f"the key {_shorten(key)!r} stands twice in one object", key)
        seen.add(key)
    raise AssertionError("pairs were lost, yet none is equal")


def _find_flaws(value: Any) -> Iterator[Violation]:
    """In the order in which they stand. Iterative: the walk must not depend on the stack."""
    rest: list[tuple[tuple[str | int, ...], Any]] = [((), value)]
    while rest:
        path, here = rest.pop()
        if isinstance(here, _Flaw):
            yield Violation(pointer_of(path if here.key is None else (*path, here.key)), here.code, here.detail)
        elif isinstance(here, str):
            if _has_lone_surrogate(here):
                yield Violation(pointer_of(path), "json.surrogate", "a string holds half of a surrogate pair")
        elif isinstance(here, dict):
            rest.extend(((*path, key), member) for key, member in reversed(here.items()))
            for key in here:
                if _has_lone_surrogate(key):
                    yield Violation(pointer_of((*path, key)), "json.surrogate", "a key holds half of a surrogate pair")
        elif isinstance(here, list):
            rest.extend(((*path, at), member) for at, member in reversed(list(enumerate(here))))


def _has_lone_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False

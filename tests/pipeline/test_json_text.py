"""JSON texts: what every consumer can parse passes, everything else is named with its place."""

import contextlib
import json
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.errors import MalformedJson, UnusableJson
from overlayd.pipeline.json_text import measure_depth, outside_strings, parse_json, pointer_of

DEPTH = 64
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=20,
)  # fmt: skip


@given(json_values, st.booleans(), st.sampled_from([None, 1]))
def test_good_json_gives_its_value(value: Any, is_ascii: bool, indent: int | None) -> None:
    """Whatever a JSON library writes comes back as its value, escaped or not, indented or not."""
    text = json.dumps(value, ensure_ascii=is_ascii, indent=indent).encode()
    assert parse_json(text, DEPTH) == value


@pytest.mark.parametrize(
    ("text", "code", "pointer"),
    [
        (b'{"a":{"b":["\xff"]}}', "json.utf8", ""),
        (b'"\xed\xa0\x80"', "json.utf8", ""),
        (b'"\xc0\x80"', "json.utf8", ""),
        (b"\xa01", "json.utf8", ""),
        (b'{"a":[1,1e400]}', "json.number", "/a/1"),
        (b'{"a":-1e400}', "json.number", "/a"),
        (b'{"a":18446744073709551616}', "json.number", "/a"),
        (b'{"a":-9223372036854775809}', "json.number", "/a"),
        (b'{"a":' + b"9" * 5000 + b"}", "json.number", "/a"),
        (b'{"a":1,"a":2}', "json.duplicate_key", "/a"),
        (b'{"a":1,"\\u0061":2}', "json.duplicate_key", "/a"),
        (b'[{"x":{"k":1 , "k" :{}}}]', "json.duplicate_key", "/0/x/k"),
        (b'{"":1,"":1}', "json.duplicate_key", "/"),
        (b'{"a":":","a":"\\u003a"}', "json.duplicate_key", "/a"),
        (b'{"a/b~":{"c":"\\ud800"}}', "json.surrogate", "/a~1b~0/c"),
        (b'["\\udc00\\ud800"]', "json.surrogate", "/0"),
        (b'["\\ud83dx"]', "json.surrogate", "/0"),
        (b'{"\\ud800":1}', "json.surrogate", "/?"),
        (b"[" * 65 + b"]" * 65, "json.depth", ""),
        (b"[" * 10_000 + b"]" * 10_000, "json.depth", ""),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "json.depth", ""),
        (b"[" * 1_000_000, "json.depth", ""),
    ],
)
def test_unusable_json_is_named_with_its_place(text: bytes, code: str, pointer: str) -> None:
    """JSON that some consumer couldn't take is refused with the rule and the place it breaks."""
    with pytest.raises(UnusableJson) as caught:
        parse_json(text, DEPTH)
    assert (caught.value.violations[0].code, caught.value.violations[0].pointer) == (code, pointer)
    json.dumps(caught.value.detail).encode()


@pytest.mark.parametrize(
    "text",
    [b"", b"  ", b"{", b"[1,", b'{"a":1', b'"a', b"nul", b"NaN", b"[Infinity]", b"-Infinity", b"01", b"1.", b".5", b"+1",
     b"[1,]", b'{"a":1,}', b'{"a" 1}', b"{1:2}", b"{'a':1}", b'"a\nb"', b'"\x00"', b'"\\x"', b'"\\u12"', b"1 2", b"1\x0b",
     b"\xef\xbb\xbf{}", b"// c\n1", b"[1}", b"tru", b'{"a":1}{', b'{"a":1} x', b"0x10", b"[" * 60],
)  # fmt: skip
def test_what_is_not_json_is_malformed(text: bytes) -> None:
    """Broken, truncated or padded texts are malformed, with one violation in words and no more."""
    with pytest.raises(MalformedJson) as caught:
        parse_json(text, DEPTH)
    assert caught.value.violations[0].code == "json.syntax"


def test_the_place_of_a_syntax_error_is_told() -> None:
    """Line, column and byte of the mistake stand in the detail; bytes count UTF-8."""
    with pytest.raises(MalformedJson, match=r"line 2, column 8 \(byte 16\), near 'oops}'"):
        parse_json('{"ä":1,\n"b":"",oops}'.encode(), DEPTH)


@pytest.mark.parametrize("text", [b"[" * 64 + b"]" * 64, b'"' + b"[" * 500 + b'"', b'{"a":"[[[[\\"[[[[{{{","b":[]}' * 1,
                                  b"[" + b"[]," * 500 + b"[]]"])  # fmt: skip
def test_depth_counts_nesting_not_brackets(text: bytes) -> None:
    """Brackets in strings and beside each other don't count as nesting."""
    parse_json(text, DEPTH)


@given(st.text(alphabet='[]{}"\\:,1a ', max_size=60))
def test_strings_are_cut_out_as_a_json_reader_would(text: str) -> None:
    """Depth and colons outside strings, counted by splitting, equal those of a reader that goes byte by byte."""
    raw = text.encode()
    depth = deepest = 0
    outside = bytearray()
    is_inside = is_escaped = False
    for byte in raw:
        if is_inside:
            is_escaped, is_inside = (byte == 0x5C and not is_escaped), not (byte == 0x22 and not is_escaped)
            continue
        if byte == 0x5C:
            return  # not JSON from here on
        if byte == 0x22:
            is_inside = True
            continue
        outside.append(byte)
        depth += 1 if byte in b"[{" else -1 if byte in b"]}" else 0
        deepest = max(deepest, depth)
    assert outside_strings(raw) == bytes(outside)
    assert measure_depth(raw) == deepest


@given(json_values, st.data())
def test_damaged_json_never_escapes_the_error_tree(value: Any, data: st.DataObject) -> None:
    """After any single byte is changed, the text either parses as the standard library would or is refused by name."""
    text = bytearray(json.dumps(value, ensure_ascii=data.draw(st.booleans())).encode())
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MalformedJson, UnusableJson):
        assert parse_json(bytes(text), DEPTH) == json.loads(bytes(text))


@given(st.binary(max_size=80))
def test_octets_never_escape_the_error_tree(text: bytes) -> None:
    """Any octets at all give a value or an error of the tree."""
    with contextlib.suppress(MalformedJson, UnusableJson):
        parse_json(text, DEPTH)


@given(st.lists(st.sampled_from(["a", "b", "a:", '"a', "é", ""]), max_size=5), st.booleans())
def test_equal_keys_are_found_however_they_are_written(keys: list[str], is_ascii: bool) -> None:
    """A key that stands twice is refused and keys that merely look alike pass, escapes or not."""
    text = "{" + ",".join(json.dumps(key, ensure_ascii=is_ascii) + ' : ":"' for key in keys) + "}"
    if len(set(keys)) == len(keys):
        assert parse_json(text.encode(), DEPTH) == dict.fromkeys(keys, ":")
    else:
        with pytest.raises(UnusableJson, match="twice"):
            parse_json(text.encode(), DEPTH)


def test_deep_nesting_does_not_end_a_small_stack() -> None:
    """In a thread with a small stack, hostile nesting is refused like anywhere else."""
    caught: list[Exception] = []

    def judge() -> None:
        for text in (b"[" * 1_000_000, b'{"a":' * 200_000, b'[{"":' * 100_000):
            try:
                parse_json(text, DEPTH)
            except UnusableJson as err:
                caught.append(err)

    before = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=judge)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    assert len(caught) == 3


def test_pointers_escape_as_rfc_6901_says() -> None:
    """Slashes and tildes in keys are escaped; the empty key is an empty token."""
    assert pointer_of(("a/b", 0, "~", "")) == "/a~1b/0/~0/"

"""Definitions of streams as text."""

import msgspec
import pytest

from overlayd.model.definition import Definition, RetentionRule, decode_definition, encode_definition
from overlayd.model.units import Duration, Size


def test_definitions_read_back():
    """What is written decodes to the same definition, odd durations and sizes included."""
    definition = Definition(
        title="Wetter", tags=("a", "b"), schema={"type": "object", "$schema": "x"}, topics=("t",),
        retention=RetentionRule(max_age=Duration(86400.1), max_bytes=Size(12345)),
    )  # fmt: skip
    assert decode_definition(encode_definition(definition)) == definition
    assert decode_definition(encode_definition(Definition())) == Definition()


def test_one_definition_has_one_text():
    """Members come out in one order, whatever order they went in, because the text is hashed."""
    one = decode_definition(b'{"title":"a","schema":{"b":1,"a":2}}')
    two = decode_definition(b'{"schema":{"a":2,"b":1},"title":"a"}')
    assert encode_definition(one) == encode_definition(two)


@pytest.mark.parametrize("text", [
    b'{"titel":""}', b'{"retention":{"max_age":30}}', b'{"retention":{"max_age":"30"}}', b'{"visibility":"secret"}',
    b'{"confirm":{"depths":[0]}}', b'{"limits":{"packet_bytes":-1}}', b'{"limits":{"packet_bytes":true}}', b"[]", b"{",
])  # fmt: skip
def test_bad_definitions_are_refused(text):
    """Unknown members, missing units and values out of range are refused."""
    with pytest.raises(msgspec.DecodeError):
        decode_definition(text)

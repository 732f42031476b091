"""Epochs and cursors as text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.model.cursor import OFFSET_MAX, Cursor, epoch_counter, format_epoch, make_epoch, parse_epoch
from overlayd.model.errors import BadCursor

EPOCHS = st.builds(make_epoch, st.integers(1, (1 << 24) - 1), st.binary(min_size=5, max_size=5))
OFFSETS = st.integers(0, OFFSET_MAX)


@settings(deadline=None, max_examples=60)
@given(EPOCHS, OFFSETS, st.none() | OFFSETS)
def test_cursors_read_back(epoch, offset, index):
    """Every cursor's text parses to itself, and its epoch's too."""
    cursor = Cursor(epoch, offset, index)
    assert Cursor.parse(str(cursor)) == cursor
    assert parse_epoch(format_epoch(epoch)) == epoch
    assert 1 <= epoch_counter(epoch) < 1 << 24


def test_texts_are_those_of_the_docs():
    """The forms that the documentation shows."""
    epoch = parse_epoch("2k7f3q2ma")
    assert epoch_counter(epoch) == 2
    assert str(Cursor(epoch, 12345)) == "e2k7f3q2ma-12345"
    assert str(Cursor(epoch, 400, 37)) == "e2k7f3q2ma-400.37"


@pytest.mark.parametrize(
    "text",
    [
        "", "e", "-1", "e2k7f3q2ma", "e2k7f3q2ma-", "e2k7f3q2ma-01", "e2k7f3q2ma--1", "e2k7f3q2ma-1.", "e2k7f3q2ma-1.01",
        "E2k7f3q2ma-1", "e0k7f3q2ma-1", "e02k7f3q2ma-1", "ek7f3q2ma-1", "e2k7f3q2m1-1", "e16777216k7f3q2ma-1",
        "e2k7f3q2ma-9223372036854775808", "e2k7f3q2ma-1.9223372036854775808", "e2k7f3q2ma-1 ", "e2k7f3q2ma-1\n",
        "e2k7f3q2ma-٣", "e2K7F3Q2MA-1",
    ],
)  # fmt: skip
def test_bad_cursors_are_refused(text):
    """Leading zeros, other letters, numbers too large and rests are refused."""
    with pytest.raises(BadCursor):
        Cursor.parse(text)


@pytest.mark.parametrize(
    "text", ["", "k7f3q2ma", "0k7f3q2ma", "16777216k7f3q2ma", "2k7f3q2m", "2k7f3q2m1", "e2k7f3q2ma"]
)
def test_bad_epochs_are_refused(text):
    """An epoch has a counter from 1 to 24 bits and 8 characters."""
    with pytest.raises(BadCursor):
        parse_epoch(text)


@settings(deadline=None, max_examples=100)
@given(st.text("e2k7f3q2ma-.01 ", max_size=30) | st.text(max_size=20))
def test_parsing_raises_nothing_else(text):
    """Arbitrary text is a cursor that prints as the same text, or BadCursor."""
    try:
        cursor = Cursor.parse(text)
    except BadCursor:
        return
    assert str(cursor) == text

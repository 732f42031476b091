"""Durations, sizes and times as people write them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.model.clock import Entropy, SystemClock, format_time_us, parse_time_us
from overlayd.model.units import Duration, Size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("250ms", 0.25), ("1.5s", 1.5), ("1h30m", 5400), ("30d", 2_592_000), ("0s", 0), ("5us", 5e-6), ("1d1us", 86400.000001)],
)  # fmt: skip
def test_durations(text, seconds):
    """Numbers with units, also summed."""
    assert Duration.parse(text) == pytest.approx(seconds)


@pytest.mark.parametrize(("seconds", "text"), [(5400, "90m"), (0, "0s"), (1.5, "1500ms"), (86400, "1d"), (1e-6, "1us")])
def test_durations_are_written_in_the_largest_unit(seconds, text):
    """A duration is written in the largest unit that divides it."""
    assert str(Duration(seconds)) == text


@settings(deadline=None, max_examples=200)
@given(
    st.integers(0, 1 << 51).map(lambda count_us: count_us / 1e6)
    | st.integers(0, 10**7).map(lambda days: days * 86400.0)
)
def test_durations_read_back(seconds):
    """What is written parses to the same microsecond, also for odd and for very long durations."""
    assert round(Duration.parse(str(Duration(seconds))) * 1e6) == round(seconds * 1e6)


@pytest.mark.parametrize(
    "text", ["", "30", "s", "-1s", "1 s", "1s ", "1S", "1.s", ".5s", "1y", "1e3s", "٣s", "9" * 400 + "d"]
)
def test_bad_durations_are_refused(text):
    """Without a unit, negative, spaced, in other digits or endless: refused with an example of a good one."""
    with pytest.raises(ValueError, match="30s"):
        Duration.parse(text)


@pytest.mark.parametrize(
    ("text", "count"), [("64KiB", 65536), ("1MiB", 1 << 20), ("10GB", 10**10), ("5", 5), ("7B", 7), ("1 MiB", 1 << 20)]
)
def test_sizes(text, count):
    """Binary and decimal units, and plain bytes."""
    assert Size.parse(text) == count


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 1 << 62))
def test_sizes_read_back(count):
    """What is written parses to the same count."""
    assert Size.parse(str(Size(count))) == count


@pytest.mark.parametrize("text", ["", "KiB", "-1", "1.5MiB", "1mib", "1 000", "٣KiB"])
def test_bad_sizes_are_refused(text):
    """Fractions, signs, other spellings and other digits are refused with an example of a good one."""
    with pytest.raises(ValueError, match="64KiB"):
        Size.parse(text)


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 253_402_300_799_999_999))
def test_times_read_back(time_us):
    """A time's text is UTC with microseconds and parses to the same microsecond."""
    assert format_time_us(time_us).endswith("Z")
    assert parse_time_us(format_time_us(time_us)) == time_us


@pytest.mark.parametrize("text", ["", "2024-01-15", "2024-01-15T10:30:00", "2024-01-15 10:30:00Z", "now", "1700000000"])
def test_times_need_a_zone(text):
    """A time without a zone, or that isn't one, is refused."""
    with pytest.raises(ValueError):  # noqa: PT011 - partly Python's own words
        parse_time_us(text)


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59-00:01", "0001-01-01T00:00:00+00:01"])
def test_times_can_be_written_again(text):
    """A time whose zone moves it out of the years that can be written is refused, not kept to fail whoever lists it."""
    with pytest.raises(ValueError, match="outside the years"):
        parse_time_us(text)


def test_early_years_have_four_digits():
    """The first and the last moment that can be written read back."""
    for text in ("0001-01-01T00:00:00.000000Z", "9999-12-31T23:59:59.999999Z"):
        assert format_time_us(parse_time_us(text)) == text


def test_zones_are_taken_off():
    """The same moment in another zone is the same number."""
    assert parse_time_us("2024-01-15T11:30:00+01:00") == parse_time_us("2024-01-15T10:30:00Z") == 1_705_314_600_000_000


def test_the_system_gives_time_and_chance():
    """The real clock is past 2023 and counts microseconds; the real generator draws what is asked and never the same."""
    assert SystemClock().now_us() > 1_700_000_000_000_000
    assert len(Entropy().draw(16)) == 16
    assert Entropy().draw(16) != Entropy().draw(16)

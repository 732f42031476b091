"""Live queries from URL arguments and from subscribe messages: what is taken, and what an error names."""

import base64
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.delivery.query import (
    PARAMETERS,
    At,
    Beginning,
    Last,
    LiveQuery,
    Now,
    Seen,
    TopicPattern,
    parse_arguments,
    parse_message,
)
from overlayd.model.cursor import Cursor, make_epoch
from overlayd.model.errors import BadCursor, BadParameter, OverlaydError
from overlayd.model.limits import Limits

CURSOR = str(Cursor(make_epoch(1, b"12345"), 77))
ROOT = "ab" * 32


def status_of(ask: Callable[[], LiveQuery]) -> int:
    """200, or the status of one of our errors."""
    try:
        ask()
    except OverlaydError as error:
        return error.status
    return 200


def parse(*pairs: tuple[str, str], limits: Limits | None = None) -> LiveQuery:
    """The query of URL arguments."""
    return parse_arguments(pairs, limits or Limits(), heartbeat_s=15.0)


def test_defaults() -> None:
    """No arguments: everything that is appended from now on, as packets."""
    query = parse()
    assert query == LiveQuery()
    assert query.start == Now()
    assert parse_arguments((), Limits(), heartbeat_s=15.0, start=Beginning()).start == Beginning()


def test_everything_at_once() -> None:
    """Every parameter lands where it belongs; the first four repeat."""
    query = parse(
        ("stream", "b.*"), ("stream", "a"), ("topic", "x.>"), ("type", "t"), ("type", "u"), ("key", "k"),
        ("deliver", "both"), ("min_confirmations", "3"), ("filter", "data.t > 1"), ("after", CURSOR),
        ("format", "cloudevents"), ("status", "true"), ("on_gap", "error"), ("heartbeat", "2s"), ("seen", f"5:{ROOT}"),
    )  # fmt: skip
    assert query.selection.streams == ("a", "b.*")
    assert query.selection.types == {"t", "u"}
    assert query.selection.min_confirmations == 3
    assert query.start == Cursor.parse(CURSOR)
    assert query.seen == Seen(5, bytes.fromhex(ROOT))
    assert query.heartbeat_s == 2.0
    body = query.body()
    assert (body.streams, body.types, body.status, body.format) == (["a", "b.*"], ["t", "u"], True, "cloudevents")


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("now", Now()), ("beginning", Beginning()), ("last", Last()),
        ("1970-01-01T00:00:01Z", At(1_000_000)), ("1970-01-01T01:00:01.5+01:00", At(1_500_000)),
    ],
)  # fmt: skip
def test_from(text: str, start: Any) -> None:
    """from takes three words or a time with a zone."""
    assert parse(("from", text)).start == start


@pytest.mark.parametrize(
    ("pairs", "subject", "words"),
    [
        ([("streem", "a")], "streem", "no such parameter"),
        ([("stream", "A")], "stream", "not a pattern"),
        ([("stream", "a.>.b")], "stream", "not a pattern"),
        ([("stream", "")], "stream", "not a pattern"),
        ([("topic", ">.a")], "topic", "not a topic"),
        ([("topic", "x" * 129)], "topic", "not a topic"),
        ([("type", "")], "type", "characters"),
        ([("key", "x" * 129)], "key", "characters"),
        ([("deliver", "later")], "deliver", "appended or confirmed or both"),
        ([("min_confirmations", "1")], "min_confirmations", "needs deliver"),
        ([("deliver", "confirmed"), ("min_confirmations", "0")], "min_confirmations", "whole number"),
        ([("deliver", "confirmed"), ("min_confirmations", "many")], "min_confirmations", "whole number"),
        ([("deliver", "confirmed"), ("from", "last")], "from", "from=last"),
        ([("filter", "  ")], "filter", "empty"),
        ([("filter", "x" * 3000)], "filter", "over"),
        ([("after", CURSOR), ("from", "now")], "from", "exclude"),
        ([("from", "yesterday")], "from", "RFC 3339"),
        ([("from", "2024-01-01")], "from", "RFC 3339"),
        ([("from", "2024-01-01T00:00:00")], "from", "zone"),
        ([("format", "xml")], "format", "packet or cloudevents"),
        ([("status", "yes")], "status", "false or true"),
        ([("on_gap", "panic")], "on_gap", "message or error"),
        ([("heartbeat", "15")], "heartbeat", "duration"),
        ([("heartbeat", "0s")], "heartbeat", "from 1s to 55s"),
        ([("heartbeat", "2m")], "heartbeat", "from 1s to 55s"),
        ([("seen", "5")], "seen", "<size>:<root>"),
        ([("seen", f"05:{ROOT}")], "seen", "<size>:<root>"),
        ([("seen", "5:abc")], "seen", "<size>:<root>"),
        ([("heartbeat", "2s"), ("heartbeat", "3s")], "heartbeat", "once"),
    ],
)
def test_errors_name_the_parameter(pairs: list[tuple[str, str]], subject: str, words: str) -> None:
    """What is wrong is told with the parameter's name and what was expected."""
    with pytest.raises(BadParameter) as caught:
        parse(*pairs)
    assert caught.value.subject == subject
    assert words in f"{caught.value.detail} {caught.value.hint}"


def test_nearest_name_is_offered() -> None:
    """A misspelled parameter comes with the one that was probably meant."""
    with pytest.raises(BadParameter) as caught:
        parse(("on_gp", "error"))
    assert caught.value.hint == "did you mean on_gap?"


def test_bad_cursor_names_after() -> None:
    """A cursor that can't be read is told as the value of after."""
    with pytest.raises(BadCursor, match="after: not a cursor"):
        parse(("after", "12345"))


def test_too_many_terms() -> None:
    """A query that names too much is refused with the limit's name."""
    with pytest.raises(BadParameter) as caught:
        parse(*[("type", f"t{number}") for number in range(65)])
    assert caught.value.subject == "query_terms"


def test_seen_takes_every_form_of_a_root() -> None:
    """The root comes as hex, with its prefix, or as base64 out of a note."""
    raw = bytes.fromhex(ROOT)
    for root in (ROOT, f"sha256:{ROOT}", base64.b64encode(raw).decode()):
        assert parse(("seen", f"9:{root}")).seen == Seen(9, raw)


def test_message_takes_lists_or_one_text() -> None:
    """A subscribe message has plural lists; one text stands for a list of one, and the singular is understood."""
    limits = Limits()
    message = {"type": "subscribe", "id": "a", "streams": ["a", "b"], "types": "t", "key": "k", "status": True,
               "heartbeat": "2s", "from": "beginning"}  # fmt: skip
    query = parse_message(message, limits, heartbeat_s=15.0)
    assert query == parse(
        ("stream", "a"), ("stream", "b"), ("type", "t"), ("key", "k"), ("status", "true"), ("heartbeat", "2s"),
        ("from", "beginning"),
    )  # fmt: skip
    confirmed = parse_message({"deliver": "confirmed", "min_confirmations": 6}, limits, heartbeat_s=15.0)
    assert confirmed.selection.min_confirmations == 6


@given(
    st.lists(
        st.tuples(
            st.sampled_from(PARAMETERS), st.text(max_size=20) | st.sampled_from(["true", "a.*", CURSOR, "1", "now"])
        )
    )
)
def test_nothing_but_our_errors(pairs: list[tuple[str, str]]) -> None:
    """Whatever the arguments say, there is a query or one of our errors."""
    assert status_of(lambda: parse(*pairs)) in (200, 400)


@given(
    st.dictionaries(
        st.sampled_from([*PARAMETERS, "streams", "topics", "types", "keys", "name", "x"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=9)
        | st.lists(st.text(max_size=5) | st.none()),
    )
)
def test_nothing_but_our_errors_from_messages(members: dict[str, Any]) -> None:
    """Whatever a message holds, there is a query or one of our errors."""
    assert status_of(lambda: parse_message(members, Limits(), heartbeat_s=15.0)) in (200, 400)


@pytest.mark.parametrize(
    ("pattern", "topic", "is_match"),
    [
        ("a.b", "a.b", True), ("a.b", "a.bc", False), ("a.*", "a.b", True), ("a.*", "a.b.c", False), ("*", "a", True),
        ("a.>", "a.b.c", True), ("a.>", "a", False), (">", "A odd/topic", True), ("*.b", "x y.b", True), ("a.*.c", "a..c", False),
        ("a+", "aa", False), ("a+", "a+", True), ("x.*", "x.\n", True),
    ],
)  # fmt: skip
def test_topic_patterns(pattern: str, topic: str, is_match: bool) -> None:
    """Topic patterns work by tokens; whatever else a token holds is compared as it is."""
    assert TopicPattern(pattern).is_match(topic) is is_match

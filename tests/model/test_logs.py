"""The logs: form, level, secrets, bounds, and the bridge from the standard library."""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from overlayd.model.logs import VALUE_CHARS_MAX, LogSettings, configure_logs


class FixedClock:
    """A clock that stands still."""

    def now_us(self) -> int:
        return 1_700_000_000_000_000


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    """A stream whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    """Leaves structlog and logging as they were."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)
    structlog.reset_defaults()


def configure(stream: io.StringIO, environ: dict[str, str] | None = None, **settings: Any) -> None:
    """Configures with a clock that stands still."""
    configure_logs(LogSettings(**settings), clock=FixedClock(), environ=environ or {}, stream=stream)


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    """The JSON lines that were written."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_when_nobody_looks() -> None:
    """A pipe gets one JSON object a line, with time, level and event first."""
    stream = io.StringIO()
    configure(stream)
    structlog.get_logger("x").info("node started", head=7)
    assert stream.getvalue().startswith('{"timestamp": "2023-11-14T22:13:20.000000Z", "level": "info", "event": ')
    assert lines_of(stream)[0]["head"] == 7


@pytest.mark.parametrize(
    ("environ", "settings", "is_json"),
    [
        ({}, {}, False),
        ({"JOURNAL_STREAM": "8:1"}, {}, True),
        ({}, {"format": "json"}, True),
        ({"JOURNAL_STREAM": "8:1"}, {"format": "text"}, False),
    ],
)
def test_text_on_a_terminal(environ: dict[str, str], settings: dict[str, str], is_json: bool) -> None:
    """A terminal gets text, systemd's journal JSON, and the setting beats both."""
    stream = Terminal()
    configure(stream, environ, **settings)
    structlog.get_logger().warning("disk low", free=1)
    assert stream.getvalue().startswith("{") is is_json
    assert "disk low" in stream.getvalue()


def test_the_level_is_kept() -> None:
    """Less severe lines aren't written."""
    stream = io.StringIO()
    configure(stream, level="warning")
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    assert [line["event"] for line in lines_of(stream)] == ["loud"]


def test_the_lines_of_requests_can_be_left_out() -> None:
    """`[log] access = false` silences the access logger and nothing else; lines say which logger wrote them."""
    stream = io.StringIO()
    configure(stream, access=False)
    structlog.get_logger("access").info("request")
    structlog.get_logger("storage").info("opened")
    assert [(line["event"], line["logger"]) for line in lines_of(stream)] == [("opened", "storage")]


def test_loggers_made_before_follow() -> None:
    """A module's logger that was made, and used, before the configuration follows it."""
    log = structlog.get_logger("early")
    first, second = io.StringIO(), io.StringIO()
    configure(first)
    log.info("one")
    configure(second)
    log.info("two")
    assert [line["event"] for line in lines_of(second)] == ["two"]


def test_no_secret_is_written() -> None:
    """Values under telling names and credentials inside texts are hidden, nested ones too."""
    stream = io.StringIO()
    configure(stream)
    structlog.get_logger().info(
        "call", authorization="Bearer abcdef123", headers={"Cookie": "sid=1", "host": "h"},
        error="refused Bearer abcdef123 today", private_key=b"abcdef123", key="sensor-1",
    )  # fmt: skip
    text = stream.getvalue()
    assert "abcdef123" not in text
    assert "sid=1" not in text
    assert lines_of(stream)[0]["key"] == "sensor-1"
    assert lines_of(stream)[0]["error"] == "refused Bearer (hidden) today"


def test_long_values_are_cut() -> None:
    """A line can't grow with what a client sends."""
    stream = io.StringIO()
    configure(stream)
    structlog.get_logger().info("x", path="a" * 100_000, body=b"b" * 100_000, items=["c"] * 100_000)
    assert len(stream.getvalue()) < 4 * VALUE_CHARS_MAX


def test_control_characters_do_not_reach_the_terminal() -> None:
    """An escape sequence or a line end inside a value is shown, not performed."""
    stream = Terminal()
    configure(stream, {"NO_COLOR": "1"})
    structlog.get_logger().info("request", path="/\x1b[2J\nforged line\u202e")
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()
    assert "␛[2J␊forged line" in stream.getvalue()


def test_exceptions_are_shown_whole() -> None:
    """An exception group's trace is in the line, members included."""
    stream = io.StringIO()
    configure(stream)
    group = ExceptionGroup("two", [ValueError("a"), KeyError("b")])
    structlog.get_logger().error("crashed", exc_info=group)
    trace = lines_of(stream)[0]["exception"]
    assert "ValueError: a" in trace
    assert "KeyError: 'b'" in trace


def test_odd_values_do_not_raise() -> None:
    """Whatever is logged, a line comes out: lone surrogates, objects, keys that aren't texts."""
    stream = io.StringIO()
    configure(stream)
    structlog.get_logger().info("odd", a="\ud800", b=object(), c={1: {2}}, d=float("nan"))
    assert lines_of(stream)[0]["a"] == "\ud800"


def test_a_reader_that_left_is_no_error() -> None:
    """A closed pipe at the other end of standard error doesn't stop the node."""
    configure(Broken())
    structlog.get_logger().error("nobody hears")
    logging.getLogger("hypercorn.error").error("nobody hears")


def test_the_standard_library_is_bridged() -> None:
    """Libraries' loggers and warnings come out in the same form; their chatter below warnings doesn't."""
    stream = io.StringIO()
    configure(stream)
    logging.getLogger("hypercorn.error").info("chatter")
    logging.getLogger("hypercorn.error").error("failed: %s", "x")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old", stacklevel=1)
    lines = lines_of(stream)
    assert (lines[0]["event"], lines[0]["level"], lines[0]["logger"]) == ("failed: x", "error", "hypercorn.error")
    assert "old" in lines[1]["event"]

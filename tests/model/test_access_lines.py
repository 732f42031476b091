"""Access lines: the same members as any log line, those of one moment written together."""

import io
import json

import pytest
import structlog
import trio
import trio.testing

from overlayd.model.access_lines import BUFFERED_BYTES_MAX, AccessLine, JsonLines, access_writer
from overlayd.model.clock import SystemClock
from overlayd.model.logs import LogSettings, configure_logs

LINE = AccessLine("GET", '/v1/streams/"\\%00', 200, 12, 0.25, "loopback", "abc-1")


class Counting(io.StringIO):
    """A stream that counts its writes."""

    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        return super().write(text)


async def test_form() -> None:
    """A line is what the common chain would have written, member for member."""
    stream, common = io.StringIO(), io.StringIO()
    JsonLines(SystemClock(), stream).write(LINE)
    before = structlog.get_config()
    try:
        configure_logs(LogSettings(format="json"), clock=SystemClock(), environ={}, stream=common)
        write = access_writer(LogSettings(format="text"), clock=SystemClock(), environ={}, stream=common)
        assert write is not None
        write(LINE)
    finally:
        structlog.configure(**before)
    ours, theirs = json.loads(stream.getvalue()), json.loads(common.getvalue())
    assert list(ours) == list(theirs)
    assert ours | {"timestamp": ""} == theirs | {"timestamp": ""}


async def test_lines_of_one_moment() -> None:
    """The first line is written at once, those that follow with the loop's next round, all of them in order."""
    stream = Counting()
    lines = JsonLines(SystemClock(), stream)
    for number in range(50):
        lines.write(AccessLine("GET", f"/{number}", 200, 0, 0.1, "p", "r"))
    assert stream.writes == 1
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert stream.writes == 2
    assert [json.loads(line)["path"] for line in stream.getvalue().splitlines()] == [f"/{n}" for n in range(50)]


async def test_what_waits_is_bounded() -> None:
    """A burst within one round is written before it fills the memory."""
    stream = Counting()
    lines = JsonLines(SystemClock(), stream)
    long = AccessLine("GET", "/" + "x" * 200, 200, 0, 0.1, "p", "r")
    for _ in range(2 * BUFFERED_BYTES_MAX // 200):
        lines.write(long)
    assert stream.writes >= 3


@pytest.mark.parametrize("settings", [LogSettings(access=False), LogSettings(level="warning")])
def test_unwanted(settings: LogSettings) -> None:
    """Without access lines nothing is built for them."""
    assert access_writer(settings, clock=SystemClock(), environ={}, stream=io.StringIO()) is None


async def test_a_reader_that_is_gone() -> None:
    """A closed stream doesn't end the node."""
    stream = io.StringIO()
    stream.close()
    JsonLines(SystemClock(), stream).write(LINE)

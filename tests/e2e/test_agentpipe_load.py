"""Streaming at a rate while many pages listen: nothing is refused or lost, and answers are quick."""

from pathlib import Path

import pytest
from agentpipe_load import Figures, Load
from agentpipe_node import CONFIG, KEY
from node_process import Node

CAPS = "sse_connections = 1000\nsse_per_address = 1000\n"


async def measure(directory: Path, *, listeners: int, rate: float, seconds: float) -> Figures:
    """A run against a node of its own."""
    node = Node(directory / "data", config=CONFIG + CAPS)
    try:
        load = Load(node.wait_ready().url, KEY, listeners=listeners, rate=rate, seconds=seconds)
        return await load.run()
    finally:
        assert node.stop() == 0, "".join(node.output[-40:])


def check(figures: Figures) -> None:
    """What AgentPipe's documents aim at."""
    assert (figures.errors, figures.lost_listeners) == (0, 0), figures
    assert figures.frames == figures.frames_expected, figures


async def test_a_short_load_is_borne(tmp_path: Path) -> None:
    """A hundred events a second for three seconds, two hundred listeners: none is lost, refused or told twice. How long
    answers take is for the long form, because other tests share the machine with this one."""
    check(await measure(tmp_path, listeners=200, rate=100, seconds=3))


@pytest.mark.slow  # ten minutes by what it shows
@pytest.mark.timeout(900)
async def test_the_documented_load_is_borne_for_ten_minutes(tmp_path: Path) -> None:
    """A hundred events a second, a thousand listeners, all at once."""
    figures = await measure(tmp_path, listeners=1000, rate=100, seconds=600)
    check(figures)
    assert figures.answer_p95 < 200, figures
    assert figures.answer_p99 < 500, figures
    assert figures.sent / figures.seconds >= 99

"""Hostile clients use the rig and the fixtures of the wire tests."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio.testing

sys.path.insert(0, str(Path(__file__).parent.parent / "net"))

from net_rig import Edge, open_edge


@pytest.fixture
def patient_clock() -> trio.testing.MockClock:
    """Jumps over waits once nothing has happened for a moment, so that bytes in the kernel arrive first."""
    return trio.testing.MockClock(autojump_threshold=0.01)


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    """An edge with default limits."""
    async with open_edge(tmp_path) as running:
        yield running

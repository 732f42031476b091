"""Fixtures of the wire tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio.testing
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

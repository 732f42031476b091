"""Fixtures of the wire tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from net_rig import Edge, open_edge


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    """An edge with default limits."""
    async with open_edge(tmp_path) as running:
        yield running

"""Clients that are closed when their test ends."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from outbound_rig import OutboundRig, RigMaker


@pytest.fixture
async def make_rig() -> AsyncIterator[RigMaker]:
    """Makes clients with a test's limits."""
    made: list[OutboundRig] = []

    def make(**options: Any) -> OutboundRig:
        made.append(OutboundRig(**options))
        return made[-1]

    yield make
    for rig in made:
        rig.out.close()

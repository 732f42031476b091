"""Hostile clients use the rig and the fixtures of the wire tests."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "net"))

import hostile_rig
import tls_wire
from net_rig import Edge, open_edge


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The tests of a module that names `WAYS` run once on each."""
    ways = getattr(metafunc.module, "WAYS", ())
    if ways and "way" in metafunc.fixturenames:
        metafunc.parametrize("way", ways, indirect=True)


@pytest.fixture(autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How clients and requests come to the node: "lane" (TCP, publish and live lanes), "Quart" (TCP, no lanes), "Unix"
    (its socket, lanes) or "TLS" (lanes)."""
    name: str = getattr(request, "param", "lane")
    monkeypatch.setattr(hostile_rig, "WAY", name)
    if name == "TLS":
        monkeypatch.setattr(tls_wire, "IS_WANTED", True)
    return name


@pytest.fixture
async def edge(tmp_path: Path, way: str) -> AsyncIterator[Edge]:
    """An edge with default limits."""
    async with open_edge(tmp_path) as running:
        running.is_unix = way == "Unix"
        yield running

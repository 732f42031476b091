"""A node that the tests of a module share."""

from collections.abc import Iterator

import pytest
from node_process import Node


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node for all tests of a module, which use streams of their own."""
    running = Node(tmp_path_factory.mktemp("node") / "data")
    try:
        yield running.wait_ready()
    finally:
        assert running.stop() == 0, "".join(running.output[-40:])

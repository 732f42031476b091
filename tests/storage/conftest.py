"""Fixtures of the storage tests."""

from pathlib import Path

import pytest
from storage_rig import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """A directory to open logs in."""
    return Rig(tmp_path / "data")

"""Logs of the storage's tests, signed with keys from elsewhere."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "storage"))

from storage_rig import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """A log in a temporary directory."""
    return Rig(tmp_path / "data")

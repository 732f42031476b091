"""Fixtures of the tests about people and erasure."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "storage"))
from privacy_rig import PrivacyRig


@pytest.fixture
def rig(tmp_path: Path) -> PrivacyRig:
    """A directory to open logs with people in."""
    return PrivacyRig(tmp_path / "data")

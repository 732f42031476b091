"""The packaged forms, built once for all tests here."""

import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _make(target: str) -> None:
    """Builds as a user would. Fails the test with what `make` said."""
    done = subprocess.run(["make", target], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.fixture(scope="session")
def make() -> Callable[[str], None]:
    """Runs a target of the Makefile; the test fails when it does."""
    return _make


@pytest.fixture(scope="session")
def binary(make: Callable[[str], None]) -> Path:
    """dist/overlayd, built anew."""
    if not sysconfig.get_config_var("Py_ENABLE_SHARED") or shutil.which("make") is None:
        pytest.skip("packing needs make and Python's shared library (Debian: libpython3.11)")
    make("binary")
    return ROOT / "dist/overlayd"

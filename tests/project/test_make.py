"""The recipes: what they say when something is missing, and that the list of them is whole."""

import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
APT = "apt-get install -y make python3 python3-venv"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs make in the project with a clean environment."""
    command = ["make", "--no-print-directory", *arguments]
    environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environ, timeout=60, check=False)


def write_python(file: Path, script: str) -> str:
    """A stand-in for Python."""
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return str(file)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (None, "There is no"),
        ('[ "$1" = --version ] && { echo Python 3.9.2; exit 0; }; exit 1', "needs Python 3.11 or newer"),
        (f'case "$2" in *ensurepip*) exit 1;; esac; exec {sys.executable} "$@"', "ensurepip is missing"),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(tmp_path: Path, script: str | None, said: str) -> None:
    """Without Python, with an old one, or without its venv module, make prints the apt line and exits 2."""
    python = write_python(tmp_path / "python", script) if script else str(tmp_path / "absent")
    result = make(f"PYTHON={python}", f"VENV={tmp_path}/venv", "venv")
    assert result.returncode == 2
    assert said in result.stderr
    assert APT in result.stderr
    assert not (tmp_path / "venv").exists()


def test_every_target_is_in_the_list() -> None:
    """`make` alone lists each target with a sentence."""
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    listed = re.findall(r"^  make (\S+) +\S", make().stdout, re.MULTILINE)
    assert set(listed) == set(phony[1].split())


def test_the_checks_of_ci_are_the_ones_of_make() -> None:
    """.ci/run is a sound script that calls `make check` and then `make test` last."""
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & stat.S_IXUSR
    assert subprocess.run(["bash", "-n", str(script)], check=False, timeout=20).returncode == 0
    lines = script.read_text().split()
    assert " ".join(lines).endswith("make check make test")

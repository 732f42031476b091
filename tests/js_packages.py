"""The JavaScript packages that tests run beside ours, installed once from their lock."""

import fcntl
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

JS = Path(__file__).parent / "js"
needs_node = pytest.mark.skipif(
    shutil.which("node") is None or shutil.which("npm") is None, reason="needs Node.js and npm"
)


def install_js() -> None:
    """Installs what tests/js/package.json names, unless it is there; skips the test when that can't be done."""
    wanted = json.loads((JS / "package.json").read_text())["dependencies"]
    with (JS / "package-lock.json").open("rb") as lock:  # tests run as several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        _install(wanted)


def _install(wanted: dict[str, str]) -> None:
    if all((JS / "node_modules" / name).is_dir() for name in wanted):
        return
    done = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=JS, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"npm could not install the packages: {done.stderr[-200:]}")


def run_js(script: str, *arguments: str, text: str = "", timeout_s: float = 30) -> list[Any]:
    """Runs a script of tests/js and gives the JSON values that it printed, one a line."""
    install_js()
    done = subprocess.run(
        ["node", str(JS / script), *arguments],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    # Not splitlines(): a value may hold a line separator of Unicode, which isn't one of JSON.
    return [json.loads(line) for line in done.stdout.split("\n") if line]

"""kill -9 between every two steps of a wallet's spend: no coin is lost or spent twice, and every packet is confirmed."""

import subprocess
import sys
from pathlib import Path

import pytest

NODE = Path(__file__).parent / "paying_node.py"
WAIT_S = 240.0
STEPS = {
    "packet": {
        "before choose",
        "before sign",
        "before write",
        "before the commit",
        "after the commit",
        "before submit",
    },
    "batch": {"before append_heads", "before checkpoint", "before sign", "before the commit", "before submit"},
}


@pytest.mark.parametrize("commit", ["packet", "batch"])
def test_a_wallet_killed_between_any_two_steps_goes_on(tmp_path: Path, commit: str) -> None:
    """At each place once: in front of every step, between a write's statements and its commit, and after the commit."""
    done = subprocess.run(
        [sys.executable, str(NODE), str(tmp_path / "rounds"), commit],
        capture_output=True, text=True, timeout=WAIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    *steps, last = done.stdout.splitlines()
    assert last == ""
    assert set(steps) >= STEPS[commit], steps

"""Runs the quick tests as two processes beside each other: those that mostly wait for real processes, and all others.

`python tests/side_by_side.py [pytest's arguments]`. The second one's output comes behind the first one's. Exits with the
worse of both codes.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parent
WAITING = ("packaging", "e2e", "crash")
"""They share what is built or installed once (the packaged forms, JavaScript packages), so they stay together."""


def main(arguments: list[str]) -> int:
    """The exit code."""
    waiting = [str(TESTS / name) for name in WAITING]
    others = sorted(
        str(path)
        for path in TESTS.iterdir()
        if path.name not in WAITING and (any(path.rglob("test_*.py")) if path.is_dir() else path.match("test_*.py"))
    )
    with tempfile.TemporaryFile() as output:
        beside = subprocess.Popen(_pytest(waiting, arguments), stdout=output, stderr=subprocess.STDOUT)
        try:
            first = subprocess.run(_pytest(others, arguments), check=False).returncode
            second = beside.wait()
        except BaseException:
            beside.terminate()
            beside.wait()
            raise
        output.seek(0)
        sys.stdout.flush()
        sys.stdout.buffer.write(output.read())
        sys.stdout.flush()
    return first or second


def _pytest(places: list[str], arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *arguments, *places]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

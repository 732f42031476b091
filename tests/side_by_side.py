"""Runs the quick tests as three processes beside each other: those that wait for machines and builds, those that wait for
nodes, and all others.

`python tests/side_by_side.py [pytest's arguments]`. The others' output comes first as it arises, the waiting ones' behind
it, each whole. Exits with the worst of the codes.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

TESTS = Path(__file__).parent
WAITING = (("packaging",), ("e2e", "crash"))
"""Each a process. By weight: two cores are busy all the time, and none of the three ends long after the others. Only
`packaging` builds the packaged forms; JavaScript packages, which others want as well, are installed behind a lock."""


def main(arguments: list[str]) -> int:
    """The exit code."""
    apart = {name for names in WAITING for name in names}
    others = sorted(
        str(path)
        for path in TESTS.iterdir()
        if path.name not in apart and (any(path.rglob("test_*.py")) if path.is_dir() else path.match("test_*.py"))
    )
    environment = _environment(os.environ)
    with ExitStack() as kept:
        running = []
        for names in WAITING:
            output = kept.enter_context(tempfile.TemporaryFile())
            command = _pytest([str(TESTS / name) for name in names], arguments)
            beside = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
            kept.callback(_end, beside)
            running.append((beside, output))
        codes = [subprocess.run(_pytest(others, arguments), check=False, env=environment).returncode]
        for beside, output in running:
            codes.append(beside.wait())
            output.seek(0)
            sys.stdout.flush()
            sys.stdout.buffer.write(output.read())
            sys.stdout.flush()
    return max(codes, key=abs)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends one that still runs, because something else failed."""
    process.terminate()
    process.wait()


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    """For the tests: compiled modules are kept. A node is started some hundred times, and compiling it anew takes longer
    than everything else that it does at its start."""
    return {name: value for name, value in given.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _pytest(places: list[str], arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *arguments, *places]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The one-file form: it starts, serves, says where it unpacks, and leaves nothing behind."""

import hashlib
import json
import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(600)


@contextmanager
def running(binary: Path, place: Path) -> Iterator[subprocess.Popen[str]]:
    """A node from the binary, taking packets, with an unpack directory of its own in `place`/tmp."""
    (place / "tmp").mkdir(exist_ok=True)
    node = subprocess.Popen(
        [binary, "run", "--data", place / "data", "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env=os.environ | {"TMPDIR": str(place / "tmp")},
    )  # fmt: skip
    try:
        assert node.stdout is not None
        assert node.stdout.readline().startswith("listening on http://127.0.0.1:")
        yield node
    finally:
        node.kill()
        node.wait()
        if node.stdout is not None:
            node.stdout.close()


def ask(binary: Path, place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of the binary, as another user of it would give it."""
    environment = os.environ | {"TMPDIR": str(place / "tmp")}
    return subprocess.run(
        [binary, *arguments], capture_output=True, text=True, env=environment, timeout=60, check=False
    )


@pytest.fixture
def place() -> Iterator[Path]:
    """A short directory: the path of a Unix socket has room for about a hundred bytes."""
    with tempfile.TemporaryDirectory(prefix="ovl-") as directory:
        yield Path(directory)


def test_binary_tells_versions(binary: Path, place: Path) -> None:
    """Commit, interpreter, SQLite and libraries, and where it unpacked."""
    (place / "tmp").mkdir()
    first, second, third, last = ask(binary, place, "--version").stdout.splitlines()
    assert first.startswith("overlayd ")
    assert "(" in first
    assert second.startswith("Python 3.")
    assert "SQLite 3." in second
    assert "trio " in third
    assert last.startswith(f"unpacked in {place / 'tmp'}/_MEI")
    assert list((place / "tmp").iterdir()) == []


def test_binary_serves_and_tidies_up(binary: Path, place: Path) -> None:
    """Publish, live, read, proof and deletion on a node that runs from the file; TERM ends it, nothing is left."""
    with running(binary, place) as node:
        smoke = ask(binary, place, "smoke", "--data", str(place / "data"))
        assert smoke.returncode == 0, smoke.stdout + smoke.stderr
        node.send_signal(signal.SIGTERM)
        assert node.wait(30) == 0
    assert list((place / "tmp").iterdir()) == []
    assert ask(binary, place, "verify", "--data", str(place / "data")).returncode == 0


def test_killed_binary_takes_its_child_along(binary: Path, place: Path) -> None:
    """kill -9 of the process that was started ends the one that holds the database; the next run removes what it left."""
    with running(binary, place) as node:
        node.kill()
        node.wait()
        left = [entry for entry in (place / "tmp").iterdir() if entry.name.startswith("_MEI")]
        assert len(left) == 1
        pid = int((left[0] / ".overlayd-run").read_text().split()[0])
        with suppress(ProcessLookupError):  # it may be gone already
            child = os.pidfd_open(pid)
            ended, _, _ = select.select([child], [], [], 20)
            os.close(child)
            assert ended, "the child runs on"
    with running(binary, place):
        assert left[0] not in (place / "tmp").iterdir()


def test_bill_of_materials_names_what_ships(binary: Path) -> None:
    """Every locked base package and the native parts stand in it, none of the build's tools, no local path."""
    text = (binary.parent / "overlayd.cdx.json").read_text()
    names = {part["name"].lower() for part in json.loads(text)["components"]}
    assert {"trio", "msgspec", "cpython", "sqlite", "openssl"} <= names
    assert not {"pyinstaller", "pip", "pytest"} & names
    assert "file://" not in text


def test_checksums_fit(binary: Path) -> None:
    """SHA256SUMS says what lies beside it."""
    done = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=binary.parent, check=False)
    assert done.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_second_build_is_equal(binary: Path, make: Callable[[str], None]) -> None:
    """The file and its bill of materials don't depend on when they were built."""
    names = ("overlayd", "overlayd.cdx.json")
    first = [hashlib.sha256((binary.parent / name).read_bytes()).hexdigest() for name in names]
    make("binary")
    assert [hashlib.sha256((binary.parent / name).read_bytes()).hexdigest() for name in names] == first

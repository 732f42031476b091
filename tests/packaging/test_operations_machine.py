"""docs/operations.md from top to bottom on a machine with systemd: what an admin would type as root, from the package's
installation to its removal. tests/operations_page.py says how blocks are marked."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import operations_page as page
import pytest
import systemd_machine
from operations_page import ANYWHERE, ON_MACHINE
from systemd_machine import Machine

pytestmark = pytest.mark.timeout(900)

RUN_S = 300


@pytest.fixture(scope="module")
def machine(binary: Path) -> Iterator[Machine]:
    """A machine with nothing installed, and in /root what a release consists of."""
    reason = systemd_machine.why_not() or systemd_machine.make_base()
    if reason:
        pytest.skip(f"systemd can't be tried here: {reason}")
    subprocess.run([page.ROOT / "packaging/build-deb"], check=True, capture_output=True)
    with systemd_machine.running() as found:
        for file in binary.parent.iterdir():
            shutil.copy(file, found.root / "root")
        yield found


@pytest.mark.slow  # its short form are the chapters on a plain node (tests/e2e/test_operations_docs.py)
def test_the_whole_page_works_as_typed(machine: Machine) -> None:
    """Chapter after chapter on one machine; each prints what the page shows, and at the end nothing is left."""
    all_chapters = page.chapters(page.page_text())
    first, *others = all_chapters
    prelude = [first.to_run(ANYWHERE)[0].text, first.to_run(ON_MACHINE)[0].text]
    assert "as_service()" in prelude[1]
    late = [block for block in first.to_run(ANYWHERE, ON_MACHINE) if block.text not in prelude]
    for chapter in others:
        blocks = chapter.to_run(ANYWHERE, ON_MACHINE)
        if chapter.title == "Install":
            blocks += late  # what the first chapter shows can be seen once the program is there
        if chapter.title == "Old packets, and a disk that fills":
            seed(machine)
        done = machine.run("bash", "-c", page.script(blocks, *prelude), check=False, timeout_s=RUN_S)
        page.judge(blocks, done.returncode, done.stdout)
    left = machine.run(
        "find", "/", "-xdev", "-name", "*overlayd*", "-not", "-path", "/root/*", "-not", "-path", "/run/*"
    ).stdout
    assert not left, left


def seed(machine: Machine) -> None:
    """The stream that the page's examples are about."""
    line = "seq 5 | overlayd publish weather-001 --bare --input ndjson --quiet --data /var/lib/overlayd"
    machine.run("sh", "-c", line)

"""What the README, the docs and the examples tell to type works, on a real node.

Every fenced block marked `sh` is run by a shell, every block marked `python` by Python, in order and in one directory
that holds the node's `overlayd-data`; 127.0.0.1:7878 stands for the node's own address. A comment before a block,
`<!-- test: until "text" -->`, says that it goes on for ever and what must come. Blocks without a language aren't run.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from node_process import Node
from real_waiting import PATIENCE_S

from overlayd.client import SyncClient

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r'(?:<!-- test: until "(?P<until>[^"]+)" -->\n)?```(?P<language>\w+)\n(?P<text>.*?)```', re.DOTALL)


class Block(msgspec.Struct):
    """A fenced block. `until` is what an endless one must print."""

    line: int
    language: str
    text: str
    until: str


def blocks_of(file: Path) -> list[Block]:
    """The blocks of a Markdown file that name a language."""
    text = file.read_text(encoding="utf-8")
    return [
        Block(text.count("\n", 0, match.start()) + 1, match["language"], match["text"], match["until"] or "")
        for match in _BLOCK.finditer(text)
    ]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Node]]:
    """A working directory as the README assumes it, with a node on ./overlayd-data."""
    directory = tmp_path_factory.mktemp("readme")
    running = Node(directory / "overlayd-data")
    try:
        yield directory, running.wait_ready()
    finally:
        assert running.stop() == 0


def run(block: Block, directory: Path, node: Node) -> subprocess.CompletedProcess[str]:
    """Runs a block as typed, but for the node's address. An endless one is ended once it printed what it must."""
    text = block.text.replace("http://127.0.0.1:7878", node.url)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OVERLAYD_")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    arguments = [sys.executable, "-c", text] if block.language == "python" else ["bash", "-euo", "pipefail", "-c", text]
    if not block.until:
        return subprocess.run(
            arguments, cwd=directory, env=environment, capture_output=True, text=True, timeout=PATIENCE_S
        )
    process = subprocess.Popen(arguments, cwd=directory, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if block.until in line:
            break
    process.kill()
    process.communicate()
    return subprocess.CompletedProcess(arguments, 0 if block.until in said else 1, said, "")


@pytest.mark.skipif(shutil.which("curl") is None or shutil.which("bash") is None, reason="there is no curl or bash")
def test_the_readmes_commands_work_as_typed(home: tuple[Path, Node]) -> None:
    """Every one, from top to bottom."""
    blocks = [block for block in blocks_of(ROOT / "README.md") if block.language in ("sh", "python")]
    assert blocks[0].text == "curl -d '{\"t\":21}' http://127.0.0.1:7878/v1/streams/weather-001/data\n"
    assert len(blocks) >= 9
    for block in blocks:
        done = run(block, *home)
        where = f"README.md:{block.line}"
        assert done.returncode == 0, f"{where}\n{block.text}\n{done.stdout}\n{done.stderr}"
        assert '"status":4' not in done.stdout, f"{where}\n{done.stdout}"


def test_the_first_line_of_usage_gives_a_receipt(home: tuple[Path, Node]) -> None:
    """The README's answer has the members of a real one."""
    first, shown = blocks_of(ROOT / "README.md")[:2]
    receipt = msgspec.json.decode(run(first, *home).stdout)
    assert set(msgspec.json.decode(shown.text)) == set(receipt)


def test_links_lead_somewhere() -> None:
    """Every relative link of the README and the docs names a file that is there."""
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", file.read_text(encoding="utf-8")):
            assert (file.parent / target).exists(), f"{file.name}: {target}"


def test_the_clients_page_and_the_examples_run(home: tuple[Path, Node]) -> None:
    """The page's verifying block as it stands; the examples with a count, the second resuming where it stopped."""
    directory, node = home
    with SyncClient(node.url) as client:
        client.publish("weather-001", {"t": 1})
    verifying = next(block for block in blocks_of(ROOT / "docs" / "client.md") if "LogView(Path" in block.text)
    done = run(verifying, directory, node)
    assert done.stdout.startswith("signed ("), done.stderr
    published = example("publish_sensor.py", node.url, "host.load", 1)
    assert published.stdout.startswith("host.load 1 durable at "), published.stderr
    with SyncClient(node.url) as client:
        client.publish("host.load", {"second": True})
    cursor = directory / "cursor.txt"
    assert '"load_1m"' in example("follow_stream.py", node.url, "host.*", cursor, 1).stdout
    assert example("follow_stream.py", node.url, "host.*", cursor, 1).stdout == 'host.load 2 {"second":true}\n'


def example(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs one of the examples."""
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)], capture_output=True, text=True,
        timeout=PATIENCE_S,
    )  # fmt: skip

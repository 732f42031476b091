"""docs/operations.md on a plain node: every command that needs no service manager runs as typed, chapter by chapter.

What needs systemd runs in tests/packaging/test_operations_machine.py. tests/operations_page.py says how blocks are marked.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import operations_page as page
import pytest
import yaml
from node_process import Node
from operations_page import ANYWHERE, DOCKER, ON_MACHINE, Chapter

from overlayd.client import SyncClient

ROOT = page.ROOT
TEXT = page.page_text()
CHAPTERS = page.chapters(TEXT)
RULES = ROOT / "observability/prometheus/overlayd.rules.yml"
RUN_S = 280  # sixty starts of the program on a busy machine; a quiet one takes a tenth

pytestmark = pytest.mark.timeout(300)

plain = [chapter for chapter in CHAPTERS if chapter.to_run(ANYWHERE)]
prelude = CHAPTERS[0].to_run(ANYWHERE)[0]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node with a stream of a few packets, and a directory for settings. The path is short, as for every socket."""
    (tmp_path / "etc/conf.d").mkdir(parents=True)
    (tmp_path / "etc/config.toml").touch()
    running = Node(tmp_path / "data", "--config", str(tmp_path / "etc/config.toml"))
    try:
        running.wait_ready()
        with SyncClient(running.url) as client:
            for number in range(5):
                client.publish("weather-001", {"t": number}, id=f"w-{number}")
        yield running
    finally:
        running.stop()


def here(text: str, node: Node) -> str:
    """The page's places as they are on this node."""
    places = {
        "/var/lib/overlayd": str(node.directory),
        "/etc/overlayd": str(node.directory.parent / "etc"),
        "http://127.0.0.1:7878": node.url,
    }
    return re.sub("|".join(map(re.escape, places)), lambda found: places[found[0]], text)


@pytest.mark.skipif(shutil.which("curl") is None or shutil.which("bash") is None, reason="there is no curl or bash")
@pytest.mark.parametrize("chapter", plain, ids=[chapter.title for chapter in plain])
def test_the_chapters_commands_work_as_typed(chapter: Chapter, node: Node, tmp_path: Path) -> None:
    """In one shell, from top to bottom, and each prints what the page shows."""
    blocks = chapter.to_run(ANYWHERE)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OVERLAYD_")}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}", "HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        ["bash", "-c", here(page.script(blocks, prelude.text), node)], cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=RUN_S, check=False,
    )  # fmt: skip
    page.judge(blocks, done.returncode, done.stdout)
    assert node.process.poll() is None


def test_every_command_of_the_program_is_on_the_page() -> None:
    """Each that docs/cli.md lists is run by some block."""
    listed = set(re.findall(r"^\*\*`overlayd ([a-z-]+)", (ROOT / "docs/cli.md").read_text(), re.MULTILINE))
    assert len(listed) > 20
    run = {
        name
        for chapter in CHAPTERS
        for block in chapter.to_run(ANYWHERE, ON_MACHINE)
        for name in page.commands_of(block.text)
    }
    assert listed <= run


def test_each_alert_has_its_section() -> None:
    """The chapter's sections are the alerts of the rules, no more and no less, under the names that the rules link to."""
    alerts = [rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    start = TEXT.index("\n## Alerts\n")
    sections = re.findall(r"^### (.+)$", TEXT[start : TEXT.index("\n## ", start + 1)], re.MULTILINE)
    assert sections == alerts
    assert {alert.lower() for alert in alerts} <= page.anchors(TEXT)


def test_links_within_the_docs_lead_to_headings() -> None:
    """Each link with an anchor, on this page and to others, names a heading that is there."""
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", TEXT):
        other = (page.PAGE.parent / target).read_text() if target else TEXT
        assert anchor in page.anchors(other), f"{target}#{anchor}"


def test_a_block_with_another_mark_is_a_mistake() -> None:
    """Nothing on the page can go unexecuted by being marked in a way that no test knows."""
    for mark in ("", "bash", "sh machines", "console"):
        with pytest.raises(AssertionError, match="can't be marked"):
            page.blocks_of(f"```{mark}\noverlayd node\n```\n")
    with pytest.raises(AssertionError, match="no block that printed"):
        page.blocks_of("```text\nok\n```\n")


def test_output_is_compared_by_its_lines_in_order() -> None:
    """A line that is missing, or comes before the one above it, is named."""
    assert page.first_missing(["ok … ms", "done"], "x\nok publish 3 ms\nall done\n") == ""
    assert page.first_missing(["done", "ok"], "ok\ndone\n") == "ok"
    blocks = page.blocks_of("```sh\ntrue\n```\n\n```text\nhello\n```\n")
    with pytest.raises(AssertionError, match="'hello' isn't in"):
        page.judge(blocks, 0, "=== block of line 1\nbye\n=== end\n")
    with pytest.raises(AssertionError, match="exit code 3"):
        page.judge(blocks, 3, "=== block of line 1\nbye\n")


@pytest.mark.parametrize(
    "block", [block for chapter in CHAPTERS for block in chapter.to_run(DOCKER)], ids=lambda block: block.line
)
def test_docker_blocks_are_not_run(block: page.Block) -> None:
    """They need a Docker daemon and a network for its image."""
    pytest.skip(f"operations.md:{block.line} needs Docker: {block.text.splitlines()[0]}")

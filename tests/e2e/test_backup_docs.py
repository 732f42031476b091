"""docs/backup.md, as a reader would follow it."""

import os
import re
import subprocess
import sys
from pathlib import Path

from node_process import Node

from overlayd.client import SyncClient

PAGE = Path(__file__).parents[2] / "docs" / "backup.md"
BIN = Path(sys.executable).parent


def blocks(name: str) -> list[str]:
    """The page's shell blocks of a name, without their indentation."""
    found = re.findall(rf"^( *)```sh {name}\n(.*?)^ *```", PAGE.read_text(), re.M | re.S)
    return [re.sub(rf"^{indent}", "", text, flags=re.M) for indent, text in found]


def shell(scripts: list[str], directory: Path, place: Path) -> str:
    """Runs blocks one after the other in one shell; what they print."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(scripts)], cwd=place, capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "DIR": str(directory), "PLACE": str(place)},
    )  # fmt: skip
    assert done.returncode == 0, f"{scripts}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_page_works(tmp_path: Path) -> None:
    """Backup, keys, drill and check beside a running node; then the restore and the salvage without one."""
    data, place = tmp_path / "data", tmp_path / "place"
    place.mkdir()
    (place / "passphrase").write_text("correct horse battery staple\n")
    node = Node(data).wait_ready()
    try:
        with SyncClient(node.url) as client:
            client.publish_many("weather-001", [{"data": {"n": n}} for n in range(50)])
        told = shell(blocks("backup"), data, place)
    finally:
        assert node.stop() == 0
    assert told.count("The log is intact.") == 3
    assert "weather-001" in told
    (backup,) = (data / "backups").iterdir()
    told = shell([f"BACKUP={backup}", *blocks("restore")], data, place)
    assert "the old log is in" in told
    node = Node(data).wait_ready()
    assert node.stop() == 0
    assert "entries are in" in shell(blocks("salvage"), data, place)

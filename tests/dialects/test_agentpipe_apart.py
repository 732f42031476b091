"""AgentPipe's package can be taken away: the node starts without it, and says so to who asks for it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import overlayd

PACKAGE = Path(overlayd.__file__).parent
SCRIPT = """
import overlayd, sys
assert overlayd.__file__.startswith(sys.argv[1]), overlayd.__file__
import overlayd.daemon
from overlayd.config import load_settings
from overlayd.model.errors import ConfigInvalid
assert not load_settings(environ={}).settings.agentpipe.enabled
try:
    load_settings(environ={"OVERLAYD_AGENTPIPE__ENABLED": "true"})
except ConfigInvalid as error:
    print(error.detail)
"""


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's package without AgentPipe's."""
    directory = tmp_path_factory.mktemp("without")
    shutil.copytree(PACKAGE, directory / "overlayd", ignore=shutil.ignore_patterns("__pycache__", "agentpipe"))
    assert not (directory / "overlayd" / "dialects" / "agentpipe").exists()
    return directory


def test_the_node_is_whole_without_it(without: Path) -> None:
    """Everything imports, and the table in the configuration can't switch anything on."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(without)],
        cwd=without,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "built without AgentPipe" in done.stdout


def test_nothing_of_it_is_loaded_while_it_is_off() -> None:
    """But for its settings."""
    script = (
        "import sys, os\nimport overlayd.daemon\nfrom overlayd.config import load_settings\n"
        "from overlayd.config.dialects import agentpipe_features\n"
        "assert agentpipe_features(load_settings(environ={}).settings.agentpipe) == ()\n"
        "print(sorted(name for name in sys.modules if name.startswith('overlayd.dialects.agentpipe.')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "['overlayd.dialects.agentpipe.settings']", done.stderr


def test_no_lower_floor_knows_it() -> None:
    """Only the wiring names the dialect's package."""
    naming = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        if "dialects.agentpipe" in path.read_text() and path.relative_to(PACKAGE).parts[0] != "dialects"
    }
    assert naming == {"config"}

"""What docs/agentpipe.md tells to type works, in its order, on a node that it starts itself."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "agentpipe.md"
RUN_S = 90


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_every_command_of_the_page_works(tmp_path: Path) -> None:
    """As one script that ends at the first command that fails."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 9
    script = "\n".join(["set -euo pipefail", "trap 'kill %1; wait' EXIT", *blocks, "echo all done"])
    script = script.replace("127.0.0.1:3000", f"127.0.0.1:{free_port()}")
    names = ("OVERLAYD_", "AGENTPIPE_", "RATE_LIMIT", "SSE_", "ALLOWED_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said = done.stdout
    assert said.endswith("all done\n")
    assert "AGENTPIPE_BRIDGE_API_KEY" in said
    assert "ap_live_" not in said.split("listening on")[0], "the configuration was shown with its secret"
    assert '"conversation_id":"demo"' in said
    assert "> Hello, too" in said
    assert "1 files: 1 events taken" in said
    assert '"type":"connected"' in said

"""Makes a small log with today's schema, for the tests of later migrations: run once for each released version.

    python tests/data/make_schema_fixture.py tests/data/schemas/<version>

Writes log.sqlite3.gz, the keys that it needs and facts.json: what must be found in it whatever the schema becomes.
"""

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from overlayd.client import SyncClient
from overlayd.client.calls import Call
from overlayd.model.clock import SystemClock
from overlayd.model.errors import NodeUnreachable

STREAMS = {"weather-001": 300, "door.events": 40}


def main(target: Path) -> None:
    """Fills the directory."""
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "data"
        for run in range(2):
            node = subprocess.Popen(
                [sys.executable, "-m", "overlayd", "run", "--data", str(data), "--listen", "unix:" + place + "/s"]
            )
            while not (data / "overlayd.sock").exists() or not _fill(data, run):
                time.sleep(0.2)
            node.terminate()
            node.wait()
        facts = _facts(data)
        shutil.copytree(data / "keys", target / "keys")
        for name in ("high-water", "edge", "schema.json"):
            if (data / name).exists():
                shutil.copy(data / name, target / name)
        raw = (data / "log.sqlite3").read_bytes()
        (target / "log.sqlite3.gz").write_bytes(gzip.compress(raw, 9, mtime=0))
        (target / "facts.json").write_text(
            json.dumps(facts | {"sha256": hashlib.sha256(raw).hexdigest()}, indent=1) + "\n"
        )


def _fill(data: Path, run: int) -> bool:
    with SyncClient(f"unix:{data}/overlayd.sock") as client:
        try:
            client.node()
        except NodeUnreachable:
            return False
        for stream, count in STREAMS.items():
            packets = [
                {"id": f"{run}-{n}", "key": f"k{n % 3}", "data": {"run": run, "n": n}} for n in range(count // 2)
            ]
            client.publish_many(stream, packets)
        if run == 0:
            client.publish("gone", {"n": 1})
            client.send(Call("DELETE", "/v1/streams/gone", lambda answer: None, params=(("confirm", "gone"),)))
    return True


def _facts(data: Path) -> dict[str, object]:
    from overlayd.cli.log_check import check_log
    from overlayd.model.proof import TrustedKeys

    report = check_log(data, TrustedKeys(()))
    assert report.is_intact, report.faults
    return {
        "log": report.log_id,
        "entries": report.entries,
        "root": report.root,
        "streams": STREAMS,
        "made_us": SystemClock().now_us(),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The one-file form: it starts, serves, says where it unpacks, and leaves nothing behind."""

import hashlib
import json
import os
import queue
import select
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from overlayd.cli.exits import REGTEST

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(600)


@contextmanager
def running(binary: Path, place: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A node from the binary, taking packets, with an unpack directory of its own in `place`/tmp."""
    (place / "tmp").mkdir(exist_ok=True)
    node = subprocess.Popen(
        [binary, "run", "--data", place / "data", "--listen", "127.0.0.1:0", *arguments], stdout=subprocess.PIPE,
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


class _Received(BaseHTTPRequestHandler):
    """Keeps what is posted to it."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.put((dict(self.headers), json.loads(body)))  # type: ignore[attr-defined]
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def receiving() -> Iterator[tuple[str, "queue.Queue[tuple[dict[str, str], Any]]"]]:
    """A URL, and what was posted there."""
    with HTTPServer(("127.0.0.1", 0), _Received) as server:
        server.received = queue.Queue()  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", server.received  # type: ignore[attr-defined]
        finally:
            server.shutdown()
            thread.join()


def test_binary_confirms_and_posts(binary: Path, place: Path) -> None:
    """A packet is committed on the embedded chain, posted to a signed webhook once it is confirmed, and its proof holds
    offline: curves, chain and outbound HTTP are in the file, too."""
    config = place / "config.toml"
    config.write_text(
        '[webhooks]\nallow_private = ["127.0.0.0/8"]\n[chain]\nnetwork = "regtest"\nblock_interval = "200ms"\n'
        '[[streams]]\nname = "proven"\nconfirm = { commit = "packet", depths = [2] }\n'
    )
    data = ("--data", str(place / "data"))
    with receiving() as (url, received), running(binary, place, "--config", str(config)):
        definition = {"deliver": "confirmed", "webhook": {"url": url}}
        made = ask(
            binary, place, "subscriptions", "create", "hook", "--stream", "proven", "--definition", json.dumps(definition),
            *data,
        )  # fmt: skip
        assert made.returncode == 0, made.stdout + made.stderr
        packet = place / "packet.json"
        packet.write_text('{"data": 42, "id": "the-one"}')
        published = ask(binary, place, "publish", "proven", str(packet), *data)
        assert published.returncode == 0, published.stderr
        headers, body = received.get(timeout=60)
        assert {"webhook-id", "webhook-signature"} <= {name.lower() for name in headers}
        assert "the-one" in json.dumps(body)
        proof = place / "proof.json"
        transport = httpx.HTTPTransport(uds=str(place / "data/overlayd.sock"))
        with httpx.Client(transport=transport, base_url="http://localhost") as client:
            proof.write_bytes(client.get("/v1/streams/proven/packets/1/proof").raise_for_status().content)
        refused = ask(binary, place, "verify", str(proof), *data)
        assert refused.returncode == REGTEST, refused.stdout + refused.stderr
        held = ask(binary, place, "verify", str(proof), *data, "--allow-regtest", "--accept", "anchored")
        assert held.returncode == 0, held.stdout + held.stderr


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
    """Every locked base package, every library beside the interpreter and what wheels have compiled in stand in it, none of
    the build's tools, no local path, and nothing under a licence that the product couldn't be shipped with."""
    text = (binary.parent / "overlayd.cdx.json").read_text()
    parts = json.loads(text)["components"]
    names = {part["name"].lower() for part in parts}
    assert {"trio", "msgspec", "cpython", "sqlite", "openssl"} <= names
    tree = ROOT / "build/package/tree/_internal"
    locked = {path.name.split("-")[0].lower().replace("_", "-") for path in tree.glob("*.dist-info")}
    assert locked <= {name.replace("_", "-") for name in names}
    libraries = {path.name for path in tree.glob("lib*.so*")}
    listed = {one["value"] for part in parts for one in part.get("properties", ()) if one["name"] == "overlayd:file"}
    assert listed == libraries
    assert not [name for name in libraries if "readline" in name]
    inner = {part["name"].lower(): {one["name"] for one in part.get("components", ())} for part in parts}
    assert "libsecp256k1" in inner["coincurve"]
    assert "blake3" in inner["blake3"]
    assert not {"pyinstaller", "pip", "pytest"} & names
    assert "file://" not in text


def test_checksums_fit(binary: Path) -> None:
    """SHA256SUMS says what lies beside it."""
    done = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=binary.parent, check=False)
    assert done.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_second_build_is_equal(binary: Path, make: Callable[[str], None]) -> None:
    """The file, its bill of materials and the package don't depend on when they were built."""
    make("deb")
    names = ("overlayd", "overlayd.cdx.json", *(path.name for path in binary.parent.glob("*.deb")))
    first = [hashlib.sha256((binary.parent / name).read_bytes()).hexdigest() for name in names]
    make("deb")
    assert len(names) == 3
    assert [hashlib.sha256((binary.parent / name).read_bytes()).hexdigest() for name in names] == first

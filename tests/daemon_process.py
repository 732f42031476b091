"""The real daemon as a child process: started, killed, traced, started again."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import httpx
from real_waiting import PATIENCE_S, until

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 40.0


class DaemonProcess:
    """`overlayd run` on a directory, listening on a free loopback port.

    `prefix` is a command to run it under (strace), `script` another entry point than the package's
    own, `environment` is added to this process's.
    """

    def __init__(
        self,
        directory: Path,
        *,
        prefix: Sequence[str] = (),
        script: Path | None = None,
        environment: dict[str, str] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        entry = [str(script)] if script else ["-m", "overlayd"]
        self.directory = directory
        self.output: list[str] = []
        self._process = subprocess.Popen(
            [*prefix, sys.executable, *entry, "run", "--data", str(directory), "--listen", "127.0.0.1:0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | (environment or {}),
        )
        self._listening = threading.Event()
        self.url = ""
        self._reader = threading.Thread(target=self._read_output, daemon=True)
        self._reader.start()

    def _read_output(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.output.append(line)
            found = re.search(r"listening on (http://\S+)", line)
            if found and not self.url:
                self.url = found[1]
                self._listening.set()
        self._listening.set()

    def wait_ready(self) -> "DaemonProcess":
        """Waits for the line that says it takes packets. Raises AssertionError with the output otherwise."""
        self._listening.wait(START_TIMEOUT_S)
        assert self.url, "the daemon did not come up:\n" + "".join(self.output[-50:])
        return self

    @property
    def pid(self) -> int:
        """The daemon's own process id, also under a tracer."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        name = Path(f"/proc/{self._process.pid}/comm").read_text().strip()
        return int(children[0]) if name == "strace" and children else self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL, as the out-of-memory killer would."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        os.kill(self.pid, signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Waits for the end; returns the exit code."""
        code = self._process.wait(STOP_TIMEOUT_S)
        self._reader.join(STOP_TIMEOUT_S)
        return code

    def text(self) -> str:
        """Everything it printed so far."""
        return "".join(self.output)

    def __enter__(self) -> "DaemonProcess":
        try:
            return self.wait_ready()
        except BaseException:
            self._end()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self.is_running:
            os.kill(self.pid, signal.SIGKILL)
            self._process.wait(STOP_TIMEOUT_S)
        self._reader.join(STOP_TIMEOUT_S)
        assert self._process.stdout is not None
        self._process.stdout.close()


class Producer(threading.Thread):
    """A client that publishes numbered packets until the daemon is gone, and keeps what was acknowledged."""

    def __init__(self, url: str, name: str, stream: str, batch: int = 1) -> None:
        super().__init__(daemon=True)
        self.acknowledged: dict[str, dict[str, object]] = {}
        self._url, self._prefix, self._stream, self._batch = url, name, stream, batch
        self._ending = threading.Event()

    def run(self) -> None:
        """Publishes, one request after the other, retrying nothing."""
        number = 0
        with httpx.Client(base_url=self._url, timeout=PATIENCE_S) as client:
            while not self._ending.is_set():
                packets = [
                    {"id": f"{self._prefix}-{number + i}", "data": {"from": self._name, "n": number + i}}
                    for i in range(self._batch)
                ]
                number += self._batch
                try:
                    answer = client.post(
                        f"/v1/streams/{self._stream}/packets", json=packets if self._batch > 1 else packets[0]
                    )
                except httpx.HTTPError:
                    return
                if answer.status_code in (200, 201):
                    body = answer.json()
                    for receipt in body["receipts"] if self._batch > 1 else [body]:
                        self.acknowledged[receipt["id"]] = receipt

    def finish(self) -> dict[str, dict[str, object]]:
        """Stops after the request in flight; returns the receipts by packet id."""
        self._ending.set()
        self.join(STOP_TIMEOUT_S)
        assert not self.is_alive()
        return self.acknowledged


def read_all(url: str, stream: str) -> list[dict[str, object]]:
    """Every packet of a stream, in order."""
    packets: list[dict[str, object]] = []
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        after = 0
        while True:
            answer = client.get(f"/v1/streams/{stream}/packets", params={"after": after, "limit": 1000})
            if answer.status_code == 404:
                return packets
            answer.raise_for_status()
            body = answer.json()
            packets += body["packets"]
            if not body["packets"]:
                return packets
            after = body["next_after"]


def check_nothing_lost(url: str, stream: str, acknowledged: dict[str, dict[str, object]]) -> int:
    """Every acknowledged packet is there exactly once, where its receipt says, and sequences are gapless."""
    packets = read_all(url, stream)
    assert [p["packet_sequence"] for p in packets] == list(range(1, len(packets) + 1))
    by_id: dict[object, dict[str, object]] = {}
    for packet in packets:
        assert packet["packet_id"] not in by_id, f"{packet['packet_id']} is there twice"
        by_id[packet["packet_id"]] = packet
    for packet_id, receipt in acknowledged.items():
        assert packet_id in by_id, f"{packet_id} was acknowledged and is lost"
        found = by_id[packet_id]
        for field, key in (("sequence", "packet_sequence"), ("offset", "offset"), ("content_hash", "content_hash")):
            assert found[key] == receipt[field], (packet_id, field)
    return len(packets)


def wait_for_packets(producers: Sequence[Producer], count: int) -> None:
    """Waits until the producers together hold `count` receipts."""
    until(lambda: sum(len(p.acknowledged) for p in producers) >= count, f"{count} packets acknowledged", each_s=0.01)

"""Durable before acknowledged, seen in the system calls: write to the WAL, fdatasync, answer. In this order."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from daemon_process import DaemonProcess
from real_waiting import PATIENCE_S

HERE = Path(__file__).parent
PUBLISHES = 40

pytestmark = pytest.mark.skipif(
    shutil.which("strace") is None
    or subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode != 0,
    reason="needs strace and the right to trace",
)


@dataclass(frozen=True)
class Call:
    """A system call: the trace lines at which it began and ended, its name and its text."""

    begin: int
    end: int
    name: str
    text: str


def parse_trace(text: str) -> list[Call]:
    """Calls of an `strace -f` file, with unfinished and resumed halves joined."""
    calls: list[Call] = []
    pending: dict[str, tuple[int, str, str]] = {}
    for number, line in enumerate(text.splitlines()):
        match = re.match(r"(\d+)\s+(.*)", line)
        if match is None:
            continue
        thread, rest = match.groups()
        if resumed := re.match(r"<\.\.\. (\w+) resumed>(.*)", rest):
            if thread in pending:
                begin, name, head = pending.pop(thread)
                calls.append(Call(begin, number, name, head + resumed[2]))
        elif rest.endswith("<unfinished ...>"):
            if started := re.match(r"(\w+)\(", rest):
                pending[thread] = (number, started[1], rest)
        elif started := re.match(r"(\w+)\(", rest):
            calls.append(Call(number, number, started[1], rest))
    return calls


def answers_before_sync(calls: list[Call], markers: list[str]) -> list[str]:
    """The markers whose 2xx left before an fdatasync of the WAL that began after the marker's write had ended."""
    early = []
    for marker in markers:
        write = next(c for c in calls if c.name == "pwrite64" and "-wal" in c.text and marker in c.text)
        answer = next(
            c for c in calls
            if c.name in {"sendto", "sendmsg", "write", "writev"} and "HTTP/1.1 201" in c.text and marker in c.text
        )  # fmt: skip
        synced = any(
            c.name in {"fdatasync", "fsync"} and "-wal" in c.text and c.begin > write.end and c.end < answer.begin
            and c.text.rstrip().endswith("= 0")
            for c in calls
        )  # fmt: skip
        if not synced:
            early.append(marker)
    return early


def _trace_publishes(tmp_path: Path, script: Path | None) -> tuple[list[Call], list[str]]:
    trace = tmp_path / "trace"
    prefix = [
        "strace", "-f", "-yy", "-s", "100000", "-o", str(trace),
        "-e", "trace=pwrite64,fdatasync,fsync,sendto,sendmsg,write,writev",
    ]  # fmt: skip
    markers = [f"marker{number:04d}x" for number in range(PUBLISHES)]
    with DaemonProcess(tmp_path / "data", prefix=prefix, script=script) as daemon:
        with httpx.Client(base_url=daemon.url, timeout=PATIENCE_S) as client:
            for marker in markers:
                packet = {"id": marker, "data": {"again": [marker] * 4}}
                assert client.post("/v1/streams/plant.a/packets", json=packet).status_code == 201
        assert daemon.stop() == 0
    # The answer is one send of head and body or two; a body that comes alone belongs to the head before it.
    text = trace.read_text(errors="replace")
    return join_split_answers(parse_trace(text)), markers


def join_split_answers(calls: list[Call]) -> list[Call]:
    """Adds the text of a body that was sent by a call of its own to the head's call."""
    joined: list[Call] = []
    last_head: int | None = None
    for call in calls:
        if call.name in {"sendto", "sendmsg", "write", "writev"} and "TCP" in call.text:
            if "HTTP/1.1 " in call.text:
                last_head = len(joined)
            elif last_head is not None:
                head = joined[last_head]
                joined[last_head] = Call(head.begin, head.end, head.name, head.text + call.text)
        joined.append(call)
    return joined


def test_every_answer_comes_after_the_sync_of_its_write(tmp_path: Path) -> None:
    """Each 201 on the wire was preceded by an fdatasync of the WAL begun after the packet was written."""
    calls, markers = _trace_publishes(tmp_path, None)
    assert answers_before_sync(calls, markers) == []


def test_the_trace_would_show_answers_that_come_too_early(tmp_path: Path) -> None:
    """With synchronous=OFF the same check names every packet; otherwise the test above would prove nothing."""
    calls, markers = _trace_publishes(tmp_path, HERE / "unsafe_daemon.py")
    assert answers_before_sync(calls, markers) == markers

"""Programs under test: each on a free loopback port, with its data in a directory of its own, ended by its id."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.certificate import write_certificate
from benchmarks.machine import CpuClock, resident_kib
from benchmarks.work import SCHEMA, names_with_schema

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 20.0
CERTIFICATE = "node.pem"


class Missing(Exception):
    """A program that isn't installed; says how to get it."""


@dataclass(slots=True)
class Server:
    """A running program. `durability` says what an acknowledgement of it is worth. `tls_port`: 0 where there is none."""

    name: str
    version: str
    durability: str
    is_durable: bool
    port: int
    directory: Path
    process: "subprocess.Popen[bytes]"
    tls_port: int = 0

    @property
    def certificate(self) -> Path:
        """What clients over TLS are to trust."""
        return self.directory / CERTIFICATE

    @property
    def pids(self) -> tuple[int, ...]:
        """The process and its children."""
        own = self.process.pid
        children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        return (own, *map(int, children))

    def cpu_clock(self) -> CpuClock:
        """Counts from now."""
        return CpuClock(*self.pids)

    def resident_kib(self) -> int:
        """Resident memory of all its processes."""
        return resident_kib(self.pids)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, none of its processes runs: it takes nothing from whoever's turn it is."""
        pids = self.pids
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def stop(self) -> None:
        """Ends it, harder if need be."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(STOP_TIMEOUT_S)


def free_port() -> int:
    """A loopback port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def find_program(name: str, hint: str) -> str:
    """Path of a program: beside this Python, on the PATH or where servers live. Raises Missing."""
    places = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]
    )
    found = shutil.which(name, path=places)
    if found is None:
        raise Missing(f"{name} isn't installed: {hint}")
    return found


def version_of(command: list[str]) -> str:
    """The first thing in a program's output that looks like a version."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603 - a server's own
    found = re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr)
    return found[0] if found else "unknown"


def start(command: list[str], directory: Path, port: int) -> "subprocess.Popen[bytes]":
    """Starts a program and waits until it takes connections. Raises RuntimeError with its output if it doesn't."""
    log = directory / "output"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - a server's own command
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=directory
        )
    give_up = time.perf_counter() + START_TIMEOUT_S
    while time.perf_counter() < give_up and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process
        except OSError:
            time.sleep(0.02)
    process.kill()
    process.wait(STOP_TIMEOUT_S)
    raise RuntimeError(f"{command[0]} didn't come up: {log.read_text(errors='replace')[-2000:]}")


def start_overlayd(directory: Path) -> Server:
    """A node as it is used: the whole log is written, metrics are served; 120 of the streams have a schema."""
    directory.mkdir(parents=True)
    port, tls_port = free_port(), free_port()
    write_certificate(directory / CERTIFICATE)
    streams = "".join(f'[[streams]]\nname = "{name}"\nschema = {toml_table(SCHEMA)}\n' for name in names_with_schema())
    config = directory / "config.toml"
    config.write_text(
        f'[listen]\ntcp = ["127.0.0.1:{port}"]\n'
        f'[[listen.tls]]\naddress = "127.0.0.1:{tls_port}"\ncert = "{directory / CERTIFICATE}"\n[storage]\ndir = "{directory}/data"\n'
        f"[limits]\nrequests_per_connection = 1000000000\nauto_create_per_minute = 1000000\n{streams}"
    )
    return restart_overlayd(directory)[0]


def restart_overlayd(directory: Path) -> tuple[Server, float]:
    """A node on a directory that one ran on before, and the seconds until it took connections."""
    config = directory / "config.toml"
    port, tls_port = map(int, re.findall(r'"127\.0\.0\.1:(\d+)"', config.read_text()))
    began = time.perf_counter()
    process = start([sys.executable, "-m", "overlayd", "run", "--config", str(config)], directory, port)
    seconds = time.perf_counter() - began
    version = version_of([sys.executable, "-m", "overlayd", "--version"])
    said = "every answer after the fdatasync of its commit (SQLite WAL, synchronous=FULL)"
    return Server("overlayd", version, said, True, port, directory, process, tls_port), seconds


def toml_table(value: object) -> str:
    """A JSON value as an inline value of TOML."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml_table(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_table, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value).lower()

"""Live readers that stand beside a publish row, in a process of their own: they read what comes and drop it.

Run by the rows: python -m benchmarks.readers KIND PORT COUNT PREFIX; says "attached", ends when standard input does.
"""

import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from benchmarks.machine import CpuClock
from benchmarks.protocols import RECEIVE_BYTES
from benchmarks.sockets import Greeting, attach, mqtt_subscriber, nats_subscriber, websocket
from benchmarks.work import STREAMS

Kind = Literal["overlayd", "nats", "mqtt"]


def greeting(kind: str, prefix: str, number: int) -> Greeting:
    """Each reader has one stream of the work."""
    name = f"{prefix}{number % STREAMS:02d}"
    if kind == "overlayd":
        return websocket(f"/v1/live?stream={name}", b'"subscribed"')
    return nats_subscriber(name) if kind == "nats" else mqtt_subscriber(name, number)


@contextmanager
def attached_readers(kind: Kind, port: int, count: int, prefix: str) -> Iterator[Callable[[], str]]:
    """Readers for as long as the block lasts; gives what to say of them at its end.

    Raises RuntimeError if they can't be attached.
    """
    if not count:
        yield lambda: ""
        return
    command = [sys.executable, "-m", "benchmarks.readers", kind, str(port), str(count), prefix]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 - this module
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if process.stdout.readline() != b"attached\n":
            raise RuntimeError(f"{count} readers of kind {kind} couldn't be attached")
        clock = CpuClock(process.pid)
        yield lambda: f", readers {clock.share():.0%}"
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(10)


def main() -> None:
    """Attaches, says so, and reads until standard input ends."""
    kind, port, count, prefix = sys.argv[1:]
    connections = attach(int(port), int(count), lambda number: greeting(kind, prefix, number))
    poll = select.epoll()
    by_descriptor = {connection.fileno(): connection for connection in connections}
    for descriptor in by_descriptor:
        poll.register(descriptor, select.EPOLLIN)
    poll.register(sys.stdin.fileno(), select.EPOLLIN | select.EPOLLHUP)
    print("attached", flush=True)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == sys.stdin.fileno():
                return
            if not by_descriptor[descriptor].recv(RECEIVE_BYTES):
                raise ConnectionError(f"the {kind} server hung up on a reader")


if __name__ == "__main__":
    main()

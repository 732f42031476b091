"""Runs in namespaces of its own (test_outbound_rebinding.py starts it): a name server that changes its mind, and what
the client does about it, through the system's real resolver. Prints what it saw as JSON.

Arguments: the file that stands in for /etc/resolv.conf.
"""

import json
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import trio

from overlayd.model.errors import OutboundFailure
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.outbound import Outbound, OutboundRequest, OutboundSettings

OUTER, OWN, INNER = "1.2.3.4", "5.6.7.8", "127.0.0.1"
PORT = 8080
_TYPE_A = 1


class TinyDns(threading.Thread):
    """Answers A queries with what `answers` says, in turn (the last again and again); nothing for other types."""

    def __init__(self, answers: dict[str, list[list[str]]]) -> None:
        super().__init__(daemon=True)
        self._answers = answers
        self.asked: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 53))

    def run(self) -> None:
        while True:
            query, peer = self._socket.recvfrom(2048)
            answer = self._answer(query)
            if answer:
                self._socket.sendto(answer, peer)

    def _answer(self, query: bytes) -> bytes:
        name, at = _read_name(query, 12)
        (kind,) = struct.unpack_from(">H", query, at)
        question = query[12 : at + 4]
        addresses: list[str] = []
        known = self._answers.get(name)
        if kind == _TYPE_A:
            self.asked.append(name)
            if known == [["silence"]]:
                return b""
            if known:
                addresses = known.pop(0) if len(known) > 1 else known[0]
        code = 0 if known else 3
        head = query[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, len(addresses), 0, 0)
        rows = (b"\xc0\x0c" + struct.pack(">HHIH", _TYPE_A, 1, 0, 4) + socket.inet_aton(text) for text in addresses)
        return head + question + b"".join(rows)


def _read_name(message: bytes, at: int) -> tuple[str, int]:
    labels = []
    while message[at]:
        labels.append(message[at + 1 : at + 1 + message[at]].decode())
        at += 1 + message[at]
    return ".".join(labels).lower(), at + 1


async def main() -> dict[str, Any]:
    """Each scenario's outcome."""
    seen: dict[str, list[str]] = {OUTER: [], OWN: [], INNER: []}

    async def sink(address: str, stream: trio.SocketStream) -> None:
        data = await stream.receive_some()
        if not data:
            return  # connected, looked at, and closed
        host = next(line for line in data.decode().split("\r\n") if line.lower().startswith("host:"))
        seen[address].append(host.partition(" ")[2])
        await stream.send_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")

    dns = TinyDns({
        "steady.test": [[OUTER]], "rebind.test": [[OUTER], [INNER]], "mixed.test": [[INNER, OUTER]], "own.test": [[OWN]],
        "inner.test": [["169.254.169.254"]], "slow.test": [["silence"]],
    })  # fmt: skip
    dns.start()
    limits = Limits(outbound_name_age=0, outbound_lookup_timeout=1, outbound_idle_per_host=0)  # type: ignore[arg-type]
    out = Outbound(limits, OutboundSettings(allow_private=(f"{OUTER}/32",)), Metrics())
    results: dict[str, Any] = {}

    async def call(label: str, host: str) -> None:
        before = len(dns.asked)
        try:
            answer = await out.send(OutboundRequest("POST", f"http://{host}:{PORT}/", body=b"{}", timeout_s=5))
            outcome = f"{answer.status} {answer.address}"
        except OutboundFailure as failure:
            outcome = failure.reason
        results[label] = {"outcome": outcome, "asked": len(dns.asked) - before}

    async with trio.open_nursery() as nursery:
        for address in seen:
            listeners = await trio.open_tcp_listeners(PORT, host=address)

            async def serve(stream: trio.SocketStream, address: str = address) -> None:
                await sink(address, stream)

            nursery.start_soon(trio.serve_listeners, serve, listeners)
        await call("steady", "steady.test")
        await call("first", "rebind.test")
        await call("rebound", "rebind.test")
        await call("mixed", "mixed.test")
        await call("own", "own.test")
        await call("metadata", "inner.test")
        await call("unknown", "nowhere.test")
        await call("silent", "slow.test")
        nursery.cancel_scope.cancel()
    return {"results": results, "seen": seen}


if __name__ == "__main__":
    resolver_file = Path(sys.argv[1])
    resolver_file.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    for command in (
        ("mount", "--bind", str(resolver_file), "/etc/resolv.conf"),
        ("ip", "link", "set", "lo", "up"),
        ("ip", "addr", "add", f"{OUTER}/32", "dev", "lo"),
        ("ip", "addr", "add", f"{OWN}/32", "dev", "lo"),
    ):
        subprocess.run(command, check=True)
    print(json.dumps(trio.run(main)))

"""Requests with mutual authentication (BRC-104) on a running node, each signed and each answered by a signed answer, in
sessions that exist: how many the node serves for a second of its processor's time.

Requests are signed before the clock runs; the node's processor time is read from the kernel, so that the load generator
beside it doesn't count. A few answers are verified afterwards.

Run: python3 -m benchmarks.mutual [--requests 6000] [--clients 16]
"""

import argparse
import json
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.samples import Sample
from overlayd.access.mutual.messages import AUTH_PATH, answer_bytes, request_bytes
from overlayd.access.secret_text import digest_of, format_digest
from overlayd.bsv.brc42 import derive_private, derive_public
from overlayd.bsv.keys import PrivateKey, PublicKey
from overlayd.model.clock import Entropy
from overlayd.model.limits import Limits
from overlayd.net.head import parse_head

ENTROPY = Entropy()
API_KEY = f"ovl_live_{ENTROPY.draw(16).hex()}"
INVOICE = "2-auth message signature-"
LIMITS = Limits()
DATA = b'{"data":{"station":"weather-001","t":21.5,"h":48,"p":1013.2,"note":"' + b"x" * 150 + b'"}}'
CASES = (
    ("POST of one packet (publish lane)", "POST", "/v1/streams/bench/packets", DATA),
    ("GET of /v1/node (Quart)", "GET", "/v1/node", b""),
)


class Client:
    """One session."""

    def __init__(self, address: tuple[str, int], key: PrivateKey) -> None:
        self.nonce = b64encode(ENTROPY.draw(48)).decode()
        self.key = key.public_key.hex()
        message = {
            "version": "0.1", "messageType": "initialRequest", "identityKey": self.key, "initialNonce": self.nonce,
            "requestedCertificates": {"certifiers": [], "types": {}},
        }  # fmt: skip
        body = json.dumps(message).encode()
        with socket.create_connection(address) as connection:
            connection.sendall(
                f"POST {AUTH_PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                + body
            )
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        told = json.loads(answer.partition(b"\r\n\r\n")[2])
        self.session, self.node = told["initialNonce"], told["identityKey"]
        self._key, self._node = key, PublicKey.parse_hex(self.node)

    def request(self, method: str, path: str, body: bytes) -> tuple[bytes, bytes]:
        """A signed request, and its id."""
        id, nonce = ENTROPY.draw(32), b64encode(ENTROPY.draw(32)).decode()
        lines = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench\r\n"
        if body:
            lines += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        signed = request_bytes(parse_head(f"{lines}\r\n".encode(), LIMITS), id, body)
        signature = derive_private(self._key, self._node, f"{INVOICE}{nonce} {self.session}").sign(signed)
        lines += (
            f"x-bsv-auth-version: 0.1\r\nx-bsv-auth-identity-key: {self.key}\r\nx-bsv-auth-nonce: {nonce}\r\n"
            f"x-bsv-auth-your-nonce: {self.session}\r\nx-bsv-auth-request-id: {b64encode(id).decode()}\r\n"
            f"x-bsv-auth-signature: {signature.hex()}\r\n\r\n"
        )
        return lines.encode() + body, id

    def verify(self, answer: bytes, id: bytes) -> None:
        """Raises SignatureInvalid for an answer that isn't the node's."""
        head, _, body = answer.partition(b"\r\n\r\n")
        found = dict(re.findall(r"x-bsv-auth-([a-z-]+): (\S+)", head.decode()))
        assert b64decode(found["request-id"]) == id
        signed = answer_bytes(id, int(head.split(b" ", 2)[1]), (), body)
        child = derive_public(self._node, self._key, f"{INVOICE}{found['nonce']} {self.nonce}")
        child.verify(signed, bytes.fromhex(found["signature"]))


def keyed(method: str, path: str, body: bytes) -> bytes:
    """The same request by a plain API key, for comparison."""
    lines = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench\r\nAuthorization: Bearer {API_KEY}\r\n"
    if body:
        lines += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{lines}\r\n".encode() + body


def exchange(address: tuple[str, int], queues: list[list[bytes]]) -> list[list[bytes]]:
    """Sends each queue over a connection of its own, one request in flight on each; the answers."""
    answers: list[list[bytes]] = [[] for _ in queues]
    sockets = [socket.create_connection(address) for _ in queues]
    by_number = {connection.fileno(): number for number, connection in enumerate(sockets)}
    buffers = [b""] * len(queues)
    poll = select.epoll()
    for number, connection in enumerate(sockets):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(connection.fileno(), select.EPOLLIN)
        connection.sendall(queues[number][0])
    left = sum(map(len, queues))
    while left:
        for descriptor, _ in poll.poll():
            number = by_number[descriptor]
            buffers[number] += sockets[number].recv(65536)
            answer = whole_answer(buffers[number])
            if answer is None:
                continue
            buffers[number] = b""
            answers[number].append(answer)
            left -= 1
            if len(answers[number]) < len(queues[number]):
                sockets[number].sendall(queues[number][len(answers[number])])
    for connection in sockets:
        connection.close()
    return answers


def whole_answer(buffer: bytes) -> bytes | None:
    """The answer once it is there."""
    head, end, body = buffer.partition(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", head)
    if not end or found is None or len(body) < int(found[1]):
        return None
    assert head.split(b" ", 2)[1] in (b"200", b"201"), buffer[:600]
    return buffer


def used_s(process: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running_node(key: PrivateKey) -> Iterator[tuple[int, tuple[str, int]]]:
    """A node that knows one identity: its process id and address."""
    with tempfile.TemporaryDirectory(prefix="bench") as directory:
        file = Path(directory) / "node.toml"
        file.write_text(
            f'[log]\nlevel = "warning"\n[[access.identities]]\nname = "bench"\nkey = "{key.public_key.hex()}"\n'
            'scopes = ["publish", "read", "manage"]\n'
            f'[[keys]]\nname = "k"\nscopes = ["publish", "read"]\nhashes = ["{format_digest(digest_of(API_KEY))}"]\n'
        )
        command = [sys.executable, "-m", "overlayd", "run", "--config", str(file), "--data", f"{directory}/data"]
        with subprocess.Popen([*command, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - this very project
            assert process.stdout is not None
            try:
                found = next(match for line in process.stdout if (match := re.search(r"http://([\d.]+):(\d+)", line)))
                yield process.pid, (found[1], int(found[2]))
            finally:
                process.terminate()


def main() -> None:
    """Prints a line for each case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()
    key = PrivateKey(ENTROPY.draw(32))
    with running_node(key) as (process, address):
        clients = [Client(address, key) for _ in range(options.clients)]
        define = [clients[0].request("PUT", "/v1/streams/bench", b"{}")[0]]
        exchange(address, [define])
        for name, method, path, body in CASES:
            each = options.requests // options.clients
            made = [[client.request(method, path, body) for _ in range(each)] for client in clients]
            answers = run(name, process, address, [[request for request, _ in requests] for requests in made])
            for client, requests, got in zip(clients, made, answers, strict=True):
                client.verify(got[0], requests[0][1])
                client.verify(got[-1], requests[-1][1])
            run("  the same by an API key", process, address, [[keyed(method, path, body)] * each] * len(clients))


def spend(process: int, address: tuple[str, int], queues: list[list[bytes]]) -> tuple[Sample, list[list[bytes]]]:
    """What the requests cost the node, and the answers."""
    before, began = used_s(process), time.perf_counter()
    answers = exchange(address, queues)
    took_s, cpu_s = time.perf_counter() - began, max(used_s(process) - before, 0.01)
    count = sum(map(len, queues))
    note = f"{cpu_s / count * 1e6:.0f} us each; {count / took_s:,.0f}/s beside the load generator"
    return Sample({"rate": count / cpu_s}, server_share=cpu_s / took_s, note=note), answers


def run(name: str, process: int, address: tuple[str, int], queues: list[list[bytes]]) -> list[list[bytes]]:
    """Prints what the requests cost; gives the answers."""
    sample, answers = spend(process, address, queues)
    print(f"{name:36} {sample.values['rate']:8,.0f} requests for a second of the node's processor time ({sample.note})")
    return answers


if __name__ == "__main__":
    main()

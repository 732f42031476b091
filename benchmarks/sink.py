"""A receiver of webhooks in a process of its own: answers 204, or badly, by the path that was asked for.

Run by benchmarks/deliveries.py: `python -m benchmarks.sink HOSTS`. Listens at so many addresses of the loopback network,
all at the same port, which it prints; a line on standard input asks how many
requests were taken well, and how long after their packet's publishing the slowest hundredth of them came.
"""

import re
import selectors
import socket
import sys
import time

ADDRESSES = 250
"""Of each network 127.0.x."""
OK = b"HTTP/1.1 204 No Content\r\n\r\n"
ERROR = b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_SENT = re.compile(rb'"sent": ?(\d+)')


def address_of(host: int) -> str:
    """The address of one of the hosts, counted from 0."""
    return f"127.0.{host // ADDRESSES}.{1 + host % ADDRESSES}"


class Peer:
    """One connection."""

    __slots__ = ("buffer", "trickle", "wire")

    def __init__(self, wire: socket.socket) -> None:
        self.wire = wire
        self.buffer = b""
        self.trickle = b""


class Sink:
    """All connections on one selector."""

    def __init__(self, hosts: int) -> None:
        self.selector = selectors.EpollSelector()
        self.port = 0
        for host in range(hosts):
            listener = socket.create_server((address_of(host), self.port), backlog=4096)
            listener.setblocking(False)
            self.selector.register(listener, selectors.EVENT_READ, listener)
            self.port = listener.getsockname()[1]
        self.selector.register(sys.stdin, selectors.EVENT_READ, "ask")
        self.taken = 0
        self.delays_us: list[int] = []
        self.trickling: list[Peer] = []
        self.trickled_at = 0.0

    def run(self) -> None:
        """Until standard input ends."""
        print(self.port, flush=True)
        while True:
            for key, _ in self.selector.select(0.5):
                if isinstance(key.data, socket.socket):
                    self.accept(key.data)
                elif key.data == "ask":
                    if not sys.stdin.readline():
                        return
                    self.tell()
                else:
                    self.read(key.data)
            if self.trickling and time.perf_counter() - self.trickled_at >= 1.0:
                self.trickled_at = time.perf_counter()
                self.drip()

    def accept(self, listener: socket.socket) -> None:
        """Everybody who waits."""
        while True:
            try:
                wire, _ = listener.accept()
            except BlockingIOError:
                return
            wire.setblocking(False)
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.selector.register(wire, selectors.EVENT_READ, Peer(wire))

    def read(self, peer: Peer) -> None:
        """Whole requests of one connection, each answered."""
        try:
            data = peer.wire.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self.selector.unregister(peer.wire)
            peer.wire.close()
            return
        peer.buffer += data
        while (end := peer.buffer.find(b"\r\n\r\n")) >= 0:
            found = _LENGTH.search(peer.buffer, 0, end + 2)
            size = end + 4 + (int(found[1]) if found else 0)
            if len(peer.buffer) < size:
                return
            self.answer(peer, peer.buffer[:size])
            peer.buffer = peer.buffer[size:]

    def answer(self, peer: Peer, request: bytes) -> None:
        """By the path."""
        if request.startswith(b"POST /ok"):
            self.taken += 1
            if sent := _SENT.search(request):
                self.delays_us.append(time.perf_counter_ns() // 1000 - int(sent[1]))
            self.send(peer, OK)
        elif request.startswith(b"POST /error"):
            self.send(peer, ERROR)
        elif request.startswith(b"POST /slow"):
            peer.trickle = OK
            self.trickling.append(peer)

    def drip(self) -> None:
        """A byte more for each that gets one a second."""
        for peer in self.trickling:
            self.send(peer, peer.trickle[:1])
            peer.trickle = peer.trickle[1:]
        self.trickling = [peer for peer in self.trickling if peer.trickle and peer.wire.fileno() >= 0]

    def send(self, peer: Peer, data: bytes) -> None:
        """Answers are short; a peer that is gone is noticed when it is read."""
        try:
            peer.wire.send(data)
        except OSError:
            peer.trickle = b""

    def tell(self) -> None:
        """How many, and the slowest hundredth in microseconds; then it counts delays anew."""
        delays = sorted(self.delays_us)
        slowest = delays[min(len(delays) - 1, len(delays) * 99 // 100)] if delays else 0
        self.delays_us.clear()
        print(self.taken, slowest, flush=True)


if __name__ == "__main__":
    Sink(int(sys.argv[1])).run()

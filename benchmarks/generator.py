"""A load generator on one epoll: every client keeps one request in flight. It counts its own processor time, because
a figure is worth nothing once the generator is what holds it down."""

import gc
import select
import socket
import time
from collections.abc import Callable

from benchmarks.protocols import HANDSHAKE_TIMEOUT_S, RECEIVE_BYTES, BadAnswer, Conversation
from benchmarks.samples import Sample, percentile
from benchmarks.servers import Server
from benchmarks.work import Work

SILENCE_S = 10.0


class Client:
    """One connection."""

    def __init__(self, port: int, conversation: Conversation) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), HANDSHAKE_TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.conversation = conversation
        self.sent_at = 0.0
        conversation.greet(self.socket)

    def send(self) -> None:
        """Sends the next request. Blocks while the server doesn't take it, which a batch may see."""
        request = self.conversation.request()
        self.sent_at = time.perf_counter()
        self.socket.sendall(request)


def generate(server: Server, work: Work, make: Callable[[int], Conversation], seconds: float) -> Sample:
    """Keeps all clients of the work busy for so long. `make` gives the conversation of a client by its number.

    Raises BadAnswer, also when nothing is answered for ten seconds.
    """
    clients = [Client(server.port, make(number)) for number in range(work.clients)]
    poll = select.epoll()
    by_descriptor = {client.socket.fileno(): client for client in clients}
    for descriptor in by_descriptor:
        poll.register(descriptor, select.EPOLLIN)
    latencies: list[float] = []
    gc.disable()
    server_clock, cpu_before, began = server.cpu_clock(), time.process_time(), time.perf_counter()
    try:
        for client in clients:
            client.send()
        now, ending = began, began + seconds
        while now < ending:
            events = poll.poll(SILENCE_S)
            if not events:
                raise BadAnswer(f"{server.name} hasn't answered for {SILENCE_S:.0f} s")
            for descriptor, _ in events:
                client = by_descriptor[descriptor]
                data = client.socket.recv(RECEIVE_BYTES)
                if not data:
                    raise BadAnswer(f"{server.name} closed a connection")
                if client.conversation.is_answered(data):
                    latencies.append(time.perf_counter() - client.sent_at)
                    client.send()
            now = time.perf_counter()
        elapsed = now - began
        generator_share, server_share = (time.process_time() - cpu_before) / elapsed, server_clock.share()
    finally:
        gc.enable()
        poll.close()
        for client in clients:
            client.socket.close()
    if not latencies:
        raise BadAnswer(f"{server.name} answered nothing in {elapsed:.1f} s")
    latencies.sort()
    return Sample(
        {
            "rate": len(latencies) * work.batch / elapsed,
            "p50_ms": percentile(latencies, 0.5) * 1e3,
            "p99_ms": percentile(latencies, 0.99) * 1e3,
        },
        generator_share, server_share, note="own generator",
    )  # fmt: skip

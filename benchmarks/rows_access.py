"""Rows of letting requests in: what a look at a credential costs, with few keys and many, and mutual authentication."""

from collections.abc import Iterator
from contextlib import ExitStack

import trio

from benchmarks import access, mutual
from benchmarks.samples import Contender, Row, Sample
from overlayd.bsv.keys import PrivateKey

KEYS = 100_000
CLIENTS = 16
REQUESTS_A_SECOND = 1500
"""Signed before the clock runs; fewer than a node answers in a second, so that a turn isn't longer than it may be."""


def gate_rows(count: int = KEYS) -> Iterator[Row]:
    """In this process, with a gate of its own before one key and before many."""
    doorways: dict[int, access.Doorway] = {}

    async def look(keys: int, what: str, seconds: float) -> float:
        if keys not in doorways:
            doorways[keys] = access.Doorway(keys)
        return await access.measure(doorways[keys], what, seconds)

    def turn(keys: int, what: str) -> Contender:
        def run(seconds: float) -> Sample:
            rate = trio.run(look, keys, what, seconds)
            return Sample({"rate": rate}, note=f"{1e6 / rate:.2f} us each")

        words = {"known": "a known connection", "known_by_bytes": "a known connection, headers compared as bytes"}
        return Contender(f"{words.get(what, 'a new connection')}, {keys:,} keys", run)

    yield Row("access", "who asks and may they publish, kept connection", "rate",
              (turn(count, "known"), turn(1, "known"), turn(count, "known_by_bytes")),
              "for a second of one processor; to reach: 6 us each (167,000)")  # fmt: skip
    yield Row("access", "who asks, first request of a connection", "rate", (turn(count, "first"), turn(1, "first")),
              f"for a second of one processor; to reach: {count:,} keys don't slow it")  # fmt: skip


def mutual_rows(stack: ExitStack) -> Iterator[Row]:
    """On a running node, in sessions that exist, for a second of the node's own processor time."""
    key = PrivateKey(mutual.ENTROPY.draw(32))
    process, address = stack.enter_context(mutual.running_node(key))
    clients = [mutual.Client(address, key) for _ in range(CLIENTS)]
    mutual.exchange(address, [[clients[0].request("PUT", "/v1/streams/bench", b"{}")[0]]])

    for title, method, path, body in mutual.CASES:

        def signed(seconds: float, method: str = method, path: str = path, body: bytes = body) -> Sample:
            each = max(2, int(REQUESTS_A_SECOND * seconds / CLIENTS))
            made = [[client.request(method, path, body) for _ in range(each)] for client in clients]
            sample, answers = mutual.spend(process, address, [[raw for raw, _ in requests] for requests in made])
            for client, requests, got in zip(clients, made, answers, strict=True):
                client.verify(got[0], requests[0][1])
                client.verify(got[-1], requests[-1][1])
            return sample

        def keyed(seconds: float, method: str = method, path: str = path, body: bytes = body) -> Sample:
            each = max(2, int(REQUESTS_A_SECOND * seconds / CLIENTS))
            return mutual.spend(process, address, [[mutual.keyed(method, path, body)] * each] * CLIENTS)[0]

        note = (
            "for a second of the node's processor; to reach: 3,000"
            if method == "POST"
            else "for a second of the node's processor"
        )
        yield Row("access", title, "rate",
                  (Contender("mutual authentication (BRC-104)", signed), Contender("an API key", keyed)), note)  # fmt: skip

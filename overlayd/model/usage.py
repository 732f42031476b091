"""What is counted about producers and readers, and the seams through which it is counted.

Storage calls a `GroupMeter` for each commit; delivery tells a `UsageSink` what it delivered, at the end of a session
or now and then, never per packet.
"""

import sqlite3
from collections.abc import Mapping
from typing import Literal, Protocol, TypeAlias

import msgspec

Method: TypeAlias = Literal["publish", "read", "websocket", "sse", "ndjson", "pull", "webhook", "agent"]
"""How packets came in or went out."""


class Counts(msgspec.Struct, gc=False):
    """What was counted of one principal, stream and method.

    `latency_us` sums `latencies` measurements, `latency_max_us` is the longest of them. `completions` counts
    deliveries that ended, `completed_ppm` sums how much of what there was they had got (1,000,000 = all).
    """

    requests: int = 0
    packets: int = 0
    bytes: int = 0
    errors: int = 0
    latency_us: int = 0
    latencies: int = 0
    latency_max_us: int = 0
    completions: int = 0
    completed_ppm: int = 0


class EndedDelivery(msgspec.Struct, frozen=True):
    """A delivery that is over: a live session's subscription, or another run of packets to one reader.

    `stream`: the stream or pattern that the reader named, ">" for everything. Totals are of the whole delivery; what
    was told through `delivered` is not counted again, of the errors `errors_told`. `completed_ppm`: how much of what there was it had got
    (1,000,000 = all). `address` is hashed before it is stored. `latency_us`: mean of what was measured, 0 where nothing was.
    """

    session: str
    stream: str
    principal: str
    method: Method
    address: str
    started_us: int
    ended_us: int
    packets: int
    bytes: int
    errors: int = 0
    errors_told: int = 0
    completed_ppm: int = 1_000_000
    reason: str = ""
    latency_us: int = 0


class UsageSink(Protocol):
    """Takes what was delivered. Both calls only add to memory: they neither block nor fail."""

    def delivered(
        self, stream: str, principal: str, method: Method, *, packets: int, bytes: int, latency_us: int = 0,
        latencies: int = 0, requests: int = 0, errors: int = 0,
    ) -> None:  # fmt: skip
        """So much more went out since the last call. `latency_us` sums `latencies` measurements."""
        ...

    def ended(self, delivery: EndedDelivery) -> None:
        """A delivery is over."""
        ...


class GroupWriting(Protocol):
    """What a meter writes along with one group."""

    def write(self, connection: sqlite3.Connection) -> None:
        """In the writer's thread, in the group's transaction."""
        ...

    def adopt(self) -> None:
        """The group is durable."""
        ...

    def roll_back(self) -> None:
        """The transaction left no trace."""
        ...


class GroupMeter(Protocol):
    """Counts appended packets in the very transaction that makes them durable."""

    def is_metered(self, principal: str) -> bool:
        """Whether the principal's packets are to be counted."""
        ...

    def begin(self, appended_us: int, counted: Mapping[tuple[str, str], tuple[int, int]]) -> GroupWriting:
        """`counted`: packets and bytes of bodies by (principal, stream), of a group with this time."""
        ...

"""What an erasure asks the rest of the node for. The daemon puts it together."""

import sqlite3
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from overlayd.storage import Stream


class Recipient(msgspec.Struct, frozen=True):
    """Somebody durable who was given a packet: a subscription's id, name and kind."""

    id: str
    name: str
    kind: str


GivenTo = Callable[[Stream, Sequence[int], bool], Awaitable[Sequence[Recipient]]]
"""Who was given packets of a stream, by their ascending offsets. True: they are about to be erased, so that only those
are told who had them."""
BackupsBefore = Callable[[int], Sequence[str]]
"""The copies of the log begun before a time (Unix µs) that aren't known to be gone, by what an operator finds them by.
Blocking: in a thread."""


class Traces(msgspec.Struct, frozen=True):
    """Where else something of a packet may be, and how it is taken away there.

    `forget`: caches in memory, and what is kept of packets there, by their ascending offsets. `clear`: in tables, given the ascending offsets, in the
    writer's transaction; may be called again. `followers`: consumers that take their own copies away once they have looked at the log's entries up to
    an offset. `given_to`: who has it. `backups_before`: which backups do.
    """

    forget: Callable[[Sequence[int]], None]
    clear: Sequence[Callable[[sqlite3.Connection, Sequence[int]], None]]
    followers: Sequence[Callable[[int], Awaitable[None]]]
    given_to: GivenTo
    backups_before: BackupsBefore

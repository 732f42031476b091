"""What erasure asks of the log beyond a removal: scattered packets, what was made from them, and a write-ahead log
that holds nothing of them any more.
"""

import json
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import trio

from overlayd.model.errors import IntakeBusy
from overlayd.storage import definitions, links
from overlayd.storage.group import LogState
from overlayd.storage.intake import Intake
from overlayd.storage.jobs import ChangeJob, CutWalJob
from overlayd.storage.links import Relinker
from overlayd.storage.removing import Along, Remover, add_status_reduction
from overlayd.storage.streams import Stream
from overlayd.storage.tail import Page

CUT_TRIES = 200
CUT_PAUSE_S = 0.1
"""A reader in the middle of a page keeps the write-ahead log from being cut; it is asked again after so long."""
PLACES_PER_STEP = 500
"""Packets that are looked at, or taken away, in one step: in between others get their turn."""

_KEPT = (
    "SELECT offset, substr(e, 27, 32), substr(e, 59, 8) FROM entry"
    " WHERE sealed IS NOT NULL AND hex(substr(e, 2, 1)) = '01' AND offset IN (SELECT value FROM json_each(?))"
)
"""Of packets: where E holds stream and sequence."""

T = TypeVar("T")
Read = Callable[[Callable[[sqlite3.Connection], Any]], Awaitable[Any]]


class Erasing:
    """The log's part in an erasure. One for the log."""

    def __init__(
        self, state: LogState, intake: Intake, remover: Remover, *, read: Read, write: Read,
        read_page: Callable[[int], Awaitable[Page]],
    ) -> None:  # fmt: skip
        self._state = state
        self._intake = intake
        self._remover = remover
        self._read = read
        self.older = Relinker(read, write, read_page)

    async def take(self, stream: Stream, positions: Sequence[tuple[int, int]], clear: Along | None = None) -> int:
        """Takes packets of a stream away, given as ascending (sequence, offset); gives how many were still there.

        In slices, each one transaction with a removal entry for every run of sequences. `clear` takes away what other
        tables hold of them in the same transaction, so that a hold that comes in between keeps all of a packet or nothing.
        Checkpoint. Raises Forbidden for the node's own streams, UnderHold, and as `Log.append`.
        """
        definitions.check_is_changeable(stream.name)
        return await self._remover.take(stream, positions, "erased", clear)

    async def read_positions(self, stream: Stream, sequence: int, limit: int) -> list[tuple[int, int]]:
        """(sequence, offset) of a stream's packets from a sequence on, taken away ones among them. Checkpoint."""
        return await self._remover.read_positions(stream, sequence, limit)

    async def find_kept(self, offsets: Sequence[int]) -> dict[int, tuple[bytes, int]]:
        """Stream hash and sequence of those packets that are still there, damaged or not, by offset. At most
        `PLACES_PER_STEP` of them. Checkpoint."""
        assert len(offsets) <= PLACES_PER_STEP
        kept: dict[int, tuple[bytes, int]] = await self._read(partial(_read_kept, offsets=list(offsets)))
        return kept

    async def find_made(self, offsets: Sequence[int], limit: int) -> list[int]:
        """The offsets of all packets that the node made from these, directly or by way of others, ascending; without
        those asked for. Ends early once there are more than `limit`. Checkpoint."""
        known = set[int]()
        for part in parts_of(offsets):
            known.update(part)
            await trio.lowlevel.checkpoint()
        made: list[int] = []
        for part in parts_of(offsets):
            await self._follow(part, known, made, limit)
        at = 0
        while at < len(made) and len(made) <= limit:
            part = made[at : at + PLACES_PER_STEP]
            at += len(part)
            await self._follow(part, known, made, limit)
        return sorted(made)

    async def _follow(self, targets: Sequence[int], known: set[int], made: list[int], limit: int) -> None:
        """Adds what was made from packets and isn't known yet."""
        after = 0
        while len(made) <= limit:
            follow = partial(links.follow, targets=targets, kind=links.MADE, after=after, limit=PLACES_PER_STEP)
            found: list[int] = await self._read(follow)
            new = [offset for offset in found if offset not in known]
            known.update(new)
            made += new
            if len(found) < PLACES_PER_STEP:
                return
            after = found[-1]

    async def take_statuses(self, offsets: Sequence[int]) -> None:
        """Takes the content of the packets' own status entries away, those that came after the packets went included.
        Checkpoint. Raises as `Log.append`."""
        for part in parts_of(offsets):
            job = ChangeJob(partial(add_status_reduction, offsets=part))
            await self._intake.put(job)
            await job.ticket.wait()

    async def cut_wal(self) -> None:
        """Copies the write-ahead log into the database and cuts it to nothing, so that it holds no older page.

        Checkpoint. Raises IntakeBusy where readers stand in the way for CUT_TRIES * CUT_PAUSE_S.
        """
        for _ in range(CUT_TRIES):
            job = CutWalJob()
            await self._intake.put(job)
            if await job.ticket.wait():
                return
            await trio.sleep(CUT_PAUSE_S)
        raise IntakeBusy("readers keep the write-ahead log from being cut", subject="log.sqlite3", retry_after_s=1.0)


def parts_of(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """As they are looked at, step by step."""
    for at in range(0, len(items), PLACES_PER_STEP):
        yield items[at : at + PLACES_PER_STEP]


def _read_kept(connection: sqlite3.Connection, offsets: list[int]) -> dict[int, tuple[bytes, int]]:
    rows = connection.execute(_KEPT, (json.dumps(offsets),))
    return {offset: (stream_hash, int.from_bytes(sequence, "big")) for offset, stream_hash, sequence in rows}

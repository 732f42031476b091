"""What can be asked of the writer. Each job knows how it is judged; the writer decides when.

`judge` runs between two awaits, adds to the group or raises the OverlaydError that refuses it, and returns the
answer to give after the COMMIT.
"""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from overlayd.model.bodies import NodeBody, StatusEntry, encode_node_body
from overlayd.model.draft import AppendRequest, AppendResult
from overlayd.storage.commit import Call
from overlayd.storage.group import Group, Prepared
from overlayd.storage.intake import AnyTicket, Ticket
from overlayd.storage.judge import judge_append, judge_plain
from overlayd.storage.lookup import Lookups
from overlayd.storage.pace import Pace

OVERHEAD_BYTES = 512
"""About what a row costs beside its texts."""


class AppendJob:
    """A producer's request."""

    __slots__ = ("bytes", "packets", "prepared", "request", "ticket")

    def __init__(self, request: AppendRequest, ticket: AnyTicket | None = None) -> None:
        """`ticket`: whom to tell; without one somebody waits for the job's own."""
        self.request = request
        self.prepared = Prepared(None, [])
        self.packets = len(request.drafts)
        self.bytes = 0
        for draft in request.drafts:
            self.bytes += len(draft.body) + len(draft.metadata) + OVERHEAD_BYTES
        self.ticket: AnyTicket = ticket if ticket is not None else Ticket[AppendResult]()

    async def judge(self, group: Group, lookups: Lookups, pace: Pace) -> AppendResult:
        if self.packets == 1:
            plain = judge_plain(group, self.request, self.prepared, lookups)
            if plain is not None:
                group.statements += self.request.along
                await pace.spend(1)
                return plain
        result = await judge_append(group, self.request, self.prepared, lookups, pace)
        group.statements += self.request.along
        return result


class ChangeJob:
    """A change that is judged by a function of its own: definitions, states, node entries, removals."""

    __slots__ = ("_change", "bytes", "packets", "ticket")

    def __init__(self, change: Callable[[Group], Any], packets: int = 1) -> None:
        self._change = change
        self.packets = packets
        self.bytes = OVERHEAD_BYTES
        self.ticket: Ticket[Any] = Ticket()

    async def judge(self, group: Group, lookups: Lookups, pace: Pace) -> Any:
        return self._change(group)


class WriteJob:
    """A feature's own statements, under a savepoint of the group's transaction."""

    __slots__ = ("bytes", "call", "packets", "ticket")

    def __init__(self, run: Callable[[sqlite3.Connection], Any]) -> None:
        self.call = Call(run)
        self.packets = 1
        self.bytes = OVERHEAD_BYTES
        self.ticket: Ticket[Any] = Ticket()

    def answer(self) -> None:
        """After the COMMIT: what the call gave, or its own failure."""
        if self.call.error is not None:
            self.ticket.fail(self.call.error)
        else:
            self.ticket.settle(self.call.answer)


class CutWalJob:
    """Asks the writer to cut the write-ahead log now; answers whether no reader stood in the way."""

    __slots__ = ("bytes", "packets", "ticket")

    def __init__(self) -> None:
        self.packets = 1
        self.bytes = OVERHEAD_BYTES
        self.ticket: Ticket[bool] = Ticket()


class PingJob:
    """Asks whether the writer and its thread go on; answered without touching the disk, in turn with everything else."""

    __slots__ = ("bytes", "packets", "ticket")

    def __init__(self) -> None:
        self.packets = 0
        self.bytes = 0
        self.ticket: Ticket[None] = Ticket()


class GiveBackJob:
    """Asks the writer to give some free pages of the file back to the disk now; answers whether there may be more."""

    __slots__ = ("bytes", "packets", "ticket")

    def __init__(self) -> None:
        self.packets = 1
        self.bytes = OVERHEAD_BYTES
        self.ticket: Ticket[bool] = Ticket()


def node_job(body: NodeBody | dict[str, Any]) -> ChangeJob:
    """Appends an entry of the node itself; answers its offset. Raises ValueError for wrong members."""
    encode_node_body(body)
    return ChangeJob(lambda group: group.add_node(body).offset)


def statuses_job(statuses: Sequence[StatusEntry], along: Callable[[sqlite3.Connection], None]) -> ChangeJob:
    """Appends entries of what became of packets, with rows about it; answers their offsets."""
    return ChangeJob(lambda group: group.add_statuses(statuses, along), len(statuses) or 1)

"""What can be asked of the writer. Each job knows how it is judged; the writer decides when.

`judge` runs between two awaits, adds to the group or raises the OverlaydError that refuses it, and returns the
answer to give after the COMMIT.
"""

import sqlite3
from collections.abc import Callable
from typing import Any

from overlayd.model.bodies import NodeBody
from overlayd.model.draft import AppendRequest, AppendResult
from overlayd.model.metrics import Metrics
from overlayd.storage.commit import Call
from overlayd.storage.group import Group
from overlayd.storage.intake import Ticket
from overlayd.storage.judge import Lookups, judge_append

OVERHEAD_BYTES = 512
"""About what a row costs beside its texts."""


class AppendJob:
    """A producer's request."""

    __slots__ = ("bytes", "packets", "request", "ticket")

    def __init__(self, request: AppendRequest) -> None:
        self.request = request
        self.packets = len(request.drafts)
        self.bytes = sum(len(draft.body) + len(draft.metadata) + OVERHEAD_BYTES for draft in request.drafts)
        self.ticket: Ticket[AppendResult] = Ticket()

    def judge(self, group: Group, lookups: Lookups, metrics: Metrics) -> AppendResult:
        return judge_append(group, self.request, lookups, metrics)


class ChangeJob:
    """A change that is judged by a function of its own: definitions, states, node entries, removals."""

    __slots__ = ("_change", "bytes", "packets", "ticket")

    def __init__(self, change: Callable[[Group], Any], packets: int = 1) -> None:
        self._change = change
        self.packets = packets
        self.bytes = OVERHEAD_BYTES
        self.ticket: Ticket[Any] = Ticket()

    def judge(self, group: Group, lookups: Lookups, metrics: Metrics) -> Any:
        return self._change(group)


class WriteJob:
    """A feature's own statements, under a savepoint of the group's transaction."""

    __slots__ = ("bytes", "call", "packets", "ticket")

    def __init__(self, run: Callable[[sqlite3.Connection], Any]) -> None:
        self.call = Call(run)
        self.packets = 1
        self.bytes = OVERHEAD_BYTES
        self.ticket: Ticket[Any] = Ticket()


class ExclusiveJob:
    """Something of the log's own that needs the writer's connection alone, outside any transaction.

    `run` runs in the writer's thread, `adopt` on the loop after it came back.
    """

    __slots__ = ("adopt", "bytes", "packets", "run", "ticket")

    def __init__(self, run: Callable[[sqlite3.Connection], Any], adopt: Callable[[Any], Any]) -> None:
        self.run = run
        self.adopt = adopt
        self.packets = 0
        self.bytes = 0
        self.ticket: Ticket[Any] = Ticket()


def node_job(body: NodeBody | dict[str, Any]) -> ChangeJob:
    """Appends an entry of the node itself; answers its offset."""
    return ChangeJob(lambda group: group.add_node(body).offset)

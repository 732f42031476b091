"""A log with what is kept about people, over a real database."""

import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from storage_rig import Rig, append, draft

from overlayd.model.audit import AuditRecord
from overlayd.model.definition import Definition
from overlayd.model.draft import Draft
from overlayd.pipeline.own_streams import AUDIT, OwnStream
from overlayd.privacy.erasures import Erasures
from overlayd.privacy.people import People
from overlayd.privacy.places import Position
from overlayd.privacy.planning import Plan, Planner
from overlayd.privacy.recipients import Recipient, Traces
from overlayd.privacy.tables import PRIVACY_FEATURE
from overlayd.storage import Log, Stream
from overlayd.storage.group import Group
from overlayd.storage.own import OwnPacket
from overlayd.storage.readers import ReaderPool
from overlayd.storage.removing import Remover

KEY = bytes(range(32))


class Office:
    """The parts about people over an open log. `calls` says which traces were taken away, in order."""

    def __init__(self, rig: "PrivacyRig", log: Log) -> None:
        self.log = log
        self.calls: list[str] = []
        self.recipients: list[Recipient] = []
        self.cleared: list[int] = []
        self.forgotten: list[int] = []
        self.backups = ["/backups/one"]
        self.own = OwnStream(AUDIT, log.append_own)
        self.people = People(log, KEY, limits=rig.limits, clock=rig.clock, metrics=rig.metrics)
        self.planner = Planner(log, self.people.subjects, rig.limits, rig.metrics)
        traces = Traces(
            self._forget, [self._clear], [self._follow], self._given_to,
            lambda time_us: list(self.backups),
        )  # fmt: skip
        self.erasures = Erasures(
            log, traces, audit=self.audit, clock=rig.clock, entropy=rig.entropy, metrics=rig.metrics
        )

    def _forget(self, offsets: Sequence[int]) -> None:
        self.calls.append("forget")
        self.forgotten += offsets

    def _clear(self, connection: sqlite3.Connection, offsets: Sequence[int]) -> None:
        assert connection.in_transaction
        self.calls.append("clear")
        self.cleared += offsets

    async def _follow(self, offset: int) -> None:
        assert offset == self.log.head
        self.calls.append("follow")
        await trio.lowlevel.checkpoint()

    async def _given_to(self, stream: Stream, offsets: Sequence[int], is_final: bool) -> list[Recipient]:
        await trio.lowlevel.checkpoint()
        return self.recipients

    def audit(self, record: AuditRecord) -> OwnPacket:
        """A packet of the audit stream."""
        return self.own.packet(record.action, {"subject": record.subject, "result": record.result})

    async def plan(self, stream: str, low: int, high: int) -> Plan:
        """For a range."""
        found = self.log.find_stream(stream)
        assert found is not None
        return await self.planner.of_range(found, low, high, lambda name: None)

    async def begin(self, plan: Plan) -> str:
        """Writes it down."""
        return await self.erasures.begin(plan, lambda id, report: AuditRecord("erase.begin", subject=id))

    async def find(self, subject: str) -> dict[str, list[int]]:
        """Sequences of a subject's packets, by stream."""
        places = await self.people.subjects.look_up(subject)
        found: dict[str, list[int]] = {}
        position: Position | None = Position()
        while position is not None:
            some, position = await places.read_step(position)
            for stream, (sequence, _) in some:
                found.setdefault(stream.name, []).append(sequence)
        return {name: sorted(sequences) for name, sequences in found.items()}

    async def audited(self) -> list[str]:
        """The audit stream's actions and results."""
        stream = self.log.find_stream(AUDIT)
        entries = [] if stream is None else await self.log.read_packets(stream, 0, 1000)
        return [json.loads(entry.body)["result"] for entry in entries]


class PrivacyRig(Rig):
    """How a test's logs are opened."""

    @asynccontextmanager
    async def office(self, *, runs: bool = True) -> AsyncIterator[Office]:
        """`runs`: the index follows the log and erasures are carried out."""
        async with self.open(features=(PRIVACY_FEATURE,)) as log:
            office = Office(self, log)
            await office.people.load()
            async with trio.open_nursery() as nursery:
                if runs:
                    nursery.start_soon(office.people.subjects.run)
                    await office.erasures.resume()
                    nursery.start_soon(office.erasures.run)
                yield office
                nursery.cancel_scope.cancel()

    def gauge(self, name: str) -> float | None:
        """A metric's value now."""
        return self.metrics.registry.get_sample_value(name)

    def count_rows(self, log: Log, patch: pytest.MonkeyPatch) -> dict[str, list[int]]:
        """From now on: how many rows each reading step gives, and of how many packets each transaction takes something."""
        steps: dict[str, list[int]] = {"read": [], "write": []}
        fetch, take = ReaderPool.read, Remover._take_away

        async def read(pool: ReaderPool, function: Callable[[sqlite3.Connection], Any]) -> Any:
            found = await fetch(pool, function)
            if isinstance(found, list | dict | set):
                steps["read"].append(len(found))
            return found

        def take_away(remover: Remover, group: Group, **what: Any) -> None:
            steps["write"].append(len(what["kept"]))
            take(remover, group, **what)

        patch.setattr(ReaderPool, "read", read)
        patch.setattr(Remover, "_take_away", take_away)
        return steps

    def file_holds(self, text: bytes) -> bool:
        """Whether any of the database's files has the octets."""
        return any(text in one.read_bytes() for one in self.directory.glob("log.sqlite3*"))


async def define(log: Log, name: str, **members: Any) -> Stream:
    """A stream with a definition."""
    stream, _ = await log.define_stream(name, Definition(**members))
    return stream


async def put(log: Log, stream: str, *values: Any, **members: Any) -> None:
    """Packets with these data, each by itself."""
    for value in values:
        await append(log, stream, [draft(json.dumps(value), **members)])


def made(data: str, *sources: int) -> Draft:
    """A draft that the node made from packets."""
    return draft(data, hops=1, derived_from=sources)

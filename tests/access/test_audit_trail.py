"""The audit trail: durable before an answer or soon after, counted under flood, bounded, and never silent about it."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from access_rig import TurnedClock

from overlayd.access.audit import AuditTrail
from overlayd.access.settings import AccessSettings
from overlayd.model.audit import AuditRecord, ignore_record
from overlayd.model.definition import Definition
from overlayd.model.errors import ShuttingDown, StorageFull
from overlayd.model.metrics import Metrics
from overlayd.storage.own import OwnPacket


class FakeLog:
    """Takes packets, or raises what it was told to."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []
        self.types: list[str] = []
        self.trouble: Exception | None = None

    async def append(self, packets: Sequence[OwnPacket]) -> None:
        await trio.lowlevel.checkpoint()
        if self.trouble is not None:
            raise self.trouble
        self.types += [packet.type for packet in packets]
        self.taken += [msgspec.json.decode(packet.body) for packet in packets]


class Rig:
    """A trail on a fake log."""

    def __init__(self, **settings: Any) -> None:
        self.log, self.clock, self.metrics = FakeLog(), TurnedClock(), Metrics()
        self.trail = AuditTrail(
            AccessSettings(**settings), self.metrics, append=self.log.append, now_s=self.clock.now_s,
            make_packet=lambda type, data: OwnPacket("overlayd.audit", Definition(), type, msgspec.json.encode(data)),
        )  # fmt: skip

    def count(self, outcome: str) -> float:
        name = "overlayd_audit_records_total"
        return self.metrics.registry.get_sample_value(name, {"outcome": outcome}) or 0.0


FAILED = AuditRecord("access.failed", "refused", address="192.0.2.9", detail={"scheme": "key"})


async def test_what_is_written_is_durable() -> None:
    """With what it holds and nothing empty."""
    rig = Rig()
    await rig.trail.write(AuditRecord("key.create", actor="unix:0", subject="k1", detail={"owner": "alice"}))
    assert rig.log.types == ["key.create"]
    assert rig.log.taken == [
        {"action": "key.create", "result": "ok", "actor": "unix:0", "subject": "k1", "detail": {"owner": "alice"}}
    ]


async def test_an_act_is_refused_when_it_cant_be_told() -> None:
    """The caller hears of it before it acts."""
    rig = Rig()
    rig.log.trouble = StorageFull("full")
    with pytest.raises(StorageFull):
        await rig.trail.write(FAILED)


async def test_notes_are_written_soon(autojump_clock: trio.testing.MockClock) -> None:
    """In the order in which they came, and what waits at the end, too."""
    rig = Rig()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.trail.run)
        for number in range(3):
            rig.trail.note(AuditRecord("a", subject=str(number)))
        await trio.testing.wait_all_tasks_blocked()
        assert [record["subject"] for record in rig.log.taken] == ["0", "1", "2"]
        rig.trail.note(AuditRecord("a", subject="3"))
        nursery.cancel_scope.cancel()
    assert len(rig.log.taken) == 4


async def test_repeats_are_counted(autojump_clock: trio.testing.MockClock) -> None:
    """The first is written at once, the rest as one number when their time is over."""
    rig = Rig()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.trail.run)
        for _ in range(1000):
            rig.trail.note_once(FAILED)
        rig.trail.note_once(msgspec.structs.replace(FAILED, address="192.0.2.10"))
        await trio.testing.wait_all_tasks_blocked()
        assert len(rig.log.taken) == 2
        rig.clock.advance(61)
        await trio.sleep(16)
        assert rig.log.taken[2]["detail"] == {"scheme": "key", "repeats": 999}
        rig.trail.note_once(FAILED)
        await trio.testing.wait_all_tasks_blocked()
        assert len(rig.log.taken) == 4
        nursery.cancel_scope.cancel()
    assert rig.count("counted") == 999


async def test_reads_are_written_once_before_their_answers() -> None:
    """Equal ones that follow are counted, others are written, too."""
    rig = Rig()
    for subject in ("a", "b"):
        await rig.trail.write_once(AuditRecord("keys.read", actor="unix:0", subject=subject))
    await rig.trail.write_once(AuditRecord("keys.read", actor="key:x"))
    assert [record["actor"] for record in rig.log.taken] == ["unix:0", "key:x"]


async def test_many_different_repeats_are_counted_together() -> None:
    """An attack from a million addresses fills neither the memory nor the log."""
    rig = Rig(audit_repeats_max=10)
    for number in range(1000):
        rig.trail.note_once(msgspec.structs.replace(FAILED, address=f"a{number}"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.trail.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert len(rig.log.taken) == 11
    assert rig.log.taken[-1] == {"action": "audit.repeats", "result": "refused", "detail": {"repeats": 990}}
    hits = rig.metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": "audit_repeats_max"})
    assert hits == 990


async def test_what_doesnt_fit_is_told(autojump_clock: trio.testing.MockClock) -> None:
    """As a number, in a record of its own."""
    rig = Rig(audit_pending=5)
    for number in range(12):
        rig.trail.note(AuditRecord("a", subject=str(number)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.trail.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert rig.log.taken[-1] == {"action": "audit.dropped", "result": "failed", "detail": {"records": 7}}
    assert rig.count("dropped") == 7
    assert rig.metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": "audit_pending"}) == 7


async def test_a_full_disk_holds_notes_up(autojump_clock: trio.testing.MockClock) -> None:
    """They wait, and are written when there is room again."""
    rig = Rig()
    rig.log.trouble = StorageFull("full")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.trail.run)
        rig.trail.note(FAILED)
        await trio.sleep(5)
        assert rig.log.taken == []
        rig.log.trouble = None
        await trio.sleep(5)
        assert len(rig.log.taken) == 1
        nursery.cancel_scope.cancel()


async def test_the_log_is_closed_first(autojump_clock: trio.testing.MockClock) -> None:
    """Nothing waits for ever, and nothing spins."""
    rig = Rig()
    rig.log.trouble = ShuttingDown("stopping")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.trail.run)
        rig.trail.note(FAILED)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_long_texts_are_cut() -> None:
    """What a client chose must not fill the stream."""
    rig = Rig()
    await rig.trail.write(AuditRecord("a", subject="x" * 5000))
    assert len(rig.log.taken[0]["subject"]) == 200


def test_a_sink_for_those_without_a_log() -> None:
    """Takes everything."""
    ignore_record(FAILED)

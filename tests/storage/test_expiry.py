"""Ids and keys older than every stream's window are forgotten by whole runs; commitments never are."""

import msgspec
import pytest
from storage_rig import Rig, append, draft, receipts, refusals

from overlayd.model.definition import DedupRule, Definition, RetentionRule
from overlayd.model.errors import CommitmentUsed
from overlayd.model.units import Duration
from overlayd.storage import Log
from overlayd.storage.hashindex import HashIndex

HOUR_S = 3600
SHORT = Definition(
    dedup=DedupRule(window=Duration(HOUR_S)),
    retention=msgspec.structs.replace(RetentionRule(), max_age=Duration(HOUR_S)),
)
SALT = bytes(range(16))


@pytest.fixture
def rig(rig: Rig) -> Rig:
    """Streams with an hour's window, and a flush every few entries."""
    rig.defaults = SHORT
    rig.set_settings(flush_entries=8)
    return rig


def oldest(index: HashIndex) -> int:
    """The oldest offset that the index may still give."""
    return min((run.oldest for run in index._runs), default=0)


async def fill(log: Log, count: int) -> None:
    """Packets with ids and keys, each its own transaction, so that maintenance gets its turns."""
    for number in range(count):
        await append(log, "s", [draft(id=f"{log.head}-{number}", key="k", type="t")])


async def age(rig: Rig, log: Log) -> int:
    """The stream's packets so far grow old and are taken away; how far they reached."""
    await append(log, "s", [draft("1", id="a", key="old", csalt=SALT)])
    await fill(log, 30)
    rig.clock.advance(2 * HOUR_S)
    return log.head


async def test_old_ids_and_keys_are_dropped(rig: Rig) -> None:
    """Once their packets are gone and the window is over; the commitment among them is still refused."""
    async with rig.open() as log:
        end = await age(rig, log)
        stream = log.find_stream("s")
        assert stream is not None
        await log.reduce(stream, 1, end, "retention")
        await fill(log, 60)
        state = log._state
        assert oldest(state.ids) > end - 8
        assert oldest(state.keys) > end - 8
        assert 0 < oldest(state.commitments) < end - 8
        result = await append(log, "s", [draft("1", id="a", key="old", csalt=SALT)])
        assert [type(refusal.error) for refusal in refusals(result)] == [CommitmentUsed]


async def test_what_is_kept_is_found(rig: Rig) -> None:
    """A packet that is older than its window and still kept is found by its id and its key."""
    async with rig.open() as log:
        await age(rig, log)
        await fill(log, 60)
        stream = log.find_stream("s")
        assert stream is not None
        last = await log.find_last(stream, "old")
        assert last is not None
        assert [entry.offset for entry in await log.find_by_id("a")] == [last.offset]


async def test_the_longest_window_counts(rig: Rig) -> None:
    """One stream with a longer window, and every run stays: repeats of the longer one are still recognized."""
    async with rig.open() as log:
        await log.define_stream("long", msgspec.structs.replace(SHORT, dedup=DedupRule(window=Duration(9 * HOUR_S))))
        await append(log, "long", [draft("1", id="a")])
        end = await age(rig, log)
        for name in ("s", "long"):
            stream = log.find_stream(name)
            assert stream is not None
            await log.reduce(stream, 1, end, "retention")
        await fill(log, 60)
        (receipt,) = receipts(await append(log, "long", [draft("1", id="a")]))
        assert (receipt.duplicate, receipt.sequence) == (True, 1)

"""Names of packets that were taken away before their index wrote them out: what a start after a crash still knows."""

import shutil

import pytest
from storage_rig import Rig, append, draft, drafts, receipts, refusals

from overlayd.model.bodies import RemovalCause
from overlayd.model.entry import Z32
from overlayd.model.errors import CommitmentUsed, LogInconsistent
from overlayd.model.meta import COMMITMENT_NODE, COMMITMENT_OPEN, Meta, encode_meta
from overlayd.storage import Log
from overlayd.storage.record import reduce_entry
from overlayd.storage.replay import replay_entry

SALT = bytes(range(16))


async def crash(rig: Rig, log: Log) -> Rig:
    """A rig on a copy of an open log's files, as a kill leaves them."""
    await log.checkpoint(log.head)
    target = rig.directory.with_name(rig.directory.name + "-killed")
    shutil.copytree(rig.directory, target)
    copy = Rig(target)
    copy.settings = rig.settings
    return copy


async def is_used(log: Log, stream: str) -> bool:
    """Whether the packet with the salt is refused."""
    result = await append(log, stream, [draft("1", csalt=SALT, id="a")])
    return [type(refusal.error) for refusal in refusals(result)] == [CommitmentUsed]


@pytest.mark.parametrize("flush_entries", [4, 65_536])
async def test_used_commitments_outlast_the_stream_and_a_kill(rig: Rig, flush_entries: int) -> None:
    """A deleted stream's commitment is refused after a kill, after a clean stop, and after the flush between them."""
    rig.set_settings(flush_entries=flush_entries)
    async with rig.open() as log:
        await append(log, "s", [draft("1", csalt=SALT, id="a")])
        await log.delete_stream("s")
        copy = await crash(rig, log)
    for _ in range(3):
        async with copy.open() as log:
            assert await is_used(log, "s")
            await append(log, "other")
    with copy.connect() as connection:
        assert connection.execute("SELECT count(*) FROM hash_held").fetchone() == (0,)


@pytest.mark.parametrize(
    ("cause", "is_duplicate"), [("retention", True), ("erased", False), ("deleted", False)]
)  # fmt: skip
async def test_ids_outlast_retention_and_a_kill(rig: Rig, cause: RemovalCause, is_duplicate: bool) -> None:
    """After retention a repeat stays a duplicate; erased ids are forgotten; the commitment is used in each case."""
    async with rig.open() as log:
        await append(log, "s", [draft("1", csalt=SALT, id="a"), *drafts("b")])
        stream = log.find_stream("s")
        assert stream is not None
        assert await log.reduce(stream, 1, log.head, cause) == 2
        copy = await crash(rig, log)
    for _ in range(2):
        async with copy.open() as log:
            if is_duplicate:
                (receipt,) = receipts(await append(log, "s", drafts("b", data="2")))
                assert (receipt.duplicate, receipt.sequence) == (True, 2)
            else:
                assert await is_used(log, "s")
    async with copy.open() as log:
        (receipt,) = receipts(await append(log, "s", drafts("b", data="2")))
        assert receipt.duplicate == is_duplicate


async def test_held_names_need_the_secret_that_hashed_them(rig: Rig) -> None:
    """With another secret they would count for nothing, so the start refuses it, flushed or not."""
    async with rig.open() as log:
        await append(log, "s", [draft("1", csalt=SALT)])
        await log.delete_stream("s")
        copy = await crash(rig, log)
    (copy.directory / "keys" / "index.key").write_bytes(bytes(32))
    with pytest.raises(LogInconsistent, match="secret"):
        async with copy.open():
            raise AssertionError("it opened")


async def test_only_producers_commitments_are_used_up(rig: Rig) -> None:
    """A start remembers what a producer brought, as an append does, and not what the node made itself."""
    async with rig.open() as log:
        await append(log, "s", [draft("1", csalt=SALT)])
        state, stream = log._state, log.find_stream("s")
        assert stream is not None
        (entry,) = await log.read_packets(stream, 0, 1)
        for number, (form, csalt) in enumerate([(COMMITMENT_NODE, b""), (COMMITMENT_OPEN, SALT)], 1):
            other = reduce_entry(entry)
            other.is_reduced = False
            other.offset, other.sequence = entry.offset + number, entry.sequence + number
            other.commitment, other.meta = bytes([number]) * 32, encode_meta(Meta(commitment_form=form, csalt=csalt))
            assert other.commitment != Z32
            replay_entry(state, other)
            is_known = bool(state.commitments.recent(state.commitments.key(other.commitment)))
            assert is_known == (form == COMMITMENT_OPEN)
        for index in state.indexes:
            index.roll_back()

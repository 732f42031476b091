"""The order of judgement: duplicates, commitments, expected sequence, limits; a refused request leaves no trace."""

import pytest
import trio
from storage_rig import Rig, append, draft, drafts, forget_tail, per_minute, receipts, refusals

from overlayd.model.definition import DedupRule, Definition, RetentionRule
from overlayd.model.draft import AppendRequest
from overlayd.model.entry import commitment_of
from overlayd.model.errors import (
    CommitmentUsed,
    DefinitionConflict,
    Forbidden,
    IdReused,
    LimitReached,
    Rate,
    SequenceMismatch,
    StreamPaused,
    UnknownStream,
)
from overlayd.model.meta import COMMITMENT_CLOSED, COMMITMENT_OPEN, decode_meta
from overlayd.model.names import StreamName
from overlayd.model.units import Duration
from overlayd.storage import Log


def places(result: object) -> list[tuple[int, bool]]:
    """(sequence, duplicate) of each receipt."""
    return [(receipt.sequence, receipt.duplicate) for receipt in receipts(result)]  # type: ignore[arg-type]


async def test_repeat_gives_the_first_receipt(rig: Rig) -> None:
    """The same id with the same content is a duplicate; another stream is another matter."""
    async with rig.open() as log:
        (first,) = receipts(await append(log, "s", drafts("a", data="1")))
        result = await append(log, "s", drafts("a", data="1"))
        (again,) = receipts(result)
        assert again.duplicate
        assert (again.offset, again.sequence, again.leaf, again.content_hash) == (
            first.offset, first.sequence, first.leaf, first.content_hash,
        )  # fmt: skip
        assert result.head == first.offset
        (other,) = receipts(await append(log, "t", drafts("a", data="1")))
        assert not other.duplicate


@pytest.mark.parametrize(
    "change",
    [
        {"type": "t"}, {"time": "2024-01-15T10:30:00Z"}, {"source": "s"}, {"key": "k"}, {"topics": b"[]"},
        {"metadata": b"{}"}, {"is_octets": True}, {"csalt": bytes(16)}, {"data": "2"},
    ],
)  # fmt: skip
async def test_repeat_with_another_content_is_refused(rig: Rig, change: dict[str, object]) -> None:
    """Every member of the packet as sent counts."""
    async with rig.open() as log:
        await append(log, "s", [draft("1", id="a")])
        head = log.head
        data = str(change.pop("data", "1"))
        result = await append(log, "s", [draft(data, id="a", index=7, **change)])
        (refusal,) = refusals(result)
        assert isinstance(refusal.error, IdReused)
        assert refusal.index == 7
        assert [(violation.pointer, violation.index) for violation in refusal.error.violations] == [("/id", 7)]
        assert log.head == head


async def test_what_the_node_adds_does_not_count(rig: Rig) -> None:
    """Who sent it again, and under which trace, makes no other packet of it."""
    async with rig.open() as log:
        await append(log, "s", [draft("1", id="a", principal="p", traceparent="00-1")])
        assert places(await append(log, "s", [draft("1", id="a", principal="q", traceparent="00-2")])) == [(1, True)]


async def test_same_id_twice_in_one_request(rig: Rig) -> None:
    """Equal: the second is a duplicate of the first. Different: it is refused, the first is taken."""
    async with rig.open() as log:
        result = await append(log, "s", drafts("a", "a", "b", data="1"))
        assert places(result) == [(1, False), (1, True), (2, False)]
        assert [receipt.index for receipt in receipts(result)] == [0, 1, 2]
        result = await append(log, "s", [draft("1", id="c"), draft("2", id="c", index=1)])
        assert places(result) == [(3, False)]
        assert [refusal.index for refusal in refusals(result)] == [1]
        result = await append(log, "s", drafts("c", "c", data="1"))
        assert places(result) == [(3, True), (3, True)]


async def test_atomic_is_all_or_none(rig: Rig) -> None:
    """One refusal refuses all, with the violations of each; earlier duplicates don't fail it."""
    async with rig.open() as log:
        await append(log, "s", drafts("a", "b", data="1"))
        head = log.head
        items = [draft("1", id="a"), draft("2", id="b", index=1), draft(index=2), draft("3", id="a", index=3)]
        with pytest.raises(IdReused) as caught:
            await append(log, "s", items, atomic=True)
        assert [violation.index for violation in caught.value.violations] == [1, 3]
        assert log.head == head
        result = await append(log, "s", drafts("a", "c", data="1"), atomic=True)
        assert places(result) == [(1, True), (3, False)]


async def test_expected_sequence(rig: Rig) -> None:
    """It must be the stream's head; 0 is an empty or absent stream; duplicates alone skip it."""
    async with rig.open() as log:
        assert places(await append(log, "s", drafts("a", data="1"), expected_sequence=0)) == [(1, False)]
        with pytest.raises(SequenceMismatch) as caught:
            await append(log, "s", expected_sequence=0)
        assert caught.value.extra == {"head_sequence": 1}
        assert not caught.value.retryable
        assert places(await append(log, "s", drafts("a", data="1"), expected_sequence=0)) == [(1, True)]
        assert places(await append(log, "s", drafts("a", "b", data="1"), expected_sequence=1)) == [
            (1, True),
            (2, False),
        ]
        with pytest.raises(SequenceMismatch):
            await append(log, "new", expected_sequence=5)
        assert log.find_stream("new") is None


async def test_one_of_many_rivals_wins(rig: Rig) -> None:
    """Requests of one group are judged after each other, against what their predecessors leave."""
    async with rig.open() as log:
        await log.define_stream("s", Definition())
        won, lost = [], []

        async def rival(number: int) -> None:
            try:
                won.append(await append(log, "s", [draft(str(number), id=f"r{number}")], expected_sequence=0))
            except SequenceMismatch:
                lost.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(rival, number)
        assert (len(won), len(lost)) == (1, 19)
        assert log.find_stream("s").head_sequence == 1  # type: ignore[union-attr]


async def test_duplicates_within_one_group(rig: Rig) -> None:
    """The same packet from many senders at once is taken once."""
    async with rig.open() as log:
        await log.define_stream("s", Definition())
        results = []

        async def send() -> None:
            results.append(await append(log, "s", drafts("a", "b", data="1")))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(send)
        fresh = [receipt for result in results for receipt in receipts(result) if not receipt.duplicate]
        assert sorted(receipt.sequence for receipt in fresh) == [1, 2]
        assert {receipt.offset for result in results for receipt in receipts(result)} == {r.offset for r in fresh}


@pytest.mark.parametrize("is_reopened", [False, True])
async def test_duplicates_are_found_on_disk(rig: Rig, is_reopened: bool) -> None:
    """Ids that left memory for the index's runs are still known, and compared with what is stored."""
    rig.set_settings(flush_entries=256)
    async with rig.open() as log:
        await append(log, "s", drafts(*(f"i{n}" for n in range(400)), data="1"))
        await append(log, "s", [draft() for _ in range(300)])
        if not is_reopened:
            await check_old_ids(log)
    if is_reopened:
        async with rig.open() as log:
            await check_old_ids(log)


async def check_old_ids(log: Log) -> None:
    """Repeats of the first packets, right and wrong ones."""
    forget_tail(log)
    assert places(await append(log, "s", drafts("i0", "i399", data="1"))) == [(1, True), (400, True)]
    assert len(refusals(await append(log, "s", drafts("i7", data="2")))) == 1
    assert not receipts(await append(log, "s", drafts("fresh", data="1")))[0].duplicate


async def test_dedup_window(rig: Rig) -> None:
    """An id is remembered for the window, or for the retention if that is longer."""
    async with rig.open() as log:
        day = Duration(86_400)
        await log.define_stream(
            "s", Definition(dedup=DedupRule(window=day), retention=RetentionRule(max_age=Duration(2 * day)))
        )
        await append(log, "s", drafts("a", data="1"))
        rig.clock.advance(2 * day - 1)
        assert places(await append(log, "s", drafts("a", data="1"))) == [(1, True)]
        rig.clock.advance(2)
        assert places(await append(log, "s", drafts("a", data="2"))) == [(2, False)]
        assert places(await append(log, "s", drafts("a", data="2"))) == [(2, True)]


async def test_commitments(rig: Rig) -> None:
    """With the producer's salt there is a commitment, opened where the body is what was sent; and only once."""
    async with rig.open() as log:
        salt = bytes(range(16))
        item = draft("21.5", id="a", csalt=salt, type="t")
        (receipt,) = receipts(await append(log, "s", [item]))
        expected = commitment_of(salt, "s", "a", "t", "", "", "", b"", b"", b"21.5")
        entry = await log.read_entry(receipt.offset)
        assert receipt.commitment == entry.commitment == expected
        meta = decode_meta(entry.meta)
        assert (meta.commitment_form, meta.csalt) == (COMMITMENT_OPEN, salt)
        changed = draft("1.0", id="b", csalt=salt)
        changed.body = b"1"
        (receipt,) = receipts(await append(log, "s", [changed]))
        meta = decode_meta((await log.read_entry(receipt.offset)).meta)
        assert (meta.commitment_form, meta.csalt) == (COMMITMENT_CLOSED, b"")
        assert receipt.commitment == commitment_of(salt, "s", "b", "", "", "", "", b"", b"", b"1.0")


@pytest.mark.parametrize("is_reopened", [False, True])
async def test_used_commitments(rig: Rig, is_reopened: bool) -> None:
    """A commitment is taken once for ever: in a request, in a group, and after the window of its id."""
    rig.set_settings(flush_entries=256)
    rig.defaults = Definition(
        dedup=DedupRule(window=Duration(1)), retention=RetentionRule(max_age=Duration(1))
    )  # fmt: skip
    salt = bytes(range(16))

    async def check(log: Log) -> None:
        result = await append(log, "s", [draft("1", csalt=salt, id="a"), draft(index=1)])
        (refusal,) = refusals(result)
        assert isinstance(refusal.error, CommitmentUsed)
        assert refusal.error.violations[0].pointer == "/salt"
        assert len(receipts(result)) == 1

    async with rig.open() as log:
        result = await append(log, "s", [draft("1", csalt=salt), draft("1", csalt=salt, index=1)])
        assert [len(receipts(result)), len(refusals(result))] == [1, 1]
        await append(log, "s", [draft("1", csalt=salt, id="a")])
        rig.clock.advance(10)
        await append(log, "s", [draft() for _ in range(600)])
        await check(log)
    if is_reopened:
        async with rig.open() as log:
            forget_tail(log)
            await check(log)


async def test_unknown_and_reserved_streams(rig: Rig) -> None:
    """Without `may_create` an unknown stream is an error; nobody publishes into the node's own."""
    async with rig.open() as log:
        with pytest.raises(UnknownStream):
            await append(log, "s", may_create=False)
        for name in ("overlayd", "overlayd.audit"):
            with pytest.raises(Forbidden):
                await append(log, name)
        assert log.list_streams() == []


async def test_empty_request(rig: Rig) -> None:
    """Nothing asked, nothing done."""
    async with rig.open() as log:
        result = await log.append(AppendRequest(StreamName("s"), [], may_create=True))
        assert (result.outcomes, result.created, log.find_stream("s")) == ([], False, None)


async def test_definition_changed_meanwhile(rig: Rig) -> None:
    """Drafts judged by another version are sent back; so are those judged without a stream that exists by now."""
    async with rig.open() as log:
        await log.define_stream("s", Definition())
        await log.define_stream("s", Definition(title="new"))
        for version in (0, 1, 3):
            with pytest.raises(DefinitionConflict):
                await append(log, "s", definition_version=version)
        with pytest.raises(DefinitionConflict):
            await append(log, "gone", definition_version=1)
        assert places(await append(log, "s", definition_version=2)) == [(1, False)]


async def test_paused_and_stopped(rig: Rig) -> None:
    """They take nothing new, and still answer repeats."""
    async with rig.open() as log:
        await append(log, "s", drafts("a", data="1"))
        for state in ("paused", "stopped"):
            await log.set_stream_state("s", state)  # type: ignore[arg-type]
            with pytest.raises(StreamPaused) as caught:
                await append(log, "s")
            assert caught.value.retryable
            assert places(await append(log, "s", drafts("a", data="1"))) == [(1, True)]
        await log.set_stream_state("s", "active")
        assert places(await append(log, "s")) == [(2, False)]


async def test_streams_max(rig: Rig) -> None:
    """Neither publishing nor defining goes over the node's number of streams; a deleted one makes room."""
    rig.set_limits(streams_max=2)
    async with rig.open() as log:
        await append(log, "a")
        await log.define_stream("b", Definition())
        with pytest.raises(LimitReached):
            await append(log, "c")
        with pytest.raises(LimitReached):
            await log.define_stream("c", Definition())
        assert rig.limit_hits("streams_max") == 2
        await log.delete_stream("a")
        await append(log, "c")


async def test_auto_create_per_minute(rig: Rig) -> None:
    """Streams that publishing creates are counted by the minute, also within one group."""
    rig.set_limits(auto_create_per_minute=3)
    async with rig.open() as log:
        refused = []

        async def create(number: int) -> None:
            try:
                await append(log, f"s{number}")
            except LimitReached as err:
                refused.append(err)

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(create, number)
        assert len(refused) == 2
        assert 0 < (refused[0].retry_after_s or 0) <= 60
        assert refused[0].rate == Rate("auto_create_per_minute", 3, 60, 0, refused[0].retry_after_s or 0)
        assert rig.limit_hits("auto_create_per_minute") == 2
        await log.define_stream("by-hand", Definition())
        rig.clock.advance(60)
        await append(log, "later")


async def test_packets_per_minute(rig: Rig) -> None:
    """What fits the minute is taken, the rest refused; an atomic request is taken whole or not at all."""
    async with rig.open() as log:
        await log.define_stream("s", per_minute(3))
        result = await append(log, "s", [draft(index=n) for n in range(2)])
        assert len(receipts(result)) == 2
        with pytest.raises(LimitReached) as caught:
            await append(log, "s", [draft(), draft(index=1)], atomic=True)
        assert caught.value.rate == Rate("packets_per_minute", 3, 60, 1, caught.value.retry_after_s or 0)
        result = await append(log, "s", [draft(index=n) for n in range(4)])
        assert [receipt.sequence for receipt in receipts(result)] == [3]
        assert [refusal.index for refusal in refusals(result)] == [1, 2, 3]
        with pytest.raises(LimitReached) as caught:
            await append(log, "s")
        assert 0 < (caught.value.retry_after_s or 0) <= 60
        assert rig.limit_hits("packets_per_minute") == 3
        rig.clock.advance(60)
        assert len(receipts(await append(log, "s", [draft(index=n) for n in range(3)]))) == 3


async def test_repeats_of_packets_over_the_rate_are_refused_too(rig: Rig) -> None:
    """A repeat stands and falls with the packet that it repeats."""
    async with rig.open() as log:
        await log.define_stream("s", per_minute(1))
        result = await append(log, "s", drafts("a", "b", "a", "b", data="1"))
        assert [receipt.index for receipt in receipts(result)] == [0, 2]
        assert [refusal.index for refusal in refusals(result)] == [1, 3]


async def test_large_request_lets_others_work(rig: Rig) -> None:
    """Judging and hashing thousands of packets yields to other tasks in between."""
    async with rig.open() as log:
        await log.define_stream("s", Definition())
        turns, is_done = 0, False

        async def count_turns() -> None:
            nonlocal turns
            while not is_done:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_turns)
            result = await append(log, "s", drafts(*(f"i{n}" for n in range(2000))))
            is_done = True
        assert len(receipts(result)) == 2000
        assert turns > 10

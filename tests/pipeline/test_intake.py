"""The one publish function, on a fake log and on the real one: the same tests for both."""

import base64
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from fake_log import FakeLog
from trio.testing import wait_all_tasks_blocked

from overlayd.model.clock import Entropy, SystemClock
from overlayd.model.definition import DedupRule, Definition, StreamLimits
from overlayd.model.entry import commitment_of
from overlayd.model.errors import (
    BadParameter,
    DefinitionConflict,
    Forbidden,
    IdReused,
    InvalidPacket,
    MalformedJson,
    PacketTooLarge,
    SchemaViolation,
    SequenceMismatch,
    StreamPaused,
    UnknownStream,
)
from overlayd.model.limits import Limits
from overlayd.model.meta import decode_meta
from overlayd.model.metrics import Metrics
from overlayd.model.names import StreamName
from overlayd.model.units import Size
from overlayd.pipeline.data_form import decode_data
from overlayd.pipeline.decode_many import SLICE_S, THREAD_BYTES
from overlayd.pipeline.intake import Intake, PublishAnswer, StreamAtHand, Terms
from overlayd.pipeline.schema import SchemaCache
from overlayd.storage import StorageSettings, open_log

NUMBERS = Definition(schema={"type": "object", "properties": {"n": {"type": "integer"}}})
SETTINGS = StorageSettings(reserve=Size(0), disk_high_water=Size(0), disk_low_water=Size(0))


class Desk:
    """An intake with its log, and publishing in one line."""

    def __init__(self, log: Any, limits: Limits, metrics: Metrics, defaults: Definition) -> None:
        self.log = log
        self.metrics = metrics
        self.limits = limits
        self.intake = Intake(
            log=log, limits=limits, schemas=SchemaCache(limits, metrics), metrics=metrics, defaults=defaults
        )

    async def publish(self, *packets: Any, stream: str = "s", **options: Any) -> PublishAnswer:
        options = {"principal": "p", "may_create": True, "atomic": False, **options}
        objects = [packet if isinstance(packet, bytes) else json.dumps(packet).encode() for packet in packets]
        return await self.intake.publish(stream, objects, **options)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    @property
    def head_sequence(self) -> int:
        found = self.log.find_stream("s")
        return 0 if found is None else int(found.head_sequence)


OpenDesk = Callable[..., AbstractAsyncContextManager[Desk]]


@pytest.fixture(params=["fake", "real"])
def open_desk(request: pytest.FixtureRequest, tmp_path: Path) -> OpenDesk:
    """Opens a desk on either log."""

    @asynccontextmanager
    async def opened(
        limits: Limits = Limits(), defaults: Definition = Definition()  # noqa: B008 - frozen
    ) -> AsyncIterator[Desk]:  # fmt: skip
        metrics = Metrics()
        if request.param == "fake":
            yield Desk(FakeLog(defaults), limits, metrics, defaults)
            return
        async with open_log(
            tmp_path / "data", settings=SETTINGS, limits=limits, defaults=defaults, clock=SystemClock(),
            entropy=Entropy(), metrics=metrics,
        ) as log:  # fmt: skip
            yield Desk(log, limits, metrics, defaults)

    return opened


async def test_packets_become_receipts_in_order(open_desk: OpenDesk) -> None:
    """Accepted packets get ascending sequences; a repeat gets the first receipt."""
    async with open_desk() as desk:
        answer = await desk.publish({"data": 1, "id": "a"}, {"data": 2})
        assert [receipt.sequence for receipt in answer.receipts] == [1, 2]
        assert (answer.accepted, answer.duplicates, answer.rejections, answer.head_sequence) == (2, 0, [], 2)
        again = await desk.publish({"data": 1, "id": "a"})
        assert (again.accepted, again.duplicates) == (0, 1)
        assert (again.receipts[0].sequence, again.receipts[0].duplicate) == (1, True)
        assert desk.count("overlayd_packets_published_total") == 2
        assert desk.count("overlayd_packets_duplicate_total") == 1
        assert desk.count("overlayd_publish_seconds_count") == 2


async def test_partial_results_name_each_rejection(open_desk: OpenDesk) -> None:
    """Without atomic the good ones are appended and each bad one is told with its place."""
    async with open_desk() as desk:
        await desk.log.define_stream("s", NUMBERS)
        answer = await desk.publish(
            {"data": {"n": 1}}, b"{oops", {"data": {"n": "x"}}, {"data": {"n": 2}}, {"daat": 1}, first_index=100
        )
        assert [receipt.index for receipt in answer.receipts] == [100, 103]
        assert [(index, type(error)) for index, error in answer.rejections] == [
            (101, MalformedJson), (102, SchemaViolation), (104, InvalidPacket),
        ]  # fmt: skip
        found = [(one.index, one.pointer, one.code) for _, error in answer.rejections for one in error.violations]
        assert found == [
            (101, "", "json.syntax"), (102, "/data/n", "schema.type"), (104, "/daat", "member.unknown"),
            (104, "/data", "member.missing"),
        ]  # fmt: skip
        assert desk.head_sequence == 2
        assert desk.count("overlayd_packets_rejected_total", code="packet.schema") == 1


async def test_atomic_is_all_or_none(open_desk: OpenDesk) -> None:
    """One rejection anywhere and nothing is appended; all violations come at once, in order."""
    async with open_desk() as desk:
        await desk.log.define_stream("s", NUMBERS)
        with pytest.raises(InvalidPacket) as caught:
            await desk.publish({"data": {"n": 1}}, {"data": {"n": "x"}}, {"id": ""}, b"nul", atomic=True)
        assert [one.index for one in caught.value.violations] == [1, 2, 3]
        assert desk.head_sequence == 0
        with pytest.raises(SchemaViolation, match="2 packets were rejected, so none was appended"):
            await desk.publish({"data": {"n": "x"}}, {"data": {"n": "y"}}, atomic=True)
        await desk.publish({"data": {}, "id": "a"})
        with pytest.raises(IdReused) as reused:
            await desk.publish({"data": {"n": 1}}, {"data": {"n": 2}, "id": "a"}, atomic=True)
        assert [one.index for one in reused.value.violations] == [1]
        assert desk.head_sequence == 1


async def test_the_order_of_violations_survives_the_limit(open_desk: OpenDesk) -> None:
    """At most `errors_max` violations are listed, the first ones of the request."""
    async with open_desk(Limits(errors_max=3)) as desk:
        with pytest.raises(InvalidPacket) as caught:
            await desk.publish(*[{"id": ""} for _ in range(10)], atomic=True)
        assert [one.index for one in caught.value.violations] == [0, 1, 2]


async def test_everything_rejected_appends_nothing(open_desk: OpenDesk) -> None:
    """A request without a good packet doesn't reach the log, and makes no stream."""
    async with open_desk() as desk:
        answer = await desk.publish({"id": "x"}, b"5")
        assert (answer.accepted, answer.receipts, len(answer.rejections)) == (0, [], 2)
        assert desk.log.find_stream("s") is None
        assert (await desk.publish()).head_sequence == 0


async def test_unknown_streams(open_desk: OpenDesk) -> None:
    """Who may not create gets 404 before anything is decoded; names and the node's own are judged."""
    async with open_desk() as desk:
        with pytest.raises(UnknownStream):
            await desk.publish({"data": 1}, may_create=False)
        with pytest.raises(BadParameter):
            await desk.publish({"data": 1}, stream="No Name")
        with pytest.raises(Forbidden):
            await desk.publish({"data": 1}, stream="overlayd.x")


async def test_whole_request_errors_pass_through(open_desk: OpenDesk) -> None:
    """A wrong expected sequence and a paused stream concern the whole request."""
    async with open_desk() as desk:
        await desk.publish({"data": 1, "id": "a"}, expected_sequence=0)
        with pytest.raises(SequenceMismatch):
            await desk.publish({"data": 2}, expected_sequence=0)
        assert (await desk.publish({"data": 1, "id": "a"}, expected_sequence=77)).duplicates == 1
        await desk.log.set_stream_state("s", "paused")
        with pytest.raises(StreamPaused):
            await desk.publish({"data": 2})


async def test_idempotency_key_stands_for_the_id(open_desk: OpenDesk) -> None:
    """It becomes the id, must equal a given one, and goes with single packets only."""
    async with open_desk() as desk:
        assert (await desk.publish({"data": 1}, idempotency_key="k")).receipts[0].packet_id == "k"
        assert (await desk.publish({"data": 1, "id": "k"}, idempotency_key="k")).duplicates == 1
        for packets in (({"data": 1, "id": "x"},), ({"data": 1}, {"data": 2}), ()):
            with pytest.raises(BadParameter):
                await desk.publish(*packets, idempotency_key="k")
        with pytest.raises(BadParameter):
            await desk.publish({"data": 1}, idempotency_key="k" * 129)
        assert desk.head_sequence == 1


async def test_defaults_judge_a_stream_that_publishing_creates(open_desk: OpenDesk) -> None:
    """The schema, id and key of the node's defaults hold from the first packet on."""
    defaults = msgspec.structs.replace(NUMBERS, dedup=DedupRule(required_id=True), key="data.n")
    async with open_desk(defaults=defaults) as desk:
        answer = await desk.publish({"data": {"n": "x"}, "id": "a"}, {"data": {"n": 5}})
        assert [error.violations[0].pointer for _, error in answer.rejections] == ["/data/n", "/id"]
        await desk.publish({"data": {"n": 5}, "id": "b"})
        assert desk.head_sequence == 1


async def test_sizes_are_bounded_by_node_and_stream(open_desk: OpenDesk) -> None:
    """A packet over either limit is rejected, counted, and takes no other with it."""
    async with open_desk(Limits(packet_bytes=Size(2000))) as desk:
        await desk.log.define_stream("s", Definition(limits=StreamLimits(packet_bytes=Size(100))))
        answer = await desk.publish({"data": "x" * 3000}, {"data": "x" * 150}, {"data": "x"})
        assert [type(error) for _, error in answer.rejections] == [PacketTooLarge, PacketTooLarge]
        assert answer.accepted == 1
        assert desk.count("overlayd_limit_hits_total", limit="packet_bytes") == 2


async def test_large_packets_go_through_a_thread(open_desk: OpenDesk) -> None:
    """A packet that would hold the loop is decoded and judged in a thread, with the same outcome."""
    async with open_desk() as desk:
        await desk.log.define_stream("s", NUMBERS)
        large = {"n": 1, "text": "x" * THREAD_BYTES}
        answer = await desk.publish({"data": large}, {"data": {**large, "n": "x"}}, {"data": [large]})
        assert answer.accepted == 1
        assert [error.violations[0].pointer for _, error in answer.rejections] == ["/data/n", "/data"]


async def test_other_forms_take_the_same_way(open_desk: OpenDesk) -> None:
    """Drafts from CloudEvents or bare bodies meet the same schema and give the same answers."""
    async with open_desk() as desk:
        await desk.log.define_stream("s", NUMBERS)
        good, bad = (decode_data(body, "", desk.limits) for body in (b'{"n":1}', b'{"n":"x"}'))
        bad.draft.index = 1
        answer = await desk.intake.publish_decoded("s", [good, bad], principal="p", may_create=False, atomic=False)
        assert (answer.accepted, [index for index, _ in answer.rejections]) == (1, [1])
        octets = decode_data(b"\xff", "", desk.limits)
        with pytest.raises(SchemaViolation) as caught:
            await desk.intake.publish_decoded("s", [octets], principal="p", may_create=False, atomic=True)
        assert caught.value.violations[0].pointer == "/data_base64"
        with pytest.raises(UnknownStream):
            await desk.intake.publish_decoded("t", [good], principal="p", may_create=False, atomic=False)


async def test_a_definition_that_changes_meanwhile_judges_again(open_desk: OpenDesk) -> None:
    """Packets are appended under the definition that judged them, even when it changes while they are on their way."""
    async with open_desk() as desk:
        await desk.log.define_stream("s", Definition(key="data.n"))
        real_append, changes = desk.log.append, [NUMBERS, Definition(key="data.k")]

        async def append(request: Any) -> Any:
            if changes:
                await desk.log.define_stream("s", changes.pop(0))
            return await real_append(request)

        desk.log.append = append
        answer = await desk.publish({"data": {"n": 5, "k": "x"}})
        assert answer.accepted == 1
        assert answer.receipts[0].sequence == 1
        changes += [NUMBERS, Definition(), NUMBERS]
        with pytest.raises(DefinitionConflict):
            await desk.publish({"data": {"n": 5}})
        changes[:] = [NUMBERS]
        rejected = await desk.publish({"data": {"n": "x"}})
        assert [type(error) for _, error in rejected.rejections] == [SchemaViolation]


async def test_cancelling_leaves_all_or_nothing(open_desk: OpenDesk) -> None:
    """Wherever a publish is cancelled, the request is in the log as a whole or not at all."""
    async with open_desk() as desk:
        await desk.log.define_stream("s", NUMBERS)
        for _ in range(3):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(lambda: desk.publish(*[{"data": {"n": 1}}] * 3))
                    scope.cancel()
            await wait_all_tasks_blocked(0.01)
            assert desk.head_sequence % 3 == 0
        assert (await desk.publish({"data": {"n": 1}})).accepted == 1


async def test_a_derived_key_is_no_part_of_what_the_producer_committed_to(tmp_path: Path) -> None:
    """The producer's commitment covers the request as sent, so it holds without the key that the node found."""
    async with open_log(
        tmp_path / "data", settings=SETTINGS, limits=Limits(), defaults=Definition(), clock=SystemClock(),
        entropy=Entropy(), metrics=Metrics(),
    ) as log:  # fmt: skip
        desk = Desk(log, Limits(), Metrics(), Definition())
        await log.define_stream("s", Definition(key="data.n"))
        salt = bytes(range(16))
        packet = {"data": {"n": "k"}, "id": "i", "salt": base64.b64encode(salt).decode()}
        receipt = (await desk.publish(packet)).receipts[0]
        assert receipt.commitment == commitment_of(salt, "s", "i", "", "", "", "", b"", b"", b'{"n": "k"}')
        meta = decode_meta((await log.read_entry(receipt.offset)).meta)
        assert (meta.key, meta.commitment_form, meta.csalt) == ("k", 3, b"")
        await log.define_stream("s", Definition())
        assert (await desk.publish(packet)).duplicates == 1


async def test_large_batches_give_others_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tasks run as often as decoding and judging thousands of packets takes longer than a slice."""
    looks = itertools.count()
    # Each look at the clock finds a third of a slice gone, so every third or fourth one ends a slice.
    monkeypatch.setattr("overlayd.pipeline.decode_many.time.perf_counter", lambda: next(looks) * SLICE_S / 3)
    log, limits, metrics = FakeLog(), Limits(), Metrics()
    desk = Desk(log, limits, metrics, Definition())
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        await desk.publish(*[b'{"data":{"n":1,"text":"0123456789"}}'] * 10_000)
        nursery.cancel_scope.cancel()
    assert turns >= next(looks) // 6 >= 2


async def test_drafts_carry_who_and_how() -> None:
    """Principal, trace and derived key are on the draft, and a derived key is told from a sent one."""
    log = FakeLog()
    desk = Desk(log, Limits(), Metrics(), Definition())
    await log.define_stream("s", Definition(key="data.id"))
    await desk.publish(
        {"data": {"id": "k"}}, {"data": {"id": 7}}, {"data": {"id": "k"}, "key": "own"}, {"data": {"id": [1]}},
        {"data": {"id": True}}, {"data": 5}, {"data": {"id": "x" * 200}}, traceparent="00-t",
    )  # fmt: skip
    drafts = log.streams["s"].drafts
    assert [(draft.key, draft.key_sent) for draft in drafts] == [
        ("k", ""), ("7", ""), ("own", "own"), ("", ""), ("", ""), ("", ""),
    ]  # fmt: skip
    assert {(draft.principal, draft.traceparent) for draft in drafts} == {("p", "00-t")}


@pytest.mark.parametrize(
    ("limit", "packet"),
    [
        ("json_depth_max", b'{"data":' + b"[" * 70 + b"]" * 70 + b"}"),
        ("id_chars", {"data": 1, "id": "x" * 129}),
        ("source_chars", {"data": 1, "source": "x" * 1025}),
        ("topics_max", {"data": 1, "topics": ["t"] * 33}),
        ("metadata_bytes", {"data": 1, "metadata": {"m": "x" * 20_000}}),
        ("packet_bytes", {"data": "x" * (1 << 20)}),
        ("schema_steps", {"data": {"a": [[]] * 5000}}),
    ],
)
async def test_each_limit_that_a_packet_hits_is_counted(limit: str, packet: Any) -> None:
    """A packet over a bound is rejected and the bound's own counter goes up."""
    log = FakeLog()
    desk = Desk(log, Limits(schema_steps=5000), Metrics(), Definition())
    await log.define_stream("s", Definition(schema={"properties": {"a": {"items": {"type": "array"}}}}))
    answer = await desk.publish(packet)
    assert len(answer.rejections) == 1
    assert desk.count("overlayd_limit_hits_total", limit=limit) == 1


async def test_what_is_at_hand_follows_the_stream(tmp_path: Path) -> None:
    """Whoever keeps a stream at hand is told of another definition, of its deletion and of the next one by its name."""
    limits, metrics, terms = Limits(), Metrics(), Terms("p", may_create=False, atomic=True)
    async with open_log(
        tmp_path / "data", settings=SETTINGS, limits=limits, defaults=Definition(), clock=SystemClock(),
        entropy=Entropy(), metrics=metrics,
    ) as log:  # fmt: skip
        intake, at_hand = Desk(log, limits, metrics, Definition()).intake, StreamAtHand(StreamName("s"))

        def version_judged() -> int | None:
            request = intake.judge_now(at_hand, b'{"data":{"n":1}}', terms)
            return None if request is None else request.definition_version

        assert version_judged() is None
        first, _ = await log.define_stream("s", Definition())
        assert (version_judged(), at_hand.stream) == (1, first)
        await log.define_stream("s", Definition(limits=StreamLimits(packet_bytes=Size(100))))
        assert version_judged() == 2
        assert intake.judge_now(at_hand, b'{"data":"%b"}' % (b"x" * 200), terms) is None
        await log.define_stream("s", NUMBERS)
        assert version_judged() is None
        assert at_hand.rule is None
        await intake.publish("s", [b'{"data":{"n":1}}'], principal="p", may_create=False, atomic=True)
        assert version_judged() == 3
        assert at_hand.rule is None
        await log.delete_stream("s")
        assert version_judged() is None
        again, _ = await log.define_stream("s", Definition())
        assert (version_judged(), at_hand.stream) == (1, again)
        assert again is not first

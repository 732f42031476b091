"""Publishing over HTTP, without the framework: from a request's body to its answer.

Every lane that takes packets calls these functions; what differs is only where the bytes come from.
"""

from collections.abc import Sequence
from copy import copy
from typing import TypeVar

import msgspec
import trio

from overlayd.access import Principal
from overlayd.access.metering import NO_PASSAGE, Metering
from overlayd.access.stream_guard import StreamGuard
from overlayd.model.errors import (
    BadParameter,
    BatchTooLarge,
    InvalidPacket,
    OverlaydError,
    PacketTooLarge,
    WrongContentType,
)
from overlayd.model.limits import Limits
from overlayd.model.names import StreamName
from overlayd.net.content import Bodies, BodyReader, Hold
from overlayd.net.lane import AnyLane, NoLane
from overlayd.net.problem import rate_headers
from overlayd.net.publish_answers import Published, Rejected, answer_many, answer_one, receipt_texts
from overlayd.pipeline.cloudevents import decode_binary, decode_event
from overlayd.pipeline.data_form import decode_data, media_type_of
from overlayd.pipeline.decode import Decoded, ValueBudget, is_array, split_array
from overlayd.pipeline.intake import Intake, PublishAnswer
from overlayd.storage import Log

NDJSON_TYPES = frozenset(("application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"))
OBJECT_TYPES = frozenset(("application/json", "text/json", ""))
EVENT = "application/cloudevents+json"
EVENT_BATCH = "application/cloudevents-batch+json"
THREAD_BYTES = 256 << 10
"""Splitting and judging larger bodies would hold the loop for milliseconds."""
EVENTS_PER_TURN = 100
SHOWN_BODY_BYTES = 120


OverlaydErrorT = TypeVar("OverlaydErrorT", bound=OverlaydError)


class Ask(msgspec.Struct, frozen=True):
    """A publish request without its body.

    `event_headers`: the headers of a CloudEvent in binary mode, in any case; empty for everything else.
    `url` is only for words of advice.
    """

    stream: StreamName
    principal: Principal
    content_type: str
    event_headers: Sequence[tuple[str, str]]
    url: str
    atomic: bool | None = None
    expected_sequence: int | None = None
    stop_on_error: bool = False
    with_proof: bool = False
    all_receipts: bool = False
    idempotency_key: str = ""
    traceparent: str = ""

    @property
    def is_lines(self) -> bool:
        return media_type_of(self.content_type) in NDJSON_TYPES and not self.is_binary_event

    @property
    def is_binary_event(self) -> bool:
        return bool(self.event_headers)


class DataAsk(msgspec.Struct, frozen=True):
    """What the query of a `…/data` request says about its packet."""

    id: str = ""
    type: str = ""
    key: str = ""


class Publisher:
    """Publishes request bodies. One for the node."""

    def __init__(
        self, *, intake: Intake, log: Log, limits: Limits, lane: AnyLane, bodies: Bodies,
        metering: Metering | None = None, streams: StreamGuard | None = None,
    ) -> None:  # fmt: skip
        """`metering`: None when nobody is held to a rate or quota. `streams`: decides who may publish where; None where
        no stream has an owner."""
        self.streams = streams or StreamGuard(log.find_stream)
        self.metering = metering
        self.intake = intake
        self.log = log
        self.limits = limits
        self.lane = lane
        self.bodies = bodies
        self._split_limiter = trio.CapacityLimiter(1)

    def without_lane(self) -> "Publisher":
        """The same for requests that hold no place in the lane."""
        publisher = copy(self)
        publisher.lane, publisher.bodies = NoLane(self.lane.courtesy), self.bodies.without_lane()
        return publisher

    async def publish(self, ask: Ask, body: BodyReader, hold: Hold) -> Published:
        """Everything but NDJSON: packet objects, arrays, CloudEvents. `body` is bounded by `body_bytes`. Checkpoint."""
        if ask.stop_on_error or ask.all_receipts:
            name = "stop_on_error" if ask.stop_on_error else "receipts"
            raise BadParameter(f"{name} is for NDJSON bodies", subject=name)
        media = media_type_of(ask.content_type)
        if ask.is_binary_event:
            decoded = decode_binary(ask.event_headers, await body.read_all(hold), self.limits)
            return await self._publish_one(ask, decoded)
        if media == EVENT:
            return await self._publish_one(ask, await self._decode_event(await body.read_all(hold)))
        if media == EVENT_BATCH:
            return await self._publish_batch(ask, await self._split(await body.read_all(hold)))
        if media not in OBJECT_TYPES:
            raise self._wrong_type(ask, await _peek(body))
        raw = await body.read_all(hold)
        if is_array(raw):
            return await self._publish_array(ask, await self._split(raw))
        return await self._publish_object(ask, raw)

    async def publish_data(self, ask: Ask, data: DataAsk, body: BodyReader, hold: Hold) -> Published:
        """Any body as the data of one packet. `body` is bounded by `packet_bytes`. Checkpoint."""
        raw = await body.read_all(hold)
        decoded = decode_data(
            raw, ask.content_type, self.limits, packet_id=data.id, packet_type=data.type, key=data.key
        )
        return await self._publish_one(ask, decoded)

    def tell_rate(self, principal: Principal, stream: str, content_type: str) -> Sequence[tuple[str, str]]:
        """Headers of an answer to somebody who is held to a rate: how much of it is left."""
        if self.metering is None or not self.metering.concerns(principal):
            return ()
        is_upload = media_type_of(content_type) in NDJSON_TYPES
        rate = self.metering.tell_published(principal, stream, is_upload=is_upload)
        return () if rate is None else rate_headers(rate)

    async def submit(self, ask: Ask, objects: list[bytes], *, atomic: bool, first_index: int = 0) -> PublishAnswer:
        """Packet objects to the intake. Checkpoint; steps out of the lane.

        Bodies may take minutes to come, and uploads wait for their turn: whether their sender still may publish is asked
        once they are there and it has come. Raises
        Forbidden, Unauthorized, and what the intake raises.
        """
        if first_index and self.metering is not None and self.metering.concerns(ask.principal):
            async with self.lane.step_out():
                await self.metering.wait_for_bandwidth(ask.principal)
        self.streams.require(ask.principal, "publish", ask.stream)
        passage = NO_PASSAGE
        if self.metering is not None and self.metering.concerns(ask.principal):
            passage = await self.metering.publish(
                ask.principal, ask.stream, packets=len(objects), size=sum(map(len, objects)), is_upload=ask.is_lines,
                is_new=not first_index,
            )  # fmt: skip
        async with self.lane.step_out():
            with passage:
                return await self.intake.publish(
                    ask.stream, objects, principal=ask.principal.name, may_create=ask.principal.may_create,
                    atomic=atomic, expected_sequence=ask.expected_sequence, traceparent=ask.traceparent,
                    idempotency_key=ask.idempotency_key, first_index=first_index,
                )  # fmt: skip

    async def _submit_decoded(self, ask: Ask, decoded: list[Decoded], *, atomic: bool) -> PublishAnswer:
        self.streams.require(ask.principal, "publish", ask.stream)
        passage = NO_PASSAGE
        if self.metering is not None and self.metering.concerns(ask.principal):
            size = sum(len(one.draft.body) for one in decoded)
            passage = await self.metering.publish(ask.principal, ask.stream, packets=len(decoded), size=size)
        async with self.lane.step_out():
            with passage:
                return await self.intake.publish_decoded(
                    ask.stream, decoded, principal=ask.principal.name, may_create=ask.principal.may_create,
                    atomic=atomic, expected_sequence=ask.expected_sequence, traceparent=ask.traceparent,
                )  # fmt: skip

    async def _publish_object(self, ask: Ask, raw: bytes) -> Published:
        if len(raw) > self.limits.packet_bytes:
            raise PacketTooLarge(
                f"the packet has {len(raw)} bytes; {int(self.limits.packet_bytes)} are taken", subject="packet_bytes"
            )
        try:
            given = await self.submit(ask, [raw], atomic=bool(ask.atomic))
            return await self._one(ask, given)
        except InvalidPacket as error:
            raise _advised(_alone(error), ask, raw) from error

    async def _publish_array(self, ask: Ask, objects: list[bytes]) -> Published:
        if ask.idempotency_key:
            raise BadParameter(
                "Idempotency-Key stands for the id of a single packet; give each packet an id",
                subject="Idempotency-Key",
            )
        given = await self.submit(ask, objects, atomic=ask.atomic is not False)
        return await self._many(ask, given, [])

    async def _publish_one(self, ask: Ask, decoded: Decoded) -> Published:
        """One packet that isn't a packet object: its id and the Idempotency-Key must agree."""
        draft, key = decoded.draft, ask.idempotency_key
        if key and draft.id and draft.id != key:
            raise BadParameter("id and Idempotency-Key differ", subject="Idempotency-Key", hint="send one of them")
        if key and not draft.id:
            if len(key) > self.limits.id_chars:
                raise BadParameter(
                    f"Idempotency-Key is over {self.limits.id_chars} characters", subject="Idempotency-Key"
                )
            draft.id = key
        return await self._one(ask, await self._submit_decoded(ask, [decoded], atomic=bool(ask.atomic)))

    async def _publish_batch(self, ask: Ask, texts: list[bytes]) -> Published:
        atomic = ask.atomic is not False
        decoded, rejected = [], []
        values = ValueBudget()
        for index, text in enumerate(texts):
            if index % EVENTS_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
            try:
                decoded.append(values.trim(self._bounded_event(text, index)))
            except OverlaydError as error:
                rejected.append(Rejected(error, index=index))
        if atomic and rejected:
            self.intake.count_errors(len(rejected))
            raise _all_refused(rejected, self.limits.errors_max)
        given = await self._submit_decoded(ask, decoded, atomic=atomic)
        return await self._many(ask, given, rejected)

    def _bounded_event(self, text: bytes, index: int) -> Decoded:
        if len(text) > self.limits.packet_bytes:
            raise PacketTooLarge(
                f"the event has {len(text)} bytes; {int(self.limits.packet_bytes)} are taken", subject="packet_bytes"
            )
        return decode_event(text, index, self.limits)

    async def _decode_event(self, raw: bytes) -> Decoded:
        await trio.lowlevel.checkpoint()
        return self._bounded_event(raw, 0)

    async def _split(self, raw: bytes) -> list[bytes]:
        try:
            if len(raw) < THREAD_BYTES:
                return split_array(raw, self.limits)
            async with self.lane.step_out():
                return await trio.to_thread.run_sync(split_array, raw, self.limits, limiter=self._split_limiter)
        except BatchTooLarge:
            self.intake.count_limit_hit("batch_packets_max")
            raise

    async def _one(self, ask: Ask, given: PublishAnswer) -> Published:
        if given.rejections:
            raise _alone(given.rejections[0][1])
        texts = await receipt_texts(self.log, ask.stream, given.receipts, with_proof=ask.with_proof)
        return answer_one(given.receipts[0], texts[0])

    async def _many(self, ask: Ask, given: PublishAnswer, rejected: list[Rejected]) -> Published:
        everything = rejected + [Rejected(error, index=index) for index, error in given.rejections]
        everything.sort(key=lambda one: one.index or 0)
        self.intake.count_errors(len(everything))
        texts = await receipt_texts(self.log, ask.stream, given.receipts, with_proof=ask.with_proof)
        return answer_many(
            texts, everything, rejected_count=len(everything), duplicates=given.duplicates, accepted=given.accepted,
            errors_max=self.limits.errors_max,
        )  # fmt: skip

    def _wrong_type(self, ask: Ask, sample: bytes) -> WrongContentType:
        media = media_type_of(ask.content_type)
        shown = _shown(sample)
        wrapped = f'{{"data": {shown}}}' if not shown.startswith('{"data"') else shown
        return WrongContentType(
            f"packets aren't taken as {media[:80]}; say that they are JSON: curl -H 'Content-Type: application/json' "
            f"-d '{wrapped}' {ask.url} or send the bare data: curl -d '{shown}' {_data_url(ask.url)}",
            subject="Content-Type",
            hint="application/json, application/x-ndjson, application/cloudevents+json or -batch+json",
        )


def _alone(error: OverlaydErrorT) -> OverlaydErrorT:
    """The error of a request's only packet, which needs no index."""
    error.violations = tuple(msgspec.structs.replace(one, index=None) for one in error.violations)
    return error


def _all_refused(rejected: list[Rejected], errors_max: int) -> InvalidPacket:
    violations = [violation for one in rejected for violation in one.violations()]
    first = rejected[0].error
    return InvalidPacket(f"nothing was taken: {first.detail}", violations=violations[:errors_max], hint=first.hint)


async def _peek(body: BodyReader) -> bytes:
    """The body's beginning, to show it back."""
    try:
        return await body.read_piece()
    except OverlaydError:
        return b""


def _advised(error: InvalidPacket, ask: Ask, raw: bytes) -> InvalidPacket:
    """The same error; a body that was meant as the data itself gets the command line that would have worked."""
    codes = {violation.code for violation in error.violations}
    if type(error) is not InvalidPacket or not codes & {"packet.object", "member.missing", "member.unknown"}:
        return error
    shown = _shown(raw)
    error.detail += (
        f"; if this is the data itself: curl -d '{shown}' {_data_url(ask.url)} or wrap it: "
        f"curl -H 'Content-Type: application/json' -d '{{\"data\": {shown}}}' {ask.url}"
    )
    error.args = (error.detail,)
    return error


def _shown(raw: bytes) -> str:
    """A short, plain body as it can stand between single quotes in a shell; else an ellipsis."""
    text = raw.decode("utf-8", "replace").strip()
    is_plain = 0 < len(text) <= SHOWN_BODY_BYTES and text.isprintable() and "'" not in text and "\ufffd" not in text
    return text if is_plain else "…"


def _data_url(url: str) -> str:
    return url.removesuffix("/packets") + "/data"

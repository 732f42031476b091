"""The one publish function: whatever way packets come in, they are decoded, judged and appended here."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec
import trio
from msgspec import UNSET

from overlayd.model.confirmation import ConfirmationReads
from overlayd.model.definition import ConfirmRule, Definition
from overlayd.model.draft import AppendRequest, AppendResult, Receipt, Refusal
from overlayd.model.errors import (
    BadParameter,
    DefinitionConflict,
    HopsExceeded,
    InvalidPacket,
    OverlaydError,
    UnknownStream,
    Violation,
)
from overlayd.model.limits import HOPS_MAX, Limits
from overlayd.model.metrics import Metrics
from overlayd.model.names import StreamName, parse_stream_name
from overlayd.model.stream_tally import NO_TALLY, StreamTally
from overlayd.model.traces import SpanBook
from overlayd.pipeline.chain_members import judge_claim, note_confirmation
from overlayd.pipeline.decode import Decoded, decode_packet
from overlayd.pipeline.decode_many import THREAD_BYTES, Slices, decode_request, too_large
from overlayd.pipeline.definitions import KeyPath
from overlayd.pipeline.intake_meters import IntakeMeters
from overlayd.pipeline.privacy_stage import NOBODY, PeoplePrivacy, PrivacyRules, refuse_without_consent, restore
from overlayd.pipeline.schema import CompiledSchema, SchemaCache
from overlayd.storage import Stream

T = TypeVar("T")

REJUDGED_MAX = 2
"""How often a request is judged again because its stream was defined anew in between."""

RULES_KEPT = 16_384
"""Streams without a schema whose rules are kept, rather than put together for each request."""

_NO_STREAM = bytes(32)


class AppendingLog(Protocol):
    """What publishing needs of the log."""

    def find_stream(self, name: str) -> Stream | None: ...

    async def append(self, request: AppendRequest) -> AppendResult: ...


class PublishAnswer(msgspec.Struct):
    """What became of a request's packets. Both lists are in the request's order.

    `rejections`: (place in the request, why); such a packet isn't in the log. `head_sequence`: the stream's last one.
    """

    receipts: list[Receipt]
    rejections: list[tuple[int, OverlaydError]]
    accepted: int
    duplicates: int
    head_sequence: int


class _Rule(msgspec.Struct, frozen=True):
    """What a definition version asks of a packet."""

    version: int
    schema: CompiledSchema | None
    key: KeyPath | None
    packet_bytes: int
    is_id_required: bool
    stream_hash: bytes
    confirm: ConfirmRule
    privacy: PrivacyRules | None

    @property
    def asks_nothing(self) -> bool:
        """Whether it takes every packet that isn't too large."""
        return not (self.asks_for_value or self.is_id_required)

    @property
    def asks_for_value(self) -> bool:
        """Whether it looks into the data."""
        return self.schema is not None or self.key is not None or self.privacy is not None

    @property
    def purpose(self) -> str:
        """What each packet's subject must have consented to, "" for nothing."""
        return "" if self.privacy is None else self.privacy.purpose


class StreamAtHand:
    """A stream as it was found last under a name, and what its definition asked then: for who asks again and again, so
    that nothing has to be looked up. With thousands of streams each look-up reads memory that no cache holds."""

    __slots__ = ("name", "rule", "stream")

    def __init__(self, name: StreamName) -> None:
        self.name = name
        self.stream: Stream | None = None
        self.rule: _Rule | None = None


class _Judged(msgspec.Struct):
    """A request's packets after a definition version had its say."""

    rule: _Rule
    passed: list[Decoded]
    rejections: dict[int, OverlaydError]


class Made(msgspec.Struct, frozen=True):
    """How packets came to be that the node made from others. `hops`: one more than theirs had. `derived_from`: their
    offsets, ascending. `along`: statements of the same transaction (`AppendRequest`)."""

    hops: int = 0
    derived_from: tuple[int, ...] = ()
    along: tuple[tuple[str, tuple[Any, ...]], ...] = ()


NOT_MADE = Made()


class Terms(msgspec.Struct, frozen=True):
    """What goes with a request's packets. `idempotency_key` stands for the id of a single packet."""

    principal: str
    may_create: bool
    atomic: bool
    expected_sequence: int | None = None
    traceparent: str = ""
    idempotency_key: str = ""
    made: Made = NOT_MADE


class Intake:
    """Publishes packets. One for the node; holds nothing of a request once it is answered."""

    def __init__(
        self, *, log: AppendingLog, limits: Limits, schemas: SchemaCache, metrics: Metrics,
        defaults: Definition = Definition(),  # noqa: B008 - frozen
        confirmations: ConfirmationReads | None = None, privacy: PeoplePrivacy = NOBODY, tally: StreamTally = NO_TALLY,
        spans: SpanBook | None = None,
    ) -> None:  # fmt: skip
        """`defaults`: the definition of streams that publishing creates. `confirmations`: None where the node follows no
        chain. `privacy`: pseudonyms and consents. `tally`: counts refusals by stream. `spans`: None where
        no traces are wanted."""
        self._log = log
        self._limits = limits
        self._schemas = schemas
        self._defaults = defaults
        self._confirmations = confirmations
        self._privacy = privacy
        self._threads = trio.CapacityLimiter(1)
        self._rules: dict[bytes, _Rule] = {}
        self.meters = IntakeMeters(metrics, limits, tally, spans)
        self.count_limit_hit = self.meters.count_limit_hit
        self.count_errors = self.meters.count_errors

    async def publish(
        self, stream: str, objects: Sequence[bytes], *, principal: str, may_create: bool, atomic: bool,
        expected_sequence: int | None = None, traceparent: str = "", idempotency_key: str = "", first_index: int = 0,
    ) -> PublishAnswer:  # fmt: skip
        """Decodes, judges and appends packet objects; what was accepted is durable when it returns.

        Checkpoint. `first_index`: the place of the first object, for objects that are part of a longer upload.
        `idempotency_key` stands for the id of a single packet. With `atomic`, any rejection is raised and nothing is
        appended; else rejections are part of the answer. Raises what concerns the whole request: UnknownStream,
        BadParameter, and what the log's append raises. If cancelled while appending, the packets are still appended.
        """
        started = trio.current_time()
        name = self._known(stream, may_create)
        if idempotency_key and len(objects) != 1:
            raise BadParameter(
                "Idempotency-Key stands for the id of a single packet", subject="Idempotency-Key",
                hint="give each packet an id of its own",
            )  # fmt: skip
        decoded, rejections = await decode_request(objects, first_index, self._limits, self._threads)
        if idempotency_key and decoded:
            self._take_idempotency_key(decoded[0], idempotency_key)
        terms = Terms(principal, may_create, atomic, expected_sequence, traceparent)
        return await self._submit(name, decoded, rejections, terms, started)

    async def publish_decoded(
        self, stream: str, decoded: Sequence[Decoded], *, principal: str, may_create: bool, atomic: bool,
        expected_sequence: int | None = None, traceparent: str = "",
    ) -> PublishAnswer:  # fmt: skip
        """The same for packets that came in another form (CloudEvents, `…/data`). Checkpoint."""
        started = trio.current_time()
        name = self._known(stream, may_create)
        terms = Terms(principal, may_create, atomic, expected_sequence, traceparent)
        return await self._submit(name, list(decoded), {}, terms, started)

    async def publish_made(
        self, stream: str, objects: Sequence[bytes], *, principal: str, made: Made, traceparent: str = ""
    ) -> PublishAnswer:
        """The same for packet objects that the node makes from other packets, all or none, into a stream that exists.

        What goes along is done though every packet is a duplicate. Checkpoint. Raises HopsExceeded.
        """
        started = trio.current_time()
        if made.hops > HOPS_MAX:
            await trio.lowlevel.checkpoint()
            raise HopsExceeded(
                f"the packet would be made from another one for the {made.hops}th time in a row; {HOPS_MAX} are taken",
                subject=stream, hint="two agents may be answering each other: narrow what triggers them",
            )  # fmt: skip
        name = self._known(stream, may_create=False)
        decoded, rejections = await decode_request(objects, 0, self._limits, self._threads)
        terms = Terms(principal, may_create=False, atomic=True, traceparent=traceparent, made=made)
        return await self._submit(name, decoded, rejections, terms, started)

    def judge_now(self, at_hand: StreamAtHand, raw: bytes, terms: Terms) -> AppendRequest | None:
        """What to append for a single packet object. None where that takes a wait, or the packet will be refused:
        `publish` then waits, or says why. Counts nothing."""
        stream, found, rule = at_hand.name, at_hand.stream, at_hand.rule
        if found is None or rule is None or found.is_deleted or found.definition_version != rule.version:
            found = at_hand.stream = self._log.find_stream(stream)
            rule = self._rule_at_hand(found)
            at_hand.rule = (
                None if rule is None or rule.schema is not None else rule
            )  # schemas have a bound of their own
        if rule is None or (found is None and not terms.may_create) or rule.confirm.commit != "none" or rule.purpose:
            return None
        try:
            decoded = decode_packet(raw, 0, self._limits)
            if decoded.claim is not None:
                return None
            if terms.idempotency_key:
                self._take_idempotency_key(decoded, terms.idempotency_key)
            self._judge_one(decoded, rule, stream)
        except OverlaydError:
            return None
        draft = decoded.draft
        draft.principal = terms.principal
        spans = self.meters.spans
        draft.traceparent = terms.traceparent or ("" if spans is None else spans.begin())
        return AppendRequest(
            stream, [draft], atomic=terms.atomic, may_create=terms.may_create,
            expected_sequence=terms.expected_sequence, definition_version=rule.version,
        )  # fmt: skip

    def _known(self, stream: str, may_create: bool) -> StreamName:
        name = parse_stream_name(stream)
        if not may_create and self._log.find_stream(name) is None:
            raise UnknownStream(
                f"there is no stream {name}", subject=name, hint=f"create it with PUT /v1/streams/{name}"
            )
        return name

    def _take_idempotency_key(self, decoded: Decoded, key: str) -> None:
        if len(key) > self._limits.id_chars:
            raise BadParameter(
                f"Idempotency-Key has {len(key)} characters; {self._limits.id_chars} are taken",
                subject="Idempotency-Key",
            )
        if decoded.draft.id and decoded.draft.id != key:
            raise BadParameter(
                "the packet's id and Idempotency-Key differ", subject="Idempotency-Key", hint="send one of them"
            )
        decoded.draft.id = key

    async def _submit(
        self, name: StreamName, decoded: list[Decoded], refused: dict[int, OverlaydError], terms: Terms, started: float
    ) -> PublishAnswer:
        spans = self.meters.spans
        begun = "" if spans is None or terms.traceparent else spans.begin()
        for one in decoded:
            draft = one.draft
            draft.principal = terms.principal
            draft.traceparent = draft.traceparent or terms.traceparent or begun
            draft.hops, draft.derived_from = terms.made.hops, terms.made.derived_from
        try:
            judged, result = await self._append(name, decoded, refused, terms)
        except OverlaydError as err:
            self.meters.trace_refused(name, terms.traceparent, err, started)
            raise
        return await self._answer(name, judged, result, begun, started)

    async def _append(
        self, name: StreamName, decoded: list[Decoded], refused: dict[int, OverlaydError], terms: Terms
    ) -> tuple[_Judged, AppendResult]:
        """Judges and appends; with nothing to append, nothing is. Checkpoint."""
        for attempt in range(REJUDGED_MAX + 1):
            judged = await self._judge(name, decoded, refused)
            if judged.rejections and terms.atomic:
                self.meters.count_rejections(name, judged.rejections.values())
                self.count_errors(sum(len(error.violations) or 1 for error in judged.rejections.values()))
                raise combine_errors(judged.rejections, self._limits.errors_max)
            if not judged.passed:
                break
            request = AppendRequest(
                name, [one.draft for one in judged.passed], atomic=terms.atomic, may_create=terms.may_create,
                expected_sequence=terms.expected_sequence, definition_version=judged.rule.version, along=terms.made.along,
            )  # fmt: skip
            try:
                result = await self._log.append(request)
            except DefinitionConflict:
                if attempt == REJUDGED_MAX:
                    raise
                continue
            except InvalidPacket as err:
                self.meters.count_rejections(name, [err] * (len({found.index for found in err.violations}) or 1))
                raise
            return judged, result
        await trio.lowlevel.checkpoint()
        found = self._log.find_stream(name)
        head_sequence = 0 if found is None else found.head_sequence
        return judged, AppendResult([], 0, head_sequence)

    async def _judge(self, name: StreamName, decoded: list[Decoded], refused: Mapping[int, OverlaydError]) -> _Judged:
        """Asks the stream's present definition about each packet. A checkpoint whenever it takes long."""
        rule = await self._rule_of(name)
        judged = _Judged(rule, [], dict(refused))
        slices, bytes_max = Slices(), rule.packet_bytes
        asks_nothing, asks_for_value = rule.asks_nothing, rule.asks_for_value
        for one in decoded:
            draft = one.draft
            if asks_nothing and one.claim is None and not (draft.is_key_derived or draft.is_redacted):
                one.value = UNSET
                if len(draft.sent) + len(draft.metadata) + len(draft.topics) <= bytes_max:
                    judged.passed.append(one)
                    continue
            try:
                if asks_for_value and len(draft.sent) > THREAD_BYTES:
                    await self._in_thread(partial(self._judge_one, one, rule, name))
                else:
                    self._judge_one(one, rule, name)
                judged.passed.append(one)
            except OverlaydError as err:
                judged.rejections[draft.index] = err
            finally:
                one.forget()
            if slices.is_over:
                await slices.pause()
        if rule.purpose and judged.passed:
            judged.passed = await refuse_without_consent(judged.passed, rule.purpose, self._privacy, judged.rejections)
        return judged

    def _judge_one(self, decoded: Decoded, rule: _Rule, stream: str) -> None:
        draft = decoded.draft
        restore(draft)
        size = len(draft.sent) + len(draft.metadata) + len(draft.topics)
        if size > rule.packet_bytes:
            raise too_large(size, rule.packet_bytes)
        if rule.is_id_required and not draft.id:
            detail = "the stream requires an id for each packet"
            raise InvalidPacket(detail, subject="/id", violations=[Violation("/id", "member.missing", detail)])
        if rule.schema is not None:
            rule.schema.check(decoded.data(), draft.sent, "data_base64" if draft.is_octets else "data")
        if rule.privacy is not None:
            rule.privacy.apply(decoded, stream)
        if draft.is_key_derived:  # by a definition that is no longer the present one
            draft.key, draft.is_key_derived = "", False
        if rule.key is not None and not draft.key:
            self._derive_key(decoded, rule.key)
        if decoded.claim is not None:
            judge_claim(draft, decoded.claim, stream, rule.confirm, has_chain=self._confirmations is not None)

    def _derive_key(self, decoded: Decoded, path: KeyPath) -> None:
        key = path.find(decoded.data())
        if len(key) > self._limits.id_chars:
            detail = f"is the packet's key and has {len(key)} characters; {self._limits.id_chars} are taken"
            raise InvalidPacket(
                f"{path.pointer}: {detail}", subject=path.pointer,
                violations=[Violation(path.pointer, "member.length", detail)],
            )  # fmt: skip
        decoded.draft.key, decoded.draft.is_key_derived = key, bool(key)

    async def _rule_of(self, name: StreamName) -> _Rule:
        """What the stream's present definition asks. Waits only for a schema that isn't compiled yet."""
        stream = self._log.find_stream(name)
        rule = self._rule_at_hand(stream)
        if rule is not None:
            return rule
        stream_hash, version, definition = self._defined(stream)
        assert definition.schema is not None
        return self._rule_with(
            stream_hash, version, definition, await self._schemas.compiled(stream_hash, version, definition.schema)
        )

    def _rule_at_hand(self, stream: Stream | None) -> _Rule | None:
        """The same; None where the schema isn't compiled."""
        stream_hash, version, definition = self._defined(stream)
        if definition.schema is None:
            rule = self._rules.get(stream_hash)
            if rule is None or rule.version != version:
                if len(self._rules) >= RULES_KEPT:
                    self._rules.clear()
                rule = self._rules[stream_hash] = self._rule_with(stream_hash, version, definition, None)
            return rule
        schema = self._schemas.find(stream_hash, version)
        return None if schema is None else self._rule_with(stream_hash, version, definition, schema)

    def _defined(self, stream: Stream | None) -> tuple[bytes, int, Definition]:
        if stream is None:
            return _NO_STREAM, 0, self._defaults
        return stream.stream_hash, stream.definition_version, stream.definition

    def _rule_with(
        self, stream_hash: bytes, version: int, definition: Definition, schema: CompiledSchema | None
    ) -> _Rule:
        return _Rule(
            version, schema, KeyPath(definition.key) if definition.key else None,
            min(int(definition.limits.packet_bytes), int(self._limits.packet_bytes)), definition.dedup.required_id,
            stream_hash, definition.confirm, self._privacy_of(definition),
        )  # fmt: skip

    def _privacy_of(self, definition: Definition) -> PrivacyRules | None:
        if not definition.redact and definition.consent == "none":
            return None
        return PrivacyRules(definition, self._privacy, self._limits.json_depth_max)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._threads)

    async def _answer(
        self, name: StreamName, judged: _Judged, result: AppendResult, begun: str, started: float
    ) -> PublishAnswer:
        """What became of it, told and counted. A checkpoint where repeats have to be looked up."""
        rejections = judged.rejections
        receipts = [outcome for outcome in result.outcomes if isinstance(outcome, Receipt)]
        if len(receipts) < len(result.outcomes):
            for outcome in result.outcomes:
                if isinstance(outcome, Refusal):
                    rejections[outcome.index] = outcome.error
        duplicates = sum([receipt.duplicate for receipt in receipts])
        if judged.rule.confirm.commit != "none" and self._confirmations is not None:
            drafts = [one.draft for one in judged.passed]
            await note_confirmation(receipts, drafts, judged.rule.stream_hash, judged.rule.confirm, self._confirmations)
        self.meters.count_appended(len(receipts) - duplicates, duplicates, trio.current_time() - started)
        if rejections:
            self.meters.count_rejections(name, rejections.values())
        if self.meters.spans is not None:
            self.meters.trace_appended(name, [one.draft for one in judged.passed], receipts, begun, started)
        placed = [(index, _placed(rejections[index], index)) for index in sorted(rejections)]
        return PublishAnswer(receipts, placed, len(receipts) - duplicates, duplicates, result.head_sequence)


def combine_errors(rejections: Mapping[int, OverlaydError], errors_max: int) -> OverlaydError:
    """One error for a request of which nothing was appended because these packets were rejected.

    It is of the packets' own kind where they share one, and lists violations in the order of the request.
    """
    violations: list[Violation] = []
    for index in sorted(rejections):
        violations += _placed(rejections[index], index).violations
        if len(violations) >= errors_max:
            break
    first = rejections[min(rejections)]
    if len(rejections) == 1:
        first.violations = tuple(violations[:errors_max])
        return first
    kinds = {type(err) for err in rejections.values()}
    kind = kinds.pop() if len(kinds) == 1 else InvalidPacket
    return kind(
        f"{len(rejections)} packets were rejected, so none was appended; the first: {first.detail}",
        subject=first.subject, hint=first.hint, violations=violations[:errors_max],
    )  # fmt: skip


def _placed(err: OverlaydError, index: int) -> OverlaydError:
    """The error with its place in the request on every violation; it gets one if it had none."""
    found = err.violations or (Violation("", err.code, err.detail),)
    err.violations = tuple(one if one.index == index else msgspec.structs.replace(one, index=index) for one in found)
    return err

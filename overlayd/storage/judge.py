"""The order of judgement of an append request: duplicates, used commitments, expected sequence, limits.

Everything is judged before anything is added to the group, so that a refused request leaves no trace
(docs/log-format.md, Appending).
"""

import msgspec

from overlayd.model.cursor import Epoch, format_epoch
from overlayd.model.draft import AppendRequest, AppendResult, Draft, Receipt, Refusal
from overlayd.model.entry import Z32, StoredEntry
from overlayd.model.errors import (
    CommitmentUsed,
    DefinitionConflict,
    Forbidden,
    IdReused,
    LimitReached,
    OverlaydError,
    Rate,
    SequenceMismatch,
    StreamPaused,
    UnknownStream,
    Violation,
)
from overlayd.model.meta import decode_meta
from overlayd.model.names import StreamName, is_node_name
from overlayd.storage.fingerprint import fingerprint_of, is_same_as_sent
from overlayd.storage.group import MINUTE_US, Group, PendingStream, Prepared, PreparedDraft
from overlayd.storage.lookup import Lookups, prepare
from overlayd.storage.pace import PACKETS_PER_SLICE, Pace


class _Judged(msgspec.Struct):
    """A request on its way through the order of judgement; everything is told by place in the request.

    `new`: places that are still to be appended. `repeats`: place of a draft that repeats a new one of the same
    request -> that one's place.
    """

    prepared: list[PreparedDraft]
    outcomes: list[Receipt | Refusal | None]
    new: list[int]
    repeats: dict[int, int]

    def refuse(self, at: int, error: OverlaydError) -> None:
        self.outcomes[at] = Refusal(self.prepared[at].draft.index, error)


async def judge_append(
    group: Group, request: AppendRequest, prepared: Prepared, lookups: Lookups, pace: Pace
) -> AppendResult:  # fmt: skip
    """Judges the request and adds its new packets to the group. Raises the error that refuses all of it.

    Yields to other tasks, none of which changes what it judges by: only the writer does.
    """
    name = request.stream
    if is_node_name(name):
        raise Forbidden(f"{name} is the node's own stream", subject=name, hint="publish under another name")
    pending = group.find(name)
    if pending is None and not request.may_create:
        raise UnknownStream(f"no stream {name}", subject=name, hint=f"create it with PUT /v1/streams/{name}")
    if request.definition_version != (0 if pending is None else pending.version):
        raise DefinitionConflict(
            f"{name} was defined anew while the packets were judged", subject=name, hint="send them again"
        )
    if pending is not None and prepared.stream is not pending.stream:
        prepared = await prepare(group.state, request, pending.stream, pace)
    judged = await _judge_duplicates(group, pending, request, prepared, lookups, pace)
    _judge_commitments(group, judged, lookups)
    _refuse_repeats_of_refused(judged)
    if request.atomic:
        _refuse_whole(judged)
    if judged.new:
        _judge_sequence(request, pending)
        _judge_limits(group, request, pending, judged)
    created = pending is None and bool(judged.new)
    if judged.new:
        if pending is None:
            pending = group.create_stream(name, group.state.defaults, "api", request.drafts[0].principal)
            group.creations += 1
            judged.prepared = (await prepare(group.state, request, pending.stream, pace)).drafts
        await _append_new(group, pending, judged, pace)
    return AppendResult(
        [outcome for outcome in judged.outcomes if outcome is not None], group.head,
        0 if pending is None else pending.head.sequence, created,
    )  # fmt: skip


def judge_plain(
    group: Group, request: AppendRequest, prepared: Prepared, lookups: Lookups
) -> AppendResult | None:  # fmt: skip
    """The same for what comes most: a new packet on its own, into a stream that takes it without a commitment or a rate
    to be looked at. None for everything else: then nothing was done, and `judge_append` is to be asked."""
    draft, name, item = request.drafts[0], request.stream, prepared.drafts[0]
    pending = group.find(name)
    if pending is None or prepared.stream is not pending.stream or pending.version != request.definition_version:
        return None
    head = pending.head
    if (
        draft.csalt
        or pending.state != "active"
        or pending.definition.limits.packets_per_minute
        or request.expected_sequence not in (None, head.sequence)
        or is_node_name(name)
        or (draft.id and _find_duplicate(group, pending, item, lookups) is not None)
    ):
        return None
    entry = group.add_packet(pending, item)
    meter = group.state.meter
    if meter is not None and meter.is_metered(draft.principal):
        group.count(draft.principal, name, 1, len(draft.body))
    minute = group.appended_us // MINUTE_US
    head.minute_packets = 1 + (head.minute_packets if head.minute == minute else 0)
    head.minute = minute
    return AppendResult([receipt_of(entry, draft, name, False)], group.head, head.sequence)


def receipt_of(entry: StoredEntry, draft: Draft, stream: StreamName, duplicate: bool) -> Receipt:
    """The receipt of a durable packet, whatever is left of it."""
    return Receipt(
        draft.index, stream, entry.sequence, entry.offset, entry.epoch,
        draft.id or f"{format_epoch(Epoch(entry.epoch))}-{entry.offset}", entry.content_hash, entry.leaf,
        entry.appended_us, duplicate, entry.commitment if entry.commitment != Z32 else b"",
    )  # fmt: skip


async def _judge_duplicates(
    group: Group, pending: PendingStream | None, request: AppendRequest, prepared: Prepared, lookups: Lookups,
    pace: Pace,
) -> _Judged:  # fmt: skip
    drafts = request.drafts
    judged = _Judged(prepared.drafts, [None] * len(drafts), [], {})
    seen: dict[str, int] = {}
    for at, draft in enumerate(drafts):
        if not draft.id:
            judged.new.append(at)
            continue
        first = seen.setdefault(draft.id, at)
        if first != at:
            if is_same_as_sent(drafts[first], draft):
                judged.repeats[at] = first
            else:
                judged.refuse(at, _reused(draft, f"packet {drafts[first].index} of this request"))
            continue
        await pace.spend(0.125)
        key, earlier = prepared.drafts[at].id_key, None
        if pending is not None and (key in group.ids or key in lookups.ids or group.state.ids.is_recent(key)):
            earlier = _find_duplicate(group, pending, prepared.drafts[at], lookups)
        if earlier is None:
            judged.new.append(at)
        elif not earlier.is_reduced and earlier.fingerprint != fingerprint_of(draft, earlier.salt):
            judged.refuse(at, _reused(draft, f"sequence {earlier.sequence}"))
        else:
            judged.outcomes[at] = receipt_of(earlier, draft, request.stream, True)
    return judged


def _find_duplicate(
    group: Group, pending: PendingStream, prepared: PreparedDraft, lookups: Lookups
) -> StoredEntry | None:  # fmt: skip
    """The newest packet of the stream with the draft's id, within the window."""
    state, stream_hash, rule = group.state, pending.stream.stream_hash, pending.definition
    key, packet_id = prepared.id_key, prepared.draft.id
    for entry in reversed(group.ids.get(key, ())):
        if is_packet_of(entry, stream_hash, packet_id):
            return entry
    if pending.is_new:
        return None
    recent, stored = state.ids.recent(key), lookups.ids.get(key, ())
    if not recent and not stored:
        return None
    offsets = {*recent, *stored}
    oldest_us = group.appended_us - int(max(rule.dedup.window, rule.retention.max_age) * 1_000_000)
    for offset in sorted(offsets, reverse=True):
        found = state.tail.find(offset) or lookups.entries.get(offset)
        if found is not None and found.appended_us >= oldest_us and is_packet_of(found, stream_hash, packet_id):
            return found
    return None


def is_packet_of(entry: StoredEntry, stream_hash: bytes, packet_id: str) -> bool:
    """Whether the hit of a hash is more than that. Of a reduced packet the id is gone; the hash has to do."""
    if entry.stream_hash != stream_hash or not entry.sequence:
        return False
    return entry.is_reduced or decode_meta(entry.meta).id == packet_id


def _judge_commitments(group: Group, judged: _Judged, lookups: Lookups) -> None:
    state = group.state
    taken: set[int] = set()
    for at in judged.new:
        key = judged.prepared[at].commitment_key
        if not key:
            continue
        is_used = key in taken or key in group.commitments or bool(state.commitments.recent(key))
        if is_used or lookups.commitments.get(key):
            judged.refuse(at, _used(judged.prepared[at].draft))
        taken.add(key)
    judged.new = [at for at in judged.new if judged.outcomes[at] is None]


def _refuse_repeats_of_refused(judged: _Judged) -> None:
    """A repeat of what is refused is refused too; of an earlier duplicate it is one itself."""
    for at, first in list(judged.repeats.items()):
        outcome = judged.outcomes[first]
        if outcome is not None:
            judged.outcomes[at] = msgspec.structs.replace(outcome, index=judged.prepared[at].draft.index)
            del judged.repeats[at]


def _refuse_whole(judged: _Judged) -> None:
    """All or none: raises the first refusal's error, with the violations of all."""
    refusals = [outcome for outcome in judged.outcomes if isinstance(outcome, Refusal)]
    if not refusals:
        return
    first = refusals[0].error
    violations = [violation for refusal in refusals for violation in refusal.error.violations]
    raise type(first)(
        first.detail, subject=first.subject, hint=first.hint, violations=violations,
        retry_after_s=first.retry_after_s, extra=first.extra,
    )  # fmt: skip


def _judge_sequence(request: AppendRequest, pending: PendingStream | None) -> None:
    head = 0 if pending is None else pending.head.sequence
    if request.expected_sequence is not None and request.expected_sequence != head:
        raise SequenceMismatch(
            f"{request.stream} is at sequence {head}, not {request.expected_sequence}", subject=request.stream,
            hint="read what came in between, then decide again", extra={"head_sequence": head},
        )  # fmt: skip


def _judge_limits(group: Group, request: AppendRequest, pending: PendingStream | None, judged: _Judged) -> None:
    if pending is None:
        _judge_creation(group, request.stream)
        rate = group.state.defaults.limits.packets_per_minute
        head = None
    else:
        if pending.state != "active":
            raise StreamPaused(
                f"{request.stream} is {pending.state}", subject=request.stream,
                hint="wait until it is set to active again",
            )  # fmt: skip
        rate, head = pending.definition.limits.packets_per_minute, pending.head
    if rate:
        minute, into_us = divmod(group.appended_us, MINUTE_US)
        used = head.minute_packets if head is not None and head.minute == minute else 0
        _judge_rate(group, request, judged, rate, used, (MINUTE_US - into_us) / 1e6)


def _judge_creation(group: Group, name: str) -> None:
    state = group.state
    if group.count_streams() >= state.limits.streams_max:
        state.metrics.count_limit_hit("streams_max")
        raise LimitReached(
            f"the node has {state.limits.streams_max} streams, which is its limit", subject=name,
            hint="delete a stream or raise streams_max",
        )  # fmt: skip
    minute, into_us = divmod(group.appended_us, MINUTE_US)
    earlier = state.creations if state.creation_minute == minute else 0
    if earlier + group.creations >= state.limits.auto_create_per_minute:
        state.metrics.count_limit_hit("auto_create_per_minute")
        raise LimitReached(
            f"{state.limits.auto_create_per_minute} streams a minute may be created by publishing", subject=name,
            hint=f"create it with PUT /v1/streams/{name}", retry_after_s=(MINUTE_US - into_us) / 1e6,
        ).with_rate(
            Rate("auto_create_per_minute", state.limits.auto_create_per_minute, 60, 0, (MINUTE_US - into_us) / 1e6)
        )  # fmt: skip


def _judge_rate(
    group: Group, request: AppendRequest, judged: _Judged, rate: int, used: int, wait_s: float
) -> None:  # fmt: skip
    """Takes what still fits this minute and refuses the rest; all of it where nothing fits or all must."""
    room = max(0, rate - used)
    if room >= len(judged.new):
        return
    group.state.metrics.count_limit_hit("packets_per_minute")
    detail = f"{request.stream} takes {rate} packets a minute"
    if room == 0 or request.atomic:
        shown = Rate("packets_per_minute", rate, 60, room, wait_s)
        raise LimitReached(detail, subject=request.stream, retry_after_s=wait_s).with_rate(shown)
    for at in judged.new[room:]:
        violation = Violation("", LimitReached.code, detail, index=judged.prepared[at].draft.index)
        judged.refuse(at, LimitReached(detail, subject=request.stream, violations=[violation], retry_after_s=wait_s))
    del judged.new[room:]
    _refuse_repeats_of_refused(judged)


async def _append_new(group: Group, pending: PendingStream, judged: _Judged, pace: Pace) -> None:
    prepared, name = judged.prepared, StreamName(pending.stream.name)
    for start in range(0, len(judged.new), PACKETS_PER_SLICE):
        places = judged.new[start : start + PACKETS_PER_SLICE]
        entries = group.add_packets(pending, [prepared[at] for at in places])
        for at, entry in zip(places, entries, strict=True):
            judged.outcomes[at] = receipt_of(entry, prepared[at].draft, name, False)
        await pace.spend(len(places))
    meter, principal = group.state.meter, prepared[judged.new[0]].draft.principal
    if meter is not None and meter.is_metered(principal):
        group.count(principal, name, len(judged.new), sum(len(prepared[at].draft.body) for at in judged.new))
    for at, first in judged.repeats.items():
        receipt = judged.outcomes[first]
        assert isinstance(receipt, Receipt)
        judged.outcomes[at] = msgspec.structs.replace(receipt, index=prepared[at].draft.index, duplicate=True)
    head = pending.head
    minute = group.appended_us // MINUTE_US
    head.minute_packets = len(judged.new) + (head.minute_packets if head.minute == minute else 0)
    head.minute = minute


def _reused(draft: Draft, where: str) -> IdReused:
    detail = f"the id {draft.id!r} was used with another content at {where}"
    return IdReused(
        detail, subject=draft.id, hint="use another id, or send exactly the same packet again",
        violations=[Violation("/id", IdReused.code, detail, index=draft.index)],
    )  # fmt: skip


def _used(draft: Draft) -> CommitmentUsed:
    detail = "a packet with this commitment is in the log already"
    return CommitmentUsed(
        detail, subject=draft.id, hint="draw another salt",
        violations=[Violation("/salt", CommitmentUsed.code, detail, index=draft.index)],
    )  # fmt: skip

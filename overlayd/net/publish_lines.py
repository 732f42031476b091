"""NDJSON uploads: committed in groups while they arrive, so that neither memory nor the first receipt waits for
the end. A body of any length takes one group's bytes."""

from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec
import trio

from overlayd.model.cursor import Epoch
from overlayd.model.draft import Receipt
from overlayd.model.errors import BadParameter, BatchTooLarge, BodyTooLarge, OverlaydError, PacketTooLarge
from overlayd.model.receipt_text import encode_receipt
from overlayd.model.wire import receipt_body
from overlayd.net.content import BodyReader, Hold
from overlayd.net.publish import Ask, Publisher
from overlayd.net.publish_answers import Published, Rejected, answer_many
from overlayd.net.spool import Spool
from overlayd.pipeline.intake import PublishAnswer
from overlayd.pipeline.lines import Line, LineSplitter

GROUP_BYTES = 1 << 20
TURNS_FROM_SOCKET = 4
NDJSON = "application/x-ndjson"


class PublishedLines(msgspec.Struct, frozen=True):
    """A long answer: receipts as NDJSON and, as its last line, what `PublishBody` says without them."""

    status: int
    lines: AsyncGenerator[bytes, None]
    content_type: str = NDJSON


class _Tally(msgspec.Struct):
    """What became of the lines so far."""

    accepted: int = 0
    duplicates: int = 0
    rejected_count: int = 0
    line_count: int = 0
    rejected: list[Rejected] = []
    receipts: list[Receipt] = []
    first: Receipt | None = None
    last: Receipt | None = None


class LinesRun:
    """One upload."""

    def __init__(
        self, publisher: Publisher, ask: Ask, body: BodyReader, hold: Hold, open_spool: Callable[[], Spool]
    ) -> None:
        """`body` is bounded by `upload_bytes`. Raises BadParameter for what doesn't go with NDJSON."""
        for name, is_given in (
            ("expected_sequence", ask.expected_sequence is not None),
            ("proof", ask.with_proof),
            ("Idempotency-Key", bool(ask.idempotency_key)),
        ):
            if is_given:
                raise BadParameter(f"{name} doesn't go with NDJSON", subject=name, hint="send an array of packets")
        self._publisher = publisher
        self._limits = publisher.limits
        self._ask = ask
        self._body = body
        self._hold = hold
        body.wait_on(hold)
        self._splitter = LineSplitter(int(self._limits.packet_bytes))
        self._pending: deque[Line] = deque()
        self._pending_bytes = 0
        self._is_ended = False
        self._tally = _Tally()
        self._spool = open_spool() if ask.all_receipts else None

    async def run(self) -> Published | PublishedLines:
        """Reads and publishes the whole upload. Checkpoint.

        What was committed before an error stays; the error's problem body counts it.
        """
        try:
            if self._ask.atomic:
                await self._publish_whole()
            else:
                await self._publish_groups()
        except OverlaydError as error:
            self._close()
            if self._tally.line_count:
                error.extra.update(self._progress())
            raise
        except BaseException:
            self._close()
            raise
        return await self._finish()

    async def _publish_groups(self) -> None:
        courtesy = self._publisher.lane.courtesy
        while lines := await self._next_group():
            await courtesy.begin()
            since = trio.current_time()
            try:
                if not await self._publish_group(lines):
                    return
            finally:
                courtesy.end(trio.current_time() - since)

    async def _next_group(self) -> list[Line]:
        """What has arrived, up to a group; waits only while there is nothing. [] at the end."""
        while not self._is_ended and not self._is_group_full():
            if self._pending and not await self._is_more_at_hand():
                break
            piece = await self._body.read_piece()
            self._take_lines(self._splitter.feed(piece) if piece else self._splitter.finish())
            self._is_ended = not piece
        group: list[Line] = []
        group_bytes = 0
        while self._pending and len(group) < self._limits.ndjson_group_packets and group_bytes < GROUP_BYTES:
            line = self._pending.popleft()
            group_bytes += len(line.text or b"")
            group.append(line)
        if self._pending and len(group) == self._limits.ndjson_group_packets:
            self._publisher.intake.count_limit_hit("ndjson_group_packets")
        self._pending_bytes -= group_bytes
        return group

    async def _is_more_at_hand(self) -> bool:
        """Whether bytes wait on this side of the network; they need a turn or two from the socket to here."""
        for _ in range(TURNS_FROM_SOCKET):
            if self._body.is_ready:
                return True
            await trio.lowlevel.checkpoint()
        return self._body.is_ready

    def _is_group_full(self) -> bool:
        return len(self._pending) >= self._limits.ndjson_group_packets or self._pending_bytes >= GROUP_BYTES

    def _take_lines(self, lines: list[Line]) -> None:
        self._pending.extend(lines)
        self._pending_bytes += sum(len(line.text or b"") for line in lines)
        self._hold.resize(self._pending_bytes + self._splitter.held_bytes)

    async def _publish_group(self, lines: list[Line]) -> bool:
        """Whether to go on. Lines that are too long never reach the intake."""
        tally, first_index = self._tally, self._tally.line_count
        whole: list[Line] = []
        stopped: Rejected | None = None
        for line in lines:
            if line.text is not None:
                whole.append(line)
                continue
            overlong = self._overlong(line)
            if self._ask.stop_on_error:
                stopped = overlong
                break
            self._reject(overlong)
        tally.line_count += len(lines)
        if whole and self._ask.stop_on_error:
            given, earlier = await self._submit_until_error(whole, first_index)
            stopped = earlier or stopped
        elif whole:
            given = await self._submit(whole, first_index, atomic=False)
        else:
            given = None
        if given is not None:
            await self._note(given, whole, first_index)
        if stopped is not None:
            self._reject(stopped)
        return stopped is None

    async def _submit(self, lines: list[Line], first_index: int, *, atomic: bool) -> PublishAnswer:
        texts = [line.text for line in lines if line.text is not None]
        return await self._publisher.submit(self._ask, texts, atomic=atomic, first_index=first_index)

    async def _submit_until_error(
        self, lines: list[Line], first_index: int
    ) -> tuple[PublishAnswer | None, Rejected | None]:
        """Publishes the lines before the first one that is refused, all of them or none at a time."""
        stopped: Rejected | None = None
        while lines:
            try:
                return await self._submit(lines, first_index, atomic=True), stopped
            except OverlaydError as error:
                places = [
                    violation.index - first_index for violation in error.violations if violation.index is not None
                ]
                if not places:
                    raise
                at = min(places)
                assert 0 <= at < len(lines)
                error.violations = tuple(one for one in error.violations if one.index == at + first_index)
                stopped = Rejected(error, line=lines[at].number)
                lines = lines[:at]
        return None, stopped

    async def _publish_whole(self) -> None:
        """All or nothing: then the lines must be held, so there may be no more than an array could have."""
        lines: list[Line] = []
        total = 0
        while not self._is_ended:
            piece = await self._body.read_piece()
            found = self._splitter.feed(piece) if piece else self._splitter.finish()
            self._is_ended = not piece
            lines += found
            total += sum(len(line.text or b"") for line in found)
            self._hold.resize(total + self._splitter.held_bytes)
            if len(lines) > self._limits.batch_packets_max:
                self._publisher.intake.count_limit_hit("batch_packets_max")
                raise BatchTooLarge(
                    f"over {self._limits.batch_packets_max} lines with atomic=true", subject="batch_packets_max",
                    hint="without atomic there is no bound on the number of lines",
                )  # fmt: skip
            if total > self._limits.body_bytes:
                raise BodyTooLarge(f"over {int(self._limits.body_bytes)} bytes with atomic=true", subject="body_bytes")
        for line in lines:
            if line.text is None:
                raise self._overlong(line).error
        if lines:
            given = await self._submit(lines, 0, atomic=True)
            self._tally.line_count = len(lines)
            await self._note(given, lines, 0)

    async def _note(self, given: PublishAnswer, lines: list[Line], first_index: int) -> None:
        tally = self._tally
        tally.accepted += given.accepted
        tally.duplicates += given.duplicates
        for index, error in given.rejections:
            self._reject(Rejected(error, line=lines[index - first_index].number))
        if not given.receipts:
            return
        tally.first = tally.first or given.receipts[0]
        tally.last = given.receipts[-1]
        if self._spool is not None:
            await self._spool.write(b"".join(encode_receipt(one) + b"\n" for one in given.receipts))
        elif tally.line_count <= self._limits.ndjson_receipts_max:
            tally.receipts += given.receipts

    def _reject(self, rejected: Rejected) -> None:
        self._tally.rejected_count += 1
        if len(self._tally.rejected) < self._limits.errors_max:
            self._tally.rejected.append(rejected)

    def _overlong(self, line: Line) -> Rejected:
        limit = int(self._limits.packet_bytes)
        return Rejected(
            PacketTooLarge(f"line {line.number} is over {limit} bytes", subject="packet_bytes"), line=line.number
        )

    def _progress(self) -> dict[str, Any]:
        """What a producer must know when its upload breaks off: what is in the log all the same."""
        tally = self._tally
        known: dict[str, Any] = {
            "accepted": tally.accepted, "duplicates": tally.duplicates, "rejected": tally.rejected_count,
        }  # fmt: skip
        if tally.last is not None:
            known["last"] = msgspec.to_builtins(receipt_body(tally.last, Epoch(tally.last.epoch)))
        return known

    async def _finish(self) -> Published | PublishedLines:
        tally = self._tally
        is_short = self._spool is None and tally.line_count <= self._limits.ndjson_receipts_max
        if not is_short and self._spool is None:
            self._publisher.intake.count_limit_hit("ndjson_receipts_max")
        self._publisher.intake.count_errors(tally.rejected_count)
        published = answer_many(
            [encode_receipt(one) for one in tally.receipts] if is_short else None, tally.rejected,
            rejected_count=tally.rejected_count, duplicates=tally.duplicates, accepted=tally.accepted,
            errors_max=self._limits.errors_max, first=b"" if tally.first is None else encode_receipt(tally.first),
            last=b"" if tally.last is None else encode_receipt(tally.last),
        )  # fmt: skip
        if self._spool is None:
            await trio.lowlevel.checkpoint()
            return published
        await self._spool.write(published.body + b"\n")
        return PublishedLines(published.status, self._spool.read())

    def _close(self) -> None:
        if self._spool is not None:
            self._spool.close()

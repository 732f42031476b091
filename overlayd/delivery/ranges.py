"""Entries that are about other entries: confirmations of a run of packets, and removals.

Such a trigger can stand for many packets, so it is walked page by page, and a cursor can stand inside it.
"""

from typing import Literal

from overlayd.delivery.frames import Erased, Gap, Message, PacketState, StatusRun, state_of
from overlayd.delivery.matching import PacketView, depth_of
from overlayd.delivery.query import Selection
from overlayd.delivery.scanning import Scanner, add_gap, cut_page
from overlayd.model.bodies import StatusBody, decode_removal_body, decode_status_body
from overlayd.model.confirmation import AGAIN, FINAL_STATES
from overlayd.model.cursor import Cursor, Epoch
from overlayd.model.entry import Z32, Kind, StoredEntry
from overlayd.model.errors import VerificationFailed
from overlayd.model.wire import GapReason
from overlayd.storage import Log, Page, Stream

Part = Literal["packet", "status", ""]
"""What a status entry is to a reader: the delivery of a packet, news of it, or nothing."""


class RangeWalk:
    """One trigger's packets for one reader. `done` counts the offsets of its range that were looked at."""

    def __init__(self, trigger: StoredEntry, epoch: Epoch, done: int = 0) -> None:
        self.trigger = trigger
        self._epoch = epoch
        self._next = trigger.target_from + done

    @property
    def is_done(self) -> bool:
        return self._next > self.trigger.target_to

    @property
    def cursor(self) -> Cursor:
        """Where to resume: inside the trigger, or behind it once it is done."""
        return self.cursor_behind(self._next - 1)

    def cursor_behind(self, offset: int) -> Cursor:
        """Where to resume once the packet at the offset, which is in the range, was taken."""
        if offset >= self.trigger.target_to:
            return Cursor(self._epoch, self.trigger.offset)
        done = offset - self.trigger.target_from + 1
        return Cursor(self._epoch, self.trigger.offset, done) if done else Cursor(self._epoch, self.trigger.offset - 1)

    async def read(self, log: Log) -> Page:
        """The next page of the range, cut at its end. Checkpoint. `advance` then goes on behind it."""
        first = max(self._next, log.minimum_index + 1)
        limit = 1 if self.trigger.target_from == self.trigger.target_to else None
        return cut_page(await log.read_page(first - 1, limit=limit), self.trigger.target_to)

    def advance(self, page: Page) -> int:
        """The page was looked at; gives how many offsets that were."""
        before = self._next
        self._next = max(page.after, before) + 1
        return self._next - before


def is_single_status(trigger: StoredEntry) -> bool:
    """Whether it is what became of one packet."""
    return trigger.kind == Kind.STATUS and trigger.target_from == trigger.target_to


async def walk_status(walk: RangeWalk, page: Page, scanner: Scanner, log: Log) -> list[Message]:
    """Messages of a status trigger over one page of its range. A checkpoint only if the filter is one."""
    trigger = walk.trigger
    body = decode_status_body(trigger.body)
    state, selection = state_of(body), scanner.matcher.selection
    messages: list[Message] = []
    runs: dict[str, list[StatusRun]] = {}
    for entry in page.entries:
        stream = _packet_stream(entry, trigger, scanner)
        if stream is None:
            continue
        part = part_of(selection, stream, body)
        if not part:
            continue
        if entry.is_reduced:
            _add_gap(messages, walk, entry, log.removal_cause(entry))
            continue
        view = _view(scanner, entry, stream)
        verdict = False if view is None else await scanner.judge(view, state)
        if verdict is None:
            _add_gap(messages, walk, entry, "filter_disabled")
        elif verdict and part == "packet":
            assert view is not None
            cursor = walk.cursor_behind(entry.offset)
            messages.append(Message("packet", cursor, trigger.appended_us, view, state))
        elif verdict:
            _add_status(runs.setdefault(stream.name, []), stream.name, entry.sequence, state, body.reason)
    return _place_runs(runs, walk, page, has_more=bool(messages)) + messages


def walk_removal(walk: RangeWalk, page: Page, scanner: Scanner, announced: list[tuple[int, int]]) -> list[Message]:
    """Messages of a removal over one page of its run. `announced`: runs of offsets of which the reader was told
    already that it won't get them, so it never had them."""
    trigger = walk.trigger
    stream = scanner.matcher.find_stream(trigger.stream_hash)
    assert stream is not None
    messages: list[Message] = []
    is_deleted = decode_removal_body(trigger.body).cause == "deleted"
    for entry in page.entries:
        if entry.kind != Kind.PACKET or entry.stream_hash != trigger.stream_hash:
            continue
        if any(low <= entry.offset <= high for low, high in announced):
            continue
        if is_deleted:
            _add_gap(messages, walk, entry, "deleted")
        else:
            notice = Erased(stream.name, entry.sequence)
            messages.append(Message("erased", walk.cursor_behind(entry.offset), trigger.appended_us, notice))
    return messages


def _packet_stream(entry: StoredEntry, trigger: StoredEntry, scanner: Scanner) -> Stream | None:
    """The packet's stream if the trigger is about it and the selection covers it."""
    if entry.kind != Kind.PACKET:
        return None
    stream = scanner.matcher.find_stream(entry.stream_hash)
    if stream is None or trigger.stream_hash != Z32:
        return stream
    # An anchor covers everything that was appended, also what has a transaction of its own, or is to have none.
    commit = stream.definition.confirm.commit
    return stream if commit == "batch" or (commit == "packet" and entry.commitment == Z32) else None


def part_of(selection: Selection, stream: Stream, body: StatusBody) -> Part:
    """What the status of a packet is to a reader.

    Who takes packets as confirmed hears unasked of those that it was given and that were taken back or moved to another
    block, and of those that won't come.
    """
    depth = None if selection.deliver == "appended" else depth_of(selection, stream)
    is_told = depth is not None and body.depth is not None and depth <= body.depth
    if body.state == "confirmed" and body.depth == depth and is_told and body.reason != AGAIN:
        return "packet"
    if selection.status:
        return "status"
    if body.state == "confirmed":
        return "status" if is_told and body.depth == depth else ""
    if body.state == "pending":
        return "status" if is_told else ""
    return "status" if depth is not None and body.state in FINAL_STATES else ""


def _view(scanner: Scanner, entry: StoredEntry, stream: Stream) -> PacketView | None:
    try:
        return scanner.view(entry, stream.name)
    except VerificationFailed:
        return None


def _add_gap(messages: list[Message], walk: RangeWalk, entry: StoredEntry, reason: GapReason) -> None:
    gap = Gap(walk.cursor.epoch, entry.offset, entry.offset, reason)
    add_gap(messages, gap, walk.trigger.appended_us, walk.cursor_behind(entry.offset))


def _add_status(runs: list[StatusRun], stream: str, sequence: int, state: PacketState, reason: str) -> None:
    is_next = bool(runs) and runs[-1].to_sequence == sequence - 1
    first = runs.pop().from_sequence if is_next else sequence
    runs.append(StatusRun(stream, first, sequence, state, reason))


def _place_runs(runs: dict[str, list[StatusRun]], walk: RangeWalk, page: Page, *, has_more: bool) -> list[Message]:
    """Runs of several streams interleave, so only behind the last of them is everything before it told; a reader
    that resumes between them hears some again."""
    every = [run for stream_runs in runs.values() for run in stream_runs]
    first = page.entries[0].offset - 1 if page.entries else walk.trigger.target_from - 1
    start, end = walk.cursor_behind(first), walk.cursor_behind(page.after)
    return [
        Message("status", end if number == len(every) and not has_more else start, walk.trigger.appended_us, run)
        for number, run in enumerate(every, start=1)
    ]

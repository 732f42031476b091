"""Where a reader begins: cursors of this and of earlier epochs, times, the newest packets; and what it saw before."""

from overlayd.delivery.frames import Gap, Message
from overlayd.delivery.matching import Matcher
from overlayd.delivery.query import At, Beginning, Last, Now, Seen, Start
from overlayd.delivery.ranges import RangeWalk
from overlayd.delivery.reader import Opening
from overlayd.delivery.scanning import Scanner
from overlayd.model.cursor import Cursor, Epoch, format_epoch
from overlayd.model.errors import (
    BadCursor,
    BadParameter,
    DamagedEntry,
    ForkDetected,
    FutureCursor,
    UnknownEpoch,
    UnknownPacket,
)
from overlayd.model.wire import ConsistencyBody, LossBody, format_sha256
from overlayd.storage import Log


async def open_at(log: Log, scanner: Scanner, start: Start, *, scan_max: int) -> Opening:
    """The opening for a start. `scan_max` bounds the streams and keys that from=last looks up. Checkpoint for some.

    Raises BadCursor, FutureCursor, UnknownEpoch, BadParameter.
    """
    if isinstance(start, Now):
        return Opening(log.head)
    if isinstance(start, Beginning):
        return Opening(log.minimum_index)
    if isinstance(start, At):
        offset = await log.find_offset_at(start.time_us)
        return Opening(max(log.minimum_index, min(offset - 1, log.head)))
    if isinstance(start, Last):
        return await _open_last(log, scanner.matcher, scan_max)
    return await _open_cursor(log, scanner, start)


async def _open_last(log: Log, matcher: Matcher, scan_max: int) -> Opening:
    """The newest packets up to the head of this moment, oldest first, so that a resume between them loses none."""
    head = log.head
    streams = [stream for stream in log.list_streams() if matcher.is_stream_match(stream)]
    keys: list[str | None] = [*sorted(matcher.selection.keys)] or [None]
    if len(streams) * len(keys) > scan_max:
        raise BadParameter(
            f"from=last would look up {len(streams) * len(keys)} packets; {scan_max} are allowed", subject="from",
            hint="name fewer streams or keys",
        )  # fmt: skip
    offsets = []
    for stream in streams:
        for key in keys:
            entry = await log.find_last(stream, key)
            if entry is not None and entry.offset <= head:  # a newer one comes live
                offsets.append(entry.offset)
    return Opening(head, last=sorted(set(offsets)))


async def _open_cursor(log: Log, scanner: Scanner, cursor: Cursor) -> Opening:
    if cursor.epoch != log.epoch:
        return _open_ancestor(log, cursor)
    if cursor.offset > log.head:
        raise FutureCursor(
            f"the cursor {cursor} lies beyond the head, {Cursor(log.epoch, log.head)}", subject="after",
            hint="this node never gave it out; use from=now or from=beginning",
            extra={"head": str(Cursor(log.epoch, log.head))},
        )  # fmt: skip
    if cursor.index is None:
        return Opening(cursor.offset)
    return await _open_inside(log, scanner, cursor)


async def _open_inside(log: Log, scanner: Scanner, cursor: Cursor) -> Opening:
    """A cursor inside a range entry."""
    assert cursor.index is not None
    if cursor.offset <= log.minimum_index:
        return Opening(cursor.offset)
    try:
        entry = await log.read_entry(cursor.offset)
    except (UnknownPacket, DamagedEntry):
        return Opening(max(0, cursor.offset - 1))
    if not entry.target_from or cursor.index > entry.target_to - entry.target_from:
        raise BadCursor(
            f"the cursor {cursor} points inside an entry that isn't so long", subject="after",
            hint="send back exactly what the node gave you",
        )  # fmt: skip
    if not scanner.is_trigger(entry):
        return Opening(cursor.offset)
    return Opening(cursor.offset - 1, walk=RangeWalk(entry, log.epoch, cursor.index))


def common_offset(log: Log, epoch: Epoch) -> int:
    """The last offset that this log shares with an earlier epoch. Raises UnknownEpoch."""
    common: int | None = None
    for known, offset in log.ancestry:
        if known == epoch:
            common = offset
        elif common is not None:
            common = min(common, offset)  # a later restore may have gone back further
    if common is None:
        raise UnknownEpoch(
            f"the cursor's epoch {format_epoch(epoch)} is none of this log's", subject="after",
            hint="the cursor is of another node or of a log that was replaced; use from=beginning",
            extra={"epoch": format_epoch(log.epoch)},
        )  # fmt: skip
    return common


def _open_ancestor(log: Log, cursor: Cursor) -> Opening:
    common = common_offset(log, cursor.epoch)
    if cursor.offset <= common:
        return Opening(cursor.offset)
    gap = Gap(cursor.epoch, common + 1, cursor.offset, "restored")
    return Opening(common, prelude=[Message("gap", Cursor(log.epoch, common), 0, gap)])


async def check_seen(log: Log, seen: Seen, start: Start) -> ConsistencyBody | LossBody:
    """Proof that this log goes on from what the client saw; or, if a restore took the end of that away, the loss.

    Checkpoint. Raises ForkDetected when the log contradicts it.
    """
    if isinstance(start, Cursor) and start.epoch != log.epoch:
        common = common_offset(log, start.epoch)
        if seen.size > common:
            return LossBody(epoch=format_epoch(start.epoch), common_size=common, seen_size=seen.size)
    if seen.size > log.head:
        raise ForkDetected(
            f"the log has {log.head} entries, fewer than the {seen.size} you saw", subject="seen",
            hint="keep the checkpoint that you have: it shows that the log was cut back",
        )  # fmt: skip
    root = await log.root_at(seen.size)
    if root != seen.root:
        raise ForkDetected(
            f"at size {seen.size} the log's root isn't the one you saw", subject="seen",
            hint="keep the checkpoint that you have: together with one of this log it proves the fork",
            extra={"root": format_sha256(root)},
        )  # fmt: skip
    checkpoint = await log.checkpoint(seen.size)
    return ConsistencyBody(
        from_=seen.size,
        to=checkpoint.size,
        from_root=format_sha256(root),
        to_root=format_sha256(checkpoint.root),
        path=[format_sha256(node) for node in await log.consistency_path(seen.size, checkpoint.size)],
        checkpoint=checkpoint.note,
    )

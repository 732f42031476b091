"""What one subscription sends next: messages, a sign of life, or the end. The same for every transport."""

import math
from collections.abc import Iterable
from typing import TypeAlias

import msgspec
import trio

from overlayd.delivery.delivery import Delivery, OpenReader
from overlayd.delivery.frames import FrameBook, Message
from overlayd.delivery.reader import Batch, refuse_gaps
from overlayd.delivery.scanning import Pieces
from overlayd.delivery.session import CLOSE_POLICY, Ending, Session
from overlayd.delivery.wires import Wire
from overlayd.model.cursor import Cursor
from overlayd.model.errors import CursorExpired
from overlayd.storage import Log


class Tick(msgspec.Struct, frozen=True):
    """Nothing to send, but the cursor may have moved."""

    cursor: Cursor


class Parcel(msgspec.Struct):
    """Messages to send. `wire` is shared with others that send the same ones. `is_live`: the reader was at the
    head before they came, so how long they took is worth measuring."""

    messages: list[Message]
    cursor: Cursor
    wire: dict[object, Pieces]
    is_live: bool

    def pieces(self, wire: Wire, frames: FrameBook) -> Pieces:
        """As bytes for a transport. Kept only in forms that many sessions share."""
        if wire.sub:
            return wire.pieces(self.messages, self.cursor, frames)
        found = self.wire.get(wire)
        if found is None:
            found = self.wire[wire] = wire.pieces(self.messages, self.cursor, frames)
        return found


FeedEvent: TypeAlias = Parcel | Tick | Ending

STOPPED_S = 1.0
"""A stream that is deleted is stopped first, so readers that find one stopped without being told wait a moment before
they say goodbye."""


class Feed:
    """Turns a reader into events. Call `wait` and then `take`, again and again, in one task.

    `sent_at`, `told` and `stopped_at` say when something was sent last, up to where the client was told of, and since
    when all of its streams are stopped.
    """

    __slots__ = (
        "_delivery", "_heartbeat_s", "_is_live", "_is_strict", "_reader", "_refusal", "_scanned", "_session", "sent_at",
        "stopped_at", "told",
    )  # fmt: skip

    def __init__(self, delivery: Delivery, session: Session, opened: OpenReader) -> None:
        self._delivery = delivery
        self._session = session
        self._reader = opened.reader
        self._is_strict = opened.query.on_gap == "error"
        self._heartbeat_s = opened.query.heartbeat_s
        self.sent_at = trio.current_time()
        self._scanned = 0
        self.told = opened.start
        self.stopped_at = math.inf
        self._is_live = False
        self._refusal: CursorExpired | None = None

    @property
    def cursor(self) -> Cursor:
        return self._reader.cursor

    @property
    def is_refused(self) -> bool:
        """Whether what comes next is a gap that it may not pass."""
        return self._refusal is not None

    async def wait(self) -> None:
        """Until there is something to take: entries, a heartbeat that is due, or the end. Checkpoint."""
        if self._refusal is None and self._reader.is_at_head and not self._has_stopped():
            deadline = min(self.sent_at + self._pause_s, self.stopped_at + STOPPED_S)
            with self._session.waiting(deadline, for_log=True):
                await self._reader.wait()
            self._is_live = True
        else:
            await trio.lowlevel.checkpoint()
            self._is_live = False

    async def take(self) -> FeedEvent | None:
        """The next event, None when a page held nothing. Checkpoint. Raises CursorExpired with on_gap=error."""
        if self._session.ending is not None:
            await trio.lowlevel.checkpoint()
            return self._session.ending
        if self._refusal is not None:
            raise self._refusal
        batch = await self._reader.read()
        self._scanned += batch.scanned
        if batch.messages:
            self._rest()
            return self._parcel(batch)
        if batch.is_at_head and self._has_stopped():
            return Ending(CLOSE_POLICY, "stream.stopped")
        is_due = trio.current_time() - self.sent_at >= self._pause_s
        if is_due or self._scanned >= self._delivery.settings.progress_entries:
            self._rest()
            return Tick(batch.cursor)
        return None

    @property
    def _pause_s(self) -> float:
        """How long nothing may be sent: a heartbeat, or less while a cursor that moved isn't told yet."""
        if self._reader.cursor == self.told:
            return self._heartbeat_s
        return min(self._heartbeat_s, self._delivery.settings.progress_interval)

    def _rest(self) -> None:
        self.sent_at = trio.current_time()
        self._scanned = 0
        self.told = self._reader.cursor

    def _parcel(self, batch: Batch) -> Parcel:
        if not self._is_strict:
            return Parcel(batch.messages, batch.cursor, batch.wire, self._is_live)
        try:
            refuse_gaps(batch.messages)
        except CursorExpired as refusal:
            place = next(at for at, message in enumerate(batch.messages) if message.kind == "gap")
            if not place:
                raise
            self._refusal = refusal
            before = batch.messages[:place]
            return Parcel(before, before[-1].cursor, {}, self._is_live)
        return Parcel(batch.messages, batch.cursor, batch.wire, self._is_live)

    def _has_stopped(self) -> bool:
        """Whether every stream that could still bring something has been stopped for a moment."""
        if not is_all_stopped(self._delivery.log, self._reader.matched_names):
            self.stopped_at = math.inf
            return False
        self.stopped_at = min(self.stopped_at, trio.current_time())
        return self._session.is_told_of_stop or trio.current_time() >= self.stopped_at + STOPPED_S


def is_all_stopped(log: Log, names: Iterable[str] | None) -> bool:
    """Whether there are names, and every stream of them is stopped. None: any stream may come."""
    streams = [] if names is None else [log.find_stream(name) for name in names]
    return bool(streams) and all(stream is not None and stream.state == "stopped" for stream in streams)

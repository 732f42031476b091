"""A live connection as the fan-out sees it, and its subscriptions' places."""

import math
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

import trio

from overlayd.delivery.feed import STOPPED_S, Feed, is_all_stopped
from overlayd.delivery.query import LiveQuery
from overlayd.delivery.scanning import Piece
from overlayd.delivery.session import CLOSE_STALLED, Ending, Session
from overlayd.delivery.wheel import NEVER
from overlayd.delivery.wires import Wire
from overlayd.model.cursor import Cursor
from overlayd.model.errors import OverlaydError
from overlayd.model.push_stream import PushStream

if TYPE_CHECKING:
    from overlayd.delivery.delivery import OpenReader
    from overlayd.delivery.fan_out import FanOut, Group

STALL_LOOKS = 4
"""How often within `stall_timeout` a session with unsent bytes is looked at."""


class Voice(Protocol):
    """What a transport says about a subscription."""

    def tick(self, seat: "Seat", cursor: Cursor) -> Piece:
        """A sign of life that moves the subscription's resume point."""
        ...

    def ping(self) -> bytes:
        """A question that a living peer answers, b"" where the transport has none."""
        ...

    async def refuse(self, seat: "Seat", error: OverlaydError) -> None:
        """The subscription can't go on. Raises BrokenResourceError."""
        ...

    async def end_seat(self, seat: "Seat", ending: Ending) -> None:
        """The subscription is over by itself. Raises BrokenResourceError."""
        ...


class _Silence:
    """The voice of a line that was closed: nobody is told anything. It takes the place of the transport, which else is held by
    its line, and the line by it, until the collector comes by: a connection's buffers are too large for that."""

    def tick(self, seat: "Seat", cursor: Cursor) -> Piece:
        return Piece(b"", cursor, 0)

    def ping(self) -> bytes:
        return b""

    async def refuse(self, seat: "Seat", error: OverlaydError) -> None:
        await trio.lowlevel.checkpoint()

    async def end_seat(self, seat: "Seat", ending: Ending) -> None:
        await trio.lowlevel.checkpoint()


_SILENCE = _Silence()


class Seat:
    """One subscription of a line. Either it sits in a group of the fan-out, at the head, or it is behind and reads the
    log for itself with a feed."""

    __slots__ = (
        "exact_names", "feed", "group", "is_over", "line", "name", "opened", "query", "resume_at", "sent_at",
        "stopped_at", "told", "wire",
    )  # fmt: skip

    def __init__(self, line: "Line", name: str, opened: "OpenReader", wire: Wire) -> None:
        self.line = line
        self.name = name
        self.query: LiveQuery = opened.query
        self.wire = wire
        self.group: Group | None = None
        self.feed: Feed | None = None
        self.resume_at: Cursor = opened.start
        self.is_over = False
        self.sent_at = trio.current_time()
        self.told = 0
        self.stopped_at = math.inf
        self.exact_names = opened.reader.matched_names
        self.opened = opened

    def __repr__(self) -> str:
        return f"Seat({self.name!r}, {'at the head' if self.group else 'behind'}, cursor={self.cursor})"

    @property
    def is_strict(self) -> bool:
        """Whether a gap ends it."""
        return self.query.on_gap == "error"

    @property
    def cursor(self) -> Cursor:
        """Resuming here loses nothing: everything up to it was written."""
        group = self.group
        if group is None:
            return self.resume_at
        if group.channel.is_delivering:
            return Cursor(group.channel.cursor.epoch, max(self.told, group.told))
        return group.channel.cursor

    @property
    def position(self) -> int:
        """The last offset that was looked at for it."""
        return self.cursor.offset

    def close(self) -> None:
        """The subscription is over. Again does nothing."""
        self.resume_at = self.cursor
        self.is_over = True
        if self.group is not None:
            self.group.remove(self)
        self.line.behind.pop(self, None)
        self.opened.close()


class Line:
    """One live connection. `write` takes no time; `send` waits for its turn."""

    __slots__ = (
        "__weakref__", "_asked_at", "_crc32", "_fan_out", "_moved", "_moved_at", "_ping_at", "_plain_bytes", "behind",
        "is_catching_up", "is_closing", "is_pinged", "on_stall", "seats", "session", "stream", "tick", "voice",
    )  # fmt: skip

    def __init__(
        self, stream: PushStream, session: Session, voice: Voice, fan_out: "FanOut", on_stall: Callable[[Ending], None]
    ) -> None:
        """`on_stall` is called when the peer moves no byte for too long; it ends the connection at once."""
        self.stream = stream
        self.session = session
        self.seats = cast("dict[str, Seat]", session.readers)
        self.voice = voice
        self.behind: dict[Seat, None] = {}
        self.is_catching_up = False
        self.is_closing = False
        self.is_pinged = False
        self.on_stall = on_stall
        self.tick = NEVER
        self._fan_out = fan_out
        self._moved = 0
        self._moved_at = math.inf
        self._ping_at = math.inf
        self._asked_at = 0
        self._crc32 = 0
        self._plain_bytes = 0

    def __repr__(self) -> str:
        return f"Line({self.session!r}, behind={len(self.behind)}, unsent={self.stream.unsent})"

    def write(self, piece: Piece) -> int:
        """Writes what nobody waits for; gives what is unsent now. Only without a tail. Raises BrokenResourceError."""
        unsent = self.stream.write_now(piece.data)
        session = self.session
        session.messages_sent += piece.count
        session.bytes_sent += len(piece.data)
        if session.pace is not None:
            session.pace.spend(len(piece.data))
        if piece.plain:
            self._crc32 = zlib.crc32(piece.plain, self._crc32)
            self._plain_bytes += len(piece.plain)
        if unsent:
            self.watch()
        return unsent

    async def send(self, piece: Piece) -> None:
        """Writes behind what is unsent. Checkpoint. Raises BrokenResourceError."""
        if self.stream.unsent:
            self.watch()
        while self.stream.unsent:
            await self.stream.flush()
        if self.write(piece):
            await self.stream.flush()
        else:
            await trio.lowlevel.checkpoint()

    @property
    def plain_sum(self) -> tuple[int, int]:
        """CRC-32 and length of the plain text."""
        return self._crc32, self._plain_bytes

    def start(self, ping_interval_s: float | None) -> None:
        """From now on it is looked at in its time."""
        self._ping_at = math.inf if ping_interval_s is None else trio.current_time() + ping_interval_s
        self._fan_out.lines.add(self)
        self._fan_out.wheel.schedule(self, self._ping_at)

    def close(self) -> None:
        """Nothing is written by others any more. Again does nothing."""
        self.is_closing = True
        self.voice = _SILENCE
        self._fan_out.lines.discard(self)
        self._fan_out.wheel.forget(self)
        if self.is_catching_up:
            self._fan_out.wake()

    def watch(self) -> None:
        """Bytes are unsent: the peer has to take some in time."""
        if self._moved_at == math.inf:
            now = trio.current_time()
            self._moved, self._moved_at = self.stream.wire_bytes_moved, now
            self._fan_out.wheel.schedule(self, now + self._fan_out.limits.stall_timeout / STALL_LOOKS)

    def look_again(self) -> None:
        """Looks now: something else than the log changed."""
        if not self.is_closing:
            self._fan_out.wheel.schedule(self, trio.current_time())

    def look(self, now: float) -> float:
        """The timer wheel's: heartbeats, pings, and peers that don't move."""
        if self.is_closing:
            return math.inf
        again = min(self._look_at_tail(now), self._look_at_ping(now))
        if self.is_closing:
            return math.inf
        try:
            for seat in tuple(self.seats.values()):
                if seat.group is not None:
                    again = min(again, self._look_at_seat(seat, seat.group, now))
        except trio.BrokenResourceError:
            self.stream.abort()
            return math.inf
        return again

    def _look_at_seat(self, seat: Seat, group: "Group", now: float) -> float:
        fan_out, channel = self._fan_out, group.channel
        if self._has_stopped(seat, now):
            fan_out.fall_behind(seat, channel.cursor)
            return math.inf
        settings = fan_out.settings
        sent_at, told = max(seat.sent_at, group.sent_at), max(seat.told, group.told)
        interval_s = min(seat.query.heartbeat_s, settings.progress_interval)
        pause_s = seat.query.heartbeat_s if told == channel.position else interval_s
        is_far = channel.position - told >= settings.progress_entries
        if now - sent_at < pause_s and not is_far:
            return min(
                sent_at + interval_s if sent_at + interval_s > now else sent_at + pause_s, seat.stopped_at + STOPPED_S
            )
        if channel.is_delivering or self.stream.unsent:
            return now + interval_s / STALL_LOOKS  # it is being written to
        self.write(self.voice.tick(seat, channel.cursor))
        seat.sent_at, seat.told = now, channel.position
        return min(now + interval_s, seat.stopped_at + STOPPED_S)

    def _has_stopped(self, seat: Seat, now: float) -> bool:
        """Whether every stream that could still bring something has been stopped for a moment."""
        if not is_all_stopped(self._fan_out.log, seat.exact_names):
            seat.stopped_at = math.inf
            return False
        seat.stopped_at = min(seat.stopped_at, now)
        return self.session.is_told_of_stop or now >= seat.stopped_at + STOPPED_S

    def _look_at_tail(self, now: float) -> float:
        """Ends a peer that takes nothing of what waits for it."""
        if not self.stream.unsent:
            self._moved_at = math.inf
            return math.inf
        stall_s = self._fan_out.limits.stall_timeout
        moved = self.stream.wire_bytes_moved
        if moved != self._moved or self._moved_at == math.inf:
            self._moved, self._moved_at = moved, now
        elif now - self._moved_at >= stall_s:
            self._fan_out.metrics.count_limit_hit("stall_timeout")
            self.on_stall(Ending(CLOSE_STALLED, "stalled"))
            return math.inf
        return min(now + stall_s / STALL_LOOKS, self._moved_at + stall_s)

    def _look_at_ping(self, now: float) -> float:
        """Asks a peer whether it is there, and ends one that moved nothing since."""
        if now < self._ping_at:
            return self._ping_at
        settings, limits = self._fan_out.settings, self._fan_out.limits
        if self.is_pinged:
            if self.stream.wire_bytes_moved == self._asked_at:
                self._fan_out.metrics.count_limit_hit("pong_timeout")
                self.on_stall(Ending(CLOSE_STALLED, "no pong"))
                return math.inf
            self.is_pinged = False
            self._ping_at = now + settings.ping_interval
        elif not self.stream.unsent:  # a peer that has something to take is watched by what it takes
            ping = self.voice.ping()
            try:
                self.stream.write_now(ping)
            except trio.BrokenResourceError:
                self.stream.abort()
                return math.inf
            self._asked_at = self.stream.wire_bytes_moved
            self.is_pinged = True
            self._ping_at = now + limits.pong_timeout
        else:
            self._ping_at = now + limits.pong_timeout
        return self._ping_at

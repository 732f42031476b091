"""Sessions that are behind: each reads the log from its own cursor, page by page, and rejoins the others at the head."""

import trio

from overlayd.delivery.fan_out import FanOut
from overlayd.delivery.feed import Feed, FeedEvent, Parcel, Tick
from overlayd.delivery.line import Line, Seat
from overlayd.delivery.session import Ending
from overlayd.model.errors import OverlaydError
from overlayd.model.memory_budget import CATCHING_UP

PACE_S = 1.0
"""Whoever waits for its pace looks so often whether it is still wanted."""


class CatchUp:
    """Brings the seats of a line to the head. One task per line that is behind, and none otherwise."""

    def __init__(self, fan_out: FanOut) -> None:
        self._fan_out = fan_out
        self._delivery = fan_out.delivery

    async def run(self, line: Line) -> None:
        """Until nothing of the line is behind or unsent. Raises nothing but Cancelled."""
        try:
            while not line.is_closing:
                await line.stream.flush()
                if not line.behind:
                    return
                if self._delivery.memory is not None:
                    await self._delivery.memory.wait_for(CATCHING_UP)
                has_moved, version = False, self._fan_out.version
                for seat in tuple(line.behind):
                    has_moved |= await self._step(line, seat)
                if not has_moved and line.behind and not line.is_closing:
                    await self._fan_out.wait_moved(version)
        except trio.BrokenResourceError:
            line.stream.abort()  # its own task sees it
        finally:
            line.is_catching_up = False

    async def _step(self, line: Line, seat: Seat) -> bool:
        """One page of one seat. Whether there is more to do for it now. Checkpoint. Raises BrokenResourceError."""
        try:
            feed = seat.feed or await self._resume(line, seat)
            event = await feed.take()
        except OverlaydError as error:
            if not seat.is_over:
                await line.voice.refuse(seat, error)
            return True
        if seat.is_over or line.is_closing:
            return True
        await self.serve(line, seat, feed, event)
        if seat.is_over or line.is_closing:
            return True
        seat.resume_at = feed.cursor if event is None or isinstance(event, Ending) else event.cursor
        return self._fan_out.try_join(seat, feed) or feed.is_refused or not seat.opened.reader.is_at_head

    async def serve(self, line: Line, seat: Seat, feed: Feed, event: FeedEvent | None) -> None:
        """Writes what a feed gave. Checkpoint only where the peer is slow. Raises BrokenResourceError."""
        if event is None:
            return
        if isinstance(event, Parcel):
            for piece in event.pieces(seat.wire, self._delivery.frames):
                await self._keep_pace(line)
                while line.stream.unsent:
                    await line.stream.flush()
                if seat.is_over or line.is_closing:
                    return
                line.write(piece)
                seat.resume_at = piece.cursor
            self._delivery.meters.count_sent(seat.wire.transport, event.messages, is_live=event.is_live)
        elif isinstance(event, Tick):
            while line.stream.unsent:
                await line.stream.flush()
            if not seat.is_over:
                line.write(line.voice.tick(seat, event.cursor))
        else:
            await line.voice.end_seat(seat, event)

    async def _keep_pace(self, line: Line) -> None:
        """Waits while its principal was sent more than may be. Checkpoint if it waits."""
        pace = line.session.pace
        while pace is not None and (wait_s := pace.wait_s()) > 0 and not line.is_closing:
            with line.session.waiting():
                await trio.sleep(min(wait_s, PACE_S))
            if line.session.ending is not None:
                return

    async def _resume(self, line: Line, seat: Seat) -> Feed:
        """Goes on where the fan-out left the seat. Checkpoint for some cursors. Raises OverlaydErrors."""
        await self._delivery.place_reader(seat.opened, seat.resume_at, self._fan_out.horizon)
        feed = seat.feed = Feed(self._delivery, line.session, seat.opened)
        feed.sent_at, feed.stopped_at = seat.sent_at, seat.stopped_at
        return feed

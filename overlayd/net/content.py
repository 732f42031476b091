"""Request bodies: counted while they are read, inflated with care, at a minimum rate, within a common budget.

Counting what arrives is the only limit that holds for chunked and compressed bodies too.
"""

import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from types import TracebackType
from typing import Protocol

import trio

from overlayd.model.errors import BadRequest, BodyTooLarge, IntakeBusy, RequestTimeout, WrongContentEncoding
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.net.lane import NO_LANE, AnyLane

INFLATE_PIECE_BYTES = 64 << 10
EMPTY_MEMBERS_MAX = 16
RATE_GRACE_S = 10.0
_GZIP_WINDOW = 16 + zlib.MAX_WBITS


class BodyBudget:
    """All bodies being read or waiting for their commit, together."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._bytes_max = int(limits.bodies_in_flight_bytes)
        self._metrics = metrics
        self._bytes = 0
        self._holds: set[Hold] = set()
        gauge = metrics.gauge("overlayd_bodies_in_flight_bytes", "Bytes of request bodies held in memory")
        gauge.set_function(lambda: self._bytes)

    def __repr__(self) -> str:
        return f"BodyBudget({self._bytes} of {self._bytes_max})"

    def hold(self) -> "Hold":
        """One request's share; to be entered, and given back at the block's end."""
        return Hold(self)

    def enter(self, hold: "Hold") -> None:
        """Takes the share's request in."""
        self._holds.add(hold)

    def leave(self, hold: "Hold") -> None:
        """Takes back what the share has left."""
        self._holds.discard(hold)
        self._bytes -= hold.bytes

    def take_now(self, count: int) -> bool:
        """Takes bytes of a body that is here already, if there is room; for `give_back`."""
        if self._bytes + count > self._bytes_max:
            return False
        self._bytes += count
        return True

    def give_back(self, count: int) -> None:
        """The body is done with."""
        self._bytes -= count

    def change(self, hold: "Hold", count: int) -> None:
        """Takes or gives back. Raises IntakeBusy when there is no room: a body that waited would hold its part."""
        while count > 0 and self._bytes + count > self._bytes_max:
            if not self._make_room(hold.bytes + count):
                self._metrics.count_limit_hit("bodies_in_flight_bytes")
                raise _no_room("the node holds as many bytes of requests as it may")
        self._bytes += count

    def _make_room(self, wanted_bytes: int) -> bool:
        """Gives up the largest body that waits for its client, if it is larger than the one that wants room: a few
        clients that stop in the middle of large bodies would keep everybody else out."""
        waiting = (hold for hold in self._holds if hold.is_waiting)
        largest = max(waiting, key=lambda hold: hold.bytes, default=None)
        if largest is None or largest.bytes <= wanted_bytes:
            return False
        self._metrics.count_limit_hit("bodies_in_flight_bytes")
        self._bytes -= largest.bytes
        largest.give_up()
        return True


class Hold:
    """What one request takes of the budget."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._scope: trio.CancelScope | None = None
        self._is_given_up = False
        self.bytes = 0

    def __enter__(self) -> "Hold":
        self._budget.enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._budget.leave(self)

    @property
    def is_waiting(self) -> bool:
        """Whether the request waits for its client."""
        return self._scope is not None and not self._is_given_up

    def resize(self, count: int) -> None:
        """Now so many bytes. Raises IntakeBusy."""
        self._check()
        self._budget.change(self, count - self.bytes)
        self.bytes = count

    @contextmanager
    def waiting(self, timeout_s: float) -> Iterator[trio.CancelScope]:
        """Around a wait for the client, which ends at the timeout, or when others need the room. Raises IntakeBusy."""
        with trio.move_on_after(timeout_s) as scope:
            self._scope = scope
            try:
                yield scope
            finally:
                self._scope = None
        self._check()

    def give_up(self) -> None:
        """Ends the wait. The budget has its bytes back."""
        self._is_given_up = True
        self.bytes = 0
        if self._scope is not None:
            self._scope.cancel()

    def _check(self) -> None:
        if self._is_given_up:
            raise _no_room("the body was given up to make room for smaller ones")


def _no_room(detail: str) -> IntakeBusy:
    return IntakeBusy(
        detail, subject="bodies_in_flight_bytes", hint="send again in a moment, or in smaller requests"
    )  # fmt: skip


class Inflater:
    """gzip (RFC 1952), in bounded pieces. Several members behind one another are one body, as `cat` makes them."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(_GZIP_WINDOW)
        self._is_begun = False
        self._has_output = False
        self._empty_members = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Pieces of at most 64 KiB. Take them all before the next feed. Raises BadRequest."""
        while data:
            if self._member.eof:
                self._next_member()
            self._is_begun = True
            try:
                piece = self._member.decompress(data, INFLATE_PIECE_BYTES)
            except zlib.error as err:
                raise BadRequest(f"the body isn't gzip all through: {err}", subject="Content-Encoding") from err
            data = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            if piece:
                self._has_output = True
                yield piece
        # A full piece may leave output inside zlib with no input left.
        while not self._member.eof and (piece := self._member.decompress(b"", INFLATE_PIECE_BYTES)):
            yield piece

    def finish(self) -> None:
        """Raises BadRequest when the body ended early."""
        if not self._is_begun or not self._member.eof:
            raise BadRequest("the gzip body is cut short", subject="Content-Encoding")

    def _next_member(self) -> None:
        """Members without content cost time for nothing, so only a few are taken (bgzip ends with one)."""
        if not self._has_output:
            self._empty_members += 1
            if self._empty_members > EMPTY_MEMBERS_MAX:
                raise BadRequest("the gzip body has too many empty members", subject="Content-Encoding")
        self._has_output = False
        self._member = zlib.decompressobj(_GZIP_WINDOW)


class BodySource(Protocol):
    """Where a body's bytes come from, as they were sent."""

    @property
    def is_ready(self) -> bool:
        """Whether `receive` would give something at once."""
        ...

    def receive_nowait(self) -> bytes | None:
        """The next bytes, b"" at the end, if they can be had without waiting; None says to `receive` them."""
        ...

    async def receive(self) -> bytes:
        """The next bytes; b"" at the end."""
        ...


class BodyReader:
    """One request's body. `limit` names the bound of its inflated bytes."""

    def __init__(
        self,
        source: BodySource,
        *,
        encoding: str,
        bytes_max: int,
        limit: str,
        limits: Limits,
        lane: AnyLane,
        metrics: Metrics,
    ) -> None:
        """Raises WrongContentEncoding."""
        self._source = source
        self._bytes_max = bytes_max
        self._limit = limit
        self._limits = limits
        self._lane = lane
        self._metrics = metrics
        self._inflater = _inflater_of(encoding)
        self._pieces: Iterator[bytes] = iter(())
        self._is_inflating = False
        self._raw_bytes = 0
        self._waited_s = 0.0
        self._hold: Hold | None = None
        self.bytes = 0

    @property
    def is_ready(self) -> bool:
        """Whether `read_piece` has something to do before it waits for the client."""
        return self._is_inflating or self._source.is_ready

    async def read_piece(self) -> bytes:
        """The next bytes, inflated; b"" at the end. A checkpoint where it waits for the client or inflates; bytes
        that are here already may be given at once. Steps out of the lane while it waits.

        Raises BodyTooLarge, RequestTimeout, BadRequest.
        """
        while True:
            piece = next(self._pieces, b"")
            if piece:
                self._count(len(piece))
                await trio.lowlevel.checkpoint()
                return piece
            self._is_inflating = False
            at_hand = self._source.receive_nowait()
            if at_hand is None:
                async with self._lane.step_out():
                    raw = await self._receive_in_time()
            else:
                raw = at_hand
                self._raw_bytes += len(raw)
            if not raw:
                if self._inflater is not None:
                    self._inflater.finish()
                return b""
            if self._inflater is None:
                self._count(len(raw))
                return raw
            self._pieces = self._inflater.feed(raw)
            self._is_inflating = True

    def wait_on(self, hold: Hold) -> None:
        """From now on the budget may end a wait for the client, to make room."""
        self._hold = hold

    async def read_all(self, hold: Hold) -> bytes:
        """The whole body, on the budget. A checkpoint as `read_piece`, and raises as it does, and IntakeBusy."""
        body = bytearray()
        self.wait_on(hold)
        async with self._lane.step_out():
            while piece := await self.read_piece():
                hold.resize(len(body) + len(piece))
                body += piece
        return bytes(body)

    def _count(self, count: int) -> None:
        self.bytes += count
        if self.bytes > self._bytes_max:
            self._metrics.count_limit_hit(self._limit)
            raise BodyTooLarge(f"the body is over {self._bytes_max} bytes", subject=self._limit)

    async def _receive_in_time(self) -> bytes:
        started = trio.current_time()
        timeout_s = float(self._limits.stall_timeout)
        with trio.move_on_after(timeout_s) if self._hold is None else self._hold.waiting(timeout_s) as scope:
            raw = await self._source.receive()
        if scope.cancelled_caught:
            self._metrics.count_limit_hit("stall_timeout")
            raise RequestTimeout(f"no byte of the body came for {self._limits.stall_timeout}", subject="stall_timeout")
        self._waited_s += trio.current_time() - started
        self._raw_bytes += len(raw)
        if raw and self._waited_s > RATE_GRACE_S and self._raw_bytes < self._waited_s * self._limits.body_rate_min:
            self._metrics.count_limit_hit("body_rate_min")
            raise RequestTimeout(
                f"the body comes slower than {int(self._limits.body_rate_min)} bytes a second", subject="body_rate_min"
            )
        return raw


def _inflater_of(encoding: str) -> Inflater | None:
    match encoding.strip().lower():
        case "" | "identity":
            return None
        case "gzip" | "x-gzip":
            return Inflater()
    raise WrongContentEncoding(
        f"the content encoding {encoding[:40]!r} isn't taken", subject="Content-Encoding",
        hint="send the body as it is or compressed with gzip",
    )  # fmt: skip


class Bodies:
    """What reading a body needs, put together once."""

    def __init__(self, limits: Limits, lane: AnyLane, metrics: Metrics) -> None:
        self.limits = limits
        self._lane = lane
        self._metrics = metrics
        self.budget = BodyBudget(limits, metrics)

    def without_lane(self) -> "Bodies":
        """The same, on the same budget, for requests that hold no place in the lane."""
        bodies = copy(self)
        bodies._lane = NO_LANE
        return bodies

    def hold(self) -> AbstractContextManager[Hold]:
        """A share of the budget for one request."""
        return self.budget.hold()

    def reader(self, source: BodySource, encoding: str, bytes_max: int, limit: str) -> BodyReader:
        """A reader of one body. Raises WrongContentEncoding."""
        return BodyReader(
            source, encoding=encoding, bytes_max=bytes_max, limit=limit, limits=self.limits, lane=self._lane,
            metrics=self._metrics,
        )  # fmt: skip

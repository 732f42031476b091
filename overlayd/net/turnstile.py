"""Between requests: one task watches every connection that has none, and serves plain packets on the spot.

A task that waits for its own socket pays for a registration, a wake-up and a dozen awaits with each request. Here the
sockets stay registered in an epoll of our own, edge-triggered. Bytes that are a whole plain publish request are served
without a task's turn; everything else goes to the connection's task as it came.
"""

import select
import time
from collections import OrderedDict
from contextlib import suppress
from typing import Protocol

import structlog
import trio

from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.net.connection import PIECE_BYTES, Connection

EVENTS_PER_LOOK = 64
SLICE_S = 0.002
"""Work after which others get their turn."""
_ENDING = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_WATCHED = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_log = structlog.get_logger("net.turnstile")


class QuickServer(Protocol):
    """Serves requests that need no task."""

    def take(self, stay: "Stay", data: bytes) -> bool:
        """Whether the bytes begin with a request that it takes on: what follows it is put into the connection's unread
        bytes, and later `stay.served` or `stay.give_back` is called, once. False: nothing happened. Doesn't wait."""
        ...


class Stay:
    """A connection without a request, or with one that is served quickly."""

    __slots__ = (
        "_has_more", "_is_ending", "_turnstile", "connection", "event", "goes_on", "is_busy", "link", "number", "since",
    )  # fmt: skip

    def __init__(self, turnstile: "Turnstile", connection: Connection, number: int) -> None:
        self._turnstile = turnstile
        self.connection = connection
        self.link = connection.link
        self.number = number
        self.event = trio.Event()
        self.goes_on = False
        self.is_busy = False
        self.since = 0.0
        self._has_more = False
        self._is_ending = False

    def __repr__(self) -> str:
        return f"Stay(fd={self.number}, busy={self.is_busy}, left={self.is_left})"

    @property
    def is_left(self) -> bool:
        """Whether the connection's task has it back."""
        return self.event.is_set()

    def served(self, goes_on: bool) -> None:
        """The answer to the request that was taken is on its way; whether another one may follow."""
        self.is_busy = False
        if self.is_left:
            return
        connection = self.connection
        if not goes_on or self.link.unsent:
            self.leave(goes_on)
        elif connection.unread:
            self._turnstile.offer(self, connection.take_unread())
        elif self._has_more or self._is_ending:
            self.read()
        else:
            self._turnstile.note_idle(self)

    def give_back(self, request: bytes) -> None:
        """The request can't be served quickly after all; nothing has come of it."""
        self.is_busy = False
        self.connection.unread[:0] = request
        if not self.is_left:
            self.leave(True)

    def look(self, mask: int) -> None:
        """The kernel says that there is something to read, or that the peer is ending."""
        if mask & _ENDING:
            self._is_ending = True
        if self.is_busy:
            self._has_more = True
        else:
            self.read()

    def read(self) -> None:
        """Reads once. A full piece, or TLS that holds something, says that there may be more; with less, the kernel
        tells when more comes."""
        link = self.link
        try:
            data = link.read_now(PIECE_BYTES)
        except trio.BrokenResourceError:  # the peer is gone, or never spoke TLS
            data = b""
        if data is None:
            self._has_more = False
            if link.unsent:  # TLS answered something by itself
                self.leave(True)
            else:
                self._turnstile.note_idle(self)
        elif data:
            self._has_more = len(data) == PIECE_BYTES or link.holds_bytes
            self._turnstile.offer(self, data)
        else:
            self.leave(False)

    def leave(self, goes_on: bool) -> None:
        """Has the connection's task go on: with another request, or to the connection's end."""
        self.goes_on = goes_on
        self._turnstile.forget(self)
        self.event.set()


class Turnstile:
    """Watches connections for their tasks. One for the node."""

    def __init__(self, quick: QuickServer | None, *, limits: Limits, metrics: Metrics, stop: trio.Event) -> None:
        """`quick`: None leaves every request to its connection's task."""
        self._quick = quick
        self._keep_alive_s = float(limits.keep_alive_timeout)
        self._metrics = metrics
        self._stop = stop
        self._epoll = select.epoll()
        self._stays: OrderedDict[int, Stay] = OrderedDict()
        self._arrival = trio.Event()
        crashes = "Connections ended between their requests by an unforeseen error"
        self._crashes = metrics.counter("overlayd_net_turnstile_crashes", crashes)
        watched = metrics.gauge(
            "overlayd_net_connections_between_requests", "Connections watched for their next request"
        )
        watched.set_function(lambda: len(self._stays))

    def __repr__(self) -> str:
        return f"Turnstile(stays={len(self._stays)})"

    async def run(self) -> None:
        """Watches until it is cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_idle_in_time)
                await self._watch()
        finally:
            self._epoll.close()

    async def stay(self, connection: Connection) -> bool:
        """Waits for the connection's next request. True: there is something for its task to do, bytes in `unread` or
        a tail to be sent. False: the connection is over. Checkpoint."""
        if self._stop.is_set() and not connection.unread:
            return False
        number = connection.socket.fileno()
        if number < 0:
            return False
        stay = Stay(self, connection, number)
        stay.since = trio.current_time()
        self._stays[number] = stay
        self._epoll.register(number, _WATCHED)
        self._arrival.set()
        if connection.unread:
            self.offer(stay, connection.take_unread())
        elif connection.link.holds_bytes:
            stay.read()
        try:
            await stay.event.wait()
        finally:
            stay.event.set()
            self.forget(stay)
        return stay.goes_on

    def end_idle(self) -> None:
        """Ends the connections that have no request."""
        for stay in tuple(self._stays.values()):
            if not stay.is_busy:
                stay.leave(False)

    def offer(self, stay: Stay, data: bytes) -> None:
        """Has bytes served quickly, or by the connection's task."""
        if self._quick is not None and self._quick.take(stay, data):
            stay.is_busy = True
            return
        stay.connection.unread[:0] = data
        stay.leave(True)

    def note_idle(self, stay: Stay) -> None:
        """A request is done, and its connection has none now."""
        if self._stop.is_set():
            stay.leave(False)
        elif self._stays.get(stay.number) is stay:
            stay.since = trio.current_time()
            self._stays.move_to_end(stay.number)

    def forget(self, stay: Stay) -> None:
        """Watches the connection no more."""
        if self._stays.get(stay.number) is stay:
            del self._stays[stay.number]
            with suppress(OSError, ValueError):  # the socket may be closed by now
                self._epoll.unregister(stay.number)

    async def _watch(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            since = time.perf_counter()
            for number, mask in self._epoll.poll(0, EVENTS_PER_LOOK):
                stay = self._stays.get(number)
                if stay is not None:
                    self._look(stay, mask)
                    if time.perf_counter() - since > SLICE_S:
                        await trio.lowlevel.checkpoint()
                        since = time.perf_counter()

    def _look(self, stay: Stay, mask: int) -> None:
        """A fault of ours costs one connection, as it does in a connection's own task, not everybody's."""
        try:
            stay.look(mask)
        except Exception as error:
            self._crashes.inc()
            _log.error("connection crashed", fd=stay.number, exc_info=error)
            stay.connection.abort()
            stay.leave(False)

    async def _end_idle_in_time(self) -> None:
        """The stays are in the order in which they became idle, but for those that are busy now."""
        while True:
            if not self._stays:
                self._arrival = trio.Event()
                await self._arrival.wait()
                continue
            stay, now = next(iter(self._stays.values())), trio.current_time()
            if now < stay.since + self._keep_alive_s:
                await trio.sleep_until(stay.since + self._keep_alive_s)
            elif stay.is_busy:
                stay.since = now
                self._stays.move_to_end(stay.number)
            else:
                self._metrics.count_limit_hit("keep_alive_timeout")
                stay.leave(False)

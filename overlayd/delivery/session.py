"""Live sessions: who reads, how many there may be, and how they are told to end."""

import base64
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import msgspec
import trio

from overlayd.access import Principal
from overlayd.delivery.query import LiveQuery
from overlayd.delivery.wires import Transport
from overlayd.model.clock import Clock, Entropy, format_time_us
from overlayd.model.cursor import Cursor
from overlayd.model.errors import LimitReached, MemoryShort, ShuttingDown, UnknownSession
from overlayd.model.limits import Limits
from overlayd.model.memory_budget import SESSIONS, MemoryBudget
from overlayd.model.metrics import Metrics
from overlayd.model.names import Pattern
from overlayd.model.wire import SessionBody, SessionSubscription
from overlayd.model.wire_statistics import SessionStats

CLOSE_NORMAL = 1000
CLOSE_GOING_AWAY = 1001
CLOSE_PROTOCOL = 1002
CLOSE_POLICY = 1008
CLOSE_UNAUTHORIZED = 4001
CLOSE_FORBIDDEN = 4003
CLOSE_STALLED = 4008
CLOSE_EXPIRED = 4010
CLOSE_LIMIT = 4029
CLOSE_FAULT = 4500
_EVERYTHING = ">"


class Ending(msgspec.Struct, frozen=True):
    """Why the node ends a session: what `bye` says and the WebSocket close code."""

    code: int
    reason: str
    retry_after_s: float | None = None


class Reading(Protocol):
    """One subscription of a session, with its place in the log."""

    @property
    def query(self) -> LiveQuery: ...

    @property
    def cursor(self) -> Cursor:
        """Resuming here loses nothing."""
        ...

    @property
    def position(self) -> int:
        """The last offset that was looked at for it."""
        ...

    def close(self) -> None:
        """The subscription is over. Again does nothing."""
        ...


class Pace(Protocol):
    """How fast somebody may be sent to, over all of their sessions."""

    def wait_s(self) -> float:
        """How long nothing more is to be sent; 0 for not at all."""
        ...

    def spend(self, size: int) -> None:
        """Bytes were sent."""
        ...


class Session:
    """One live connection. Made by the registry, driven by its transport."""

    __slots__ = (
        "_waits", "_waits_for_log", "address", "bytes_sent", "ending", "id", "is_told_of_stop", "messages_sent",
        "on_change", "opened_us", "pace", "principal", "readers", "transport", "who",
    )  # fmt: skip

    def __init__(self, id: str, transport: Transport, principal: str, address: str, opened_us: int) -> None:
        self.id = id
        self.transport: Transport = transport
        self.principal = principal
        self.who: Principal | None = None
        """Who it was let in as, where that may end."""
        self.address = address
        self.opened_us = opened_us
        self.messages_sent = 0
        self.bytes_sent = 0
        self.ending: Ending | None = None
        self.is_told_of_stop = False
        self.readers: dict[str, Reading] = {}
        self.pace: Pace | None = None
        """How fast it may be sent to; None as fast as it takes."""
        self.on_change: Callable[[], None] | None = None
        """Called when `ending` was set, or something else changed that the session looks at."""
        self._waits: tuple[trio.CancelScope, ...] = ()
        self._waits_for_log: tuple[trio.CancelScope, ...] = ()

    def __repr__(self) -> str:
        return f"Session({self.id}, {self.transport}, {self.address}, subscriptions={len(self.readers)})"

    def end(self, ending: Ending) -> None:
        """Asks the session to end; the first reason counts. What it is sending at the moment is finished."""
        if self.ending is not None:
            return
        self.ending = ending
        for scope in self._waits:
            scope.cancel()
        if self.on_change is not None:
            self.on_change()

    def look_again(self) -> None:
        """Wakes what waits for the log to grow: something else changed that it looks at."""
        self.is_told_of_stop = True
        for scope in self._waits_for_log:
            scope.cancel()
        if self.on_change is not None:
            self.on_change()

    @contextmanager
    def waiting(self, deadline: float = float("inf"), *, for_log: bool = False) -> Iterator[trio.CancelScope]:
        """A scope that ends when the session is asked to, or at the deadline; `for_log`: also when it is to look
        again. For waits only, not for writes."""
        with trio.CancelScope(deadline=deadline) as scope:
            if self.ending is not None:
                scope.cancel()
            self._waits += (scope,)
            if for_log:
                self._waits_for_log += (scope,)
            try:
                yield scope
            finally:
                self._waits = tuple(one for one in self._waits if one is not scope)
                self._waits_for_log = tuple(one for one in self._waits_for_log if one is not scope)

    def body(self, head: int) -> SessionBody:
        """As `GET /v1/sessions` shows it."""
        return SessionBody(
            id=self.id, transport=self.transport, principal=self.principal, address=self.address,
            opened_at=format_time_us(self.opened_us), messages_sent=self.messages_sent, bytes_sent=self.bytes_sent,
            subscriptions=[
                SessionSubscription(
                    id=name or msgspec.UNSET, query=reading.query.body(), cursor=str(reading.cursor),
                    lag_entries=max(0, head - reading.position),
                )
                for name, reading in self.readers.items()
            ],
        )  # fmt: skip


class SessionWatch(Protocol):
    """Hears of sessions that come and go."""

    def entering(self, transport: Transport, principal: str, open_count: int) -> None:
        """Before a session is entered by a principal that has so many. Raises LimitReached to keep it out."""
        ...

    def entered(self, session: Session) -> None:
        """It is there now."""
        ...

    def left(self, session: Session) -> None:
        """A session is over; its readers are still there."""
        ...


class Registry:
    """All live sessions of the node."""

    def __init__(
        self, *, limits: Limits, clock: Clock, entropy: Entropy, metrics: Metrics, memory: MemoryBudget | None = None
    ) -> None:
        self._limits = limits
        self._memory = memory
        self._clock = clock
        self._entropy = entropy
        self._metrics = metrics
        self._sessions: dict[str, Session] = {}
        self.watch: SessionWatch | None = None
        self._by_address: Counter[str] = Counter()
        self._by_principal: Counter[str] = Counter()
        self._by_pattern: dict[str, dict[str, int]] = {}
        self._stopping: Ending | None = None
        self._waits: set[trio.CancelScope] = set()
        self._emptied = trio.Event()
        open_sessions = metrics.gauge("overlayd_sessions", "Live sessions", "transport")
        self._gauges = {name: open_sessions.labels(name) for name in ("websocket", "sse", "ndjson")}
        self._ended = metrics.counter("overlayd_sessions_ended", "Live sessions that the node ended", "reason")

    def __len__(self) -> int:
        return len(self._sessions)

    def check_room(self, principal: str, address: str) -> None:
        """Raises LimitReached, MemoryShort or ShuttingDown when another session of theirs would be refused."""
        if self._stopping is not None:
            raise ShuttingDown("the node is shutting down", retry_after_s=self._stopping.retry_after_s)
        if self._memory is not None and self._memory.is_short_of(SESSIONS):
            raise MemoryShort("no new sessions are taken", subject="memory_bytes", retry_after_s=5.0)
        if len(self._sessions) >= self._limits.sessions_max:
            raise self._refuse("sessions_max", f"{self._limits.sessions_max} live sessions are open already")
        for limit, held, who, count in (
            ("sessions_per_address", self._by_address, address, self._limits.sessions_per_address),
            ("sessions_per_principal", self._by_principal, principal, self._limits.sessions_per_principal),
        ):
            if held[who] >= count:
                raise self._refuse(limit, f"{count} live sessions of {who} are open already")

    @contextmanager
    def open(self, transport: Transport, principal: str, address: str) -> Iterator[Session]:
        """A session, for as long as the block runs; its readers are closed at the end. Raises as `check_room`."""
        session = self.enter(transport, principal, address)
        try:
            yield session
        finally:
            self.leave(session)

    def enter(self, transport: Transport, principal: str, address: str, who: Principal | None = None) -> Session:
        """As `open`, for those that can't be a block; `leave` must follow. `who`: may be told to leave when they lose
        their rights."""
        self.check_room(principal, address)
        if self.watch is not None:
            self.watch.entering(transport, principal, self._by_principal[principal])
        name = base64.b32encode(self._entropy.draw(10)).decode().lower()
        session = Session(name, transport, principal, address, self._clock.now_us())
        session.who = who
        self._sessions[name] = session
        self._by_address[address] += 1
        self._by_principal[principal] += 1
        self._gauges[transport].inc()
        if self.watch is not None:
            self.watch.entered(session)
        return session

    def leave(self, session: Session) -> None:
        """The session is over. Again does nothing."""
        if self._sessions.pop(session.id, None) is None:
            return
        if self.watch is not None:
            self.watch.left(session)
        for name in list(session.readers):
            self.drop_reader(session, name)
        for held, who in ((self._by_address, session.address), (self._by_principal, session.principal)):
            held[who] -= 1
            if not held[who]:
                del held[who]
        self._gauges[session.transport].dec()
        if session.ending is not None:
            self._ended.labels(session.ending.reason).inc()
        if not self._sessions:
            self._emptied.set()
            self._emptied = trio.Event()

    @contextmanager
    def waiting(self, deadline: float) -> Iterator[trio.CancelScope]:
        """As `Session.waiting`, for requests that wait without being a session."""
        with trio.CancelScope(deadline=deadline) as scope:
            if self._stopping is not None:
                scope.cancel()
            self._waits.add(scope)
            try:
                yield scope
            finally:
                self._waits.discard(scope)

    def check_query(self, session: Session, query: LiveQuery) -> None:
        """Raises LimitReached when too many sessions read the same stream or pattern already."""
        for text in query.selection.streams or (_EVERYTHING,):
            readers = self._by_pattern.get(text, {})
            if len(readers) >= self._limits.sessions_per_stream and session.id not in readers:
                count = self._limits.sessions_per_stream
                raise self._refuse("sessions_per_stream", f"{count} live sessions read {text} already")

    def add_reader(self, session: Session, name: str, opened: Reading) -> None:
        """The session reads with it from now on; `drop_reader`, or the session's end, closes it."""
        assert name not in session.readers
        session.readers[name] = opened
        for text in opened.query.selection.streams or (_EVERYTHING,):
            counts = self._by_pattern.setdefault(text, {})
            counts[session.id] = counts.get(session.id, 0) + 1

    def drop_reader(self, session: Session, name: str) -> None:
        """The subscription ends, the session goes on. Again does nothing."""
        opened = session.readers.pop(name, None)
        if opened is None:
            return
        opened.close()
        for text in opened.query.selection.streams or (_EVERYTHING,):
            counts = self._by_pattern[text]
            counts[session.id] -= 1
            if not counts[session.id]:
                del counts[session.id]
            if not counts:
                del self._by_pattern[text]

    def sessions(self) -> list[Session]:
        """All of them, oldest first."""
        return list(self._sessions.values())

    def count_of(self, principal: str) -> int:
        """Live sessions of a principal."""
        return self._by_principal[principal]

    def count_subscribers(self, stream: str) -> int:
        """Live sessions that name the stream or a pattern over it."""
        found: set[str] = set()
        for text, sessions in self._by_pattern.items():
            if Pattern(text).is_match(stream):
                found.update(sessions)
        return len(found)

    def look_again(self, stream: str) -> None:
        """Wakes the sessions that name the stream: its state changed, which no entry tells."""
        for id in self._by_pattern.get(stream, ()):
            self._sessions[id].look_again()

    def bodies(self, head: int) -> list[SessionBody]:
        """All sessions, oldest first."""
        return [session.body(head) for session in self._sessions.values()]

    def show_figures(self, head: int) -> SessionStats:
        """How many there are of each kind, and how far the last one is behind."""
        counts = Counter(session.transport for session in self._sessions.values())
        positions = [one.position for session in self._sessions.values() for one in session.readers.values()]
        lag = max(0, head - min(positions, default=head))
        return SessionStats(
            websocket=counts["websocket"], sse=counts["sse"], ndjson=counts["ndjson"], lag_entries_max=lag
        )  # fmt: skip

    def known(self, id: str) -> Session:
        """Raises UnknownSession."""
        session = self._sessions.get(id)
        if session is None:
            raise UnknownSession(f"no live session {id[:60]!r}", subject="id")
        return session

    def end(self, id: str, ending: Ending) -> None:
        """Asks one session to end. Raises UnknownSession."""
        self.known(id).end(ending)

    def close_matching(self, is_meant: Callable[[Session], bool], ending: Ending) -> int:
        """Asks every session that is meant to end, for example all of a principal whose key was revoked; how many
        those are. Its subscriptions get nothing from now on."""
        meant = [session for session in self._sessions.values() if session.ending is None and is_meant(session)]
        for session in meant:
            session.end(ending)
        return len(meant)

    def end_all(self, ending: Ending) -> None:
        """Takes no more sessions and asks all of them to end."""
        self._stopping = ending
        for scope in self._waits:
            scope.cancel()
        for session in list(self._sessions.values()):
            session.end(ending)

    async def stop(self, ending: Ending) -> None:
        """As `end_all`, and returns when they are gone. Checkpoint."""
        self.end_all(ending)
        while self._sessions:
            await self._emptied.wait()
        await trio.lowlevel.checkpoint()

    def _refuse(self, limit: str, detail: str) -> LimitReached:
        self._metrics.count_limit_hit(limit)
        return LimitReached(detail, subject=limit, retry_after_s=5.0)

"""What live sessions use: folded from their counters now and then and at their end, so that sending costs nothing more."""

from collections.abc import Callable

from overlayd.delivery.session import CLOSE_GOING_AWAY, CLOSE_LIMIT, CLOSE_NORMAL, Ending, Pace, Registry, Session
from overlayd.delivery.wires import Transport
from overlayd.model.clock import Clock
from overlayd.model.errors import LimitReached
from overlayd.model.usage import EndedDelivery, UsageSink

_ALL_PPM = 1_000_000
_EVERYTHING = ">"
_SEVERAL = ""


class SessionUsage:
    """Watches a registry (`SessionWatch`). `fold` is called before usage is written out."""

    def __init__(
        self, *, registry: Registry, usage: Callable[[], UsageSink | None], clock: Clock, read_head: Callable[[], int],
        check_open: Callable[[str, int], None], exceeded: Callable[[str], LimitReached | None],
        pace_of: Callable[[str], Pace | None] = lambda principal: None,
    ) -> None:  # fmt: skip
        """`usage` gives None before counting has begun. `check_open` raises LimitReached when a principal may open no
        further session; `exceeded` says why one can't go on with those that it has; `pace_of`: how fast it may be sent to."""
        self._registry = registry
        self._usage = usage
        self._clock = clock
        self._read_head = read_head
        self._check_open = check_open
        self._exceeded = exceeded
        self._pace_of = pace_of
        self._told: dict[str, tuple[int, int]] = {}
        registry.watch = self

    def entering(self, transport: Transport, principal: str, open_count: int) -> None:
        """Before a session is entered. Raises LimitReached."""
        self._check_open(principal, open_count)
        sink = self._usage()
        if sink is not None:
            sink.delivered(_SEVERAL, principal, transport, packets=0, bytes=0, requests=1)

    def entered(self, session: Session) -> None:
        """It may be sent to as fast as its principal's policy says."""
        session.pace = self._pace_of(session.principal)

    def left(self, session: Session) -> None:
        """A session is over; its readers are still there."""
        sink = self._usage()
        if sink is None:
            return
        self._tell(sink, session)
        self._told.pop(session.id, None)
        code = CLOSE_NORMAL if session.ending is None else session.ending.code
        sink.ended(
            EndedDelivery(
                session=session.id, stream=_stream_of(session), principal=session.principal, method=session.transport,
                address=session.address, started_us=session.opened_us, ended_us=self._clock.now_us(),
                packets=session.messages_sent, bytes=session.bytes_sent,
                errors=int(code not in (CLOSE_NORMAL, CLOSE_GOING_AWAY)), completed_ppm=self._completed(session),
                reason="" if session.ending is None else session.ending.reason,
            )
        )  # fmt: skip

    def fold(self) -> None:
        """Tells what was sent since the last time, and ends the sessions of those who have used up their quota."""
        sink = self._usage()
        if sink is None:
            return
        sessions = self._registry.sessions()
        for session in sessions:
            self._tell(sink, session)
        for principal in {session.principal for session in sessions}:
            error = self._exceeded(principal)
            if error is not None:
                ending = Ending(CLOSE_LIMIT, error.code, error.retry_after_s)
                for session in sessions:
                    if session.principal == principal:
                        session.end(ending)

    def _tell(self, sink: UsageSink, session: Session) -> None:
        messages, size = self._told.get(session.id, (0, 0))
        new_messages, new_bytes = session.messages_sent - messages, session.bytes_sent - size
        if new_bytes:
            self._told[session.id] = (session.messages_sent, session.bytes_sent)
            sink.delivered(
                _stream_of(session), session.principal, session.transport, packets=new_messages, bytes=new_bytes
            )

    def _completed(self, session: Session) -> int:
        """How far along the log its slowest subscription had come."""
        head = self._read_head()
        position = min((reading.position for reading in session.readers.values()), default=head)
        return _ALL_PPM if position >= head else position * _ALL_PPM // head


def _stream_of(session: Session) -> str:
    """The one stream or pattern that the session names; "" when it names several, or none any more."""
    named = {text for reading in session.readers.values() for text in reading.query.selection.streams or (_EVERYTHING,)}
    return named.pop() if len(named) == 1 else _SEVERAL

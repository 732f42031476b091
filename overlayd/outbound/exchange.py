"""One request and its answer over one connection: sending and reading at the same time, each part within its time."""

from enum import Enum

import trio

from overlayd.model.errors import OutboundFailure
from overlayd.outbound.answer import AnswerReader
from overlayd.outbound.pool import Connection
from overlayd.outbound.reasons import Reason
from overlayd.outbound.request import OutboundRequest
from overlayd.outbound.url import Target

_BODY_METHODS = ("POST", "PUT", "PATCH")
_OWN_HEADERS = frozenset({"host", "content-length", "connection", "accept-encoding", "transfer-encoding"})


class Part(Enum):
    """How far an exchange has come: what a deadline that passes then means, and in words."""

    PLACE = (Reason.NODE_BUSY, "waiting for a place among the node's calls")
    LOOKUP = (Reason.DNS_TIMEOUT, "looking up the name")
    CONNECT = (Reason.CONNECT_TIMEOUT, "connecting")
    TLS = (Reason.TLS_TIMEOUT, "the TLS handshake")
    SEND = (Reason.SEND_TIMEOUT, "sending the request")
    ANSWER = (Reason.ANSWER_TIMEOUT, "waiting for the answer")
    BODY = (Reason.BODY_TIMEOUT, "reading the answer's body")


class Deadline:
    """The time of a whole exchange, and of the part that it is in. One cancel scope serves them all."""

    __slots__ = ("_end", "part", "scope", "started")

    def __init__(self, timeout_s: float) -> None:
        self.started = trio.current_time()
        self._end = self.started + timeout_s
        self.scope = trio.CancelScope(deadline=self._end)
        self.part = Part.PLACE

    def enter(self, part: Part, limit_s: float | None = None) -> None:
        """The part that begins now, with a bound of its own where it has one."""
        self.part = part
        deadline = self._end if limit_s is None else min(self._end, trio.current_time() + limit_s)
        if deadline != self.scope.deadline:
            self.scope.deadline = deadline

    @property
    def left_s(self) -> float:
        """Seconds until the part that is running must end."""
        return max(0.0, self.scope.deadline - trio.current_time())

    def failure(self, target: Target) -> OutboundFailure:
        """What to say when the scope was cancelled."""
        reason, words = self.part.value
        spent_s = trio.current_time() - self.started
        return OutboundFailure.of(
            reason, f"gave up after {spent_s:.1f} s, {words} ({target.origin})", subject=target.origin
        )


def encode_request(request: OutboundRequest, target: Target) -> bytes:
    """The bytes that are sent. Raises ValueError for a header that would break out of its line, or is ours to set."""
    lines = [f"{request.method} {target.path} HTTP/1.1", f"host: {target.authority}", "accept-encoding: identity"]
    for name, value in request.headers:
        if name.lower() in _OWN_HEADERS:
            raise ValueError(f"the header {name} is set by the client itself")
        line = f"{name}: {value}"
        if not name or "\r" in line or "\n" in line or "\0" in line:
            raise ValueError(f"the header {name!r} would break out of its line")
        lines.append(line)
    if request.body or request.method in _BODY_METHODS:
        lines.append(f"content-length: {len(request.body)}")
    return b"".join(("\r\n".join((*lines, "", "")).encode("latin-1"), request.body))


async def talk(
    connection: Connection, data: bytes, reader: AnswerReader, deadline: Deadline, *, body_timeout_s: float | None,
    is_head_enough: bool = False,
) -> None:  # fmt: skip
    """Sends `data` and reads the answer into `reader`, up to its end or, with `is_head_enough`, its head.

    An answer that comes before everything was sent is taken; what is unsent then stays so, and the connection can't be
    used again. Checkpoint. Raises OutboundFailure.
    """
    deadline.enter(Part.SEND)
    try:
        rest = connection.wire.write_now(data)
    except OSError:
        rest = memoryview(b"")  # the other side may have answered before it went: reading tells
        reader.is_sent = False
    reading = _Reading(connection, reader, deadline, body_timeout_s, is_head_enough)
    if not rest:
        deadline.enter(Part.ANSWER)
        await reading.run()
        return
    failure: OutboundFailure | None = None
    reader.is_sent = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_write_rest, connection, rest, reader, deadline)
        try:
            await reading.run()
        except OutboundFailure as err:
            failure = err
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


class _Reading:
    """The reading half of `talk`."""

    def __init__(
        self, connection: Connection, reader: AnswerReader, deadline: Deadline, body_timeout_s: float | None,
        is_head_enough: bool,
    ) -> None:  # fmt: skip
        self._connection = connection
        self._reader = reader
        self._deadline = deadline
        self._body_timeout_s = body_timeout_s
        self._is_head_enough = is_head_enough

    async def run(self) -> None:
        reader = self._reader
        is_head_seen = False
        while not reader.is_complete:
            await receive_into(self._connection, reader)
            if reader.is_head_complete and not is_head_seen:
                is_head_seen = True
                self._deadline.enter(Part.BODY, self._body_timeout_s)
                if self._is_head_enough:
                    return


async def receive_into(connection: Connection, reader: AnswerReader) -> None:
    """The next bytes of the answer. Checkpoint. Raises OutboundFailure."""
    try:
        data = await connection.wire.receive()
    except (OSError, trio.ClosedResourceError) as err:
        if reader.is_head_complete:
            reader.feed_reset()
            return
        words = "within the answer's head" if reader.wire_bytes else "without an answer"
        raise OutboundFailure.of(Reason.ANSWER_RESET, f"the connection was reset {words}") from err
    if data:
        reader.feed(data)
    else:
        reader.feed_end()


async def _write_rest(connection: Connection, rest: memoryview, reader: AnswerReader, deadline: Deadline) -> None:
    try:
        await connection.wire.write_rest(rest)
    except (OSError, trio.ClosedResourceError):
        return  # as above: reading tells
    reader.is_sent = True
    if deadline.part is Part.SEND:
        deadline.enter(Part.ANSWER)

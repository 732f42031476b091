"""What a WebSocket client sends: frames, messages and the room that they take until they are dealt with. Sans-IO.

An `Inbox` exists only while something of a client is being read, waits or is worked on; an idle socket has none. Text
frames that the node sends are in wires.py.
"""

import struct
from collections import deque
from collections.abc import Iterator

import msgspec
import trio
from wsproto.frame_protocol import CloseReason, Frame, FrameDecoder, MessageDecoder, Opcode, ParseFailed

from overlayd.delivery.deflate import Inflate
from overlayd.model.limits import Limits

CLOSE_TOO_BIG = 1009
CLOSE_PROTOCOL = 1002
_PARTS_MAX = 8192
_CODES = range(1000, 5000)
_UNSENDABLE = frozenset((1004, 1005, 1006, 1015))
_REGISTERED = frozenset(map(int, CloseReason)) - _UNSENDABLE
_PRIVATE_FIRST = 3000


class Closing(msgspec.Struct, frozen=True):
    """The client's close frame. `code` is None in an empty one."""

    code: int | None
    reason: str


class BadInput(Exception):
    """What the client sends can't be taken; the connection is closed with the code."""

    def __init__(self, code: int, reason: str, limit: str = "") -> None:
        """`limit`: the one that was hit."""
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.limit = limit


class InputBudget:
    """Bytes of client messages that the node holds for all WebSockets together, until they are dealt with."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._bytes = 0
        self._released = trio.lowlevel.ParkingLot()
        self.unfinished: set[Inbox] = set()

    def __repr__(self) -> str:
        return f"InputBudget({self._bytes} of {self._capacity_bytes})"

    def try_take(self, count: int) -> bool:
        if self._bytes + count > self._capacity_bytes:
            return False
        self._bytes += count
        return True

    def release(self, count: int) -> None:
        self._bytes -= count
        self._released.unpark_all()

    def make_room(self, count: int) -> bool:
        """Gives up the largest message that has begun and doesn't end, if it is larger than what wants room: a few
        clients that stop in the middle would keep everybody else out."""
        waiting = (inbox for inbox in self.unfinished if inbox.is_waiting)
        largest = max(waiting, key=lambda inbox: inbox.unfinished_size, default=None)
        if largest is None or largest.unfinished_size <= count:
            return False
        largest.give_up()
        return True

    async def wait_released(self) -> None:
        """Until somebody gave something back. Checkpoint."""
        await self._released.park()


class Inbox:
    """One client's frames on their way to whole messages. `messages` are those that wait to be looked at.

    `is_waiting`: its task waits for more bytes. `is_given_up`: its unfinished message was forgotten meanwhile.
    """

    def __init__(self, *, limits: Limits, budget: InputBudget, is_compressed: bool) -> None:
        self.messages: deque[str | bytes] = deque()
        self.unfinished_size = 0
        self.is_waiting = False
        self.is_given_up = False
        self.on_give_up: trio.CancelScope | None = None
        self._limits = limits
        self._budget = budget
        self._decoder = FrameDecoder(client=False, extensions=[Inflate(limits.message_bytes)] if is_compressed else [])
        self._joiner = MessageDecoder()
        self._parts: list[str | bytes] = []
        self._message_bytes = 0
        self._held_bytes = 0
        self._failure: BadInput | None = None

    def __repr__(self) -> str:
        return f"Inbox(messages={len(self.messages)}, held={self._held_bytes}, unfinished={self.unfinished_size})"

    @property
    def is_empty(self) -> bool:
        """Whether nothing is lost with it."""
        decoder = self._decoder
        is_between = decoder.header is None and not len(decoder.buffer) and self._joiner.opcode is None
        return is_between and not self._held_bytes and not self.messages

    def frames(self, data: bytes) -> Iterator[Frame]:
        """The frames, or parts of them, that the bytes complete. Raises BadInput, and then ever again."""
        if self._failure is not None:
            raise self._failure
        self._decoder.receive_bytes(data)
        try:
            while (frame := self._decoder.process_buffer()) is not None:
                yield frame if frame.opcode.iscontrol() else self._joiner.process_frame(frame)
        except ParseFailed as err:
            is_too_big = err.code == CloseReason.MESSAGE_TOO_BIG
            words, limit = (self._too_big, "message_bytes") if is_too_big else (str(err), "")
            self._failure = BadInput(int(err.code), words, limit)
            raise self._failure from err

    async def add(self, frame: Frame) -> None:
        """Takes a part of a message; a whole message joins those that wait. A checkpoint only if there is no room.
        Raises BadInput."""
        part = frame.payload
        assert isinstance(part, (str, bytes))
        if not part and not frame.message_finished:
            return  # an endless row of empty fragments would pile up otherwise
        size = _size_of(part)
        if len(self._parts) >= _PARTS_MAX or self._message_bytes + size > self._limits.message_bytes:
            raise BadInput(CLOSE_TOO_BIG, self._too_big, "message_bytes")
        if not await self._admit(len(part)):
            raise BadInput(1008, "too many bytes wait to be looked at", "unread_bytes")
        self._message_bytes += size
        self.unfinished_size += len(part)
        self._budget.unfinished.add(self)
        self._parts.append(part)
        if frame.message_finished:
            self._budget.unfinished.discard(self)
            self.messages.append(("" if frame.opcode is Opcode.TEXT else b"").join(self._parts))  # type: ignore[arg-type]  # all are of one kind
            self._parts = []
            self.unfinished_size = self._message_bytes = 0

    def give_back(self, count: int) -> None:
        """A message of so many characters or bytes was dealt with. After `close` it does nothing."""
        count = min(count, self._held_bytes)
        self._held_bytes -= count
        self._budget.release(count)

    def give_up(self) -> None:
        """Forgets the message that has begun: others need the room. Only while its task waits for bytes."""
        assert self.is_waiting
        self.is_given_up = True
        self._parts = []
        self._budget.unfinished.discard(self)
        self.give_back(self.unfinished_size)
        self.unfinished_size = 0
        if self.on_give_up is not None:
            self.on_give_up.cancel()

    def close(self) -> None:
        """Nothing more comes, and nothing that waits is looked at. Again does nothing."""
        self.messages.clear()
        self._budget.unfinished.discard(self)
        self._budget.release(self._held_bytes)
        self._held_bytes = 0

    @property
    def _too_big(self) -> str:
        return f"a message may have {self._limits.message_bytes} bytes"

    async def _admit(self, count: int) -> bool:
        """Whether there is room for so much more input, now or within a while."""
        most = max(self._limits.unread_bytes, self._limits.message_bytes)
        if self._held_bytes + count > most or not self._budget.try_take(count):
            with trio.move_on_after(self._limits.admit_timeout) as scope:
                while self._held_bytes + count > most or not self._budget.try_take(count):
                    if self._held_bytes + count > most or not self._budget.make_room(self.unfinished_size + count):
                        await self._budget.wait_released()
            if scope.cancelled_caught:
                return False
        self._held_bytes += count
        return True


def parse_close(payload: bytes) -> Closing:
    """A close frame's payload. Raises BadInput for what may not be sent (RFC 6455, 5.5.1 and 7.4)."""
    if not payload:
        return Closing(None, "")
    if len(payload) == 1:
        raise BadInput(CLOSE_PROTOCOL, "half a close code")
    (code,) = struct.unpack(">H", payload[:2])
    if code not in _CODES or (code < _PRIVATE_FIRST and code not in _REGISTERED):
        raise BadInput(CLOSE_PROTOCOL, "no close code to be sent")
    try:
        return Closing(code, payload[2:].decode())
    except UnicodeDecodeError as err:
        raise BadInput(1007, "the close reason isn't UTF-8") from err


def _size_of(data: str | bytes) -> int:
    """Bytes as they were sent."""
    return len(data.encode()) if isinstance(data, str) and not data.isascii() else len(data)

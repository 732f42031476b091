"""Following packets until they are confirmed: what to read, and what each message means for them. No I/O here."""

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import UNSET

from overlayd.model.errors import BadParameter, NotConfirmed
from overlayd.model.wire import (
    ErasedMessage,
    GapMessage,
    LogMessage,
    Packet,
    PacketMessage,
    ReceiptBody,
    StatusMessage,
)

OnStatus = Callable[[StatusMessage], None]
_OVER = ("failed", "dropped")


class Following:
    """Some packets of one stream on their way to a depth. `found`: those that got there, by sequence."""

    def __init__(
        self, receipts: Sequence[ReceiptBody], min_confirmations: int = 0, on_status: OnStatus | None = None
    ) -> None:
        """Raises BadParameter when there are none, or of several streams."""
        streams = {receipt.stream for receipt in receipts}
        if len(streams) != 1:
            raise BadParameter(f"receipts of one stream are followed, not of {len(streams)}", subject="receipts")
        self.stream = streams.pop()
        self.waiting = {receipt.sequence for receipt in receipts}
        self.found: dict[int, Packet] = {}
        self._first = min(receipts, key=lambda receipt: receipt.offset)
        self._min_confirmations = min_confirmations
        self._on_status = on_status

    def query(self) -> dict[str, Any]:
        """The live reading that tells of them, from the first one's place on."""
        return {
            "streams": self.stream, "after": self._first.cursor, "deliver": "confirmed", "status": True,
            "min_confirmations": self._min_confirmations,
        }  # fmt: skip

    def to_look_at(self, message: LogMessage) -> list[int]:
        """The packets that must be read by themselves, since the message hides what became of them."""
        return sorted(self.waiting) if isinstance(message, GapMessage) else []

    def take(self, message: LogMessage) -> bool:
        """Takes a message; whether all packets are there. Raises NotConfirmed."""
        if isinstance(message, PacketMessage):
            self._keep(message.packet)
        elif isinstance(message, StatusMessage):
            first = message.from_ if message.packet_sequence is UNSET else message.packet_sequence
            last = message.to if message.packet_sequence is UNSET else message.packet_sequence
            assert first is not UNSET
            assert last is not UNSET
            ours = [sequence for sequence in self.waiting if first <= sequence <= last]
            if ours and self._on_status is not None:
                self._on_status(message)
            if ours and message.confirmation_status in _OVER:
                self._give_up(min(ours), message.confirmation_status, message.reason or "")
        elif isinstance(message, ErasedMessage) and message.packet_sequence in self.waiting:
            self._give_up(message.packet_sequence, "erased", "")
        return not self.waiting

    def judge(self, packet: Packet) -> bool:
        """Takes a packet that was read by itself; whether all are there. Raises NotConfirmed."""
        if packet.confirmation_status in _OVER:
            self._give_up(packet.packet_sequence, packet.confirmation_status, "")
        depth = packet.confirmations or 0
        if packet.confirmation_status == "confirmed" and depth >= self._min_confirmations:
            self._keep(packet)
        return not self.waiting

    def _keep(self, packet: Packet) -> None:
        if packet.packet_sequence in self.waiting:
            self.waiting.discard(packet.packet_sequence)
            self.found[packet.packet_sequence] = packet

    def _give_up(self, sequence: int, state: str, reason: str) -> None:
        raise NotConfirmed(
            f"{self.stream} {sequence} is {state}" + (f": {reason}" if reason else ""),
            subject=f"{self.stream} {sequence}",
        )  # fmt: skip

    def in_order(self) -> list[Packet]:
        """The packets that got there, by sequence."""
        return [self.found[sequence] for sequence in sorted(self.found)]

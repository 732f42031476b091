"""The node's own streams: what it tells about itself, as packets in the log like everybody else's, and as provable."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from overlayd.model.definition import Definition, RetentionRule
from overlayd.model.units import Duration, Size
from overlayd.storage.own import OwnPacket

AUDIT = "overlayd.audit"
EVENTS = "overlayd.events"
DAY_S = 86_400.0

AppendOwn = Callable[[Sequence[OwnPacket]], Awaitable[list[int]]]
"""`Log.append_own`."""

_DEFINITIONS = {
    AUDIT: Definition(
        title="Audit", description="Security-relevant acts on this node: who, from where, what, and how it ended.",
        retention=RetentionRule(max_age=Duration(400 * DAY_S), max_bytes=Size(1 << 40)),
    ),
    EVENTS: Definition(
        title="Events", description="What happens to this node's parts, such as a subscription that was disabled.",
        retention=RetentionRule(max_age=Duration(30 * DAY_S), max_bytes=Size(1 << 30)),
    ),
}  # fmt: skip


class OwnStream:
    """One of the node's own streams. It comes into being with its first packet."""

    def __init__(self, name: str, append: AppendOwn) -> None:
        """`name`: AUDIT or EVENTS."""
        self.name = name
        self._definition = _DEFINITIONS[name]
        self._append = append

    async def append(self, type: str, data: dict[str, Any], *, key: str = "") -> None:
        """Appends a packet; durable when it returns. Checkpoint. Raises as `Log.define_stream` does when the log
        takes nothing."""
        await self._append([self.packet(type, data, key=key)])

    async def append_many(self, packets: Sequence[OwnPacket]) -> None:
        """The same for several at once, in one transaction. Checkpoint."""
        await self._append(packets)

    def packet(self, type: str, data: dict[str, Any], *, key: str = "") -> OwnPacket:
        """A packet to be appended along with something else."""
        body = msgspec.json.encode(data)
        return OwnPacket(self.name, self._definition, type, body, key)

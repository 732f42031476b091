"""Events of sources on their way to whoever looks at them. A full buffer loses some, and says so."""

from collections.abc import Callable

import trio

from overlayd.model.chain_source import EventsMissed, SourceEvent
from overlayd.model.channels import bounded


class EventBox:
    """A bounded buffer of events."""

    def __init__(self, capacity: int, name: str, *, on_full: Callable[[], None] = lambda: None) -> None:
        self._send: trio.MemorySendChannel[SourceEvent]
        self._receive: trio.MemoryReceiveChannel[SourceEvent]
        self._send, self._receive = bounded(capacity, name)
        self._is_behind = False
        self._on_full = on_full

    def offer(self, event: SourceEvent) -> bool:
        """Whether there was room. Never waits."""
        try:
            self._send.send_nowait(event)
        except trio.WouldBlock:
            self._is_behind = True
            self._on_full()
            return False
        return True

    async def receive(self) -> SourceEvent:
        """The next event; EventsMissed once those before a loss were given. A checkpoint.

        Raises trio.EndOfChannel after `close`.
        """
        if self._is_behind and not self._receive.statistics().current_buffer_used:
            self._is_behind = False
            await trio.lowlevel.checkpoint()
            return EventsMissed()
        return await self._receive.receive()

    def close(self) -> None:
        """Ends it: what is buffered is still given."""
        self._send.close()

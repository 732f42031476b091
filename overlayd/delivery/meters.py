"""What delivery counts."""

from overlayd.delivery.frames import Message
from overlayd.model.clock import Clock
from overlayd.model.metrics import Metrics

TRANSPORTS = ("websocket", "sse", "ndjson")


class Meters:
    """Counts messages and measures how long live ones took."""

    def __init__(self, clock: Clock, metrics: Metrics) -> None:
        self._clock = clock
        self.sent = 0
        """Messages, to whomever."""
        sent = metrics.loop_counter(
            "overlayd_messages_sent", "Messages out of the log sent to live sessions", "transport"
        )
        seconds = metrics.loop_histogram(
            "overlayd_delivery_seconds",
            "From an entry's appended_at until it was written to a live session that waited at the head",
            "transport",
        )
        self._sent = {name: sent.labels(name) for name in TRANSPORTS}
        self._seconds = {name: seconds.labels(name) for name in TRANSPORTS}
        self.slow_closed = metrics.counter(
            "overlayd_slow_sessions_closed", "Live sessions closed because no byte moved or no pong came", "transport"
        )
        self.published = metrics.counter("overlayd_socket_publishes", "Publish messages over WebSocket", "outcome")

    def count_sent(self, transport: str, messages: list[Message], *, is_live: bool) -> None:
        """Messages were written. A whole page is measured once, by its oldest message that has a time."""
        self.sent += len(messages)
        self._sent[transport].inc(len(messages))
        if is_live and messages and messages[0].trigger_us:
            self._measure(transport, messages)

    def count_group(self, transport: str, messages: list[Message], sessions: int) -> None:
        """The same messages were written to so many sessions at the head, one right after the other."""
        if not sessions:
            return
        self.sent += len(messages) * sessions
        self._sent[transport].inc(len(messages) * sessions)
        if messages[0].trigger_us:
            self._measure(transport, messages)

    def _measure(self, transport: str, messages: list[Message]) -> None:
        took_us = self._clock.now_us() - messages[0].trigger_us
        self._seconds[transport].observe(max(0, took_us) / 1e6)

"""What delivery counts."""

from overlayd.delivery.frames import Gap, Message
from overlayd.delivery.packet_traces import followed_of
from overlayd.model.clock import Clock
from overlayd.model.metrics import Metrics
from overlayd.model.stream_tally import NO_TALLY, StreamTally
from overlayd.model.traces import SpanBook

TRANSPORTS = ("websocket", "sse", "ndjson")


class Meters:
    """Counts messages and measures how long live ones took."""

    def __init__(
        self, clock: Clock, metrics: Metrics, tally: StreamTally = NO_TALLY, spans: SpanBook | None = None
    ) -> None:
        self._clock = clock
        self._spans = spans
        self._count_stream = tally.count_sent
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
        took_us = 0
        if is_live and messages and messages[0].trigger_us:
            took_us = self._measure(transport, messages)
        self._tell_streams(messages, 1, took_us)
        if self._spans is not None:
            self._trace(transport, messages, 1, is_live=is_live)

    def count_read(self, message: Message) -> None:
        """A message in the answer to a request."""
        self._tell_streams([message], 1, 0)

    def count_group(self, transport: str, messages: list[Message], sessions: int) -> None:
        """The same messages were written to so many sessions at the head, one right after the other."""
        if not sessions:
            return
        self.sent += len(messages) * sessions
        self._sent[transport].inc(len(messages) * sessions)
        took_us = self._measure(transport, messages) if messages[0].trigger_us else 0
        self._tell_streams(messages, sessions, took_us)
        if self._spans is not None:
            self._trace(transport, messages, sessions, is_live=True)

    def _measure(self, transport: str, messages: list[Message]) -> int:
        took_us = max(0, self._clock.now_us() - messages[0].trigger_us)
        self._seconds[transport].observe(took_us / 1e6)
        return took_us

    def _tell_streams(self, messages: list[Message], readers: int, took_us: int) -> None:
        """A batch is measured once; each of its messages counts as if it had taken as long as the first."""
        if len(messages) == 1:  # what comes most
            subject = messages[0].subject
            if not isinstance(subject, Gap):
                self._count_stream(subject.stream, readers, took_us * readers, readers if took_us else 0)
            return
        name, count = "", 0
        for message in messages:
            subject = message.subject
            if isinstance(subject, Gap):
                continue
            if subject.stream != name:
                if count:
                    self._tell_stream(name, count * readers, took_us)
                name, count = subject.stream, 0
            count += 1
        if count:
            self._tell_stream(name, count * readers, took_us)

    def _trace(self, transport: str, messages: list[Message], readers: int, *, is_live: bool) -> None:
        assert self._spans is not None
        if followed := followed_of(messages):
            told = (("overlayd.transport", transport), ("overlayd.readers", readers))
            self._spans.delivered(followed, told, is_live=is_live)

    def _tell_stream(self, name: str, sent: int, took_us: int) -> None:
        self._count_stream(name, sent, took_us * sent, sent if took_us else 0)

"""What the intake counts, and what it tells a trace."""

from collections.abc import Collection, Sequence

from overlayd.model.draft import Draft, Receipt
from overlayd.model.errors import OverlaydError, PacketTooLarge
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.stream_tally import StreamTally
from overlayd.model.traces import Followed, SpanBook, is_sampled

_LIMITS_HIT = {
    ("json.depth", ""): "json_depth_max",
    ("schema.cost", "/data"): "schema_steps",
    ("schema.cost", "/data_base64"): "schema_steps",
    ("member.length", "/id"): "id_chars",
    ("member.length", "/type"): "id_chars",
    ("member.length", "/key"): "id_chars",
    ("member.length", "/partitionkey"): "id_chars",
    ("member.length", "/source"): "source_chars",
    ("member.length", "/topics"): "topics_max",
    ("member.length", "/metadata"): "metadata_bytes",
    ("member.length", ""): "metadata_bytes",
}
"""Which setting a mistake hits: by its code and place."""


class IntakeMeters:
    """Counts packets by what became of them. `spans`: None where no traces are wanted."""

    def __init__(self, metrics: Metrics, limits: Limits, tally: StreamTally, spans: SpanBook | None) -> None:
        self.spans = spans
        self._metrics = metrics
        self._limits = limits
        self._tally = tally
        self._published = metrics.loop_counter("overlayd_packets_published", "Packets appended to the log")
        self._repeated = metrics.loop_counter("overlayd_packets_duplicate", "Packets that were in the log already")
        self._rejected = metrics.counter(
            "overlayd_packets_rejected", "Packets that were refused, by error code", "code"
        )
        self._seconds = metrics.loop_histogram(
            "overlayd_publish_seconds", "From a request's packets in memory to their durable answer"
        )

    def count_appended(self, published: int, repeated: int, seconds: float) -> None:
        """A request's packets are durable, so long after they were in memory."""
        if published:
            self._published.inc(published)
        if repeated:
            self._repeated.inc(repeated)
        self._seconds.observe(seconds)

    def count_limit_hit(self, limit: str) -> None:
        """Counts what publishing hit before its packets came here."""
        self._metrics.count_limit_hit(limit)

    def count_errors(self, count: int) -> None:
        """There are so many mistakes to be named in an answer, which names the first ones."""
        if count > self._limits.errors_max:
            self._metrics.count_limit_hit("errors_max")

    def count_rejections(self, stream: str, errors: Collection[OverlaydError]) -> None:
        """Counts packets that were refused."""
        self._tally.count_refused(stream, len(errors))
        for err in errors:
            self._rejected.labels(err.code).inc()
            if isinstance(err, PacketTooLarge):
                self._metrics.count_limit_hit("packet_bytes")
            for found in err.violations:
                if limit := _LIMITS_HIT.get((found.code, found.pointer)):
                    self._metrics.count_limit_hit(limit)

    def trace_appended(
        self, stream: str, drafts: Sequence[Draft], receipts: Sequence[Receipt], begun: str, started: float
    ) -> None:
        """Tells of packets that are in the log since this request. `begun`: the trace that the node gave it, or ""."""
        assert self.spans is not None
        traces = {draft.index: draft.traceparent for draft in drafts if is_sampled(draft.traceparent)}
        followed = [
            Followed(trace, stream, one.epoch, one.offset, one.sequence, one.appended_us, is_root=trace == begun)
            for one in receipts
            if not one.duplicate and (trace := traces.get(one.index, ""))
        ]
        if followed:
            self.spans.published(stream, followed, started)

    def trace_refused(self, stream: str, traceparent: str, error: OverlaydError, started: float) -> None:
        """Tells of a request that came with a trace and was refused as a whole."""
        if self.spans is not None and is_sampled(traceparent):
            self.spans.refused(stream, traceparent, error.code, started)

    def trace_one(self, stream: str, receipt: Receipt, traceparent: str, *, is_begun: bool, started: float) -> None:
        """As `trace_appended`, for a request's only packet."""
        if self.spans is None or receipt.duplicate or not is_sampled(traceparent):
            return
        one = Followed(
            traceparent, stream, receipt.epoch, receipt.offset, receipt.sequence, receipt.appended_us, is_begun
        )
        self.spans.published(stream, [one], started)

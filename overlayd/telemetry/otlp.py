"""Sends spans to a collector: OTLP over HTTP, as JSON (OpenTelemetry protocol 1, JSON Protobuf encoding).

Own code instead of OpenTelemetry's SDK: that brings threads, protobuf and an HTTP client of its own, for one document
(docs/adr/, telemetry without agents).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog
import trio

from overlayd import __version__
from overlayd.model.errors import OutboundFailure
from overlayd.model.metrics import Metrics
from overlayd.model.traces import Kind, Span, SpanBook
from overlayd.outbound import Outbound, OutboundRequest
from overlayd.outbound.networks import NetworkPolicy, parse_networks
from overlayd.outbound.retry_after import parse_retry_after
from overlayd.telemetry.settings import TracesSettings

PATH = "/v1/traces"
BATCH_SPANS = 512
TRIES_MAX = 5
PAUSE_FIRST_S = 1.0
PAUSE_MAX_S = 30.0
STOP_S = 2.0
TOKEN_BYTES_MAX = 4096
AGAIN = frozenset((408, 429, 502, 503, 504))
_KINDS: dict[Kind, int] = {"internal": 1, "server": 2, "client": 3, "producer": 4}
_ERROR = 2
_log = structlog.get_logger("telemetry.traces")


class TraceExporter:
    """Takes spans out of the book and sends them, a batch at a time. One for the node."""

    def __init__(
        self, book: SpanBook, settings: TracesSettings, outbound: Outbound, metrics: Metrics, *, node: str
    ) -> None:
        self._book = book
        self._settings = settings
        self._outbound = outbound
        self._node = node
        base = settings.endpoint.rstrip("/")
        self._url = base if base.endswith(PATH) else base + PATH
        self._policy = NetworkPolicy(parse_networks(settings.allow_private))
        self._sent = metrics.counter(
            "overlayd_trace_spans", "Spans by what became of them: exported, refused or given up", "outcome"
        )
        self._batch: list[Span] = []
        self._is_failing = False

    def __repr__(self) -> str:
        return f"TraceExporter({self._url}, {self._book!r})"

    async def run(self) -> None:
        """Sends what comes, until cancelled."""
        while True:
            await trio.sleep(float(self._settings.interval))
            await self.flush()

    async def flush(self) -> None:
        """Sends all that waits. Checkpoint. Raises nothing but Cancelled: a collector that is away costs the spans, after
        a few tries, and nothing else."""
        await trio.lowlevel.checkpoint()
        while self._batch or len(self._book):
            self._batch = self._batch or self._book.take(BATCH_SPANS)
            outcome = await self._send(self._batch)
            self._sent.labels(outcome).inc(len(self._batch))
            self._batch = []

    async def stop(self) -> None:
        """Sends what is left, for a moment. Checkpoint."""
        with trio.move_on_after(STOP_S, shield=True):
            await self.flush()

    async def _send(self, batch: Sequence[Span]) -> str:
        """What became of the batch."""
        body, pause_s = encode_spans(batch, self._node), PAUSE_FIRST_S
        for number in range(1, TRIES_MAX + 1):
            wait_s: float | None = None
            try:
                headers = (("Content-Type", "application/json"), ("User-Agent", f"overlayd/{__version__}"))
                answer = await self._outbound.send(
                    OutboundRequest(
                        "POST", self._url, headers=(*headers, *await self._authorization()), body=body,
                        timeout_s=float(self._settings.timeout), is_body_evidence=True, is_repeatable=True,
                        policy=self._policy,
                    )
                )  # fmt: skip
            except OutboundFailure as failure:
                reason = failure.reason
            except OSError as err:
                reason = f"its token can't be read: {type(err).__name__}"
            else:
                if 200 <= answer.status < 300:
                    self._note(None)
                    return "exported"
                reason = f"it answers {answer.status}"
                if answer.status not in AGAIN:
                    self._note(reason)
                    return "refused"
                wait_s = parse_retry_after(answer.header("retry-after"), now_us=0)
            self._note(reason)
            if number < TRIES_MAX:
                await trio.sleep(min(PAUSE_MAX_S, max(pause_s, wait_s or 0.0)))
                pause_s *= 2
        return "given_up"

    async def _authorization(self) -> tuple[tuple[str, str], ...]:
        """Raises OSError."""
        if not self._settings.file:
            return ()
        text = await trio.to_thread.run_sync(_read_start, Path(self._settings.file))
        return (("Authorization", text),) if text else ()

    def _note(self, trouble: str | None) -> None:
        """Told in the log when it begins and when it is over, not each time."""
        if trouble is not None and not self._is_failing:
            _log.warning("the collector takes no traces", endpoint=self._url, reason=trouble)
        elif trouble is None and self._is_failing:
            _log.info("the collector takes traces again", endpoint=self._url)
        self._is_failing = trouble is not None


def encode_spans(spans: Sequence[Span], node: str) -> bytes:
    """ExportTraceServiceRequest in OTLP's JSON form: ids in hex, 64-bit integers as text."""
    about = _attributes((("service.name", "overlayd"), ("service.version", __version__), ("service.instance.id", node)))
    scope = {"scope": {"name": "overlayd", "version": __version__}, "spans": [_span(span) for span in spans]}
    return msgspec.json.encode({"resourceSpans": [{"resource": {"attributes": about}, "scopeSpans": [scope]}]})


def _span(span: Span) -> dict[str, Any]:
    found: dict[str, Any] = {
        "traceId": span.trace, "spanId": span.id, "name": span.name, "kind": _KINDS[span.kind],
        "startTimeUnixNano": str(span.start_us * 1000), "endTimeUnixNano": str(span.end_us * 1000),
        "attributes": _attributes(span.attributes),
    }  # fmt: skip
    if span.parent:
        found["parentSpanId"] = span.parent
    if span.error:
        found["status"] = {"code": _ERROR, "message": span.error}
    return found


def _attributes(pairs: Sequence[tuple[str, str | int]]) -> list[dict[str, Any]]:
    return [
        {"key": name, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}}
        for name, value in pairs
    ]


def _read_start(file: Path) -> str:
    with file.open("rb") as opened:
        text = opened.read(TOKEN_BYTES_MAX).decode("ascii", "replace").strip()
    if not text.isascii() or not text.isprintable():
        raise OSError("not one line of printable characters")
    return text

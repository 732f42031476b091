"""One line and two metrics for every request. Never headers, queries or bodies: they hold secrets."""

import trio

from overlayd.model.access_lines import AccessLine, WriteAccessLine, write_as_log_line
from overlayd.model.logs import hide_keys
from overlayd.model.loop_metrics import LoopBuckets, LoopCount
from overlayd.model.metrics import SECONDS, Metrics

PATH_CHARS_MAX = 200
METHODS = frozenset(("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"))


class RequestLog:
    """Where finished requests are written down."""

    def __init__(self, metrics: Metrics, write_line: WriteAccessLine | None = write_as_log_line) -> None:
        """`write_line`: None when nobody wants the lines."""
        self._write_line = write_line
        self._requests = metrics.loop_counter(
            "overlayd_http_requests", "Requests answered", "method", "route", "status"
        )
        self._seconds = metrics.loop_histogram(
            "overlayd_http_request_seconds", "From a request's first byte to its answer's first", "route",
            buckets=SECONDS,
        )  # fmt: skip
        # Looking labels up costs more than counting; methods, routes and statuses are few.
        self._counters: dict[tuple[str, str, int], LoopCount] = {}
        self._histograms: dict[str, LoopBuckets] = {}

    def write_with(self, write_line: WriteAccessLine | None) -> None:
        """From now on lines are written so; None: nobody wants them any more."""
        self._write_line = write_line

    def answer_begun(self, route: str, started: float, now: float | None = None) -> None:
        """Measures how long the answer took to begin; how long a slow reader takes isn't ours. `now`: of Trio's clock,
        for who has just asked it."""
        histogram = self._histograms.get(route)
        if histogram is None:
            histogram = self._histograms[route] = self._seconds.labels(route)
        histogram.observe((trio.current_time() if now is None else now) - started)

    def record(
        self,
        *,
        method: str,
        path: str,
        route: str,
        status: int,
        sent_bytes: int,
        started: float,
        principal: str,
        request_id: str,
        now: float | None = None,
    ) -> None:
        """Called once per request, at its very end. `route` is a pattern, so that names don't become labels."""
        known = method if method in METHODS else "other"
        counter = self._counters.get((known, route, status))
        if counter is None:
            counter = self._counters[known, route, status] = self._requests.labels(known, route, str(status))
        counter.inc()
        if self._write_line is not None:
            duration_ms = round(((trio.current_time() if now is None else now) - started) * 1000, 3)
            self._write_line(
                AccessLine(
                    method[:20], hide_keys(path)[:PATH_CHARS_MAX], status, sent_bytes, duration_ms, principal, request_id
                )
            )  # fmt: skip

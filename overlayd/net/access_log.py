"""One line and two metrics for every request. Never headers, queries or bodies: they hold secrets."""

import structlog
import trio

from overlayd.model.metrics import SECONDS, Metrics

PATH_CHARS_MAX = 200
METHODS = frozenset(("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"))
_log = structlog.get_logger("access")


class RequestLog:
    """Where finished requests are written down."""

    def __init__(self, metrics: Metrics) -> None:
        self._requests = metrics.counter("overlayd_http_requests", "Requests answered", "method", "route", "status")
        self._seconds = metrics.histogram(
            "overlayd_http_request_seconds", "From a request's first byte to its answer's first", "route",
            buckets=SECONDS,
        )  # fmt: skip

    def answer_begun(self, route: str, started: float) -> None:
        """Measures how long the answer took to begin; how long a slow reader takes isn't ours."""
        self._seconds.labels(route).observe(trio.current_time() - started)

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
    ) -> None:
        """Called once per request, at its very end. `route` is a pattern, so that names don't become labels."""
        known = method if method in METHODS else "other"
        self._requests.labels(known, route, str(status)).inc()
        _log.info(
            "request",
            method=method[:20],
            path=path[:PATH_CHARS_MAX],
            status=status,
            bytes=sent_bytes,
            duration_ms=round((trio.current_time() - started) * 1000, 3),
            principal=principal,
            request_id=request_id,
        )

"""Reports the node's own faults to Sentry, or what speaks like it: unforeseen errors and crashes, nothing else.

A report says which error it was, where in the code, and in which part of the node: types, files, lines and functions.
It holds no message of an exception, no variable and nothing of a request, since any of these may hold what producers
sent, or a secret. Own code instead of Sentry's SDK, which sends from a thread of its own and takes along what it finds
unless told otherwise in many places.
"""

import errno
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import msgspec
import structlog
import trio

from overlayd import __version__
from overlayd.model.clock import Clock, Entropy
from overlayd.model.errors import OutboundFailure, OverlaydError
from overlayd.model.metrics import Metrics
from overlayd.outbound import Outbound, OutboundRequest
from overlayd.outbound.networks import NetworkPolicy, parse_networks
from overlayd.telemetry.dsn import parse_dsn
from overlayd.telemetry.settings import SentrySettings

FRAMES_MAX = 50
ERRORS_MAX = 10
PLACES_KEPT = 1000
STOP_S = 2.0
PAUSE_DEFAULT_S = 60.0
CLIENT = f"overlayd/{__version__}"
_PACKAGE = "overlayd"
_log = structlog.get_logger("telemetry.faults")


class FaultReports:
    """Takes faults from wherever they are logged, and sends them. One for the node, if reports are wanted."""

    def __init__(
        self, settings: SentrySettings, outbound: Outbound, *, node: str, clock: Clock, entropy: Entropy,
        metrics: Metrics,
    ) -> None:  # fmt: skip
        """Raises ValueError for a DSN that is none."""
        self._settings = settings
        self._outbound = outbound
        self._dsn = parse_dsn(settings.dsn)
        self._policy = NetworkPolicy(parse_networks(settings.allow_private))
        self._node = node
        self._clock = clock
        self._entropy = entropy
        self._metrics = metrics
        self._waiting: deque[bytes] = deque()
        self._told_at: dict[tuple[str, ...], float] = {}
        self._arrived = trio.Event()
        self._reports = metrics.counter(
            "overlayd_fault_reports", "Reports of the node's own faults, by what became of them", "outcome"
        )

    def __repr__(self) -> str:
        return f"FaultReports({self._dsn!r}, waiting={len(self._waiting)})"

    def note(self, error: BaseException, event: str, part: str) -> None:
        """A fault happened; `event` are the fixed words of the log line, `part` the logger's name. Neither waits nor
        fails. The same fault is told once in a while."""
        place = (event, *(f"{type(one).__name__}:{_where(one)}" for one in _chain_of(error)))
        now = trio.current_time()
        told_at = self._told_at.get(place)
        if told_at is not None and now < told_at + float(self._settings.repeat_pause):
            self._reports.labels("repeated").inc()
            return
        if len(self._waiting) >= self._settings.reports_max:
            self._metrics.count_limit_hit("reports_max")
            self._reports.labels("dropped").inc()
            return
        if len(self._told_at) >= PLACES_KEPT:
            self._told_at.clear()
        self._told_at[place] = now
        self._waiting.append(self._envelope(error, event, part))
        self._arrived.set()

    async def run(self) -> None:
        """Sends what comes, until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived = trio.Event()
            pause_s = await self._send_all()
            if pause_s:
                await trio.sleep(pause_s)
                self._arrived.set()

    async def stop(self) -> None:
        """Sends what is left, for a moment. Checkpoint."""
        with trio.move_on_after(STOP_S, shield=True):
            await self._send_all()

    async def _send_all(self) -> float:
        """For how long nothing may be sent. Checkpoint."""
        await trio.lowlevel.checkpoint()
        while self._waiting:
            body = self._waiting[0]
            outcome, pause_s = await self._send(body)
            if pause_s:
                return pause_s
            if self._waiting and self._waiting[0] is body:
                self._waiting.popleft()
            self._reports.labels(outcome).inc()
        return 0.0

    async def _send(self, body: bytes) -> tuple[str, float]:
        headers = (
            ("Content-Type", "application/x-sentry-envelope"), ("User-Agent", CLIENT),
            ("X-Sentry-Auth", f"Sentry sentry_version=7, sentry_client={CLIENT}, sentry_key={self._dsn.key}"),
        )  # fmt: skip
        try:
            answer = await self._outbound.send(
                OutboundRequest(
                    "POST", self._dsn.url, headers=headers, body=body, timeout_s=float(self._settings.timeout),
                    is_body_evidence=True, policy=self._policy,
                )
            )  # fmt: skip
        except OutboundFailure as failure:
            _log.warning("a fault couldn't be reported", reason=failure.reason)
            return "failed", 0.0
        if answer.status == 429:
            text = answer.header("retry-after")
            return "", float(text) if text.isascii() and text.isdigit() and len(text) < 6 else PAUSE_DEFAULT_S
        if 200 <= answer.status < 300:
            return "sent", 0.0
        _log.warning("a fault couldn't be reported", reason=f"the answer is {answer.status}")
        return "failed", 0.0

    def _envelope(self, error: BaseException, event: str, part: str) -> bytes:
        """An envelope of one event (develop.sentry.dev, Envelopes)."""
        id, timestamp = self._entropy.draw(16).hex(), self._clock.now_us() / 1e6
        told = {
            "event_id": id, "timestamp": timestamp, "platform": "python", "level": "error", "logger": part,
            "release": f"overlayd@{__version__}", "environment": self._settings.environment, "server_name": self._node,
            "transaction": event, "exception": {"values": [_shown(one) for one in _chain_of(error)]},
        }  # fmt: skip
        item = msgspec.json.encode(told)
        head = msgspec.json.encode({"event_id": id})
        kind = msgspec.json.encode({"type": "event", "length": len(item), "content_type": "application/json"})
        return b"\n".join((head, kind, item, b""))


def _chain_of(error: BaseException) -> list[BaseException]:
    """The error with its causes and, of a group, its members: the innermost first, as Sentry shows them."""
    found: list[BaseException] = []
    waiting = [error]
    while waiting and len(found) < ERRORS_MAX:
        one = waiting.pop(0)
        if any(one is known for known in found):
            continue
        found.append(one)
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
        cause = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
        if cause is not None:
            waiting.append(cause)
    return found[::-1]


def _shown(error: BaseException) -> dict[str, Any]:
    """Its type and place; of its own words only those that are fixed."""
    kind = type(error)
    return {
        "type": kind.__name__, "module": kind.__module__, "value": _fixed_words(error),
        "stacktrace": {"frames": list(_frames(error.__traceback__))[-FRAMES_MAX:]},
    }  # fmt: skip


def _fixed_words(error: BaseException) -> str:
    if isinstance(error, OverlaydError):
        return error.code
    return errno.errorcode.get(error.errno or 0, "") if isinstance(error, OSError) else ""


def _frames(trace: TracebackType | None) -> Iterator[dict[str, Any]]:
    """The outermost first. Paths begin at the package, since those above it may name somebody."""
    while trace is not None:
        code = trace.tb_frame.f_code
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        file = f"{module.replace('.', '/')}.py" if module else code.co_filename.rsplit("/", 1)[-1]
        yield {
            "filename": file, "function": code.co_qualname, "module": module, "lineno": trace.tb_lineno,
            "in_app": module.split(".")[0] == _PACKAGE,
        }  # fmt: skip
        trace = trace.tb_next


def _where(error: BaseException) -> str:
    """File and line of its innermost frame."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        place = f"{trace.tb_frame.f_globals.get('__name__', '')}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place

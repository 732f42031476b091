"""Requests to one source: its address, token, rate and time, and what is wrong when no usable answer comes."""

import re
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

import msgspec
import trio

from overlayd.chain.sources.faults import Fault, unavailable, words_of
from overlayd.chain.sources.health import SourceHealth, SourceMetrics
from overlayd.chain.sources.pace import Pace
from overlayd.chain.sources.settings import AskingSettings, ChainSourceSettings
from overlayd.chain.sources.tokens import Token
from overlayd.model.clock import Clock
from overlayd.model.errors import OutboundFailure, SourceUnavailable
from overlayd.outbound import OutboundAnswer, OutboundRequest
from overlayd.outbound.client import OutboundStream
from overlayd.outbound.networks import NetworkPolicy, parse_networks
from overlayd.outbound.request import Headers, Method
from overlayd.outbound.retry_after import parse_retry_after

T = TypeVar("T")

IDLE_S = 60.0
"""Longest silence of an event stream; sources send a sign of life every 15 s."""
_TIMEOUTS = re.compile(r".*\.timeout")
_LATER = frozenset({429, 503})
_UNAUTHORIZED = frozenset({401, 403})


class Sender(Protocol):
    """The two calls of the outbound client that are needed here."""

    async def send(self, request: OutboundRequest) -> OutboundAnswer: ...

    def stream(
        self, request: OutboundRequest, *, idle_timeout_s: float
    ) -> AbstractAsyncContextManager[OutboundStream]: ...


class SourceCalls:
    """One source's requests. Faults are noted with its health before they are raised."""

    def __init__(
        self, settings: ChainSourceSettings, *, sender: Sender, token: Token, health: SourceHealth, clock: Clock,
        asking: AskingSettings, metrics: SourceMetrics,
    ) -> None:  # fmt: skip
        self.name = health.name
        self.health = health
        self.concurrency = asking.source_requests
        self.limit_hit = metrics.limit_hit
        self._sender = sender
        self._token = token
        self._clock = clock
        self._metrics = metrics
        self._timeout_s = float(settings.timeout)
        self._answer_bytes = int(asking.source_answer_bytes)
        self._policy = NetworkPolicy(parse_networks(settings.allow_private))
        self._places = trio.CapacityLimiter(asking.source_requests)
        self._pace = Pace(
            self.name, settings.requests_per_s, wait_max_s=float(asking.source_wait),
            on_full=lambda: metrics.limit_hit("source_wait"),
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"SourceCalls({self.health!r})"

    async def get(self, call: str, url: str, *, expected: Sequence[int] = ()) -> OutboundAnswer:
        """As `send`, for GET."""
        return await self.send(call, "GET", url, expected=expected)

    async def post(
        self, call: str, url: str, body: Any, *, headers: Headers = (), expected: Sequence[int] = ()
    ) -> OutboundAnswer:
        """As `send`, for POST. Anything but bytes goes as JSON."""
        if isinstance(body, bytes):
            content_type, octets = "application/octet-stream", body
        else:
            content_type, octets = "application/json", msgspec.json.encode(body)
        all_headers = (("Content-Type", content_type), *headers)
        return await self.send(call, "POST", url, headers=all_headers, body=octets, expected=expected)

    async def send(
        self, call: str, method: Method, url: str, *, headers: Headers = (), body: bytes = b"",
        expected: Sequence[int] = (),
    ) -> OutboundAnswer:  # fmt: skip
        """One request; gives a 2xx, or one of the other statuses that are expected. `call`: its name in metrics.

        Checkpoint. Waits for the source's rate. Raises SourceUnavailable.
        """
        async with self._places:
            answer = await self._exchange(call, method, url, headers, body)
            if answer.status in _UNAUTHORIZED and answer.status not in expected and await self._reread():
                answer = await self._exchange(call, method, url, headers, body)
        if 200 <= answer.status < 300 or answer.status in expected:
            return answer
        raise self._refused(answer)

    async def _exchange(self, call: str, method: Method, url: str, headers: Headers, body: bytes) -> OutboundAnswer:
        try:
            await self._pace.take()
            token = await self._token.header()
        except SourceUnavailable as err:
            raise self._noted(err) from None
        self._metrics.requests.labels(self.name, call).inc()
        request = OutboundRequest(
            method, url, headers=(*token, ("Accept", "application/json, */*;q=0.5"), *headers), body=body,
            timeout_s=self._timeout_s, body_max=self._answer_bytes, is_repeatable=True, policy=self._policy,
        )  # fmt: skip
        started = trio.current_time()
        try:
            return await self._sender.send(request)
        except OutboundFailure as err:
            raise self._noted(self._failure(err)) from err
        finally:
            self._metrics.seconds.labels(self.name).observe(trio.current_time() - started)

    async def _reread(self) -> bool:
        try:
            return await self._token.reread()
        except SourceUnavailable as err:
            raise self._noted(err) from None

    def stream(self, url: str, headers: Headers = ()) -> AbstractAsyncContextManager[OutboundStream]:
        """An endless answer. What goes wrong is an OutboundFailure; `failure_of` tells which fault that is."""
        self._metrics.requests.labels(self.name, "events").inc()
        request = OutboundRequest(
            "GET", url, headers=(("Accept", "text/event-stream"), *headers), timeout_s=self._timeout_s,
            policy=self._policy,
        )  # fmt: skip
        return self._sender.stream(request, idle_timeout_s=IDLE_S)

    async def stream_headers(self) -> Headers:
        """The token's header for a stream. Raises SourceUnavailable."""
        try:
            return await self._token.header()
        except SourceUnavailable as err:
            raise self._noted(err) from None

    def read_json(self, answer: OutboundAnswer, kind: type[T]) -> T:
        """The body as what it has to be. Raises SourceUnavailable."""
        try:
            return msgspec.json.decode(answer.body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
            raise self.malformed(f"its answer can't be read: {words_of(str(err))}") from err

    def malformed(self, detail: str) -> SourceUnavailable:
        """A fault that is noted and to be raised: the answer makes no sense."""
        return self.fail(Fault.MALFORMED, detail)

    def fail(self, fault: Fault, detail: str, retry_after_s: float | None = None) -> SourceUnavailable:
        """A fault that is noted and to be raised."""
        return self._noted(unavailable(fault, detail, source=self.name, retry_after_s=retry_after_s))

    def note_failure(self, err: OutboundFailure) -> SourceUnavailable:
        """A stream's end as a fault, noted."""
        return self._noted(self._failure(err))

    def _refused(self, answer: OutboundAnswer) -> SourceUnavailable:
        words = words_of(answer.body[:1024].decode("utf-8", "replace"))
        detail = f"it answered {answer.status}" + (f": {words}" if words else "")
        if answer.status in _UNAUTHORIZED:
            return self.fail(Fault.UNAUTHORIZED, detail)
        fault = Fault.BUSY if answer.status in _LATER else Fault.FAILED
        return self.fail(fault, detail, parse_retry_after(answer.header("retry-after"), self._clock.now_us()))

    def _failure(self, err: OutboundFailure) -> SourceUnavailable:
        fault = Fault.TIMEOUT if _TIMEOUTS.fullmatch(err.reason) else Fault.UNREACHABLE
        if err.reason == "body.too_large":
            self._metrics.limit_hit("source_answer_bytes")
            fault = Fault.MALFORMED
        return unavailable(fault, f"{err.detail} ({err.reason})", source=self.name, hint=err.hint)

    def _noted(self, error: SourceUnavailable) -> SourceUnavailable:
        self.health.note_fault(Fault(error.extra["reason"]), error.detail, error.retry_after_s)
        return error

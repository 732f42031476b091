"""The webhook outlet: one attempt is one signed POST."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import trio

from overlayd import __version__
from overlayd.delivery.frames import Message
from overlayd.delivery.matching import PacketView
from overlayd.delivery.packet_traces import followed_of
from overlayd.delivery.webhooks.body import Body, BodyTooLong, build_body, fitting, traceparent_of
from overlayd.delivery.webhooks.secrets import LiveSecret, SecretKeeper
from overlayd.delivery.webhooks.signing import body_signature, sign_inside, standard_signature
from overlayd.delivery.webhooks.verdict import judge_answer
from overlayd.model.clock import Clock
from overlayd.model.errors import OutboundFailure, OverlaydError
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.outlet import AttemptResult, Delivery
from overlayd.model.subscription import AgentRule, WebhookRule
from overlayd.model.traces import Attributes, Followed, SpanBook, hand_on, is_sampled
from overlayd.outbound import Outbound, OutboundRequest

LARGE_BYTES = 64 << 10
"""Larger deliveries are built and signed in a thread, and share `webhook_bodies_bytes`; smaller ones are bounded by their
number."""
THREADS = 2
_PACKET_BYTES = 512
"""What a packet takes in a body besides its data, roughly."""
_MEMBERS_BYTES = 4096
"""What a packet takes besides data and meta at the most: names of members, hashes, times, its stream's name."""
_ENVELOPE_BYTES = 4096

Headers = tuple[tuple[str, str], ...]
Steps = list[tuple[Followed, str]]
"""Packets of traces that are written down, each with the id that the attempt's span gets in its trace."""


class Room:
    """Bytes of large bodies in flight. Who finds no room waits for it, in turn; small bodies don't count."""

    def __init__(self, bytes_max: int, metrics: Metrics) -> None:
        self._bytes_max = bytes_max
        self._metrics = metrics
        self._taken = 0
        self._turn = trio.StrictFIFOLock()
        self._freed = trio.Event()

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Room for a body of so many bytes. A checkpoint only if it is large."""
        if size <= LARGE_BYTES:
            yield
            return
        async with self._turn:
            if self._taken and self._taken + size > self._bytes_max:
                self._metrics.count_limit_hit("webhook_bodies_bytes")
            while self._taken and self._taken + size > self._bytes_max:
                self._freed = trio.Event()
                await self._freed.wait()
            self._taken += size
        try:
            yield
        finally:
            self._taken -= size
            self._freed.set()


class WebhookOutlet:
    """`model.outlet.Outlet` for webhooks."""

    def __init__(
        self, outbound: Outbound, secrets: SecretKeeper, *, limits: Limits, clock: Clock, metrics: Metrics,
        spans: SpanBook | None = None,
    ) -> None:  # fmt: skip
        """`spans`: None where no traces are wanted."""
        self._spans = spans
        self._outbound = outbound
        self._secrets = secrets
        self._limits = limits
        self._clock = clock
        self._metrics = metrics
        self._room = Room(int(limits.webhook_bodies_bytes), metrics)
        self._threads = trio.CapacityLimiter(THREADS)
        self._attempts = metrics.counter(
            "overlayd_webhook_attempts", "Attempts to deliver to webhooks, by outcome", "outcome"
        )
        self._bytes = metrics.counter("overlayd_webhook_bytes", "Bytes of the bodies sent to webhooks")

    async def attempt(self, delivery: Delivery[Message]) -> AttemptResult:
        """One signed POST, in the order place, body, signature, so that none of them waits. Checkpoint."""
        spans = self._spans
        steps = [] if spans is None else spans.to_push(followed_of(delivery.messages))
        start_us = self._clock.now_us() if steps else 0
        result = await self._attempt(delivery, steps)
        self._attempts.labels(result.outcome).inc()
        if spans is not None and steps:
            told: Attributes = (
                ("overlayd.subscription", delivery.subscription_id), ("overlayd.attempt", delivery.attempt),
                *((("http.response.status_code", result.status),) if result.status else ()),
            )  # fmt: skip
            spans.attempted(steps, start_us, told, "" if result.outcome == "delivered" else result.outcome)
        return result

    async def fit(self, delivery: Delivery[Message]) -> int:
        """How many of the messages fit into one body. Checkpoint."""
        rule, bytes_max = delivery.definition.webhook, int(self._limits.webhook_body_bytes)
        assert isinstance(rule, WebhookRule)
        if rule.format != "template" and _bound_of(delivery) <= bytes_max:
            await trio.lowlevel.checkpoint()
            return len(delivery.messages)
        find = partial(fitting, delivery, rule, bytes_max=bytes_max)
        return await trio.to_thread.run_sync(find, limiter=self._threads)

    async def _attempt(self, delivery: Delivery[Message], steps: Steps) -> AttemptResult:
        rule = delivery.definition.webhook
        assert isinstance(rule, WebhookRule)
        started = trio.current_time()
        try:
            async with (
                self._outbound.place(rule.url, delivery.subscription_id) as place,
                self._room.hold(_size_of(delivery, rule, self._limits)),
            ):
                started = trio.current_time()
                request = await self._request(delivery, rule, steps)
                answer = await self._outbound.send_placed(request, place)
                self._bytes.inc(len(request.body))
        except OutboundFailure as failure:
            if failure.reason == "body.too_large":
                self._metrics.count_limit_hit("agent_reply_bytes")
            return _failed(f"{failure.reason}: {failure.detail}", started)
        except BodyTooLong as err:
            self._metrics.count_limit_hit("webhook_body_bytes")
            return AttemptResult("undeliverable", f"body.too_long: {err}", duration_us=_since(started))
        except OverlaydError as err:
            return _failed(f"{err.code}: {err.detail}", started)
        result = judge_answer(
            answer, now_us=self._clock.now_us(), retry_after_max_s=self._limits.webhook_retry_after
        )  # fmt: skip
        if len(answer.body) >= self._limits.webhook_response_bytes:
            self._metrics.count_limit_hit("webhook_response_bytes")
            excerpt = answer.body[: int(self._limits.webhook_response_bytes)]
            result = msgspec.structs.replace(result, response_excerpt=excerpt)
        if _may_reply(delivery) and "json" in (answer.header("content-type") or "").lower():
            result = msgspec.structs.replace(result, reply=answer.body)
        if result.retry_after_s == self._limits.webhook_retry_after:
            self._metrics.count_limit_hit("webhook_retry_after")
        return result

    async def _request(self, delivery: Delivery[Message], rule: WebhookRule, steps: Steps) -> OutboundRequest:
        secrets = await self._secrets.live(delivery.subscription_id)
        now_us = self._clock.now_us()
        build = partial(
            _build_signed,
            delivery,
            rule,
            secrets,
            now_us=now_us,
            bytes_max=int(self._limits.webhook_body_bytes),
            trace=_trace_of(delivery, steps),
        )
        if _size_of(delivery, rule, self._limits) > LARGE_BYTES:
            body, headers = await trio.to_thread.run_sync(build, limiter=self._threads)
        else:
            body, headers = build()
        may_reply = _may_reply(delivery)
        body_max = self._limits.agent_reply_bytes if may_reply else self._limits.webhook_response_bytes
        return OutboundRequest(
            method="POST", url=rule.url, headers=headers, body=body, timeout_s=float(rule.timeout),
            body_max=int(body_max), is_body_evidence=not may_reply, is_repeatable=True,
        )  # fmt: skip


def _may_reply(delivery: Delivery[Message]) -> bool:
    """Whether what is answered counts, beside its status: an agent's reply."""
    agent = delivery.definition.agent
    return isinstance(agent, AgentRule) and isinstance(agent.output, str) and delivery.kind == "packets"


def _build_signed(
    delivery: Delivery[Message], rule: WebhookRule, secrets: tuple[LiveSecret, ...], *, now_us: int, bytes_max: int,
    trace: str,
) -> tuple[bytes, Headers]:  # fmt: skip
    body = build_body(delivery, rule, now_us=now_us, bytes_max=bytes_max)
    newest = secrets[0].key
    text = sign_inside(newest, body.text) if body.is_signable else body.text
    return text, (*_own_headers(delivery, body, text, secrets, now_us, trace), *rule.headers.items())


def _own_headers(
    delivery: Delivery[Message], body: Body, text: bytes, secrets: tuple[LiveSecret, ...], now_us: int, trace: str
) -> Headers:
    timestamp_s = now_us // 1_000_000
    keys = [secret.key for secret in secrets]
    headers = [
        ("content-type", body.content_type),
        ("user-agent", f"overlayd/{__version__}"),
        ("webhook-id", delivery.delivery_id),
        ("webhook-timestamp", str(timestamp_s)),
        ("webhook-signature", standard_signature(keys, delivery.delivery_id, timestamp_s, text)),
        ("X-Overlayd-Signature", body_signature(keys[0], text)),
    ]
    if trace:
        headers.append(("traceparent", trace))
    return tuple(headers)


def _trace_of(delivery: Delivery[Message], steps: Steps) -> str:
    """The trace to hand on: where the attempt itself is a step of it, what the receiver does stands below that."""
    trace = traceparent_of(delivery.messages)
    return hand_on(*steps[0]) if steps and is_sampled(trace) else trace


def _bound_of(delivery: Delivery[Message]) -> int:
    """Bytes that the body can't exceed, without a template: texts of the meta at most six times as long in JSON."""
    entries = [message.subject.entry for message in delivery.messages if isinstance(message.subject, PacketView)]
    return _ENVELOPE_BYTES + sum(len(one.body) + 6 * len(one.meta) + _MEMBERS_BYTES for one in entries)


def _size_of(delivery: Delivery[Message], rule: WebhookRule, limits: Limits) -> int:
    """About how large the body gets."""
    size = 0
    for message in delivery.messages:
        entry = getattr(message.subject, "entry", None)
        size += _PACKET_BYTES + (len(entry.body) + len(entry.meta) if entry is not None else 0)
    if isinstance(rule.template, str):
        size = len(rule.template) + size * rule.template.count("{{")
    return min(size, int(limits.webhook_body_bytes))


def _failed(reason: str, started: float) -> AttemptResult:
    return AttemptResult("retry", reason=reason, duration_us=_since(started))


def _since(started: float) -> int:
    return int((trio.current_time() - started) * 1e6)

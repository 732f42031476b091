"""`/v1/streaming` and `/v1/agent/streaming`: sessions and quotas by receipt, in the words that other systems use.

Bodies are camelCase. A refusal is a problem like everywhere else, with `error` and `message` beside it.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from quart import Request, Response, request
from quart_trio import QuartTrio

from overlayd.access import Principal, require
from overlayd.access.principal import may, require_some
from overlayd.access.quota_tables import StreamingSession
from overlayd.access.quotas import Account
from overlayd.access.streaming_sessions import Opening, Progress, StreamingSessions
from overlayd.model.clock import Clock, format_time_us
from overlayd.model.errors import BadParameter, OverlaydError, QuotaExceeded
from overlayd.model.quota import QuotaPolicy, WindowName
from overlayd.model.wire import encode_wire
from overlayd.model.wire_usage import (
    AgentSessionIn,
    AgentSessionOut,
    PolicyIn,
    PolicyMade,
    QuotaStatus,
    ReceiptBurst,
    ReceiptPolicy,
    ReceiptProjections,
    ReceiptQuota,
    ReceiptStreams,
    ReceiptWindow,
    ReceiptWindows,
    StreamingOpen,
    StreamingOpened,
    StreamingState,
)
from overlayd.net.app import answer, principal_of
from overlayd.net.json_body import JsonBodies
from overlayd.net.lane import Lane
from overlayd.net.parameters import Parameters
from overlayd.net.path_parts import know_exceptions

UNBOUNDED = (1 << 53) - 1
"""The largest number that every JSON reader takes exactly."""
RECEIPT_CHARS_MAX = 128
PutPolicy = Callable[[QuotaPolicy], Awaitable[bool]]


def add_streaming_routes(
    app: QuartTrio, *, sessions: StreamingSessions, clock: Clock, lane: Lane, bodies: JsonBodies, put_policy: PutPolicy
) -> None:
    """Adds the routes. `put_policy`: as `PUT /v1/quotas/policies/{policy}` does it."""
    routes = _StreamingRoutes(sessions, clock, lane, bodies, put_policy)
    add = app.add_url_rule
    know_exceptions(app)
    add("/v1/streaming/sessions", "streaming.open", routes.open, methods=["POST"])
    add("/v1/streaming/sessions/<session>", "streaming.show", routes.show, methods=["GET"])
    add("/v1/streaming/quotas/policies", "streaming.policy", routes.make_policy, methods=["POST"])
    add("/v1/streaming/quotas/<unless('policies'):receipt>", "streaming.quota", routes.quota, methods=["GET"])
    add("/v1/agent/streaming/sessions", "streaming.agent", routes.agent, methods=["POST"])


class _StreamingRoutes:
    """The routes with what they need."""

    def __init__(
        self, sessions: StreamingSessions, clock: Clock, lane: Lane, bodies: JsonBodies, put_policy: PutPolicy
    ) -> None:
        self._sessions = sessions
        self._clock = clock
        self._lane = lane
        self._bodies = bodies
        self._put_policy = put_policy

    async def open(self) -> Response:
        """Begins a session on a receipt."""
        principal = principal_of(request)
        require_some(principal, "subscribe")
        body = await self._bodies.read(request, StreamingOpen, "the session can't be opened")
        if body.agent_id and not body.webhook_url:
            raise _named(
                BadParameter("webhookUrl is missing", subject="webhookUrl"), "Webhook URL required for agent sessions"
            )
        quality = body.quality_requirements | ({"webhookUrl": body.webhook_url} if body.webhook_url else {})
        opening = Opening(
            _receipt_id(request, body.receipt_id), body.agent_id or "", body.session_type,
            msgspec.json.encode(quality).decode(), body.estimated_bytes,
        )  # fmt: skip
        session, account, policy = await self._open(opening, principal)
        windows = _windows(account, policy)
        opened = StreamingOpened(
            session_id=session.id, agent_session_id=session.id, receipt_id=session.receipt_id,
            session_type=session.kind, quality_requirements=quality, estimated_bytes=session.estimated_bytes,
            estimated_cost_satoshis=session.estimated_cost_satoshis,
            quota_status=QuotaStatus(policy_name=policy.name, windows=windows, burst=_burst(account, policy)),
        )  # fmt: skip
        return answer(encode_wire(opened))

    async def show(self, session: str) -> Response:
        """A session as it stands."""
        principal = principal_of(request)
        require_some(principal, "subscribe")
        Parameters(request, ())
        async with self._lane.step_out():
            found = await self._sessions.find(session, principal, may_see_all=may(principal, "manage"))
        return answer(
            encode_wire(
                StreamingState(
                    session_id=found.id, agent_id=found.agent_id, receipt_id=found.receipt_id,
                    session_type=found.kind, quality_requirements=msgspec.json.decode(found.quality),
                    total_content_bytes=found.estimated_bytes, bytes_processed=found.bytes,
                    packets_processed=found.packets, last_sequence=found.last_sequence, stream_count=found.updates,
                    estimated_cost_satoshis=found.estimated_cost_satoshis, status=found.status,
                    created_at=format_time_us(found.created_us), updated_at=format_time_us(found.updated_us),
                )
            )
        )  # fmt: skip

    async def quota(self, receipt: str) -> Response:
        """Where a receipt stands."""
        principal = principal_of(request)
        require_some(principal, "subscribe")
        Parameters(request, ())
        async with self._lane.step_out():
            found = await self._sessions.receipt(receipt, principal, may_see_all=may(principal, "manage"))
            account, policy = await self._sessions.account(found)
            is_open = await self._sessions.count_open(receipt)
        body = ReceiptQuota(
            receipt_id=receipt, quota_policy=ReceiptPolicy(policy_name=policy.name, tier=policy.name),
            windows=_windows(account, policy), burst=_burst(account, policy),
            concurrent=ReceiptStreams(
                active_streams=is_open, max_allowed=policy.max_concurrent_streams or UNBOUNDED,
                peak_bandwidth_mbps=policy.max_bandwidth_mbps,
            ),
            projections=_projections(account, self._clock.now_us()),
        )  # fmt: skip
        return answer(encode_wire(body))

    async def make_policy(self) -> Response:
        """Creates or changes a policy."""
        require(principal_of(request), "admin")
        Parameters(request, ())
        body = await self._bodies.read(request, PolicyIn, "the policy can't be used")
        members = {name: getattr(body, name) for name in PolicyIn.__struct_fields__}
        is_new = await self._put_policy(QuotaPolicy(name=members.pop("policy_name"), **members))
        return answer(encode_wire(PolicyMade(policy=body, status="created" if is_new else "updated")))

    async def agent(self) -> Response:
        """One step of an agent's session: create, update, complete."""
        principal = principal_of(request)
        require_some(principal, "subscribe")
        body = await self._bodies.read(request, AgentSessionIn, "the session can't be changed")
        receipt_id = _receipt_id(request, body.receipt_id)
        if body.action == "create":
            opening = Opening(receipt_id, body.agent_id, body.session_type, "{}", body.total_content_bytes)
            session, _, _ = await self._open(opening, principal)
            return _agent_answer(session, "active")
        if not body.agent_session_id:
            raise _named(
                BadParameter("agentSessionId is missing", subject="agentSessionId"), "agentSessionId is required"
            )
        progress = Progress(body.bytes_processed, body.packets_processed, body.last_sequence)
        is_complete = body.action == "complete"
        async with self._lane.step_out():
            try:
                session = await self._sessions.update(
                    body.agent_session_id, body.agent_id, receipt_id, progress, principal, is_complete=is_complete
                )
            except QuotaExceeded as err:
                raise await self._worded(err, receipt_id, principal) from err
        return _agent_answer(session, "completed" if is_complete else "updated")

    async def _open(
        self, opening: Opening, principal: Principal
    ) -> tuple[StreamingSession, Account, QuotaPolicy]:  # fmt: skip
        async with self._lane.step_out():
            try:
                session, receipt = await self._sessions.open(opening, principal)
            except QuotaExceeded as err:
                raise await self._worded(err, opening.receipt_id, principal) from err
            return (session, *await self._sessions.account(receipt))

    async def _worded(self, error: QuotaExceeded, receipt_id: str, principal: Principal) -> OverlaydError:
        """The refusal with the members that others look at."""
        if "active_streams" in error.extra:
            streams = {"activeStreams": error.extra["active_streams"], "maxAllowed": error.extra["max_allowed"]}
            error.extra.update(streams)
            return _named(error, "Concurrent stream limit exceeded")
        left = {word: error.extra[name] for name, word in _LEFT.items() if name in error.extra}
        name: WindowName = error.extra["window"]
        account, policy = await self._sessions.account_for(receipt_id, principal)
        window = msgspec.to_builtins(_window(account, policy, name))
        error.extra.update({"quotaStatus": {"windowType": name, **window}, **left})
        return _named(error, "Quota exceeded")


_LEFT = {"remaining_bytes": "remainingBytes", "remaining_requests": "remainingRequests"}


def _receipt_id(asked: Request, given: str) -> str:
    """The receipt's id from the body, the query or the header. Raises BadParameter."""
    text = given or Parameters(asked, ("receiptId",)).text("receiptId") or asked.headers.get("X-Receipt-Id", "")
    if not text:
        raise _named(BadParameter("receiptId is missing", subject="receiptId"), "Receipt ID required")
    if len(text) > RECEIPT_CHARS_MAX or not text.isprintable():
        raise BadParameter(f"receiptId must be 1 to {RECEIPT_CHARS_MAX} printable characters", subject="receiptId")
    return text


def _named(error: OverlaydError, words: str) -> OverlaydError:
    error.extra.update({"error": words, "message": error.detail})
    return error


def _windows(account: Account, policy: QuotaPolicy) -> ReceiptWindows:
    return ReceiptWindows(
        hour=_window(account, policy, "hour"), day=_window(account, policy, "day"),
        month=_window(account, policy, "month"),
    )  # fmt: skip


def _window(account: Account, policy: QuotaPolicy, name: WindowName) -> ReceiptWindow:
    used, allowed = account.windows[name], policy.bytes_in(name)
    return ReceiptWindow(
        window_start=format_time_us(used.span.start_us), window_end=format_time_us(used.span.end_us),
        bytes_used=used.bytes, bytes_allowed=allowed or UNBOUNDED,
        utilization_percentage=round(100 * used.bytes / allowed, 4) if allowed else 0.0,
        requests_used=used.requests, requests_allowed=policy.requests_in(name) or UNBOUNDED,
    )  # fmt: skip


def _burst(account: Account, policy: QuotaPolicy) -> ReceiptBurst:
    allowed = policy.bytes_in("hour")
    return ReceiptBurst(
        available=policy.burst_bytes_allowance > 0, bytes_allowance=policy.burst_bytes_allowance,
        bytes_used=max(0, account.windows["hour"].bytes - allowed) if allowed else 0,
        duration_minutes=policy.burst_duration_minutes,
    )  # fmt: skip


def _projections(account: Account, now_us: int) -> ReceiptProjections:
    found: dict[str, Any] = {}
    for name, used in account.windows.items():
        passed_us = max(1_000_000, now_us - used.span.start_us)
        found[f"{name}_bytes"] = max(used.bytes, used.bytes * (used.span.end_us - used.span.start_us) // passed_us)
    return ReceiptProjections(**found)


def _agent_answer(session: StreamingSession, status: Any) -> Response:
    return answer(
        encode_wire(
            AgentSessionOut(
                agent_session_id=session.id, status=status, estimated_cost=session.estimated_cost_satoshis,
                bytes_processed=session.bytes, packets_processed=session.packets, last_sequence=session.last_sequence,
            )
        )
    )  # fmt: skip

"""`/v1/quotas`: what a principal used and has left, and the policies that say how much there is."""

from collections.abc import Awaitable, Callable

from msgspec import UNSET, structs
from quart import Response, request
from quart_trio import QuartTrio

from overlayd.access import require
from overlayd.access.audit import PackAudit
from overlayd.access.metering import Metering
from overlayd.access.principal import may
from overlayd.access.quotas import Account
from overlayd.model.clock import Clock, format_time_us
from overlayd.model.errors import BadParameter, UnknownPolicy
from overlayd.model.quota import HOUR_US, QuotaPolicy, WindowName
from overlayd.model.wire import encode_wire
from overlayd.model.wire_usage import PolicyList, QuotaBody, QuotaBurst, QuotaWindow
from overlayd.net.app import answer, author_of, principal_of
from overlayd.net.json_body import JsonBodies
from overlayd.net.lane import Lane
from overlayd.net.parameters import Parameters
from overlayd.storage.own import OwnPacket


def add_quota_routes(
    app: QuartTrio, *, metering: Metering, clock: Clock, lane: Lane, bodies: JsonBodies,
    count_sessions: Callable[[str], int], audit: PackAudit,
) -> Callable[[QuotaPolicy], Awaitable[bool]]:  # fmt: skip
    """Adds `/v1/quotas` and `/v1/quotas/policies`; gives the function that stores a policy for the asking principal.
    `count_sessions`: live connections of a principal. `audit` makes packets of records, for the transaction of what they tell."""
    routes = _QuotaRoutes(metering, clock, lane, bodies, count_sessions, audit)
    one = "/v1/quotas/policies/<policy>"
    app.add_url_rule("/v1/quotas", "quotas", routes.show, methods=["GET"])
    app.add_url_rule("/v1/quotas/policies", "quotas.policies", routes.list_policies, methods=["GET"])
    app.add_url_rule(one, "quotas.policy", routes.show_policy, methods=["GET"])
    app.add_url_rule(one, "quotas.put_policy", routes.put_policy, methods=["PUT"])
    app.add_url_rule(one, "quotas.delete_policy", routes.delete_policy, methods=["DELETE"])
    return routes.put


class _QuotaRoutes:
    """The routes with what they need."""

    def __init__(
        self, metering: Metering, clock: Clock, lane: Lane, bodies: JsonBodies, count_sessions: Callable[[str], int],
        audit: PackAudit,
    ) -> None:  # fmt: skip
        self._metering = metering
        self._clock = clock
        self._lane = lane
        self._bodies = bodies
        self._count_sessions = count_sessions
        self._audit = audit

    async def show(self) -> Response:
        """Windows of the asking principal, or of another one for those who may `manage`."""
        principal = principal_of(request)
        name = Parameters(request, ("principal",)).text("principal") or principal.name
        if name != principal.name:
            require(principal, "manage")
        async with self._lane.step_out():
            await self._metering.flush()
            account = await self._metering.quotas.account(name)
        account.roll(self._clock.now_us())
        is_own = name == principal.name
        policy_name = self._metering.policy_of(principal) if is_own else account.policy
        policy = self._metering.quotas.policies.get(policy_name)
        return answer(encode_wire(self._body(account, policy)))

    async def list_policies(self) -> Response:
        """All policies, by name; to those who may not `manage`, their own."""
        principal = principal_of(request)
        Parameters(request, ())
        policies = [policy for _, policy in sorted(self._metering.quotas.policies.items())]
        if not may(principal, "manage"):
            own = self._metering.policy_of(principal)
            policies = [policy for policy in policies if policy.name == own]
        return answer(encode_wire(PolicyList(policies=policies)))

    async def show_policy(self, policy: str) -> Response:
        """One policy."""
        principal = principal_of(request)
        Parameters(request, ())
        if policy != self._metering.policy_of(principal):
            require(principal, "manage")
        found = self._metering.quotas.policies.get(policy)
        if found is None:
            raise UnknownPolicy(f"there is no quota policy {policy[:64]!r}", subject="policy")
        return answer(encode_wire(found))

    async def put_policy(self, policy: str) -> Response:
        """Creates a policy, or changes it for everybody who has it."""
        require(principal_of(request), "admin")
        Parameters(request, ())
        wanted = await self._bodies.read(request, QuotaPolicy, "the policy can't be used")
        if wanted.name != policy:
            raise BadParameter("the body's name isn't the one in the path", subject="name")
        is_new = await self.put(wanted)
        return answer(encode_wire(wanted), 201 if is_new else 200)

    async def delete_policy(self, policy: str) -> Response:
        """Takes a policy away. Whoever has it is refused until they get another one."""
        require(principal_of(request), "admin")
        Parameters(request, ())
        async with self._lane.step_out():
            await self._metering.delete_policy(policy, self._audit(author_of(request).record("quota.delete", policy)))
        return Response(b"", status=204)

    async def put(self, policy: QuotaPolicy) -> bool:
        """Whether it is new. Raises LimitReached."""
        author = author_of(request)

        def tell(is_new: bool) -> OwnPacket:
            return self._audit(author.record("quota.create" if is_new else "quota.change", policy.name))

        async with self._lane.step_out():
            return await self._metering.put_policy(policy, tell)

    def _body(self, account: Account, policy: QuotaPolicy | None) -> QuotaBody:
        windows = {name: window_body(account, name, policy) for name in account.windows}
        return QuotaBody(
            principal=account.name, policy=policy or UNSET, **windows,
            burst=burst_body(account, policy, self._clock.now_us()), streams_open=self._count_sessions(account.name),
        )  # fmt: skip


def window_body(account: Account, name: WindowName, policy: QuotaPolicy | None) -> QuotaWindow:
    """One window of an account. What is under way counts as used."""
    used = account.windows[name]
    body = QuotaWindow(
        from_=format_time_us(used.span.start_us), resets_at=format_time_us(used.span.end_us), bytes_used=used.bytes,
        requests_used=used.requests + account.pending_requests,
    )  # fmt: skip
    if policy is None:
        return body
    if allowed := policy.bytes_in(name):
        left = max(0, allowed - used.bytes - account.reserved_bytes)
        body = structs.replace(body, bytes_allowed=allowed, bytes_left=left)
    if allowed := policy.requests_in(name):
        left = max(0, allowed - body.requests_used)
        body = structs.replace(body, requests_allowed=allowed, requests_left=left)
    return body


def burst_body(account: Account, policy: QuotaPolicy | None, now_us: int) -> QuotaBurst:
    """The burst of this hour; UNSET where the policy has none."""
    if policy is None or not policy.burst_bytes_allowance:
        return UNSET  # type: ignore[return-value]
    used = max(0, account.windows["hour"].bytes - policy.bytes_in("hour")) if policy.bytes_in("hour") else 0
    is_on = account.burst_hour == now_us // HOUR_US and now_us < account.burst_until_us
    return QuotaBurst(
        bytes_allowance=policy.burst_bytes_allowance, bytes_used=used, duration_minutes=policy.burst_duration_minutes,
        until=format_time_us(account.burst_until_us) if is_on else UNSET,
    )  # fmt: skip

"""Rates, quotas and usage put together: what the edge asks before it lets something through, and tells afterwards."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import structlog
import trio

from overlayd.access.bandwidth import LIMIT as LIMIT_BANDWIDTH
from overlayd.access.bandwidth import LOOK_S, Bandwidth
from overlayd.access.principal import Principal
from overlayd.access.quota_tables import (
    QUOTAS_FEATURE,
    drop_policy,
    prune_sessions,
    read_policies,
    seed_policies,
    store_policy,
)
from overlayd.access.quotas import Account, QuotaBook, QuotaSettings
from overlayd.access.rate_tables import RATES_FEATURE, load_rates, save_rates
from overlayd.access.rates import Action, Asker, RateBook, RateSettings
from overlayd.access.usage import UsageBook, UsageSettings
from overlayd.access.usage_tables import PRUNED_AT_ONCE, USAGE_FEATURE
from overlayd.model.clock import Clock, Entropy
from overlayd.model.errors import ConfigInvalid, LimitReached, OverlaydError, OwnedByConfig, Rate, UnknownPolicy
from overlayd.model.metrics import Metrics
from overlayd.model.quota import QuotaPolicy
from overlayd.model.usage import UsageSink
from overlayd.storage import Log
from overlayd.storage.own import OwnPacket

METERING_FEATURES = (RATES_FEATURE, USAGE_FEATURE, QUOTAS_FEATURE)
LOCAL_KINDS = frozenset(("unix", "loopback"))
NO_PASSAGE: AbstractContextManager[None] = nullcontext()
_log = structlog.get_logger("access.metering")


class Metering:
    """One for the node. Counts nobody before `start`."""

    def __init__(
        self, *, log: Log, rates: RateSettings, quotas: QuotaSettings, usage: UsageSettings, clock: Clock,
        entropy: Entropy, metrics: Metrics,
    ) -> None:  # fmt: skip
        self._log = log
        self._rate_settings = rates
        self.quota_settings = quotas
        self._usage_settings = usage
        self._clock = clock
        self._entropy = entropy
        self._metrics = metrics
        self._folds: list[Callable[[], None]] = []
        self._has_rates = False
        self._is_started = False
        self._saved_buckets = 0
        self._changing = trio.Lock()
        self._declared: dict[str, str] = {}
        """Policies that the settings name, and by whom first."""
        self._failures = metrics.counter("overlayd_usage_flush_failures", "Times that usage couldn't be written out")
        metrics.gauge("overlayd_quota_accounts", "Principals whose usage is held in memory").set_function(
            lambda: len(self.quotas) if self._is_started else 0
        )
        self.rates: RateBook
        self.quotas: QuotaBook
        self.usage: UsageBook

    def __repr__(self) -> str:
        return f"Metering({self.rates!r}, {self.quotas!r}, {self.usage!r})" if self._is_started else "Metering()"

    async def start(self) -> None:
        """Reads what is stored, and counts from now on. Checkpoint."""
        saved = await load_rates(self._log, self._entropy)
        self.rates = RateBook.of_settings(
            self._rate_settings, now=trio.current_time, metrics=self._metrics, secret=saved.secret
        )
        saved.restore(self.rates, self._clock.now_us())
        self._has_rates = bool(self.rates.names)
        now_us = self._clock.now_us()
        await self._log.write(lambda connection: seed_policies(connection, now_us))
        self.quotas = QuotaBook(
            store=self._log, settings=self.quota_settings, clock=self._clock, metrics=self._metrics,
            policies=await self._log.read(read_policies), keep_s=10 * float(self._usage_settings.flush_interval),
        )  # fmt: skip
        for name in (self.quota_settings.default_policy, self.quota_settings.receipt_policy):
            if name and name not in self.quotas.policies:
                _log.warning("the settings name a quota policy that doesn't exist", policy=name)
        self.usage = UsageBook(
            store=self._log, settings=self._usage_settings, clock=self._clock, metrics=self._metrics,
            secret=saved.secret, on_used=self.quotas.used, on_failed=self._failures.inc,
        )  # fmt: skip
        self._log.meter_with(self.quotas)
        self._is_started = True

    def replace_rates(self, settings: RateSettings) -> None:
        """After `start`: from now on these rates hold. What was used up of a rate that stays counts on."""
        self.rates.replace_rules(settings)
        self._has_rates = bool(self.rates.names)

    def check_policies(self, named: Iterable[tuple[str, str]]) -> dict[str, str]:
        """As `require_policies`, and changes nothing; gives the policies, each with who has it first."""
        declared: dict[str, str] = {}
        for place, policy in named:
            if policy not in self.quotas.policies:
                raise ConfigInvalid(
                    f"{place}: there is no quota policy {policy!r}", subject=place,
                    hint=f"known are {', '.join(sorted(self.quotas.policies))}; PUT /v1/quotas/policies/NAME makes others",
                )  # fmt: skip
            declared.setdefault(policy, place)
        return declared

    def require_policies(self, named: Iterable[tuple[str, str]]) -> None:
        """After `start`. `named`: policies that the settings name, each after who has it. From now on they can't be
        deleted, and those of an earlier call can. Raises ConfigInvalid for one that there isn't."""
        self._declared = self.check_policies(named)

    async def run(self) -> None:
        """Writes out what was counted, now and then, until it is cancelled."""
        saved_at = trio.current_time()
        while True:
            await trio.sleep(float(self._usage_settings.flush_interval))
            await self.flush()
            if trio.current_time() - saved_at >= self._rate_settings.save_interval:
                await self._save_rates()
                saved_at = trio.current_time()

    async def stop(self) -> None:
        """Writes out the rest. Checkpoint; call it while the log is open and nobody is served any more."""
        if self._is_started:
            await self.flush()
            await self._save_rates()

    async def flush(self) -> None:
        """Folds and writes what was counted so far; what can't be written is kept and logged. Checkpoint."""
        for fold in self._folds:
            fold()
        for principal, requests in self.quotas.take_pending():
            self.usage.published(principal, requests)
        await self.usage.flush()
        before_us = self._clock.now_us() - int(self._usage_settings.deliveries_retention * 1e6)
        try:
            await self.quotas.save_bursts()
            if self.usage.take_new_hour():
                await self._log.write(lambda connection: prune_sessions(connection, before_us, PRUNED_AT_ONCE))
        except OverlaydError as err:
            _log.warning("quotas not written", error=err.detail)

    def fold_with(self, fold: Callable[[], None]) -> None:
        """`fold` is called before each writing, to tell `usage` what was counted elsewhere in the meantime."""
        self._folds.append(fold)

    def count_hit(self, limit: str) -> None:
        """A limit was hit."""
        self._metrics.count_limit_hit(limit)

    # Before and after what a client does.

    def concerns(self, principal: Principal) -> bool:
        """Whether anything bounds this principal."""
        if not self._is_started:
            return False
        return bool(self.policy_of(principal)) or (self._has_rates and self._is_rated(principal))

    async def publish(
        self,
        principal: Principal,
        stream: str,
        *,
        packets: int,
        size: int,
        is_upload: bool = False,
        is_new: bool = True,
    ) -> AbstractContextManager[None]:
        """For those whom it `concerns`: to be entered around the append. `is_new`: False for what goes on with a request that was counted already.

        Raises LimitReached, QuotaExceeded (both also on entering), BatchTooLarge, BodyTooLarge, Forbidden.
        Checkpoint only the first time that a principal is seen.
        """
        passage = NO_PASSAGE
        if name := self.policy_of(principal):
            policy = self.quotas.policy(name)
            account = await self.quotas.account(principal.name)
            self.quotas.check(account, policy, size, requests=int(is_new))
            self._use_bandwidth(account, size, is_checked=is_new)
            passage = self.quotas.passing(account, policy, size, is_new=is_new)
        if self._has_rates and self._is_rated(principal):
            who = Asker(principal.name, stream, principal.address)
            if is_upload:
                self.rates.take("upload", who, count=int(is_new), size=size, is_part=True)
            self.rates.take("publish", who, count=packets, size=size, is_part=is_upload)
        return passage

    async def read(self, principal: Principal, stream: str) -> None:
        """Before a read request; `stream` is "" when it names none. Raises LimitReached, QuotaExceeded, Forbidden."""
        if not self.concerns(principal):
            return
        await self._check_quota(principal)
        if self._has_rates and self._is_rated(principal):
            who = Asker(principal.name, stream, principal.address)
            self.rates.check("read", who)
            self.rates.take("read", who)

    def was_read(self, principal: Principal, stream: str, *, size: int, packets: int = 0) -> None:
        """After a read request, with the bytes of its answer."""
        if not self._is_started:
            return
        if self._has_rates and self._is_rated(principal):
            self.rates.spend("read", Asker(principal.name, stream, principal.address), size=size)
        account = self.quotas.find(principal.name)
        if account is not None:
            Bandwidth(account, self.quotas).spend(size)
        self.usage.delivered(stream, principal.name, "read", packets=packets, bytes=size, requests=1)

    async def connect(self, principal: Principal) -> Rate | None:
        """Before a live connection; `check_open` follows when it is entered. Gives the rate to tell along with the answer,
        if one is counted. Raises as `read`."""
        if not self._is_started:
            return None
        account = self.quotas.find(principal.name)
        if account is not None:
            account.policy = self.policy_of(principal)
        if not self.concerns(principal):
            return None
        await self._check_quota(principal)
        if self._has_rates and self._is_rated(principal):
            self.rates.take("connect", Asker(principal.name, "", principal.address))
        return self.tell("connect", principal, "")

    def bandwidth_of(self, principal: str) -> Bandwidth | None:
        """The pace of what a principal's live sessions are sent; None without a policy."""
        account = self.quotas.find(principal) if self._is_started else None
        return Bandwidth(account, self.quotas) if account is not None and account.policy else None

    async def wait_for_bandwidth(self, principal: Principal) -> None:
        """Before more of an upload is taken: until the principal isn't ahead of its policy's bandwidth, as it is by then,
        or has lost its right to come in. A checkpoint if it waits."""
        bandwidth = self.bandwidth_of(principal.name)
        if bandwidth is None or not bandwidth.wait_s():
            return
        self.count_hit(LIMIT_BANDWIDTH)
        while wait_s := bandwidth.wait_s():
            if principal.standing.ended:
                return
            await trio.sleep(min(wait_s, LOOK_S))

    def check_open(self, principal: str, open_count: int) -> None:
        """Raises QuotaExceeded when the principal, who has `open_count` live connections, may open no further one."""
        account = self.quotas.find(principal) if self._is_started else None
        if account is not None and account.policy:
            self.quotas.check_streams(account, self.quotas.policy(account.policy), open_count)

    def tell(self, action: Action, principal: Principal, stream: str) -> Rate | None:
        """The rate with the least left, to tell along with an answer; None where nothing is counted."""
        if not self._has_rates or not self._is_rated(principal):
            return None
        return self.rates.tell(action, Asker(principal.name, stream, principal.address))

    def tell_published(self, principal: Principal, stream: str, *, is_upload: bool) -> Rate | None:
        """As `tell`, after something was published."""
        told = self.tell("publish", principal, stream)
        if not is_upload:
            return told
        upload = self.tell("upload", principal, stream)
        if told is None or upload is None:
            return told or upload
        return min(told, upload, key=lambda rate: rate.remaining / rate.quota)

    def control(self, principal: Principal, size: int) -> None:
        """Before a control message is looked at. Raises LimitReached."""
        if self._has_rates and self._is_rated(principal):
            self.rates.take("control", Asker(principal.name, "", principal.address), size=size)

    def exceeded(self, principal: str) -> LimitReached | None:
        """Why live sessions can't go on; None while the account has room, or isn't held to a quota."""
        account = self.quotas.find(principal) if self._is_started else None
        policy = self.quotas.policies.get(account.policy) if account is not None else None
        if account is None or policy is None:
            return None
        account.touched_s = trio.current_time()
        try:
            self.quotas.check(account, policy, 0, requests=0)
        except LimitReached as err:
            return err
        return None

    def sink(self) -> UsageSink | None:
        """Where deliveries are told; None before `start`."""
        return self.usage if self._is_started else None

    def policy_of(self, principal: Principal) -> str:
        """The policy's name; "" for none."""
        if principal.policy or principal.kind in LOCAL_KINDS:
            return principal.policy
        return self.quota_settings.default_policy

    # Policies.

    async def put_policy(self, policy: QuotaPolicy, tell: Callable[[bool], OwnPacket] | None = None) -> bool:
        """Whether it is new. `tell`: makes of that what the audit is told, in the same transaction. Durable when it
        returns. Checkpoint. Raises LimitReached, and what appending raises."""
        policies, most = self.quotas.policies, self.quota_settings.policies_max
        async with self._changing:
            is_new = policy.name not in policies
            if is_new and len(policies) >= most:
                self.count_hit("policies_max")
                raise LimitReached(f"there are {most} quota policies already", subject="policies_max")
            told = [] if tell is None else [tell(is_new)]
            await self._log.append_own(
                told, [store_policy(policy, self._clock.now_us())], lambda: policies.update({policy.name: policy})
            )
        return is_new

    async def delete_policy(self, name: str, told: OwnPacket | None = None) -> None:
        """Whoever has it is refused from now on. `told`: for the audit, in the same transaction. Checkpoint. Raises
        UnknownPolicy, OwnedByConfig, and what appending raises."""
        policies = self.quotas.policies
        async with self._changing:
            if place := self._declared.get(name):
                raise OwnedByConfig(
                    f"the policy {name} is that of {place}", subject=name, hint="change it there and restart first"
                )
            if name not in policies:
                raise UnknownPolicy(f"there is no quota policy {name!r}", subject=name)
            await self._log.append_own(
                [] if told is None else [told], [drop_policy(name)], lambda: _forget(policies, name)
            )

    async def _check_quota(self, principal: Principal) -> Account | None:
        name = self.policy_of(principal)
        if not name:
            return None
        policy = self.quotas.policy(name)
        account = await self.quotas.account(principal.name)
        self.quotas.check(account, policy, 0)
        self._use_bandwidth(account, 0, is_checked=True)
        return account

    def _use_bandwidth(self, account: Account, size: int, *, is_checked: bool) -> None:
        """Raises LimitReached when it `is_checked` and the account is too far ahead."""
        bandwidth = Bandwidth(account, self.quotas)
        if is_checked and (wait_s := bandwidth.wait_s()):
            self.count_hit(LIMIT_BANDWIDTH)
            raise bandwidth.refusal(wait_s)
        bandwidth.spend(size)

    def _is_rated(self, principal: Principal) -> bool:
        return self._rate_settings.local or principal.kind not in LOCAL_KINDS

    async def _save_rates(self) -> None:
        """Not while there is nothing to store, and nothing stored."""
        if not self._has_rates:
            return
        try:
            if self._saved_buckets or self.rates.is_used:
                self._saved_buckets = await save_rates(self._log, self.rates, self._clock)
        except OverlaydError as err:
            _log.warning("rates not written", error=err.detail)


def _forget(policies: dict[str, QuotaPolicy], name: str) -> None:
    policies.pop(name, None)

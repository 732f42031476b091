"""Quotas: what each account used in the hour, the day and the month, and whether there is room for more.

What packets use is written in the very transaction that makes them durable (`GroupMeter`), so that after a crash the
counts are those of the log. Everything else an account uses is flushed now and then (usage.py).
"""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated

import msgspec
import trio
from msgspec import Meta

from overlayd.access.quota_tables import read_burst, write_bursts
from overlayd.access.rate_tables import Store
from overlayd.access.usage_tables import UsageKey, add_counts, read_used
from overlayd.model.clock import Clock, format_time_us
from overlayd.model.errors import Forbidden, QuotaExceeded, Rate
from overlayd.model.metrics import Metrics
from overlayd.model.quota import HOUR_US, WINDOWS, QuotaPolicy, Span, WindowName, named_spans
from overlayd.model.usage import Counts

MINUTE_US = 60_000_000


class QuotaSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who is held to which quota."""

    default_policy: Annotated[
        str, Meta(max_length=64, description="Policy of clients whose key names none; never of keyless local ones")
    ] = ""
    receipt_policy: Annotated[
        str, Meta(max_length=64, description="Policy of a receipt that a client without a policy opens a session for")
    ] = "standard"
    accounts_max: Annotated[int, Meta(ge=1, description="Principals whose usage is kept in memory")] = 10_000
    policies_max: Annotated[int, Meta(ge=1, description="Quota policies")] = 1000
    sessions_max: Annotated[int, Meta(ge=1, description="Streaming sessions that are open at the same time")] = 10_000


class Used(msgspec.Struct):
    """What was used in one window."""

    span: Span
    bytes: int = 0
    requests: int = 0


class Account:
    """What one principal or receipt used. Durable counts in `windows`; what is under way beside them."""

    def __init__(self, name: str, windows: dict[WindowName, Used], burst: tuple[int, int]) -> None:
        """`burst`: (hour, until when) of the last one."""
        self.name = name
        self.windows = windows
        self.burst_hour, self.burst_until_us = burst
        self.reserved_bytes = 0
        self.pending_requests = 0
        self.writing_requests = 0
        self.policy = ""
        self.passages = 0
        self.touched_s = 0.0
        self.paid_until_s = 0.0
        self.paid_mbps = 0.0
        """When everything that was sent would have been through at the policy's bandwidth, and which one that was
        (bandwidth.py)."""

    def __repr__(self) -> str:
        return f"Account({self.name!r}, policy={self.policy!r})"

    def roll(self, now_us: int) -> None:
        """Begins the windows anew that are over. Going back in time changes nothing."""
        for name, span in named_spans(now_us):
            if span.start_us > self.windows[name].span.start_us:
                self.windows[name] = Used(span)

    def add(self, at_us: int, size: int, requests: int) -> None:
        """Something is used for good; only in windows in which its time lies."""
        self.roll(at_us)
        for used in self.windows.values():
            if used.span.start_us <= at_us < used.span.end_us:
                used.bytes += size
                used.requests += requests

    @property
    def is_idle(self) -> bool:
        """Whether everything it holds is durable."""
        return not (self.passages or self.reserved_bytes or self.pending_requests)


class _Writing:
    """What one group adds, as the writer's transaction sees it."""

    def __init__(
        self, at_us: int, rows: dict[UsageKey, Counts], taken: list[tuple[Account, int, int]]
    ) -> None:  # fmt: skip
        self._at_us = at_us
        self._rows = rows
        self._taken = taken

    def write(self, connection: sqlite3.Connection) -> None:
        add_counts(connection, self._at_us, self._rows)

    def adopt(self) -> None:
        for account, size, requests in self._taken:
            account.writing_requests -= requests
            account.pending_requests -= requests
            account.add(self._at_us, size, requests)

    def roll_back(self) -> None:
        for account, _, requests in self._taken:
            account.writing_requests -= requests


class QuotaBook:
    """Policies and accounts. Implements `GroupMeter`."""

    def __init__(
        self, *, store: Store, settings: QuotaSettings, clock: Clock, metrics: Metrics,
        policies: Mapping[str, QuotaPolicy], keep_s: float = 60.0,
    ) -> None:  # fmt: skip
        """`keep_s`: an account that wasn't touched for so long may leave the memory; longer than usage takes to be
        written out."""
        self._store = store
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._keep_s = keep_s
        self._loading = trio.Lock()
        self._accounts: dict[str, Account] = {}
        self._bursts: dict[str, tuple[int, int]] = {}
        self.policies = dict(policies)

    def __len__(self) -> int:
        return len(self._accounts)

    def __repr__(self) -> str:
        return f"QuotaBook(policies={len(self.policies)}, accounts={len(self._accounts)})"

    def policy(self, name: str) -> QuotaPolicy:
        """Raises Forbidden when it doesn't exist or isn't active: nobody may use more for want of a policy."""
        found = self.policies.get(name)
        if found is None or not found.is_active:
            what = "doesn't exist" if found is None else "isn't active"
            raise Forbidden(
                f"the quota policy {name!r} {what}",
                subject=name,
                hint="an administrator can change it or the key's policy",
            )
        return found

    async def account(self, name: str) -> Account:
        """The account, read from the disk the first time. A checkpoint only then."""
        account = self._accounts.get(name)
        if account is None:
            async with self._loading:
                account = self._accounts.get(name)
                if account is None:
                    account = await self._load(name)
        account.touched_s = trio.current_time()
        return account

    def find(self, name: str) -> Account | None:
        """The account, if it is in memory."""
        return self._accounts.get(name)

    @contextmanager
    def passing(self, account: Account, policy: QuotaPolicy, size: int, *, is_new: bool = True) -> Iterator[None]:
        """Holds room for `size` bytes, and for one more request if it `is_new`, while something is being published.
        Raises QuotaExceeded."""
        self.check(account, policy, size, requests=int(is_new))
        account.reserved_bytes += size
        account.pending_requests += int(is_new)
        account.passages += 1
        try:
            yield
        finally:
            account.reserved_bytes -= size
            account.passages -= 1

    def check(self, account: Account, policy: QuotaPolicy, size: int, *, requests: int = 1) -> None:
        """Whether there is room. Raises QuotaExceeded; begins a burst where that is what lets it through."""
        account.policy = policy.name
        now_us = self._clock.now_us()
        account.roll(now_us)
        for name in reversed(WINDOWS):  # a burst helps with the hour only, so that one is last
            used = account.windows[name]
            allowed = policy.requests_in(name)
            if allowed and used.requests + account.pending_requests + requests > allowed:
                raise self._refuse(account, policy, name, now_us, is_bytes=False)
            allowed = policy.bytes_in(name)
            total = used.bytes + account.reserved_bytes + size
            if allowed and (total > allowed or (not size and total >= allowed)):
                if name == "hour" and self._may_burst(account, policy, total - allowed, now_us):
                    continue
                raise self._refuse(account, policy, name, now_us, is_bytes=True)

    def check_streams(self, account: Account, policy: QuotaPolicy, is_open: int) -> None:
        """Raises QuotaExceeded when `is_open` live connections are as many as the policy allows."""
        allowed = policy.max_concurrent_streams
        if allowed and is_open >= allowed:
            account.policy = policy.name
            self._metrics.count_limit_hit("max_concurrent_streams")
            raise QuotaExceeded(
                f"{account.name} has {is_open} live connections open; the policy {policy.name} allows {allowed}",
                subject="max_concurrent_streams", hint="close one of them, or ask for another policy",
                retry_after_s=5.0, extra={"policy": policy.name, "active_streams": is_open, "max_allowed": allowed},
            )  # fmt: skip

    def used(self, principal: str, size: int, requests: int) -> None:
        """Something is used that is written to the disk by somebody else. Accounts that aren't in memory read it."""
        account = self._accounts.get(principal)
        if account is not None:
            account.add(self._clock.now_us(), size, requests)
            account.touched_s = trio.current_time()

    def take_pending(self) -> Iterator[tuple[str, int]]:
        """Requests that no group will count, because nothing of them was appended; they are durable from now on."""
        now_us = self._clock.now_us()
        for account in self._accounts.values():
            if account.passages or account.writing_requests:
                continue  # their group is under way
            requests, account.pending_requests = account.pending_requests, 0
            if requests:
                account.add(now_us, 0, requests)
                yield account.name, requests

    async def save_bursts(self) -> None:
        """Stores when bursts began, so that a restart doesn't give another one. What can't be written now is kept.
        Checkpoint if there are any."""
        bursts, self._bursts = self._bursts, {}
        if not bursts:
            return
        try:
            await self._store.write(lambda connection: write_bursts(connection, bursts))
        except BaseException:
            self._bursts = bursts | self._bursts
            raise

    def is_metered(self, principal: str) -> bool:
        """Whether the account is in memory, as it is while somebody publishes under a quota."""
        return principal in self._accounts

    def begin(self, appended_us: int, counted: Mapping[tuple[str, str], tuple[int, int]]) -> _Writing:
        """As `GroupMeter`."""
        rows: dict[UsageKey, Counts] = {}
        taken: list[tuple[Account, int, int]] = []
        for (principal, stream), (packets, size) in counted.items():
            account = self._accounts.get(principal)
            requests = 0
            if account is not None:
                requests = account.pending_requests - account.writing_requests
                account.writing_requests += requests
                taken.append((account, size, requests))
            rows[UsageKey(principal, stream, "publish")] = Counts(requests=requests, packets=packets, bytes=size)
        return _Writing(appended_us, rows, taken)

    async def _load(self, name: str) -> Account:
        self._make_room()
        spans = dict(named_spans(self._clock.now_us()))

        def read(connection: sqlite3.Connection) -> tuple[dict[WindowName, Used], tuple[int, int]]:
            windows = {
                window: Used(span, *read_used(connection, name, span.start_us, span.end_us))
                for window, span in spans.items()
            }
            return windows, read_burst(connection, name)

        windows, burst = await self._store.read(read)
        account = self._accounts[name] = Account(name, windows, burst)
        return account

    def _make_room(self) -> None:
        """Drops accounts that are idle. When all are busy there are more than the bound says for a while: they are
        as many as requests are under way, which have bounds of their own."""
        if len(self._accounts) < self._settings.accounts_max:
            return
        self._metrics.count_limit_hit("accounts_max")
        oldest_s = trio.current_time() - self._keep_s
        idle = [name for name, one in self._accounts.items() if one.is_idle and one.touched_s < oldest_s]
        for name in idle:
            del self._accounts[name]

    def _may_burst(self, account: Account, policy: QuotaPolicy, over: int, now_us: int) -> bool:
        """One burst an hour, bounded in bytes and time."""
        if over > policy.burst_bytes_allowance or not policy.burst_bytes_allowance:
            return False
        hour = now_us // HOUR_US
        if account.burst_hour != hour:
            account.burst_hour = hour
            account.burst_until_us = now_us + policy.burst_duration_minutes * MINUTE_US
            self._bursts[account.name] = (account.burst_hour, account.burst_until_us)
        return now_us < account.burst_until_us

    def _refuse(
        self, account: Account, policy: QuotaPolicy, window: WindowName, now_us: int, *, is_bytes: bool
    ) -> QuotaExceeded:
        limit = f"{'bytes' if is_bytes else 'requests'}_per_{window}"
        self._metrics.count_limit_hit(limit)
        used = account.windows[window]
        left = remaining(account, policy)
        quota = policy.bytes_in(window) if is_bytes else policy.requests_in(window)
        taken = used.bytes + account.reserved_bytes if is_bytes else used.requests + account.pending_requests
        left_here = max(0, quota - taken)
        reset_s = (used.span.end_us - now_us) / 1e6
        return QuotaExceeded(
            f"{account.name} may use {quota} {'bytes' if is_bytes else 'requests'} in a {window} (policy {policy.name}); "
            f"{left_here} are left",
            subject=limit, hint="wait until resets_at, or ask for another policy", retry_after_s=reset_s,
            extra={
                "policy": policy.name, "window": window, "resets_at": format_time_us(used.span.end_us), **left,
            },
        ).with_rate(Rate(limit, quota, used.span.length_s, left_here, reset_s))  # fmt: skip


def remaining(account: Account, policy: QuotaPolicy) -> dict[str, int]:
    """`remaining_bytes` and `remaining_requests`: the least over the windows; absent where nothing is bounded."""
    found: dict[str, int] = {}
    for name, used in account.windows.items():
        for word, allowed, taken in (
            ("remaining_bytes", policy.bytes_in(name), used.bytes + account.reserved_bytes),
            ("remaining_requests", policy.requests_in(name), used.requests + account.pending_requests),
        ):
            if allowed:
                found[word] = min(found.get(word, allowed), max(0, allowed - taken))
    return found

"""Streaming sessions on receipts: what an agent says it took, counted exactly against the receipt's own quota.

A receipt is an account that a client opens by beginning a session with its id; whoever opened it owns it. The node
pushes nothing for such a session: it keeps its state and counts.
"""

import sqlite3
import uuid
from collections.abc import Callable
from typing import TypeVar

import msgspec
import trio

from overlayd.access.metering import Metering
from overlayd.access.principal import Principal
from overlayd.access.quota_tables import (
    Receipt,
    StreamingSession,
    count_open,
    read_receipt,
    read_session,
    write_receipt,
    write_session,
)
from overlayd.access.quotas import Account
from overlayd.access.usage_tables import UsageKey, add_counts, add_deliveries
from overlayd.model.clock import Clock, Entropy
from overlayd.model.errors import BadParameter, Forbidden, IntakeBusy, LimitReached, UnknownReceipt, UnknownSession
from overlayd.model.quota import QuotaPolicy
from overlayd.model.usage import Counts, EndedDelivery
from overlayd.storage import Log

SATOSHIS_PER_MB = 100
MB = 1_000_000
WRITE_S = 30.0
_ALL_PPM = 1_000_000

T = TypeVar("T")


class Progress(msgspec.Struct, frozen=True):
    """How far a session has come, in all; None leaves a figure as it is."""

    bytes: int | None = None
    packets: int | None = None
    last_sequence: int | None = None


class Opening(msgspec.Struct, frozen=True):
    """What a session begins with. `quality`: JSON text, kept and given back as it is."""

    receipt_id: str
    agent_id: str
    kind: str
    quality: str
    estimated_bytes: int


class StreamingSessions:
    """Sessions and receipts. One for the node."""

    def __init__(self, *, log: Log, metering: Metering, clock: Clock, entropy: Entropy) -> None:
        self._log = log
        self._metering = metering
        self._clock = clock
        self._entropy = entropy
        self._opening = trio.Lock()

    async def receipt(self, receipt_id: str, principal: Principal, *, may_see_all: bool) -> Receipt:
        """Raises UnknownReceipt, also for somebody else's. Checkpoint."""
        receipt = await self._log.read(lambda connection: read_receipt(connection, receipt_id))
        if receipt is None or not (may_see_all or receipt.owner == principal.name):
            raise UnknownReceipt(
                f"there is no receipt {receipt_id[:64]!r}", subject="receiptId",
                hint="a receipt begins with its first streaming session",
            )  # fmt: skip
        return receipt

    async def account(self, receipt: Receipt) -> tuple[Account, QuotaPolicy]:
        """What the receipt used, and what it may. Raises Forbidden when its policy is gone. Checkpoint."""
        policy = self._metering.quotas.policy(receipt.policy)
        account = await self._metering.quotas.account(f"receipt:{receipt.receipt_id}")
        account.roll(self._clock.now_us())
        account.policy = policy.name
        return account, policy

    async def open(self, opening: Opening, principal: Principal) -> tuple[StreamingSession, Receipt]:
        """A new session, durable when it returns. Checkpoint.

        Raises QuotaExceeded, LimitReached, Forbidden for a receipt that somebody else opened.
        """
        now_us = self._clock.now_us()
        policy_name = self._metering.policy_of(principal) or self._metering.quota_settings.receipt_policy
        wanted = Receipt(opening.receipt_id, principal.name, policy_name, now_us)
        receipt = await self._log.read(lambda connection: read_receipt(connection, opening.receipt_id)) or wanted
        if receipt.owner != principal.name:
            raise Forbidden("somebody else opened this receipt", subject="receiptId", hint="use a receipt of your own")
        session = StreamingSession(
            id=str(uuid.UUID(bytes=self._entropy.draw(16), version=4)), agent_id=opening.agent_id,
            receipt_id=opening.receipt_id, owner=principal.name, kind=opening.kind, status="active",
            quality=opening.quality, estimated_bytes=opening.estimated_bytes,
            estimated_cost_satoshis=opening.estimated_bytes // MB * SATOSHIS_PER_MB, bytes=0, packets=0,
            last_sequence=0, updates=0, created_us=now_us, updated_us=now_us,
        )  # fmt: skip

        account, policy = await self.account(receipt)

        def write(connection: sqlite3.Connection) -> Receipt:
            self._check_room(connection, account, policy)
            stored = write_receipt(connection, receipt)
            if stored.owner != principal.name:
                raise Forbidden("somebody else opened this receipt", subject="receiptId")
            write_session(connection, session)
            add_counts(connection, now_us, {UsageKey(account.name, "", "agent"): Counts(requests=1)})
            return stored

        async with self._opening:  # one that is counted only once it is durable, or two would find the same room
            self._metering.quotas.check(account, policy, opening.estimated_bytes)
            stored = await self._write_whole(write)
            self._metering.quotas.used(account.name, 0, 1)
        return session, stored

    async def find(self, session_id: str, principal: Principal, *, may_see_all: bool) -> StreamingSession:
        """Raises UnknownSession, also for somebody else's. Checkpoint."""
        session = await self._log.read(lambda connection: read_session(connection, session_id))
        if session is None or not (may_see_all or session.owner == principal.name):
            raise UnknownSession(f"there is no streaming session {session_id[:64]!r}", subject="agentSessionId")
        return session

    async def account_for(self, receipt_id: str, principal: Principal) -> tuple[Account, QuotaPolicy]:
        """As `account`, also for a receipt that isn't opened yet. Checkpoint. Raises Forbidden."""
        policy_name = self._metering.policy_of(principal) or self._metering.quota_settings.receipt_policy
        wanted = Receipt(receipt_id, principal.name, policy_name, self._clock.now_us())
        receipt = await self._log.read(lambda connection: read_receipt(connection, receipt_id))
        return await self.account(receipt or wanted)

    async def count_open(self, receipt_id: str) -> int:
        """Sessions of a receipt that are active. Checkpoint."""
        return await self._log.read(lambda connection: count_open(connection, receipt_id))

    async def update(
        self, session_id: str, agent_id: str, receipt_id: str, progress: Progress, principal: Principal, *,
        is_complete: bool,
    ) -> StreamingSession:  # fmt: skip
        """The session with its new totals; they may only grow. Durable, and counted, when it returns. Checkpoint.

        Raises UnknownSession, BadParameter, QuotaExceeded (then nothing changed).
        """
        session = await self.find(session_id, principal, may_see_all=False)
        if (session.agent_id, session.receipt_id) != (agent_id, receipt_id):
            raise UnknownSession("there is no such session of that agent and receipt", subject="agentSessionId")
        receipt = await self.receipt(session.receipt_id, principal, may_see_all=False)
        account, policy = await self.account(receipt)
        foreseen = _advance(session, progress, self._clock.now_us(), is_complete=is_complete)
        hashed = self._metering.usage.hash_address(principal.address)
        with self._metering.quotas.passing(account, policy, foreseen.bytes - session.bytes, is_new=False):
            changed, added = await self._write_whole(
                self._writing(session_id, progress, account.name, hashed, is_complete=is_complete)
            )
            self._metering.quotas.used(account.name, added, 0)
        return changed

    async def _write_whole(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Writes what is counted in memory, too: a client that leaves meanwhile would leave the two apart."""
        with trio.move_on_after(WRITE_S, shield=True):
            return await self._log.write(job)
        raise IntakeBusy("the log took too long", subject="intake", retry_after_s=WRITE_S)

    def _writing(
        self, session_id: str, progress: Progress, account: str, address_hash: str, *, is_complete: bool
    ) -> Callable[[sqlite3.Connection], tuple[StreamingSession, int]]:
        def write(connection: sqlite3.Connection) -> tuple[StreamingSession, int]:
            session = read_session(connection, session_id)
            if session is None:
                raise UnknownSession("the session is gone", subject="agentSessionId")
            now_us = self._clock.now_us()
            changed = _advance(session, progress, now_us, is_complete=is_complete)
            write_session(connection, changed)
            counts = Counts(packets=changed.packets - session.packets, bytes=changed.bytes - session.bytes)
            if is_complete:
                ended = _ended(changed, account)
                counts.completions, counts.completed_ppm = 1, ended.completed_ppm
                add_deliveries(connection, [(ended, address_hash)])
            add_counts(connection, now_us, {UsageKey(account, "", "agent"): counts})
            return changed, counts.bytes

        return write

    def _check_room(self, connection: sqlite3.Connection, account: Account, policy: QuotaPolicy) -> None:
        """Raises QuotaExceeded or LimitReached."""
        self._metering.quotas.check_streams(account, policy, count_open(connection, account.name.partition(":")[2]))
        sessions_max = self._metering.quota_settings.sessions_max
        if count_open(connection) >= sessions_max:
            self._metering.count_hit("sessions_max")
            raise LimitReached(
                f"{sessions_max} streaming sessions are open already", subject="sessions_max", retry_after_s=60.0
            )


def _advance(session: StreamingSession, progress: Progress, now_us: int, *, is_complete: bool) -> StreamingSession:
    """Raises BadParameter for a session that is over, and for figures that shrink."""
    if session.status != "active":
        raise BadParameter(f"the session is {session.status}", subject="agentSessionId", hint="create another one")
    totals: dict[str, int] = {}
    for name in ("bytes", "packets", "last_sequence"):
        given, held = getattr(progress, name), getattr(session, name)
        if given is not None and given < held:
            raise BadParameter(f"{name} is {held} already and can't become {given}", subject=name)
        totals[name] = held if given is None else given
    status = "completed" if is_complete else session.status
    return msgspec.structs.replace(session, **totals, status=status, updates=session.updates + 1, updated_us=now_us)


def _ended(session: StreamingSession, account: str) -> EndedDelivery:
    estimated = session.estimated_bytes
    ppm = _ALL_PPM if not estimated else min(_ALL_PPM, session.bytes * _ALL_PPM // estimated)
    return EndedDelivery(
        session=session.id, stream="", principal=account, method="agent", address="", started_us=session.created_us,
        ended_us=session.updated_us, packets=session.packets, bytes=session.bytes, completed_ppm=ppm,
        reason="completed",
    )  # fmt: skip

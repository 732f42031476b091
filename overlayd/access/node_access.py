"""Access put together: keys, tickets, owners, the gate and the audit trail, as the daemon uses them."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import structlog
import trio

from overlayd.access.audit import AuditTrail, MakePacket
from overlayd.access.bearers import TICKET_PATHS, KeyScheme, TicketScheme
from overlayd.access.declared_keys import declare_keys
from overlayd.access.failures import FailureBook
from overlayd.access.gate import Gate, Scheme
from overlayd.access.key_changes import KeyChanges
from overlayd.access.key_records import read_key, read_keys, read_owners, store_uses
from overlayd.access.keys import Key, KeyBook
from overlayd.access.node_schemes import NodeSchemes
from overlayd.access.origin import AccessRules
from overlayd.access.reloading import replace_declared, take_live
from overlayd.access.roles import RoleBook
from overlayd.access.settings import AccessSettings, KeySettings
from overlayd.access.stream_changes import StreamChanges
from overlayd.access.stream_guard import StreamGuard
from overlayd.access.tickets import TicketBook
from overlayd.access.unix_users import UnixUsers
from overlayd.model.clock import Clock, Entropy
from overlayd.model.errors import OverlaydError
from overlayd.model.metrics import Metrics
from overlayd.storage import Log

EXPIRY_S = 1.0
"""A credential that expires is ended at most so much later on what it let in; requests are refused at once."""
IDLE_S = 15.0
"""With nothing that could expire."""
USES_S = 60.0
KEYS_AT_ONCE = 1000
_log = structlog.get_logger("access")


class NodeAccess:
    """One for the node. Lets nobody in before `load`."""

    def __init__(
        self, *, log: Log, rules: AccessRules, settings: AccessSettings, declared: Sequence[KeySettings],
        environ: Mapping[str, str], make_audit: MakePacket, clock: Clock, entropy: Entropy, metrics: Metrics,
        schemes: Iterable[Scheme] = (), open_paths: frozenset[str] = frozenset(),
        ticket_paths: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        """`schemes`: further kinds of credentials. `open_paths`, `ticket_paths`: further paths that need no credential,
        and that a ticket opens. Raises ConfigInvalid."""
        self._log = log
        self._clock = clock
        self._environ = environ
        self._declared = declared
        self.settings = settings
        self.on_review: Callable[[], Awaitable[int | None]] = _review_nobody
        """Ends the live sessions that have lost what they were let in by, and gives when the next one will expire; the
        daemon sets it."""
        roles = RoleBook(settings.roles)
        self.trail = AuditTrail(
            settings, metrics, make_packet=make_audit, append=log.append_own, now_s=trio.current_time
        )
        self.streams = StreamGuard(log.find_stream)
        self.keys = KeyBook(roles, self.note_change)
        self.tickets = TicketBook(settings, entropy, metrics, trio.current_time)
        self.failures = FailureBook(settings, metrics, trio.current_time)
        self.changes = KeyChanges(
            keys=self.keys, settings=settings, trail=self.trail, append=log.append_own, clock=clock, entropy=entropy,
            metrics=metrics, on_change=self.note_change,
        )  # fmt: skip
        self.stream_changes = StreamChanges(log=log, streams=self.streams, trail=self.trail, on_change=self.note_change)
        bearers = (
            KeyScheme(self.keys, clock, may_create=rules.auto_create),
            TicketScheme(self.tickets, TICKET_PATHS | ticket_paths),
        )
        self.gate = Gate(
            rules=rules, schemes=(*bearers, *schemes), failures=self.failures, audit=self.trail.note_once, clock=clock,
            metrics=metrics, unix_users=UnixUsers(settings.unix_users, roles), is_loopback_free=settings.loopback_free,
            open_paths=open_paths,
        )  # fmt: skip
        self.gate.on_expiring = self._wake
        self._is_changed = False
        self._woken = trio.Event()
        known = metrics.gauge("overlayd_access_keys", "API keys on the node")
        known.set_function(lambda: len(self.keys))

    def __repr__(self) -> str:
        return f"NodeAccess(keys={len(self.keys)}, {self.gate!r})"

    @property
    def has_credentials(self) -> bool:
        """Whether anybody could come in by a credential."""
        return self.gate.has_credentials

    async def load(self) -> None:
        """Takes in what is stored and what the configuration declares. Checkpoint. Raises ConfigInvalid."""
        records, uses = await self._log.read(read_keys)
        now_us = self._clock.now_us()
        declare_keys(self.keys, self._declared, self._environ, now_us)
        for number, record in enumerate(records):
            if self.keys.get(record.id) is None:
                self.keys.put(record)
            if number % KEYS_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        for id, used_us in uses.items():
            key = self.keys.get(id)
            if key is not None:
                key.used_us = used_us
        for name, owner in (await self._log.read(read_owners)).items():
            self.streams.own(name, owner)
        self.keys.end_expired(now_us)
        self.gate.refresh()

    def prepare_reload(
        self, declared: Sequence[KeySettings], settings: AccessSettings, others: NodeSchemes
    ) -> tuple[Callable[[], Awaitable[None]], tuple[str, ...]]:  # fmt: skip
        """What makes other settings and other declared keys count, and the names of the settings that count only after a
        restart. Nothing has changed before the first is awaited; then live sessions follow, too: what somebody was let in
        by is ended unless it is still the same.

        `others`: the schemes beside keys and tickets. Reads small files, blocking. Raises ConfigInvalid.
        """
        counted, waiting = take_live(self.settings, settings, is_mutual_same=others.is_mutual_as(settings))
        roles = RoleBook(counted.roles)
        keys = KeyBook(roles)
        declare_keys(keys, declared, self._environ, self._clock.now_us())
        users = UnixUsers(counted.unix_users, roles)
        adopt_others = others.prepare(counted)

        async def commit() -> None:
            """Checkpoint. Raises what keeps the log from being read, before anything changes."""
            async with self.changes.pause():
                gone = {key.name for key in self._declared} - {key.name for key in declared}
                stored = await self._log.read(lambda connection: [read_key(connection, id) for id in gone])
                renamed = self.keys.roles.adopt(roles)
                replace_declared(self.keys, keys, gone, stored, renamed)
                self.gate.adopt(users, is_loopback_free=counted.loopback_free)
                adopt_others()
                self.changes.adopt(counted)
                self.tickets.adopt(counted)
                self.trail.adopt(counted)
                self.settings, self._declared = counted, tuple(declared)
            self.note_change()

        return commit, waiting

    async def run(self) -> None:
        """Writes audit records, ends what expires, notes which keys are used. Until cancelled. Checkpoint."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.trail.run)
            nursery.start_soon(self._review)
            nursery.start_soon(self._note_uses)

    def note_change(self) -> None:
        """Keys, rights, streams or what anybody is held to have changed: whoever is in is looked at again, soon; requests
        that come are judged anew at once."""
        self.gate.refresh()
        self.gate.judge_anew()
        self._is_changed = True
        self._wake()

    def _wake(self) -> None:
        self._woken.set()

    async def _review(self) -> None:
        """Ends what has expired, and who was let in by what counts no more. Sleeps while nothing can expire."""
        while True:
            self._is_changed = False
            self.gate.next_end_us = 0
            key_us = self.keys.end_expired(self._clock.now_us())
            session_us = await self.on_review()
            while not self._is_changed:
                ends = [end_us for end_us in (key_us, session_us, self.gate.next_end_us) if end_us]
                if ends and min(ends) <= self._clock.now_us():
                    break
                self._woken = trio.Event()
                with trio.move_on_after(EXPIRY_S if ends else IDLE_S):
                    await self._woken.wait()

    async def _note_uses(self) -> None:
        try:
            while True:
                await trio.sleep(USES_S)
                await self._store_uses()
        finally:
            with trio.move_on_after(EXPIRY_S, shield=True):
                await self._store_uses()

    async def _store_uses(self) -> None:
        """Notes which keys were used since the last time, some keys at a time."""
        keys = list(self.keys.all())
        for start in range(0, len(keys), KEYS_AT_ONCE):
            uses = note_uses(keys[start : start + KEYS_AT_ONCE], self._clock.now_us())
            await trio.lowlevel.checkpoint()
            if not uses:
                continue
            try:
                await self._log.write(lambda connection, uses=uses: store_uses(connection, uses))  # type: ignore[misc]
            except OverlaydError as error:
                _log.warning("the last use of keys can't be noted", error=error.detail, keys=len(uses))
                return


def note_uses(keys: Iterable[Key], now_us: int) -> dict[str, int]:
    """Keys among these that were used since the last call, with the time that is noted for them now."""
    uses = {}
    for key in keys:
        for standing in key.standings.values():
            if standing.is_used:
                standing.is_used = False
                key.used_us = uses[key.record.id] = now_us
    return uses


async def _review_nobody() -> None:
    await trio.lowlevel.checkpoint()

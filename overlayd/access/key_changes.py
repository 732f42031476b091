"""Making, changing, rotating and revoking API keys: each change durable together with its audit record, then in force at once."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

import msgspec
import trio

from overlayd.access.audit import AuditTrail
from overlayd.access.key_records import KeyRecord, SecretRecord, drop_key, store_key
from overlayd.access.keys import Key, KeyBook
from overlayd.access.principal import Principal
from overlayd.access.scopes import Scope
from overlayd.access.secret_text import KeyKind, NewSecret, draw_key
from overlayd.access.settings import AccessSettings
from overlayd.model.audit import AuditRecord, AuditValue
from overlayd.model.clock import Clock, Entropy, format_time_us
from overlayd.model.errors import BadParameter, IntakeBusy, LimitReached, OwnedByConfig, UnknownKey
from overlayd.model.metrics import Metrics
from overlayd.storage.own import OwnPacket, Statement

CHANGE_S = 30.0
"""A change that was begun is finished, also when whoever asked for it has left; the writer takes far less."""
ID_BYTES = 6


class AppendOwn(Protocol):
    """`Log.append_own`."""

    def __call__(
        self, packets: Sequence[OwnPacket], statements: Sequence[Statement] = (),
        on_commit: Callable[[], None] | None = None,
    ) -> Awaitable[list[int]]: ...  # fmt: skip


class KeyAsk(msgspec.Struct, frozen=True):
    """What a new key is to be. `owner`: "" stands for whoever makes it; `expires_us`: 0 for never."""

    kind: KeyKind = "ovl"
    title: str = ""
    owner: str = ""
    scopes: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    expires_us: int = 0
    policy: str = ""


class KeyPatch(msgspec.Struct, frozen=True):
    """What of a key is to be different; None leaves it. `owner`: never empty; `expires_us`: 0 for never."""

    title: str | None = None
    owner: str | None = None
    scopes: tuple[str, ...] | None = None
    roles: tuple[str, ...] | None = None
    expires_us: int | None = None
    policy: str | None = None


class Author(msgspec.Struct, frozen=True):
    """Who changes something, and with which request."""

    principal: Principal
    request_id: str

    def record(self, action: str, subject: str, **detail: AuditValue) -> AuditRecord:
        """The audit record of what was done."""
        who = self.principal
        return AuditRecord(
            action, actor=who.name, address=who.address, subject=subject, request_id=self.request_id, detail=detail
        )


class KeyChanges:
    """What may be done to keys. One change at a time."""

    def __init__(
        self, *, keys: KeyBook, settings: AccessSettings, trail: AuditTrail, append: AppendOwn, clock: Clock,
        entropy: Entropy, metrics: Metrics, on_change: Callable[[], None],
    ) -> None:  # fmt: skip
        """`on_change`: called when there is a key more or less, or one ends at another time."""
        self._keys = keys
        self._settings = settings
        self._trail = trail
        self._append = append
        self._clock = clock
        self._entropy = entropy
        self._metrics = metrics
        self._on_change = on_change
        self._lock = trio.Lock()

    def adopt(self, settings: AccessSettings) -> None:
        """Its limits are these from now on."""
        self._settings = settings

    def pause(self) -> trio.Lock:
        """Whoever holds it changes keys in another way meanwhile."""
        return self._lock

    async def create(self, ask: KeyAsk, author: Author) -> tuple[Key, NewSecret]:
        """A new key and its secret, which is kept nowhere. Durable. Checkpoint.

        Raises BadParameter, LimitReached, and what appending raises.
        """
        now_us = self._clock.now_us()
        scopes = self._check(ask.scopes, ask.roles, ask.expires_us, now_us)
        async with self._lock:
            if len(self._keys) >= self._settings.keys_max:
                self._metrics.count_limit_hit("keys_max")
                raise LimitReached(
                    f"the node has {self._settings.keys_max} keys, which is its limit", subject="keys_max"
                )
            secret = draw_key(ask.kind, self._entropy)
            record = KeyRecord(
                id=self._draw_id(), kind=ask.kind, owner=ask.owner or author.principal.owner or author.principal.name,
                scopes=tuple(dict.fromkeys(ask.scopes)), created_us=now_us, secrets=(_stored(secret, now_us),),
                roles=tuple(dict.fromkeys(ask.roles)), title=ask.title, created_by=author.principal.name,
                expires_us=ask.expires_us, policy=ask.policy,
            )  # fmt: skip
            detail: dict[str, AuditValue] = {"owner": record.owner, "scopes": " ".join(sorted(map(str, scopes)))}
            if record.expires_us:
                detail["expires_at"] = format_time_us(record.expires_us)
            audit = author.record("key.create", record.id, **detail)
            await self._commit(audit, [store_key(record)], lambda: self._put(record))
        key = self._keys.get(record.id)
        assert key is not None
        return key, secret

    async def change(self, id: str, patch: KeyPatch, author: Author) -> Key:
        """The key in another form from now on, with the secrets that it has: what was let in by it with other rights,
        another owner, end or quota is let in anew. Durable. Checkpoint.

        Raises UnknownKey, OwnedByConfig, BadParameter, and what appending raises.
        """
        if patch.owner == "":
            raise BadParameter("a key belongs to somebody", subject="owner", hint="leave it out to keep the owner")
        async with self._lock:
            key = self._changeable(id)
            before, now_us = key.record, self._clock.now_us()
            members = {name: value for name, value in msgspec.structs.asdict(patch).items() if value is not None}
            for name in {"scopes", "roles"} & members.keys():
                members[name] = tuple(dict.fromkeys(members[name]))
            changed = msgspec.structs.replace(before, **members)
            scopes = self._check(changed.scopes, changed.roles, members.get("expires_us", 0), now_us)
            different = [name for name in members if getattr(changed, name) != getattr(before, name)]
            if not different:
                return key
            detail: dict[str, AuditValue] = {
                "changed": " ".join("expires_at" if name == "expires_us" else name for name in sorted(different)),
                "owner": changed.owner, "scopes": " ".join(sorted(map(str, scopes))),
            }  # fmt: skip
            if changed.expires_us:
                detail["expires_at"] = format_time_us(changed.expires_us)
            await self._commit(
                author.record("key.change", id, **detail), [store_key(changed)], lambda: self._put(changed)
            )
        return self.known(id)

    async def rotate(self, id: str, grace_s: float | None, author: Author) -> tuple[Key, NewSecret]:
        """A new secret for a key; those that it has go on for the grace (None: the setting's). Durable. Checkpoint.

        Raises UnknownKey, OwnedByConfig, BadParameter, LimitReached, and what appending raises.
        """
        settings = self._settings
        grace_s = float(settings.rotation_grace) if grace_s is None else grace_s
        if grace_s > settings.rotation_grace_max:
            self._metrics.count_limit_hit("rotation_grace_max")
            raise BadParameter(f"the grace is at most {settings.rotation_grace_max}", subject="grace")
        async with self._lock:
            record, now_us = self._changeable(id).record, self._clock.now_us()
            end_us = now_us + int(grace_s * 1_000_000)
            kept = [
                msgspec.structs.replace(old, expires_us=min(old.expires_us or end_us, end_us))
                for old in record.secrets
                if grace_s > 0 and (not old.expires_us or old.expires_us > now_us)
            ]
            if len(kept) >= settings.secrets_per_key:
                self._metrics.count_limit_hit("secrets_per_key")
                raise LimitReached(
                    f"{len(kept)} secrets of the key count already", subject="secrets_per_key",
                    hint='rotate with "grace": "0s" to end them',
                )  # fmt: skip
            secret = draw_key(record.kind, self._entropy)
            changed = msgspec.structs.replace(record, secrets=(_stored(secret, now_us), *kept))
            audit = author.record("key.rotate", id, grace_s=int(grace_s))
            await self._commit(audit, [store_key(changed)], lambda: self._put(changed))
        key = self._keys.get(id)
        assert key is not None
        return key, secret

    async def revoke(self, id: str, author: Author) -> None:
        """The key counts no more, and what was let in by it ends. Durable. Checkpoint.

        Raises UnknownKey, OwnedByConfig, and what appending raises.
        """
        async with self._lock:
            self._changeable(id)
            await self._commit(author.record("key.revoke", id), drop_key(id), lambda: self._remove(id))

    def known(self, id: str) -> Key:
        """Raises UnknownKey."""
        key = self._keys.get(id)
        if key is None:
            raise UnknownKey(f"there is no key {id[:64]!r}", subject="id", hint="GET /v1/keys lists what there is")
        return key

    def _check(self, scopes: Iterable[str], roles: Iterable[str], expires_us: int, now_us: int) -> frozenset[Scope]:
        """The scopes of a key that is to be. Raises BadParameter."""
        found = self._keys.roles.scopes_of(scopes, roles)
        self._keys.roles.check(roles)
        if not found:
            raise BadParameter("a key needs scopes or roles", subject="scopes", hint='such as ["publish:weather.*"]')
        if expires_us and expires_us <= now_us:
            raise BadParameter("the key would have expired already", subject="expires_at")
        return found

    def _changeable(self, id: str) -> Key:
        key = self.known(id)
        if key.declared_in:
            raise OwnedByConfig(
                f"the key {id} is declared at {key.declared_in}", subject=id, hint="change it there",
                extra={"declared_in": key.declared_in},
            )  # fmt: skip
        return key

    async def _commit(self, audit: AuditRecord, statements: Sequence[Statement], adopt: Callable[[], None]) -> None:
        with trio.move_on_after(CHANGE_S, shield=True):
            await self._append([self._trail.packet(audit)], statements, adopt)
            return
        raise IntakeBusy("the change waits for the log", subject=audit.subject, hint="look whether it has happened")

    def _put(self, record: KeyRecord) -> None:
        self._keys.put(record)
        self._on_change()

    def _remove(self, id: str) -> None:
        self._keys.remove(id)
        self._on_change()

    def _draw_id(self) -> str:
        while True:
            id = f"k{self._entropy.draw(ID_BYTES).hex()}"
            if self._keys.get(id) is None:
                return id


def _stored(secret: NewSecret, now_us: int) -> SecretRecord:
    return SecretRecord(secret.digest, secret.prefix, now_us)

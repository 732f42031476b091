"""The API keys that count now: found by a secret's hash, ended at once when they are revoked or expire."""

import heapq
from collections.abc import Callable, Iterable, Iterator

import msgspec

from overlayd.access.key_records import KeyRecord, SecretRecord
from overlayd.access.principal import Principal, Standing
from overlayd.access.roles import RoleBook
from overlayd.access.scopes import Grants, grants_of
from overlayd.access.secret_text import digest_of, is_same

_NOBODY = bytes(32)


class Key:
    """A key with what the node remembers about it. `declared_in`: the file of a key that the configuration declares,
    "" for those that the API made. `used_us` is right to about a minute."""

    __slots__ = ("declared_in", "grants", "record", "standings", "used_us")

    def __init__(self, record: KeyRecord, grants: Grants, declared_in: str = "", used_us: int = 0) -> None:
        self.record = record
        self.grants = grants
        self.declared_in = declared_in
        self.used_us = used_us
        self.standings: dict[bytes, Standing] = {}
        """By the hash of the secret."""

    def __repr__(self) -> str:
        return f"Key({self.record.id!r}, secrets={len(self.standings)})"

    def ends_us(self, secret: SecretRecord) -> int:
        """When a secret of it stops counting; 0 for never."""
        ends = [end for end in (secret.expires_us, self.record.expires_us) if end]
        return min(ends, default=0)

    def principal(self, secret: SecretRecord, address: str, *, may_create: bool) -> Principal:
        """Who comes in with a secret of it."""
        record = self.record
        return Principal(
            name=f"key:{record.id}", kind="key", rights=self.grants.everywhere, address=address,
            may_create=may_create, grants=self.grants, owner=record.owner,
            standing=self.standings[secret.digest], expires_us=self.ends_us(secret), policy=record.policy,
        )  # fmt: skip


class Found(msgspec.Struct, frozen=True):
    """A key and the secret that led to it."""

    key: Key
    secret: SecretRecord


def _terms_of(key: Key) -> tuple[Grants, str, int, str]:
    """What a principal of the key is made of, beside its secret."""
    return key.grants, key.record.owner, key.record.expires_us, key.record.policy


class KeyBook:
    """All keys. Decides nothing about who may change them, and stores nothing."""

    def __init__(self, roles: RoleBook, on_ended: Callable[[], None] = lambda: None) -> None:
        """`on_ended`: called after some standing ended."""
        self.roles = roles
        self._on_ended = on_ended
        self._keys: dict[str, Key] = {}
        self._by_digest: dict[bytes, Found] = {}
        self._ends: list[tuple[int, bytes]] = []
        self._sorted: list[str] | None = None
        self._living: set[str] = set()

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Key]:
        """By id."""
        return iter([self._keys[id] for id in self.ids()])

    def all(self) -> Iterable[Key]:
        """In no order."""
        return self._keys.values()

    def ids(self) -> list[str]:
        """In order."""
        if self._sorted is None:
            self._sorted = sorted(self._keys)
        return self._sorted

    def get(self, id: str) -> Key | None:
        return self._keys.get(id)

    def find(self, text: str) -> Found | None:
        """The key that a secret belongs to. Takes as long for a secret that leads nowhere."""
        digest = digest_of(text)
        found = self._by_digest.get(digest)
        stored = _NOBODY if found is None else found.secret.digest
        return found if is_same(stored, digest) else None

    def put(self, record: KeyRecord, *, declared_in: str = "", used_us: int = 0) -> Key:
        """The key in this form from now on. Secrets that it had and has no more are revoked; what was let in under other
        terms (rights, owner, end, quota) is ended as changed, so that it comes in anew."""
        grants = grants_of(self.roles.scopes_of(record.scopes, record.roles))
        before = self._keys.get(record.id)
        key = Key(record, grants, declared_in, used_us if before is None else before.used_us)
        is_kept = before is not None and _terms_of(before) == _terms_of(key)
        for secret in record.secrets:
            standing = None if before is None else before.standings.pop(secret.digest, None)
            if standing is not None and not is_kept:
                standing.ended = "changed"
                standing = None
            key.standings[secret.digest] = standing or Standing()
            self._by_digest[secret.digest] = Found(key, secret)
            if end := key.ends_us(secret):
                heapq.heappush(self._ends, (end, secret.digest))
        self._keys[record.id] = key
        if before is None:
            self._sorted = None
        self._living.add(record.id)
        if before is not None:
            self._end_all(before)
            self._on_ended()
        return key

    def remove(self, id: str) -> None:
        """The key is revoked. Again does nothing."""
        key = self._keys.pop(id, None)
        if key is not None:
            self._sorted = None
            self._end_all(key)
            self._on_ended()

    def end_expired(self, now_us: int) -> int | None:
        """Ends what has expired; gives when the next one will, None for never. An expired key stays in the list."""
        is_any = False
        while self._ends and self._ends[0][0] <= now_us:
            _, digest = heapq.heappop(self._ends)
            found = self._by_digest.get(digest)
            if found is None:
                continue
            end = found.key.ends_us(found.secret)
            if end and end <= now_us:
                self._end(found.key, digest, "expired")
                is_any = True
        if is_any:
            self._on_ended()
        return self._ends[0][0] if self._ends else None

    def count_living(self) -> int:
        """Keys that somebody could come in with."""
        return len(self._living)

    @property
    def has_living(self) -> bool:
        """Whether a secret of any key counts."""
        return bool(self._living)

    def _end_all(self, key: Key) -> None:
        for digest in list(key.standings):
            self._end(key, digest, "revoked")

    def _end(self, key: Key, digest: bytes, why: str) -> None:
        standing = key.standings.pop(digest)
        standing.ended = "expired" if why == "expired" else "revoked"
        found = self._by_digest.get(digest)
        if found is not None and found.key is key:
            del self._by_digest[digest]
        if not key.standings and self._keys.get(key.record.id) in (key, None):
            self._living.discard(key.record.id)

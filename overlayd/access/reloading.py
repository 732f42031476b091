"""What of `[access]` and `[[keys]]` can change while the node runs, and how keys are brought in line."""

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from overlayd.access.identity.settings import IdentitySettings
from overlayd.access.key_records import KeyRecord, SecretRecord
from overlayd.access.keys import KeyBook
from overlayd.access.settings import AccessSettings

LIVE = (
    "roles", "unix_users", "loopback_free", "certificates", "jwt", "identities", "identity", "keys_max",
    "secrets_per_key", "rotation_grace", "rotation_grace_max", "ticket_ttl", "ticket_ttl_max", "tickets_max",
    "tickets_per_principal", "audit_pending", "audit_repeats", "audit_repeats_max",
)  # fmt: skip
"""Settings of `[access]` that count at once."""
LIVE_OF_IDENTITY = ("scheme", "anyone", "anyone_policy")
T = TypeVar("T", AccessSettings, IdentitySettings)


def take_live(
    before: AccessSettings, wanted: AccessSettings, *, is_mutual_same: bool
) -> tuple[AccessSettings, tuple[str, ...]]:  # fmt: skip
    """The settings that count now, and the names of those that wait for a restart. `is_mutual_same`: whether mutual
    authentication would be on as it is now."""
    identity = _taken(before.identity, wanted.identity, LIVE_OF_IDENTITY)
    counted = msgspec.structs.replace(_taken(before, wanted, LIVE), identity=identity)
    waiting = [f"access.{name}" for name in _different(counted, wanted) if name != "identity"]
    waiting += [f"access.identity.{name}" for name in _different(identity, wanted.identity)]
    if not is_mutual_same and "access.mutual" not in waiting:
        waiting.append("access.mutual")
    return counted, tuple(sorted(waiting))


def replace_declared(
    book: KeyBook, declared: KeyBook, gone: Iterable[str], stored: Iterable[KeyRecord | None], renamed: frozenset[str]
) -> None:  # fmt: skip
    """Brings the book in line. `gone`: ids that are declared no more; `stored`: keys that the API made under such an id,
    which count again. `renamed`: roles that mean something else now, of any key."""
    for key in declared:
        book.put(_with_times(key.record, book), declared_in=key.declared_in)
    kept = {record.id: record for record in stored if record is not None}
    for id in gone:
        if id in kept:
            book.put(kept[id])
        else:
            book.remove(id)
    if renamed:
        for other in list(book.all()):
            if not renamed.isdisjoint(other.record.roles):
                book.put(other.record, declared_in=other.declared_in)


def _with_times(record: KeyRecord, book: KeyBook) -> KeyRecord:
    """The record, whose times are those at which the node first read it."""
    before = book.get(record.id)
    if before is None:
        return record
    known = {secret.digest: secret.created_us for secret in before.record.secrets}
    secrets = tuple(
        SecretRecord(secret.digest, secret.prefix, known.get(secret.digest, secret.created_us))
        for secret in record.secrets
    )
    return msgspec.structs.replace(record, created_us=before.record.created_us, secrets=secrets)


def _taken(before: T, wanted: T, names: Iterable[str]) -> T:
    return msgspec.structs.replace(before, **{name: getattr(wanted, name) for name in names})


def _different(one: msgspec.Struct, other: msgspec.Struct) -> list[str]:
    return [name for name in one.__struct_fields__ if getattr(one, name) != getattr(other, name)]

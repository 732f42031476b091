"""The keys that the configuration declares: their hashes from the file itself, their secrets from where it says."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from overlayd.access.guarded_files import find_credential, read_guarded
from overlayd.access.key_records import KeyRecord, SecretRecord
from overlayd.access.keys import KeyBook
from overlayd.access.secret_text import KeyKind, digest_of, is_key, parse_digest, shown_prefix
from overlayd.access.settings import KeySettings
from overlayd.model.errors import ConfigInvalid, OverlaydError


def declare_keys(book: KeyBook, declared: Iterable[KeySettings], environ: Mapping[str, str], now_us: int) -> None:
    """Puts the configuration's keys into the book. Reads small files, before anything listens.

    Raises ConfigInvalid for a file that can't be read or that others may read, for what isn't a key, for a secret or
    a name that stands twice, and for a role that there isn't. No message repeats a secret.
    """
    seen: dict[bytes, str] = {}
    for settings in declared:
        record = _record_of(settings, environ, now_us)
        if book.get(settings.name) is not None:
            raise _invalid(settings, "another key has that name")
        for secret in record.secrets:
            if secret.digest in seen:
                raise _invalid(settings, f"has a secret of the key {seen[secret.digest]}")
            seen[secret.digest] = settings.name
        try:
            book.roles.check(settings.roles)
        except OverlaydError as err:
            raise _invalid(settings, err.detail, err.hint) from err
        book.put(record, declared_in=settings.declared_in or "the configuration")


def _record_of(settings: KeySettings, environ: Mapping[str, str], now_us: int) -> KeyRecord:
    secrets = [SecretRecord(parse_digest(text), "", now_us) for text in settings.hashes]
    kind: KeyKind = "ovl"
    try:
        for path, is_credential in _files_of(settings, environ):
            for text in _read_secrets(path, is_credential=is_credential):
                secrets.append(SecretRecord(digest_of(text), shown_prefix(text), now_us))
                kind = "ap" if text.startswith("ap_") else "ovl"
    except ConfigInvalid as err:
        raise _invalid(settings, err.detail, err.hint) from err
    return KeyRecord(
        id=settings.name, kind=kind, owner=settings.owner or settings.name, scopes=settings.scopes,
        created_us=now_us, secrets=tuple(secrets), roles=settings.roles, created_by="config",
        expires_us=settings.expires_us, policy=settings.policy,
    )  # fmt: skip


def _files_of(settings: KeySettings, environ: Mapping[str, str]) -> Iterable[tuple[Path, bool]]:
    """The files with the key's secrets, and whether the service manager guards them."""
    if settings.file:
        yield Path(settings.file), False
    if settings.credential:
        yield find_credential(settings.credential, environ), True


def _read_secrets(path: Path, *, is_credential: bool) -> list[str]:
    try:
        text = read_guarded(path, is_secret=not is_credential).decode()
    except UnicodeDecodeError as err:
        raise ConfigInvalid(f"{path} can't be read: it isn't text") from err
    found = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not found or not all(map(is_key, found)):
        raise ConfigInvalid(f"{path} must hold API keys, one a line", hint="overlayd keys generate draws one")
    return found


def _invalid(settings: KeySettings, detail: str, hint: str = "") -> ConfigInvalid:
    place = f"{settings.declared_in}: " if settings.declared_in else ""
    return ConfigInvalid(f"{place}keys.{settings.name}: {detail}", subject=f"keys.{settings.name}", hint=hint)

"""What `/v1/admin/backup` takes and gives."""

import msgspec
from msgspec import UNSET, UnsetType


class BackupBody(msgspec.Struct, frozen=True, kw_only=True):
    """A backup that the node knows of. `present`: it can be seen where it was put. `removed_at`: rotation took it away,
    or it was never finished."""

    id: str
    made_at: str
    path: str
    bytes: int
    log: str
    epoch: str
    entries: int
    root: str
    verified: bool
    present: bool
    removed_at: str | UnsetType = UNSET


class BackupRunBody(msgspec.Struct, frozen=True, kw_only=True):
    """The backup that is being made, or the last one that was asked for. `state` failed: `error` says why."""

    id: str
    state: str
    started_at: str
    error: str | UnsetType = UNSET


class BackupsBody(msgspec.Struct, frozen=True, kw_only=True):
    """Every backup that the node remembers, oldest first."""

    directory: str
    backups: tuple[BackupBody, ...]
    run: BackupRunBody | UnsetType = UNSET

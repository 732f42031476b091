"""The requests about backups as values (calls.py)."""

from overlayd.client.calls import Call, decoder_of
from overlayd.model.wire_backup import BackupRunBody, BackupsBody

_BACKUPS = decoder_of(BackupsBody)
_RUN = decoder_of(BackupRunBody)


def backups() -> Call[BackupsBody]:
    """Every backup that the node remembers, and the one that is being made."""
    return Call("GET", "/v1/admin/backup", _BACKUPS)


def make_backup() -> Call[BackupRunBody]:
    """Begins a backup; `backups` says when it is done."""
    return Call("POST", "/v1/admin/backup", _RUN, is_repeatable=False)

"""The operations about backups (openapi.py)."""

from overlayd.model import wire_backup
from overlayd.net.operations import JSON, Answer, Operation

BACKUP_OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "get", "/v1/admin/backup", "Every backup that the node made, and the one being made", "node",
        (Answer(200, "Oldest first", {JSON: wire_backup.BackupsBody}),), (), {}, (400, 403, 500), "admin",
    ),
    Operation(
        "post", "/v1/admin/backup", "Begin a backup to the directory of the settings", "node",
        (Answer(202, "It is being made; GET says when it is done", {JSON: wire_backup.BackupRunBody}),), (), {},
        (400, 403, 409, 500, 503, 507), "admin",
    ),
)  # fmt: skip

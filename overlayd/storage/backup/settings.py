"""Settings of backups: table `[backup]`."""

from typing import Annotated

import msgspec
from msgspec import Meta

from overlayd.model.units import Duration, Size


class BackupSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where copies of the log go, and how much of the machine making one may take."""

    dir: Annotated[
        str, Meta(description="Where the node puts backups; empty: DIR/backups, which a lost disk takes along")
    ] = ""
    keep: Annotated[
        int, Meta(ge=1, description="Verified backups that stay; a new one takes the place of the oldest")
    ] = 7
    wal_bytes: Annotated[
        Size,
        Meta(description="A backup is given up when the write-ahead log, which can't be cut meanwhile, gets so long"),
    ] = Size(1 << 30)
    rate: Annotated[Size, Meta(description="Bytes a second that a backup writes at most; 0B: as fast as the disk")] = (
        Size(0)
    )
    timeout: Annotated[Duration, Meta(description="A backup that takes longer is given up")] = Duration(6 * 3600)

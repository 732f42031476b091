"""Settings of the log: table `[storage]`."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from overlayd.model.units import Duration, Size


class StorageSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the log lies and how hard it is held on to."""

    dir: Annotated[
        str, Meta(description="Data directory; empty: $STATE_DIRECTORY, else ./overlayd-data (--data beats both)")
    ] = ""
    sync: Annotated[
        Literal["full", "extra"],
        Meta(
            description="SQLite's synchronous level. full: the WAL is synced by every commit; extra: its directory too"
        ),
    ] = "full"
    linger: Annotated[
        Duration, Meta(description="A commit waits so long for company: later answers, fewer flash writes")
    ] = Duration(0)
    checkpoint: Annotated[Duration, Meta(description="Shortest pause between checkpoints that nobody asked for")] = (
        Duration(1)
    )
    reserve: Annotated[
        Size, Meta(description="Disk space held back in DIR/reserve, so that a full disk can be cleaned; 0B: none")
    ] = Size(64 << 20)
    disk_high_water: Annotated[
        Size, Meta(description="Publishing stops with 507 while the disk has less than this free; 0B: never")
    ] = Size(64 << 20)
    disk_low_water: Annotated[
        Size,
        Meta(
            description="The node warns below it; publishing that stopped starts again, and the reserve is taken, above"
        ),
    ] = Size(96 << 20)
    flush_entries: Annotated[
        int, Meta(ge=256, description="Entries after which stream heads and indexes in memory are written out")
    ] = 65_536
    wal_bytes: Annotated[Size, Meta(description="Write-ahead log after which it is copied into the database")] = Size(
        1 << 20
    )
    clock_step: Annotated[
        Duration, Meta(description="Difference between wall and monotonic time that is recorded as a clock step")
    ] = Duration(2)

"""Settings of what takes old packets away: table `[retention]`."""

from typing import Annotated

import msgspec
from msgspec import Meta

from overlayd.model.units import Duration, Size


class RetentionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the rules of streams are carried out. The rules themselves stand in the streams' definitions."""

    every: Annotated[Duration, Meta(description="Pause between two looks at what is to be taken away")] = Duration(30)
    slice_packets: Annotated[
        int, Meta(ge=1, le=5000, description="Packets taken away in one transaction, which publishers wait for")
    ] = 128
    slice_bytes: Annotated[
        Size, Meta(description="Bytes taken away in one transaction; the packet that reaches it is the last")
    ] = Size(1 << 20)
    share: Annotated[
        float,
        Meta(gt=0, le=1, description="Share of the time that these transactions may take up, unless the disk is full"),
    ] = 0.5
    cut: Annotated[
        bool, Meta(description="Take whole prefixes of the log away that are older than everything's retention")
    ] = True
    cut_entries: Annotated[int, Meta(ge=256, description="Shortest prefix, in entries, that is worth a cut")] = 65_536
    trust_clock: Annotated[
        bool,
        Meta(
            description="Let packets age also while the system calls its clock unsynchronized, or after a step of a day"
        ),
    ] = False

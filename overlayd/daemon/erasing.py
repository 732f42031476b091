"""Erasing, with every place of this node where something of a packet may be."""

from pathlib import Path
from typing import TYPE_CHECKING

from overlayd.delivery.traces import find_traces
from overlayd.privacy.erasures import Erasures
from overlayd.storage.backup.catalogue import BackupCatalogue

if TYPE_CHECKING:
    from overlayd.daemon.parts import Parts


def make_erasures(parts: "Parts") -> Erasures:
    """Once everything else is there; AgentPipe may come later."""

    async def follow(offset: int) -> None:
        if parts.agentpipe:
            await parts.agentpipe.follower.wait_for(offset)

    def backups_before(time_us: int) -> list[str]:
        return [one.path for one in catalogue.backups_before(time_us) if not one.removed_us]

    catalogue = BackupCatalogue(Path(parts.settings.storage.dir))
    traces = find_traces(
        parts.delivery, parts.durable, forget_filters=parts.filters.clear, has_chain=parts.chain is not None,
        followers=(follow,), backups_before=backups_before,
    )  # fmt: skip
    return Erasures(
        parts.log, traces, audit=parts.access.trail.packet, clock=parts.clock, entropy=parts.entropy,
        metrics=parts.metrics,
    )  # fmt: skip

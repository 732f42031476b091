"""Erasing, with every place of this node where something of a packet may be."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from overlayd.delivery.traces import find_traces
from overlayd.privacy.erasures import Erasures
from overlayd.storage.backup.catalogue import BackupCatalogue
from overlayd.storage.damage.mending import ASIDE

if TYPE_CHECKING:
    from overlayd.daemon.parts import Parts


def make_erasures(parts: "Parts") -> Erasures:
    """Once everything else is there; AgentPipe may come later."""

    async def follow(offset: int) -> None:
        if parts.agentpipe:
            await parts.agentpipe.follower.wait_for(offset)

    directory = Path(parts.settings.storage.dir)
    traces = find_traces(
        parts.delivery, parts.durable, forget_filters=parts.filters.clear, has_chain=parts.chain is not None,
        followers=(follow,), backups_before=partial(copies_before, directory),
    )  # fmt: skip
    return Erasures(
        parts.log, traces, audit=parts.access.trail.packet, clock=parts.clock, entropy=parts.entropy,
        metrics=parts.metrics,
    )  # fmt: skip


def copies_before(directory: Path, time_us: int) -> list[str]:
    """Where copies of the log from before a time (Unix µs) are, as far as the node knows: backups, but for those that
    rotation deleted, and files that were put aside because they were damaged. `directory`: the node's. Blocking."""
    aside = sorted(str(path) for path in directory.glob(f"{ASIDE}*") if path.is_dir())
    return [*(one.path for one in BackupCatalogue(directory).backups_before(time_us)), *aside]

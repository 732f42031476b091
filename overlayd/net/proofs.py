"""Proofs of entries, put together from the log: for the proof route and for receipts that bind."""

from collections.abc import Sequence

from overlayd.model.cursor import Epoch
from overlayd.model.entry import StoredEntry
from overlayd.model.proof import Proof, build_proof
from overlayd.storage import Checkpoint, Log, Stream


async def prove_entry(log: Log, stream: Stream, entry: StoredEntry, checkpoint: Checkpoint) -> Proof:
    """The way from the entry to a checkpoint that covers it. Checkpoint.

    An entry of an earlier epoch comes with the `restore` entries that lead from its epoch to the checkpoint's.
    """
    path = await log.inclusion_path(entry.offset - 1, checkpoint.size)
    restores: list[tuple[StoredEntry, Sequence[bytes]]] = []
    for offset in _restores_since(log, Epoch(entry.epoch)):
        restore = await log.read_entry(offset)
        restores.append((restore, await log.inclusion_path(offset - 1, checkpoint.size)))
    return build_proof(
        entry, stream=stream.name, ssalt=stream.ssalt, path=path, checkpoint=checkpoint.note, restores=restores
    )


def _restores_since(log: Log, epoch: Epoch) -> list[int]:
    """Offsets of the entries with which the later epochs began, newest first."""
    if epoch == log.epoch:
        return []
    return [common + 1 for earlier, common in reversed(log.ancestry) if earlier >= epoch]

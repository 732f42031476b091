"""Proofs of entries, put together from the log: for the proof route and for receipts that bind."""

from collections.abc import Sequence

from overlayd.model.cursor import Epoch
from overlayd.model.entry import StoredEntry
from overlayd.model.proof import Proof, build_proof
from overlayd.storage import Checkpoint, Log, Stream


async def prove_entry(
    log: Log, stream: Stream | None, entry: StoredEntry, checkpoint: Checkpoint
) -> Proof:  # fmt: skip
    """The way from the entry to a checkpoint that covers it. Checkpoint.

    An entry of an earlier epoch comes with the `restore` entries that lead from its epoch to the checkpoint's. `stream`:
    None for entries of the node itself.
    """
    path = await log.inclusion_path(entry.offset - 1, checkpoint.size)
    restores: list[tuple[StoredEntry, Sequence[bytes]]] = []
    for offset in _restores_between(log, Epoch(entry.epoch), checkpoint.epoch):
        restore = await log.read_entry(offset)
        restores.append((restore, await log.inclusion_path(offset - 1, checkpoint.size)))
    return build_proof(
        entry, stream="" if stream is None else stream.name, ssalt=b"" if stream is None else stream.ssalt, path=path,
        checkpoint=checkpoint.note, restores=restores,
    )  # fmt: skip


def _restores_between(log: Log, epoch: Epoch, last: Epoch) -> list[int]:
    """Offsets of the entries with which the epochs after `epoch` began, up to `last`, newest first."""
    return [common + 1 for earlier, common in reversed(log.ancestry) if epoch <= earlier < last]

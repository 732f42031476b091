"""Proofs of entries, put together from the log: for the proof route and for receipts that bind."""

from collections.abc import Sequence

from overlayd.bsv.chain_check import anchor_of
from overlayd.model.confirmation import AnchorProof, ConfirmationReads
from overlayd.model.cursor import Epoch
from overlayd.model.entry import StoredEntry
from overlayd.model.errors import DamagedEntry, VerificationFailed
from overlayd.model.merkle import verify_inclusion
from overlayd.model.note import CheckpointText, parse_origin
from overlayd.model.proof import Proof, build_proof
from overlayd.storage import Checkpoint, Log, Stream


async def prove_packet(log: Log, reads: ConfirmationReads, stream: Stream, entry: StoredEntry) -> Proof:
    """A packet's proof with the block that holds it, as soon as one does. Checkpoint.

    Where an anchor covers the packet, the way leads to the checkpoint that was anchored; else to the newest one. Of a
    reduced packet the commitment is gone, so that only an anchored checkpoint can date it.
    """
    anchor = await reads.proof_of(stream.stream_hash, stream.definition.confirm, entry.offset)
    if anchor is not None and entry.is_reduced and not anchor.checkpoint:
        anchor = None
    checkpoint = None if anchor is None or not anchor.checkpoint else _anchored(anchor)
    return await prove_entry(log, stream, entry, checkpoint or await log.checkpoint(entry.offset), anchor)


async def prove_entry(
    log: Log, stream: Stream | None, entry: StoredEntry, checkpoint: Checkpoint, anchor: AnchorProof | None = None
) -> Proof:
    """The way from the entry to a checkpoint that covers it. Checkpoint.

    An entry of an earlier epoch comes with the `restore` entries that lead from its epoch to the checkpoint's. `stream`:
    None for entries of the node itself.
    """
    path = await _prove_inclusion(log, entry, checkpoint)
    restores: list[tuple[StoredEntry, Sequence[bytes]]] = []
    for offset in _restores_between(log, Epoch(entry.epoch), checkpoint.epoch):
        restore = await log.read_entry(offset)
        restores.append((restore, await _prove_inclusion(log, restore, checkpoint)))
    return build_proof(
        entry, stream="" if stream is None else stream.name, ssalt=b"" if stream is None else stream.ssalt, path=path,
        checkpoint=checkpoint.note, restores=restores,
        anchor=None if anchor is None else anchor_of(
            anchor.network, anchor.raw_tx, anchor.bump, anchor.header, anchor.height, anchor.output_index
        ),
    )  # fmt: skip


async def _prove_inclusion(log: Log, entry: StoredEntry, checkpoint: Checkpoint) -> list[bytes]:
    """The path, which is tried before it is given away: a damaged tile would make a proof that convinces nobody.

    Raises DamagedEntry.
    """
    path = await log.inclusion_path(entry.offset - 1, checkpoint.size)
    try:
        verify_inclusion(entry.leaf, entry.offset - 1, checkpoint.size, path, checkpoint.root)
    except VerificationFailed as error:
        raise DamagedEntry(
            "the proof's stored hashes don't lead to the signed root", subject=f"offset {entry.offset}",
            hint="overlayd verify names every damaged tile",
        ) from error  # fmt: skip
    return path


def _anchored(anchor: AnchorProof) -> Checkpoint:
    """The checkpoint whose note an anchor keeps."""
    text = CheckpointText.parse("".join(f"{line}\n" for line in anchor.checkpoint.split("\n", 3)[:3]))
    _, epoch = parse_origin(text.origin)
    return Checkpoint(epoch, text.size, text.root, anchor.checkpoint)


def _restores_between(log: Log, epoch: Epoch, last: Epoch) -> list[int]:
    """Offsets of the entries with which the epochs after `epoch` began, up to `last`, newest first. Of an epoch that was
    lost whole, by a second restore of the same copy, there is none: the next one began where it had."""
    found = [common + 1 for earlier, common in reversed(log.ancestry) if epoch <= earlier < last]
    return list(dict.fromkeys(found))

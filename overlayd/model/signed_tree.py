"""A checkpoint whose signatures are checked, by whom a verifier believes; and an entry's place below it."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from overlayd.model.cursor import Epoch
from overlayd.model.entry import EntryHeader, leaf_hash
from overlayd.model.errors import UnknownSigner, VerificationFailed
from overlayd.model.merkle import verify_inclusion
from overlayd.model.note import (
    ALGORITHM_COSIGNATURE,
    ALGORITHM_ED25519,
    CheckpointText,
    NoteSignature,
    VerifierKey,
    open_note,
    parse_origin,
)
from overlayd.model.verdict import SignerReport


class KeySpan(msgspec.Struct, frozen=True):
    """For checkpoints of which sizes a log's key counts. `to_size` is inclusive, None for the present key."""

    public_key: bytes
    from_size: int = 0
    to_size: int | None = None

    def covers(self, size: int) -> bool:
        """Whether the key counted then."""
        return self.from_size <= size and (self.to_size is None or size <= self.to_size)


class TrustedKeys(msgspec.Struct, frozen=True):
    """Whom a verifier believes: log keys, witness keys, and how many witnesses it wants.

    A log key counts for every epoch of its log, because only the name in it changes. `log_id` pins the log
    itself; "" takes any log whose key is given. A key in `spans` (from the log's checked list of keys) counts only for the
    sizes that it says.
    """

    log_keys: tuple[VerifierKey, ...]
    witness_keys: tuple[VerifierKey, ...] = ()
    witnesses_min: int = 0
    log_id: str = ""
    spans: tuple[KeySpan, ...] = ()


class SignedTree(msgspec.Struct, frozen=True):
    """A checkpoint whose signatures were checked."""

    checkpoint: CheckpointText
    log_id: str
    epoch: Epoch
    signers: tuple[SignerReport, ...]

    @property
    def is_witnessed(self) -> bool:
        return any(signer.role == "witness" for signer in self.signers)


def verify_checkpoint(note: str, trusted: TrustedKeys) -> SignedTree:
    """Who signed a checkpoint. Raises VerificationFailed unless the log and enough witnesses did."""
    origin, _, _ = note.partition("\n")
    log_id, epoch = parse_origin(origin)
    if trusted.log_id and log_id != trusted.log_id:
        raise VerificationFailed("the checkpoint is of another log", subject="checkpoint")
    log_keys = _keys_for_origin(trusted.log_keys, origin, log_id)
    own = {key.public_key for key in log_keys}
    witness_keys = [key for key in trusted.witness_keys if key.algorithm == ALGORITHM_COSIGNATURE]
    opened = open_note(note, [*log_keys, *(key for key in witness_keys if key.public_key not in own)])
    signers = tuple(map(_report_signer, opened.signatures))
    if all(signer.role != "log" for signer in signers):
        raise UnknownSigner("the log's own key didn't sign the checkpoint", subject="checkpoint")
    known = [signature.key for signature in opened.signatures if signature.key is not None]
    witnesses = {key.public_key for key in known if key.algorithm == ALGORITHM_COSIGNATURE}
    if len(witnesses) < trusted.witnesses_min:
        raise VerificationFailed(
            f"{len(witnesses)} known witnesses signed, {trusted.witnesses_min} are asked for", subject="checkpoint"
        )
    text = CheckpointText.parse(opened.text)
    _check_spans([key for key in known if key.algorithm == ALGORITHM_ED25519], trusted.spans, text.size)
    return SignedTree(text, log_id, epoch, signers)


def _check_spans(signed: Sequence[VerifierKey], spans: Sequence[KeySpan], size: int) -> None:
    """One of the log's keys that signed counted at that size. Raises VerificationFailed."""
    limited = {span.public_key: span for span in spans}
    if all(key.public_key in limited and not limited[key.public_key].covers(size) for key in signed):
        raise VerificationFailed(
            f"the log's key that signed the checkpoint didn't count at size {size}", subject="checkpoint",
            hint="it was retired before, or introduced later: see the log's list of keys",
        )  # fmt: skip


def verify_entry_in_tree(raw: bytes, index: int, path: Sequence[bytes], tree: SignedTree) -> EntryHeader:
    """E, when it stands at that index of the signed tree. Raises VerificationFailed."""
    header = EntryHeader.decode(raw)
    if header.offset != index + 1 or header.offset > tree.checkpoint.size:
        raise VerificationFailed("the entry's offset isn't its place in the tree", subject="entry")
    verify_inclusion(leaf_hash(raw), index, tree.checkpoint.size, path, tree.checkpoint.root)
    return header


def _keys_for_origin(keys: Sequence[VerifierKey], origin: str, log_id: str) -> list[VerifierKey]:
    """Those of this log, under the name that a key has in the origin's epoch."""
    named = []
    for key in keys:
        try:
            key_log, _ = parse_origin(key.name)
        except VerificationFailed:
            continue
        if key_log == log_id and key.algorithm == ALGORITHM_ED25519:
            named.append(VerifierKey(origin, key.public_key))
    return named


def _report_signer(signature: NoteSignature) -> SignerReport:
    role: Literal["log", "witness", "unknown"] = "unknown"
    if signature.key is not None:
        role = "witness" if signature.key.algorithm == ALGORITHM_COSIGNATURE else "log"
    return SignerReport(signature.name, signature.key_id.hex(), role, signature.cosigned_s)

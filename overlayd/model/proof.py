"""Proof files: one packet, the way from it to a signed checkpoint, and their verifier (docs/log-format.md, Proofs)."""

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from overlayd.model.bodies import Restore, decode_node_body
from overlayd.model.cursor import Epoch, format_epoch, parse_epoch
from overlayd.model.entry import (
    SALT_BYTES,
    Z32,
    EntryHeader,
    Kind,
    StoredEntry,
    commitment_of_hash,
    content_hash_of,
    leaf_hash,
    seal_of_hashes,
    stream_hash_of,
)
from overlayd.model.errors import BadCursor, UnknownSigner, VerificationFailed
from overlayd.model.merkle import verify_inclusion
from overlayd.model.meta import COMMITMENT_CLOSED, COMMITMENT_NODE, COMMITMENT_NONE, Meta, decode_meta
from overlayd.model.note import (
    ALGORITHM_COSIGNATURE,
    ALGORITHM_ED25519,
    CheckpointText,
    NoteSignature,
    VerifierKey,
    decode_base64,
    open_note,
    parse_origin,
)
from overlayd.model.verdict import AnchorReport, Doubts, SignerReport, Verdict, list_not_proven
from overlayd.model.wire import format_blake3, format_sha256, parse_blake3, parse_sha256

PATH_HASHES_MAX = 64
RESTORES_MAX = 64


class Sealed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What opens an entry's seal. Salts, meta and body are base64.

    Without `commitment` the packet has none; without `ssalt` the entry has no stream; without `body` only its
    SHA-256 is shown.
    """

    salt: str
    ssalt: str = ""
    commitment: str = ""
    content_hash: str
    body_sha256: str
    meta: str = ""
    body: str | None = None


class RestoreProof(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `restore` entry with which an epoch began: shows that an older epoch is an ancestor."""

    entry: str
    inclusion_path: tuple[str, ...]
    sealed: Sealed


class Proof(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The JSON of a proof file. An unknown member is refused: what isn't understood isn't proven.

    `stream` is "" and `sequence` 0 for what isn't a packet. `restore`: newest first, where the entry's epoch is
    not the checkpoint's. `via` and `anchor` aren't checked by this version.
    """

    v: Literal[1]
    stream: str
    sequence: int
    offset: int
    leaf_index: int
    entry: str
    leaf_hash: str
    inclusion_path: tuple[str, ...]
    checkpoint: str
    sealed: Sealed | None = None
    restore: tuple[RestoreProof, ...] = ()
    via: dict[str, Any] | None = None
    anchor: dict[str, Any] | None = None


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


def build_proof(
    entry: StoredEntry, *, stream: str, ssalt: bytes, path: Sequence[bytes], checkpoint: str,
    restores: Sequence[tuple[StoredEntry, Sequence[bytes]]] = (), with_body: bool = True,
) -> Proof:  # fmt: skip
    """The proof of one entry under a checkpoint.

    `path` leads to that checkpoint's root, and so does each of `restores` (newest first), which are needed when
    the entry is of an older epoch than the checkpoint's origin. A reduced entry's proof opens nothing.
    """
    return Proof(
        v=1,
        stream=stream,
        sequence=entry.sequence,
        offset=entry.offset,
        leaf_index=entry.offset - 1,
        entry=_base64_of(entry.raw),
        leaf_hash=format_sha256(entry.leaf),
        inclusion_path=tuple(map(format_sha256, path)),
        checkpoint=checkpoint,
        sealed=None if entry.is_reduced else _sealed_of(entry, ssalt, with_body),
        restore=tuple(
            RestoreProof(
                entry=_base64_of(restore.raw),
                inclusion_path=tuple(map(format_sha256, restore_path)),
                sealed=_sealed_of(restore, b"", True),
            )
            for restore, restore_path in restores
        ),
    )


def encode_proof(proof: Proof) -> bytes:
    """Compact JSON."""
    return msgspec.json.encode(proof)


def decode_proof(raw: bytes) -> Proof:
    """Raises VerificationFailed, also for duplicate and unknown members. The caller bounds the size."""
    try:
        members = json.loads(raw.decode(), object_pairs_hook=_unique_members, parse_constant=_refuse_constant)
        return msgspec.convert(members, Proof)
    except (ValueError, RecursionError) as err:
        raise VerificationFailed(f"not a proof: {err}", subject="proof") from err


def verify_proof(proof: Proof, trusted: TrustedKeys) -> Verdict:
    """Checks everything from the body to the checkpoint's signatures. Raises VerificationFailed."""
    tree = verify_checkpoint(proof.checkpoint, trusted)
    raw = decode_base64(proof.entry, "entry")
    header = verify_entry_in_tree(raw, proof.leaf_index, _hashes_of(proof.inclusion_path), tree)
    if (header.offset, header.sequence) != (proof.offset, proof.sequence):
        raise VerificationFailed("the proof's JSON contradicts its entry", subject="entry")
    if proof.leaf_hash != format_sha256(leaf_hash(raw)):
        raise VerificationFailed("the proof's leaf hash isn't that of its entry", subject="leaf_hash")
    _verify_epoch(header, proof.restore, tree)
    meta = None if proof.sealed is None else _verify_sealed(header, proof.sealed, proof.stream)
    return _verdict(proof, header, raw, tree, meta)


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


def _verdict(proof: Proof, header: EntryHeader, raw: bytes, tree: SignedTree, meta: Meta | None) -> Verdict:
    sealed = proof.sealed
    anchor = None if proof.anchor is None else AnchorReport(str(proof.anchor.get("network", "an unnamed network")))
    form = COMMITMENT_NONE if meta is None else meta.commitment_form
    unknown_tags = () if meta is None else tuple(tag for tag, _ in meta.unknown)
    is_forwarded = meta is not None and meta.origin != b""
    is_closed = form == COMMITMENT_CLOSED or (form != COMMITMENT_NONE and is_forwarded)
    doubts = Doubts(
        is_packet=header.kind == Kind.PACKET,
        is_witnessed=tree.is_witnessed,
        unknown_signers=sum(signer.role == "unknown" for signer in tree.signers),
        is_opened=sealed is not None,
        is_body_shown=sealed is not None and sealed.body is not None,
        is_commitment_closed=is_closed,
        is_signed_by_producer=meta is not None and meta.signature != b"",
        has_txid=meta is not None and meta.txid != b"",
        is_forwarded=is_forwarded,
        has_via=proof.via is not None,
        is_restored=bool(proof.restore),
        unknown_tags=unknown_tags,
        anchor=anchor,
    )
    return Verdict(
        level="witnessed" if tree.is_witnessed else "signed",
        origin=tree.checkpoint.origin,
        log_id=tree.log_id,
        epoch=format_epoch(Epoch(header.epoch)),
        checkpoint_size=tree.checkpoint.size,
        checkpoint_root=format_sha256(tree.checkpoint.root),
        kind=Kind(header.kind).name.lower(),
        offset=header.offset,
        appended_us=header.appended_us,
        leaf_hash=format_sha256(leaf_hash(raw)),
        stream=proof.stream if sealed is not None else "",
        sequence=header.sequence,
        signers=tree.signers,
        is_opened=doubts.is_opened,
        is_body_shown=doubts.is_body_shown,
        content_hash="" if sealed is None else sealed.content_hash,
        commitment=_commitment_word(sealed, form, is_closed),
        unknown_tags=unknown_tags,
        anchor=anchor,
        not_proven=list_not_proven(doubts),
    )


def _commitment_word(sealed: Sealed | None, form: int, is_closed: bool) -> Literal["recomputed", "not opened", "none"]:
    if sealed is None or is_closed:
        return "not opened"
    return "none" if form == COMMITMENT_NONE else "recomputed"


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


def _verify_epoch(header: EntryHeader, restores: Sequence[RestoreProof], tree: SignedTree) -> None:
    """The entry's epoch is the origin's, or `restore` entries lead from the origin's to it and cover its offset."""
    epoch, within = tree.epoch, tree.checkpoint.size
    if len(restores) > RESTORES_MAX:
        raise VerificationFailed("too many restore entries", subject="restore")
    for restore in restores:
        if epoch == header.epoch:
            raise VerificationFailed("a restore entry that isn't needed", subject="restore")
        raw = decode_base64(restore.entry, "restore")
        index = EntryHeader.decode(raw).offset - 1
        begin = verify_entry_in_tree(raw, index, _hashes_of(restore.inclusion_path), tree)
        body = _restore_body(begin, restore.sealed)
        if begin.epoch != epoch or begin.offset > within or begin.offset != body.common_size + 1:
            raise VerificationFailed("the restore entry isn't where its epoch begins", subject="restore")
        within = body.common_size
        try:
            epoch = parse_epoch(body.from_epoch)
        except BadCursor as err:
            raise VerificationFailed("the restore entry names no epoch", subject="restore") from err
    if epoch != header.epoch or header.offset > within:
        raise VerificationFailed("the entry's epoch is neither the origin's nor a shown ancestor's", subject="entry")


def _restore_body(header: EntryHeader, sealed: Sealed) -> Restore:
    if header.kind != Kind.NODE or sealed.body is None:
        raise VerificationFailed("not a restore entry", subject="restore")
    _verify_sealed(header, sealed, "")
    body = decode_node_body(decode_base64(sealed.body, "restore"))
    if not isinstance(body, Restore):
        raise VerificationFailed("not a restore entry", subject="restore")
    return body


def _verify_sealed(header: EntryHeader, sealed: Sealed, stream: str) -> Meta:
    """Opens the seal and all that stands behind it. Raises VerificationFailed."""
    salt = decode_base64(sealed.salt, "sealed")
    meta_raw = decode_base64(sealed.meta, "sealed")
    body_sha256 = _hash_of(sealed.body_sha256)
    content_hash = _hash_of(sealed.content_hash, parse_blake3)
    commitment = _hash_of(sealed.commitment) if sealed.commitment else Z32
    if len(salt) != SALT_BYTES or (sealed.commitment and commitment == Z32):
        raise VerificationFailed("the opening isn't in its one form", subject="sealed")
    if sealed.body is not None:
        body = decode_base64(sealed.body, "sealed")
        if hashlib.sha256(body).digest() != body_sha256 or content_hash_of(body) != content_hash:
            raise VerificationFailed("the body isn't the one that was hashed", subject="sealed")
    meta_sha256 = hashlib.sha256(meta_raw).digest()
    if seal_of_hashes(salt, commitment, content_hash, body_sha256, meta_sha256) != header.seal:
        raise VerificationFailed("the seal doesn't open", subject="sealed")
    _verify_stream(header, sealed, stream)
    meta = decode_meta(meta_raw)
    _verify_commitment(header, meta, commitment, salt, body_sha256, stream)
    return meta


def _verify_stream(header: EntryHeader, sealed: Sealed, stream: str) -> None:
    if header.stream_hash == Z32:
        if stream or sealed.ssalt:
            raise VerificationFailed("the entry belongs to no stream", subject="stream")
        return
    ssalt = decode_base64(sealed.ssalt, "sealed")
    if len(ssalt) != SALT_BYTES or stream_hash_of(ssalt, stream) != header.stream_hash:
        raise VerificationFailed("the stream's name doesn't open its pseudonym", subject="stream")


def _verify_commitment(
    header: EntryHeader, meta: Meta, commitment: bytes, salt: bytes, body_sha256: bytes, stream: str
) -> None:
    """Recomputes it from stored values, except where the meta says that they differ from what was sent."""
    form = meta.commitment_form
    if (form == COMMITMENT_NONE) != (commitment == Z32):
        raise VerificationFailed("meta and commitment contradict each other", subject="sealed")
    if form != COMMITMENT_NONE and header.kind != Kind.PACKET:
        raise VerificationFailed("only packets have a commitment", subject="sealed")
    if form in (COMMITMENT_NONE, COMMITMENT_CLOSED) or meta.origin:
        return
    recomputed = commitment_of_hash(
        salt if form == COMMITMENT_NODE else meta.csalt, stream, meta.id, meta.type, meta.time,
        meta.source, meta.key, meta.topics, meta.metadata, body_sha256,
    )  # fmt: skip
    if recomputed != commitment:
        raise VerificationFailed("the commitment isn't that of these values", subject="sealed")


def _sealed_of(entry: StoredEntry, ssalt: bytes, with_body: bool) -> Sealed:
    return Sealed(
        salt=_base64_of(entry.salt),
        ssalt="" if entry.stream_hash == Z32 else _base64_of(ssalt),
        commitment="" if entry.commitment == Z32 else format_sha256(entry.commitment),
        content_hash=format_blake3(entry.content_hash),
        body_sha256=format_sha256(hashlib.sha256(entry.body).digest()),
        meta=_base64_of(entry.meta),
        body=_base64_of(entry.body) if with_body else None,
    )


def _hashes_of(path: Sequence[str]) -> list[bytes]:
    if len(path) > PATH_HASHES_MAX:
        raise VerificationFailed("the inclusion path is too long", subject="inclusion_path")
    return [_hash_of(text) for text in path]


def _hash_of(text: str, parse: Callable[[str], bytes] = parse_sha256) -> bytes:
    try:
        return parse(text)
    except ValueError as err:
        raise VerificationFailed(str(err), subject="proof") from err


def _base64_of(octets: bytes) -> str:
    return base64.b64encode(octets).decode()


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member stands there twice")
    return members


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} isn't JSON")

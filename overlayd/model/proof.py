"""Proof files: one packet, the way from it to a signed checkpoint, and their verifier (docs/log-format.md, Proofs)."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import msgspec

from overlayd.model.bodies import Restore, decode_node_body
from overlayd.model.cursor import Epoch, format_epoch, is_older, parse_epoch
from overlayd.model.entry import (
    SALT_BYTES,
    Z32,
    EntryHeader,
    Kind,
    commitment_of_hash,
    content_hash_of,
    leaf_hash,
    seal_of_hashes,
    stream_hash_of,
)
from overlayd.model.errors import BadCursor, VerificationFailed
from overlayd.model.meta import COMMITMENT_CLOSED, COMMITMENT_NODE, COMMITMENT_NONE, Meta, decode_meta
from overlayd.model.note import CheckpointText, decode_base64
from overlayd.model.proof_file import (
    Proof,
    ProofAnchor,
    RestoreProof,
    Sealed,
    build_proof,
    decode_proof,
    encode_proof,
)
from overlayd.model.signed_tree import KeySpan, SignedTree, TrustedKeys, verify_checkpoint, verify_entry_in_tree
from overlayd.model.verdict import AnchorReport, Doubts, Verdict, list_not_proven
from overlayd.model.wire import format_sha256, parse_blake3, parse_sha256

__all__ = (
    "PATH_HASHES_MAX", "ChainCheck", "KeySpan", "Proof", "ProofAnchor", "RestoreProof", "Sealed", "SignedTree",
    "TrustedKeys", "Verdict", "build_proof", "decode_proof", "encode_proof", "verify_checkpoint", "verify_commitment",
    "verify_entry_in_tree", "verify_proof",
)  # fmt: skip
"""With the parts of a proof file and those who sign checkpoints, which whoever verifies needs beside it."""

PATH_HASHES_MAX = 64
RESTORES_MAX = 64


class ChainCheck(Protocol):
    """What checks the parts of a proof that are in the formats of the chain (`bsv/chain_check.py`)."""

    def check_anchor(self, anchor: ProofAnchor, checkpoint: CheckpointText, commitment: bytes | None) -> AnchorReport:
        """What an anchor shows about a checkpoint, or about a packet with that commitment (None: it has none, or nothing
        opens it). Raises VerificationFailed."""
        ...

    def check_signature(self, signature: bytes, commitment: bytes) -> str:
        """The producer's key, in hex, whose signature of a commitment it is; as meta holds it. Raises
        VerificationFailed."""
        ...


class _Producer(msgspec.Struct, frozen=True):
    """Of a signature that was checked: the key, in hex, and whether there is one at all."""

    key: str = ""
    has_signature: bool = False


def verify_proof(proof: Proof, trusted: TrustedKeys, chain: ChainCheck | None = None) -> Verdict:
    """Checks everything from the body to the checkpoint's signatures and, with `chain`, its block. Raises
    VerificationFailed. Without `chain` an anchor and a producer's signature are reported as unchecked."""
    tree = verify_checkpoint(proof.checkpoint, trusted)
    raw = decode_base64(proof.entry, "entry")
    header = verify_entry_in_tree(raw, proof.leaf_index, _hashes_of(proof.inclusion_path), tree)
    if (header.offset, header.sequence) != (proof.offset, proof.sequence):
        raise VerificationFailed("the proof's JSON contradicts its entry", subject="entry")
    if proof.leaf_hash != format_sha256(leaf_hash(raw)):
        raise VerificationFailed("the proof's leaf hash isn't that of its entry", subject="leaf_hash")
    _verify_epoch(header, proof.restore, tree)
    meta = None if proof.sealed is None else _verify_sealed(header, proof.sealed, proof.stream)
    commitment = None if proof.sealed is None or not proof.sealed.commitment else _hash_of(proof.sealed.commitment)
    anchor = None if proof.anchor is None else AnchorReport(network=proof.anchor.network)
    if proof.anchor is not None and chain is not None:
        anchor = chain.check_anchor(proof.anchor, tree.checkpoint, commitment)
    producer = _Producer(has_signature=meta is not None and meta.signature != b"")
    if meta is not None and meta.signature and commitment is not None and chain is not None:
        producer = _Producer(chain.check_signature(meta.signature, commitment), True)
    return _verdict(proof, header, tree, meta, anchor, producer)


def _verdict(
    proof: Proof, header: EntryHeader, tree: SignedTree, meta: Meta | None, anchor: AnchorReport | None,
    producer: _Producer,
) -> Verdict:  # fmt: skip
    sealed = proof.sealed
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
        is_signed_by_producer=producer.has_signature,
        producer=producer.key,
        has_txid=_names_other_tx(meta, anchor),
        is_forwarded=is_forwarded,
        has_via=proof.via is not None,
        is_restored=bool(proof.restore),
        unknown_tags=unknown_tags,
        anchor=anchor,
    )
    return Verdict(
        level="anchored" if anchor and anchor.is_in_chain else "witnessed" if tree.is_witnessed else "signed",
        is_witnessed=tree.is_witnessed,
        origin=tree.checkpoint.origin,
        log_id=tree.log_id,
        epoch=format_epoch(Epoch(header.epoch)),
        checkpoint_size=tree.checkpoint.size,
        checkpoint_root=format_sha256(tree.checkpoint.root),
        kind=Kind(header.kind).name.lower(),
        offset=header.offset,
        appended_us=header.appended_us,
        leaf_hash=proof.leaf_hash,
        stream=proof.stream if sealed is not None else "",
        sequence=header.sequence,
        signers=tree.signers,
        is_opened=doubts.is_opened,
        is_body_shown=doubts.is_body_shown,
        content_hash="" if sealed is None else sealed.content_hash,
        commitment=_commitment_word(sealed, form, is_closed),
        producer=producer.key,
        unknown_tags=unknown_tags,
        anchor=anchor,
        not_proven=list_not_proven(doubts),
    )


def _names_other_tx(meta: Meta | None, anchor: AnchorReport | None) -> bool:
    """Whether the packet names a transaction that the anchor doesn't show."""
    return meta is not None and meta.txid != b"" and (anchor is None or anchor.txid != meta.txid.hex())


def _commitment_word(sealed: Sealed | None, form: int, is_closed: bool) -> Literal["recomputed", "not opened", "none"]:
    if sealed is None or is_closed:
        return "not opened"
    return "none" if form == COMMITMENT_NONE else "recomputed"


def _verify_epoch(header: EntryHeader, restores: Sequence[RestoreProof], tree: SignedTree) -> None:
    """The entry's epoch is the origin's, or `restore` entries lead from the origin's to it and cover its offset.

    The epoch that a restore entry names may have been lost whole, when the same copy was put back again; what stands
    before it is then of an older one.
    """
    epoch, within, is_named = tree.epoch, tree.checkpoint.size, False
    if len(restores) > RESTORES_MAX:
        raise VerificationFailed("too many restore entries", subject="restore")
    for restore in restores:
        if epoch == header.epoch:
            raise VerificationFailed("a restore entry that isn't needed", subject="restore")
        raw = decode_base64(restore.entry, "restore")
        index = EntryHeader.decode(raw).offset - 1
        begin = verify_entry_in_tree(raw, index, _hashes_of(restore.inclusion_path), tree)
        body = _restore_body(begin, restore.sealed)
        is_of_it = begin.epoch == epoch or (is_named and is_older(begin.epoch, epoch))
        if not is_of_it or begin.offset > within or begin.offset != body.common_size + 1:
            raise VerificationFailed("the restore entry isn't where its epoch begins", subject="restore")
        within, is_named = body.common_size, True
        try:
            epoch = parse_epoch(body.from_epoch)
        except BadCursor as err:
            raise VerificationFailed("the restore entry names no epoch", subject="restore") from err
    is_of_it = header.epoch == epoch or (is_named and is_older(header.epoch, epoch))
    if not is_of_it or header.offset > within:
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
    verify_commitment(header, meta, commitment, salt, body_sha256, stream)
    return meta


def _verify_stream(header: EntryHeader, sealed: Sealed, stream: str) -> None:
    if header.stream_hash == Z32:
        if stream or sealed.ssalt:
            raise VerificationFailed("the entry belongs to no stream", subject="stream")
        return
    ssalt = decode_base64(sealed.ssalt, "sealed")
    if len(ssalt) != SALT_BYTES or stream_hash_of(ssalt, stream) != header.stream_hash:
        raise VerificationFailed("the stream's name doesn't open its pseudonym", subject="stream")


def verify_commitment(
    header: EntryHeader, meta: Meta, commitment: bytes, salt: bytes, body_sha256: bytes, stream: str
) -> None:
    """Recomputes it from stored values, except where the meta says that they differ from what was sent. Raises
    VerificationFailed."""
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


def _hashes_of(path: Sequence[str]) -> list[bytes]:
    if len(path) > PATH_HASHES_MAX:
        raise VerificationFailed("the inclusion path is too long", subject="inclusion_path")
    return [_hash_of(text) for text in path]


def _hash_of(text: str, parse: Callable[[str], bytes] = parse_sha256) -> bytes:
    try:
        return parse(text)
    except ValueError as err:
        raise VerificationFailed(str(err), subject="proof") from err

"""C2SP tlog-proof: the same way from an entry to a checkpoint, in the text form that other logs' tools read.

The extra line holds E, so that the file stands alone; what E's seal hides isn't in it.
"""

import base64

import msgspec

from overlayd.model.entry import EntryHeader, leaf_hash
from overlayd.model.errors import VerificationFailed
from overlayd.model.note import decode_base64
from overlayd.model.proof import PATH_HASHES_MAX, Proof
from overlayd.model.wire import format_sha256, parse_sha256

_HEADER = "c2sp.org/tlog-proof@v1"


class TlogProof(msgspec.Struct, frozen=True):
    """Index and audit path of a leaf under a checkpoint. `extra` is what the log adds, here E."""

    index: int
    path: tuple[bytes, ...]
    checkpoint: str
    extra: bytes = b""


def tlog_proof_of(proof: Proof) -> TlogProof:
    """The C2SP form of a proof; what it opens, and its anchor, stay behind."""
    path = tuple(map(parse_sha256, proof.inclusion_path))
    return TlogProof(proof.leaf_index, path, proof.checkpoint, base64.b64decode(proof.entry))


def proof_of_tlog(tlog: TlogProof) -> Proof:
    """A proof for `verify_proof` that opens nothing. Raises VerificationFailed unless the extra line holds E."""
    header = EntryHeader.decode(tlog.extra)
    return Proof(
        v=1,
        stream="",
        sequence=header.sequence,
        offset=header.offset,
        leaf_index=tlog.index,
        entry=base64.b64encode(tlog.extra).decode(),
        leaf_hash=format_sha256(leaf_hash(tlog.extra)),
        inclusion_path=tuple(map(format_sha256, tlog.path)),
        checkpoint=tlog.checkpoint,
    )


def encode_tlog_proof(proof: TlogProof) -> str:
    """Header, extra, index, hashes, an empty line, the note."""
    lines = [_HEADER]
    if proof.extra:
        lines.append(f"extra {base64.b64encode(proof.extra).decode()}")
    lines.append(f"index {proof.index}")
    lines += (base64.b64encode(step).decode() for step in proof.path)
    return "\n".join(lines) + "\n\n" + proof.checkpoint


def decode_tlog_proof(text: str) -> TlogProof:
    """Raises VerificationFailed. Nothing is verified: give `proof_of_tlog` of it to `verify_proof`."""
    head, gap, checkpoint = text.partition("\n\n")
    lines = head.split("\n")
    if not gap or lines[0] != _HEADER:
        raise VerificationFailed("not a C2SP tlog-proof", subject="proof")
    lines = lines[1:]
    extra = b""
    if lines and lines[0].startswith("extra "):
        extra = decode_base64(lines.pop(0).removeprefix("extra "), "proof")
    index = lines.pop(0).removeprefix("index ") if lines and lines[0].startswith("index ") else ""
    if not index.isascii() or not index.isdecimal() or str(int(index[:20])) != index:
        raise VerificationFailed("the proof has no index line", subject="proof")
    path = tuple(decode_base64(line, "proof") for line in lines[: PATH_HASHES_MAX + 1])
    if len(path) > PATH_HASHES_MAX or any(len(step) != 32 for step in path):
        raise VerificationFailed("the proof's path isn't a list of hashes", subject="proof")
    return TlogProof(int(index), path, checkpoint, extra)

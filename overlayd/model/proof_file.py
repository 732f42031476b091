"""The JSON of a proof file: its parts, and how it is made, written and read (docs/log-format.md, Proofs)."""

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from overlayd.model.entry import Z32, StoredEntry
from overlayd.model.errors import VerificationFailed
from overlayd.model.wire import format_blake3, format_sha256


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


class ProofAnchor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A transaction in a block, whose output at `output_index` commits to the packet or to the proof's checkpoint.

    `tx` (raw), `bump` (BRC-74) and `header` (80 bytes) are lower-case hex.
    """

    network: str
    tx: str
    bump: str
    header: str
    height: int
    output_index: int


class Proof(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The JSON of a proof file. An unknown member is refused: what isn't understood isn't proven.

    `stream` is "" and `sequence` 0 for what isn't a packet. `restore`: newest first, where the entry's epoch is
    not the checkpoint's. `via` isn't checked by this version. With an `anchor` of a checkpoint, `checkpoint` is that one.
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
    anchor: ProofAnchor | None = None


def build_proof(
    entry: StoredEntry, *, stream: str, ssalt: bytes, path: Sequence[bytes], checkpoint: str,
    restores: Sequence[tuple[StoredEntry, Sequence[bytes]]] = (), with_body: bool = True,
    anchor: ProofAnchor | None = None,
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
        anchor=anchor,
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


def _base64_of(octets: bytes) -> str:
    return base64.b64encode(octets).decode()


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member stands there twice")
    return members


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} isn't JSON")

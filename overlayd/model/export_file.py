"""The files of an evidence export beside its rows, and how they are written and read (docs/export.md).

Each has one form only: what is read is encoded again and must give the same bytes, so that no byte can be changed unseen.
"""

import base64
from typing import Literal

import msgspec

from overlayd.model.bodies import RemovalCause
from overlayd.model.entry import StoredEntry
from overlayd.model.errors import VerificationFailed
from overlayd.model.key_chain import LogKeysBody
from overlayd.model.proof_file import ProofAnchor

FORMAT = "overlayd-export"
VERSION = 1
EVIDENCE_NAME = "evidence.json"
ENTRIES_NAME = "entries.bin"
REMOVED_NAME = "removed.ndjson"
TRANSACTIONS_NAME = "transactions.ndjson"
RowFormat = Literal["ndjson", "csv", "parquet"]

EVIDENCE_BYTES_MAX = 64 << 20
OPENED_MAX = 50_000
"""Removal and restore entries that an export shows."""
ANCHORS_MAX = 64
LINE_BYTES_MAX = 256 << 20
"""Of one row or one removed entry; a packet of 64 MiB with every character escaped fits."""


class OffsetRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Offsets, inclusive."""

    first: int
    last: int


class RowsFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which file holds the rows, and how many there are."""

    file: str
    format: RowFormat
    count: int


class ExportedStream(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A stream with packets in the range. `ssalt` (base64) and `stream` open `stream_hash`; a stream that was deleted has
    neither any more, and no row. `is_shown`: each of its packets is a row or a removed entry; else it is only named."""

    stream: str = ""
    ssalt: str = ""
    stream_hash: str
    is_shown: bool
    packets: int
    removed: int


class OpenedEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A removal or restore entry: E, and what opens its seal, all base64 but `body`, which is JSON text. Without `salt` it
    isn't opened."""

    entry: str
    salt: str = ""
    meta: str = ""
    body: str = ""


class ExportedAnchor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A checkpoint in a block, and the consistency proof from it to the export's checkpoint."""

    checkpoint: str
    consistency_path: tuple[str, ...]
    anchor: ProofAnchor


class TransactionsFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That there is a transactions.ndjson: how many lines it has, and the height of the lowest block."""

    count: int
    lowest: int


class Evidence(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """evidence.json. `hashes`: the multiproof. `opened`: ascending. `keys`: where the log's key was rotated.
    `transactions`: where rows have a transaction of their own in a block."""

    format: str
    version: int
    log: str
    range: OffsetRange
    rows: RowsFile
    streams: tuple[ExportedStream, ...]
    checkpoint: str
    hashes: tuple[str, ...]
    opened: tuple[OpenedEntry, ...] = ()
    anchors: tuple[ExportedAnchor, ...] = ()
    keys: LogKeysBody | None = None
    transactions: TransactionsFile | None = None


class RemovedEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line of removed.ndjson: a packet whose content was taken away, and the offset of the entry that says so."""

    offset: int
    stream: str
    sequence: int
    cause: RemovalCause | Literal["unknown"]
    removal: int


class PacketTransaction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line of transactions.ndjson: a row's own transaction in a block, as in a proof file."""

    offset: int
    anchor: ProofAnchor


def encode_evidence(evidence: Evidence) -> bytes:
    """Indented by one space, with a newline at the end."""
    return msgspec.json.format(msgspec.json.encode(evidence), indent=1) + b"\n"


def decode_evidence(raw: bytes) -> Evidence:
    """Raises VerificationFailed, also for JSON in another form than ours."""
    if len(raw) > EVIDENCE_BYTES_MAX:
        raise VerificationFailed(f"{EVIDENCE_NAME} has more than {EVIDENCE_BYTES_MAX} bytes", subject=EVIDENCE_NAME)
    try:
        evidence = msgspec.json.decode(raw, type=Evidence)
    except (ValueError, RecursionError) as err:
        raise VerificationFailed(f"{EVIDENCE_NAME}: {err}", subject=EVIDENCE_NAME) from err
    if (evidence.format, evidence.version) != (FORMAT, VERSION):
        raise VerificationFailed(
            f"{evidence.format[:40]!r} {evidence.version} isn't a form of export that this version knows",
            subject=EVIDENCE_NAME,
        )
    if encode_evidence(evidence) != raw:
        raise VerificationFailed(f"{EVIDENCE_NAME} isn't in its one form", subject=EVIDENCE_NAME)
    return evidence


def encode_removed(removed: RemovedEntry) -> bytes:
    """A line with its newline."""
    return msgspec.json.encode(removed) + b"\n"


def decode_removed(line: bytes) -> RemovedEntry:
    """Raises VerificationFailed."""
    try:
        removed = msgspec.json.decode(line, type=RemovedEntry)
    except (ValueError, RecursionError) as err:
        raise VerificationFailed(f"{REMOVED_NAME}: {err}", subject=REMOVED_NAME) from err
    if encode_removed(removed) != line:
        raise VerificationFailed(f"{REMOVED_NAME} isn't in its one form", subject=REMOVED_NAME)
    return removed


def encode_transaction(transaction: PacketTransaction) -> bytes:
    """A line with its newline."""
    return msgspec.json.encode(transaction) + b"\n"


def decode_transaction(line: bytes) -> PacketTransaction:
    """Raises VerificationFailed."""
    try:
        transaction = msgspec.json.decode(line, type=PacketTransaction)
    except (ValueError, RecursionError) as err:
        raise VerificationFailed(f"{TRANSACTIONS_NAME}: {err}", subject=TRANSACTIONS_NAME) from err
    if encode_transaction(transaction) != line:
        raise VerificationFailed(f"{TRANSACTIONS_NAME} isn't in its one form", subject=TRANSACTIONS_NAME)
    return transaction


def opened_of(entry: StoredEntry) -> OpenedEntry:
    """A removal or restore entry as the log holds it."""
    raw = base64.b64encode(entry.raw).decode()
    if entry.is_reduced:
        return OpenedEntry(entry=raw)
    return OpenedEntry(
        entry=raw, salt=base64.b64encode(entry.salt).decode(), meta=base64.b64encode(entry.meta).decode(),
        body=entry.body.decode(),
    )  # fmt: skip

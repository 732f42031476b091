"""The verifier of evidence exports: every entry of a range, and for every packet of a shown stream its row or its removal.

Memory doesn't grow with the range: entries, rows and removed entries are read in step, while the multiproof is folded.
"""

from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from typing import BinaryIO, Literal

import msgspec
from blake3 import blake3

from overlayd.model.bodies import Restore, decode_node_body, decode_removal_body
from overlayd.model.cursor import Epoch, epoch_counter, is_older, parse_epoch
from overlayd.model.entry import (
    ENTRY_BYTES,
    SALT_BYTES,
    Z32,
    EntryHeader,
    Kind,
    leaf_hash,
    seal_of,
    seal_of_hashes,
    stream_hash_of,
)
from overlayd.model.errors import BadCursor, VerificationFailed
from overlayd.model.export_file import (
    ANCHORS_MAX,
    ENTRIES_NAME,
    OPENED_MAX,
    REMOVED_NAME,
    TRANSACTIONS_NAME,
    Evidence,
    ExportedAnchor,
    ExportedStream,
    OpenedEntry,
    PacketTransaction,
    RemovedEntry,
    decode_evidence,
    decode_removed,
    decode_transaction,
)
from overlayd.model.export_rows import Row, RowReader, read_line, row_of
from overlayd.model.hash_text import format_sha256, parse_sha256
from overlayd.model.key_chain import follow_keys
from overlayd.model.merkle import verify_consistency
from overlayd.model.meta import decode_meta
from overlayd.model.multiproof import join_indexes, multiproof_root
from overlayd.model.note import decode_base64
from overlayd.model.proof import PATH_HASHES_MAX, ChainCheck, SignedTree, TrustedKeys, verify_checkpoint
from overlayd.model.proof import verify_commitment as check_commitment
from overlayd.model.verdict import AnchorReport, SignerReport

SEQUENCE_BITS = 40
"""In epoch c sequences start above (c - 1) << 40 (docs/log-format.md)."""


class ExportFiles(msgspec.Struct, frozen=True):
    """An export, opened. The caller bounds `evidence`."""

    evidence: bytes
    entries: BinaryIO
    removed: BinaryIO
    rows: RowReader
    transactions: BinaryIO | None = None


class AnchorFound(msgspec.Struct, frozen=True):
    """A block that holds the log up to an offset."""

    upto: int
    report: AnchorReport


class ExportVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """An export that holds, as far as it says here; a broken one gives VerificationFailed.

    `level` as of a proof's verdict, for the whole range. `rows` and `removed` are of the shown streams; `hidden` counts the
    packets of streams that are only named, `unnamed` those of streams that the export doesn't speak of. `transactions` counts rows
    with one of their own in a block, `transactions_in_chain` those of them whose block is among the given headers.
    """

    level: Literal["signed", "witnessed", "anchored"]
    is_witnessed: bool
    log_id: str
    origin: str
    checkpoint_size: int
    checkpoint_root: str
    first: int
    last: int
    first_us: int
    last_us: int
    rows: int
    removed: dict[str, int]
    streams: tuple[ExportedStream, ...]
    hidden: int
    hidden_streams: tuple[str, ...]
    unnamed: int
    unnamed_streams: int
    producer_signatures: int
    transactions: int
    transactions_in_chain: int
    signers: tuple[SignerReport, ...]
    anchors: tuple[AnchorFound, ...]
    not_proven: tuple[str, ...]


class _Opened(msgspec.Struct, frozen=True):
    """A removal or restore entry whose seal was opened, if it could be. `body` is b"" where it couldn't."""

    raw: bytes
    header: EntryHeader
    body: bytes


def verify_export(files: ExportFiles, trusted: TrustedKeys, chain: ChainCheck | None = None) -> ExportVerdict:
    """Checks every file to its end. Raises VerificationFailed. Without `chain` anchors and producers' signatures are left
    unchecked, and count for nothing."""
    evidence = decode_evidence(files.evidence)
    trusted = _with_keys(evidence, trusted)
    tree = verify_checkpoint(evidence.checkpoint, trusted)
    if evidence.log != tree.log_id:
        raise VerificationFailed("the export names another log than its checkpoint", subject="log")
    if not 1 <= evidence.range.first <= evidence.range.last <= tree.checkpoint.size:
        raise VerificationFailed("the range lies outside the checkpoint", subject="range")
    opened = _open_all(evidence.opened, tree)
    check = _Check(evidence, files, tree, opened, chain)
    check.run()
    anchors = _check_anchors(evidence, tree, trusted, chain)
    return check.verdict(anchors)


def _with_keys(evidence: Evidence, trusted: TrustedKeys) -> TrustedKeys:
    """With the keys that the export's own list leads to, unless those of a list are believed already."""
    if evidence.keys is None:
        return trusted
    first = msgspec.structs.replace(trusted, log_keys=trusted.log_keys[:1], spans=())
    followed = follow_keys(evidence.keys, first if trusted.spans else trusted)
    return trusted if trusted.spans else followed


def _open_all(listed: Sequence[OpenedEntry], tree: SignedTree) -> dict[int, _Opened]:
    """By offset, ascending."""
    if len(listed) > OPENED_MAX:
        raise VerificationFailed(f"more than {OPENED_MAX} opened entries", subject="opened")
    opened: dict[int, _Opened] = {}
    last = 0
    for item in listed:
        found = _open(item)
        if not last < found.header.offset <= tree.checkpoint.size:
            raise VerificationFailed("the opened entries don't ascend inside the checkpoint", subject="opened")
        last = found.header.offset
        opened[last] = found
    return opened


def _open(item: OpenedEntry) -> _Opened:
    raw = decode_base64(item.entry, "opened")
    header = EntryHeader.decode(raw)
    if header.kind not in (Kind.NODE, Kind.REMOVAL):
        raise VerificationFailed(f"entry {header.offset} is neither a removal nor a restore", subject="opened")
    if not item.salt:
        if item.meta or item.body:
            raise VerificationFailed(f"entry {header.offset} can't be opened without its salt", subject="opened")
        return _Opened(raw, header, b"")
    salt, meta, body = decode_base64(item.salt, "opened"), decode_base64(item.meta, "opened"), item.body.encode()
    if len(salt) != SALT_BYTES or seal_of(salt, Z32, blake3(body).digest(), body, meta) != header.seal:
        raise VerificationFailed(f"entry {header.offset}: the seal doesn't open", subject="opened")
    return _Opened(raw, header, body)


def _epoch_starts(opened: dict[int, _Opened], tree: SignedTree) -> list[tuple[int, int]]:
    """(first offset, epoch) newest first, as far back as the export's restore entries lead. Raises VerificationFailed.

    The epoch that a restore names may have been lost whole; what stands before it is then of an older one.
    """
    starts: list[tuple[int, int]] = []
    epoch, within = int(tree.epoch), tree.checkpoint.size
    for offset in sorted(opened, reverse=True):
        entry = opened[offset]
        if entry.header.kind != Kind.NODE:
            continue
        body = decode_node_body(entry.body) if entry.body else None
        is_of_it = entry.header.epoch == epoch or (starts and is_older(entry.header.epoch, epoch))
        if not isinstance(body, Restore) or not is_of_it:
            raise VerificationFailed(f"entry {offset} isn't the restore with which its epoch begins", subject="opened")
        if offset > within or offset != body.common_size + 1:
            raise VerificationFailed(f"the restore of entry {offset} isn't where its epoch begins", subject="opened")
        starts.append((offset, entry.header.epoch))
        within = body.common_size
        try:
            epoch = int(parse_epoch(body.from_epoch))
        except BadCursor as err:
            raise VerificationFailed(f"the restore of entry {offset} names no epoch", subject="opened") from err
    return [*starts, (1, epoch)]


class _Check:
    """One pass over an export."""

    def __init__(
        self, evidence: Evidence, files: ExportFiles, tree: SignedTree, opened: dict[int, _Opened],
        chain: ChainCheck | None,
    ) -> None:  # fmt: skip
        self._evidence, self._files, self._tree, self._chain = evidence, files, tree, chain
        self._opened = opened
        self._first, self._last = evidence.range.first, evidence.range.last
        self._beyond = [entry for offset, entry in opened.items() if offset > self._last]
        if opened and next(iter(opened)) < self._first:
            raise VerificationFailed("an opened entry lies before the range", subject="opened")
        self._epochs = _epoch_starts(opened, tree)
        self._oldest_restore = self._epochs[-2][0] if len(self._epochs) > 1 else 0
        self._is_oldest_known = False
        self._streams = _streams_of(evidence.streams)
        self._heads: dict[bytes, tuple[int, bytes]] = {}
        self._next = self._first
        self._row: Row | None = None
        self._gone: RemovedEntry | None = None
        self._transactions = _TransactionCheck(evidence, files, tree, chain)
        self._rows = 0
        self._times = (0, 0)
        self._signatures = 0
        self._causes: Counter[str] = Counter()
        self._packets: Counter[bytes] = Counter()
        self._removed: Counter[bytes] = Counter()

    def run(self) -> None:
        """The whole pass. Raises VerificationFailed."""
        self._row, self._gone = self._files.rows.read(), self._read_gone()
        beyond = [entry.header.offset - 1 for entry in self._beyond]
        wanted = join_indexes(beyond, [(self._first - 1, self._last)])
        hashes = [_hash_of(text) for text in self._evidence.hashes]
        root = multiproof_root(wanted, self._tree.checkpoint.size, self._take, hashes)
        if root != self._tree.checkpoint.root:
            raise VerificationFailed("the entries don't lead to the root that was signed", subject=ENTRIES_NAME)
        if self._files.entries.read(1):
            raise VerificationFailed(f"{ENTRIES_NAME} goes on behind the range", subject=ENTRIES_NAME)
        if self._row is not None:
            raise VerificationFailed(f"a row too many, of offset {self._row.offset}", subject="rows")
        if self._gone is not None:
            raise VerificationFailed(f"an entry too many, of offset {self._gone.offset}", subject=REMOVED_NAME)
        self._transactions.end()
        if self._rows != self._evidence.rows.count:
            raise VerificationFailed(f"{self._rows} rows, not {self._evidence.rows.count}", subject="rows")
        for key, stream in self._streams.items():
            if (self._packets[key], self._removed[key]) != (stream.packets, stream.removed):
                raise VerificationFailed(
                    f"the range has {self._packets[key]} packets of {stream.stream!r}, {self._removed[key]} of them "
                    f"taken away, not {stream.packets} and {stream.removed}", subject="streams",
                )  # fmt: skip

    def _take(self, count: int) -> list[bytes]:
        """The next leaves of the range, then those of opened entries behind it."""
        inside = max(0, min(count, self._last - self._next + 1))
        octets = self._files.entries.read(inside * ENTRY_BYTES)
        if len(octets) != inside * ENTRY_BYTES:
            raise VerificationFailed(f"{ENTRIES_NAME} ends before the range does", subject=ENTRIES_NAME)
        leaves = [self._take_entry(octets[at : at + ENTRY_BYTES]) for at in range(0, len(octets), ENTRY_BYTES)]
        for _ in range(count - inside):
            entry = self._beyond.pop(0)
            if not self._is_in_epoch(entry.header.offset, entry.header.epoch):
                raise VerificationFailed(
                    f"entry {entry.header.offset}: another epoch than it must have", subject="opened"
                )
            leaves.append(leaf_hash(entry.raw))
        return leaves

    def _take_entry(self, raw: bytes) -> bytes:
        header, leaf = EntryHeader.decode(raw), leaf_hash(raw)
        offset = header.offset
        if offset != self._next:
            raise VerificationFailed(f"offset {offset} stands where {self._next} should", subject=ENTRIES_NAME)
        self._next += 1
        self._times = (self._times[0] or header.appended_us, header.appended_us)
        if not self._is_in_epoch(offset, header.epoch):
            raise VerificationFailed(
                f"entry {offset}: its epoch is neither the checkpoint's nor a shown ancestor's", subject=ENTRIES_NAME
            )
        if offset in self._opened and self._opened[offset].raw != raw:
            raise VerificationFailed(f"entry {offset} is opened as another one", subject="opened")
        if header.kind == Kind.PACKET:
            self._take_packet(header, leaf)
        return leaf

    def _is_in_epoch(self, offset: int, epoch: int) -> bool:
        """The entries before the oldest shown restore are all of one epoch: the one it names, or an older one."""
        known = next(known for start, known in self._epochs if start <= offset)
        is_oldest = offset < self._oldest_restore
        if known != epoch and is_oldest and not self._is_oldest_known and is_older(epoch, known):
            self._epochs[-1] = (1, epoch)
            known = epoch
        self._is_oldest_known |= is_oldest
        return known == epoch

    def _take_packet(self, header: EntryHeader, leaf: bytes) -> None:
        key, before = header.stream_hash, self._heads.get(header.stream_hash)
        if before is not None:
            expected = max(before[0], epoch_counter(Epoch(header.epoch)) - 1 << SEQUENCE_BITS) + 1
            if (header.sequence, header.prev) != (expected, before[1]):
                raise VerificationFailed(
                    f"entry {header.offset} doesn't follow sequence {before[0]} of its stream", subject=ENTRIES_NAME
                )
        self._heads[key] = (header.sequence, leaf)
        self._packets[key] += 1
        stream = self._streams.get(key)
        if stream is None or not stream.is_shown:
            return
        if self._row is not None and self._row.offset == header.offset:
            self._check_row(self._row, header, stream.stream)
            self._rows += 1
            self._transactions.take(self._row)
            self._row = self._files.rows.read()
        elif self._gone is not None and self._gone.offset == header.offset:
            self._check_gone(self._gone, header, stream.stream)
            self._removed[key] += 1
            self._causes[self._gone.cause] += 1
            self._gone = self._read_gone()
        else:
            self._tell_missing(header, stream.stream)

    def _tell_missing(self, header: EntryHeader, stream: str) -> None:
        row = self._row
        if row is not None and row.offset < header.offset:
            raise VerificationFailed(f"the row of offset {row.offset} stands twice or out of order", subject="rows")
        name = stream or "a deleted stream"
        raise VerificationFailed(
            f"offset {header.offset}, packet {header.sequence} of {name}: there is neither a row nor a removal of it",
            subject="rows",
        )

    def _check_row(self, row: Row, header: EntryHeader, stream: str) -> None:
        """The row opens the entry's seal, and is written as this entry's row is. Raises VerificationFailed."""
        where = f"the row of offset {row.offset}"
        body, salt, meta_raw = row.body.encode(), decode_base64(row.salt, "rows"), decode_base64(row.meta, "rows")
        commitment = _hash_of(row.commitment) if row.commitment else Z32
        body_sha256, content_hash = sha256(body).digest(), blake3(body).digest()
        sealed = seal_of_hashes(salt, commitment, content_hash, body_sha256, sha256(meta_raw).digest())
        if len(salt) != SALT_BYTES or sealed != header.seal:
            raise VerificationFailed(f"{where} isn't what was hashed: the seal doesn't open", subject="rows")
        meta = decode_meta(meta_raw)
        try:
            expected = row_of(header, stream, (salt, commitment, meta_raw), meta, body, content_hash)
        except ValueError as err:  # E is held against the root at the end only, so its time may be any
            raise VerificationFailed(f"{where}: {err}", subject="rows") from err
        if not self._files.rows.is_written_as(expected):
            raise VerificationFailed(f"{where} says something else than its entry, or in another form", subject="rows")
        check_commitment(header, meta, commitment, salt, body_sha256, stream)
        if meta.signature and commitment != Z32 and self._chain is not None:
            self._chain.check_signature(meta.signature, commitment)
            self._signatures += 1

    def _check_gone(self, gone: RemovedEntry, header: EntryHeader, stream: str) -> None:
        """The removal entry takes this packet. Raises VerificationFailed."""
        by = self._opened.get(gone.removal)
        where = f"offset {gone.offset}, said to be taken away by entry {gone.removal}"
        if by is None or by.header.kind != Kind.REMOVAL or by.header.stream_hash != header.stream_hash:
            raise VerificationFailed(f"{where}: that isn't a removal of its stream", subject=REMOVED_NAME)
        if not by.header.target_from <= gone.offset <= by.header.target_to or gone.removal <= gone.offset:
            raise VerificationFailed(f"{where}: that one took others", subject=REMOVED_NAME)
        cause = decode_removal_body(by.body).cause if by.body else "unknown"
        if (gone.stream, gone.sequence, gone.cause) != (stream, header.sequence, cause):
            raise VerificationFailed(f"{where}: the line contradicts the entries", subject=REMOVED_NAME)

    def _read_gone(self) -> RemovedEntry | None:
        line = read_line(self._files.removed, REMOVED_NAME)
        return decode_removed(line) if line else None

    def verdict(self, anchors: tuple[AnchorFound, ...]) -> ExportVerdict:
        """Once everything held."""
        shown = [key for key, stream in self._streams.items() if stream.is_shown]
        unnamed = [key for key in self._packets if key not in self._streams]
        hidden = sum(self._packets[key] for key, stream in self._streams.items() if not stream.is_shown)
        is_anchored = any(found.upto >= self._last and found.report.is_in_chain for found in anchors)
        tree = self._tree
        return ExportVerdict(
            level="anchored" if is_anchored else "witnessed" if tree.is_witnessed else "signed",
            is_witnessed=tree.is_witnessed, log_id=tree.log_id, origin=tree.checkpoint.origin,
            checkpoint_size=tree.checkpoint.size, checkpoint_root=format_sha256(tree.checkpoint.root),
            first=self._first, last=self._last, first_us=self._times[0], last_us=self._times[1], rows=self._rows,
            removed=dict(self._causes), streams=tuple(self._streams[key] for key in shown), hidden=hidden,
            hidden_streams=tuple(stream.stream for stream in self._streams.values() if not stream.is_shown),
            unnamed=sum(self._packets[key] for key in unnamed), unnamed_streams=len(unnamed),
            producer_signatures=self._signatures, transactions=self._transactions.count,
            transactions_in_chain=self._transactions.in_chain, signers=tree.signers, anchors=anchors,
            not_proven=_list_not_proven(is_anchored, tree.is_witnessed, hidden + sum(self._packets[k] for k in unnamed)),
        )  # fmt: skip


class _TransactionCheck:
    """Walks along packets' own transactions beside the rows."""

    def __init__(self, evidence: Evidence, files: ExportFiles, tree: SignedTree, chain: ChainCheck | None) -> None:
        self._file, self._tree, self._chain = files.transactions, tree, chain
        self._listed = evidence.transactions
        self._heights: list[int] = []
        self.count = self.in_chain = 0
        self._next = self._read()

    def take(self, row: Row) -> None:
        """A row, which holds. Raises VerificationFailed."""
        found = self._next
        if found is None or found.offset != row.offset:
            return
        self.count += 1
        self._heights = [min([*self._heights, found.anchor.height])]
        if self._chain is not None:
            if not row.commitment:
                raise VerificationFailed(
                    f"the packet of offset {row.offset} has no commitment", subject=TRANSACTIONS_NAME
                )
            report = self._chain.check_anchor(found.anchor, self._tree.checkpoint, _hash_of(row.commitment))
            if report.covers != "commitment":
                raise VerificationFailed(
                    f"that of offset {row.offset} isn't the packet's own", subject=TRANSACTIONS_NAME
                )
            self.in_chain += report.is_in_chain
        self._next = self._read()

    def end(self) -> None:
        """After the last row. Raises VerificationFailed."""
        if self._next is not None:
            raise VerificationFailed(f"there is no row of offset {self._next.offset}", subject=TRANSACTIONS_NAME)
        if self._listed is not None and ([self._listed.lowest], self._listed.count) != (self._heights, self.count):
            raise VerificationFailed("there are others than the evidence says", subject=TRANSACTIONS_NAME)

    def _read(self) -> PacketTransaction | None:
        line = b"" if self._file is None else read_line(self._file, TRANSACTIONS_NAME)
        return decode_transaction(line) if line else None


def _streams_of(listed: Sequence[ExportedStream]) -> dict[bytes, ExportedStream]:
    """By stream hash, each name opened. Raises VerificationFailed."""
    streams: dict[bytes, ExportedStream] = {}
    names: set[str] = set()
    for stream in listed:
        key = _hash_of(stream.stream_hash)
        if key in streams or (stream.stream and stream.stream in names):
            raise VerificationFailed(f"stream {stream.stream!r} is listed twice", subject="streams")
        names.add(stream.stream)
        streams[key] = stream
        if not stream.stream and not stream.ssalt and stream.is_shown and stream.removed == stream.packets:
            continue  # it was deleted, and its name with it; all its packets must be on record as taken away
        ssalt = decode_base64(stream.ssalt, "streams")
        if len(ssalt) != SALT_BYTES or stream_hash_of(ssalt, stream.stream) != key:
            raise VerificationFailed(f"{stream.stream!r} doesn't open its stream's pseudonym", subject="streams")
    return streams


def _check_anchors(
    evidence: Evidence, tree: SignedTree, trusted: TrustedKeys, chain: ChainCheck | None
) -> tuple[AnchorFound, ...]:
    if len(evidence.anchors) > ANCHORS_MAX:
        raise VerificationFailed(f"more than {ANCHORS_MAX} anchors", subject="anchors")
    signers = msgspec.structs.replace(trusted, witnesses_min=0)
    found = tuple(_check_anchor(anchor, tree, signers, chain) for anchor in evidence.anchors)
    if any(one.upto < evidence.range.first for one in found):
        raise VerificationFailed("an anchor covers nothing of the range", subject="anchors")
    return found


def _check_anchor(
    listed: ExportedAnchor, tree: SignedTree, trusted: TrustedKeys, chain: ChainCheck | None
) -> AnchorFound:
    """Its checkpoint is of a beginning of this very log, and the transaction in a block commits to it."""
    anchored = verify_checkpoint(listed.checkpoint, trusted)
    if anchored.log_id != tree.log_id or len(listed.consistency_path) > PATH_HASHES_MAX:
        raise VerificationFailed("an anchor's checkpoint is of another log", subject="anchors")
    old, new = anchored.checkpoint, tree.checkpoint
    path = [_hash_of(text) for text in listed.consistency_path]
    verify_consistency(old.size, old.root, new.size, new.root, path)
    report = AnchorReport(network=listed.anchor.network)
    return AnchorFound(old.size, report if chain is None else chain.check_anchor(listed.anchor, old, None))


def _list_not_proven(is_anchored: bool, is_witnessed: bool, others: int) -> tuple[str, ...]:
    sentences = (
        ("That everybody is shown the same history: only the log's own key was checked, and until a witness or an anchor "
         "saw it, its operator may have rewritten it.", not is_witnessed and not is_anchored),
        ("That there is only this history: others may have been shown another one.", is_witnessed or is_anchored),
        ("When it happened: appended_at is the node's own word.", not is_anchored),
        ("When it happened: a block only says that it was not later; appended_at is the node's own word.", is_anchored),
        (f"What {others} packets of streams that aren't shown say; the range holds them.", others > 0),
        ("What stood before and after the range, and packets that were refused or never acknowledged.", True),
        ("What status, certificate and node entries of the range say: they are counted, not opened.", True),
        ("That what was taken away had to be: the export only shows that the log says so.", True),
        ("That what the packets say is true.", True),
    )  # fmt: skip
    return tuple(sentence for sentence, holds in sentences if holds)


def _hash_of(text: str) -> bytes:
    try:
        return parse_sha256(text)
    except ValueError as err:
        raise VerificationFailed(str(err), subject="evidence") from err

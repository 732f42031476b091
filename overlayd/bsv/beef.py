"""BEEF: a transaction with its ancestors back to mined ones, and their Merkle paths.

V1 (BRC-62), V2 (BRC-96: some ancestors by txid alone) and Atomic (BRC-95: exactly one subject and its ancestors).
What was read is well formed: ancestors come first, none twice, each path is sound and belongs to its transaction.
`verify_beef` asks the rest, with nothing but the roots of blocks.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum

import msgspec

from overlayd.bsv.bump import Bump, merge_bumps, read_bump
from overlayd.bsv.octets import ByteReader, encode_varint
from overlayd.bsv.spending import InputVerdict, verify_shape, verify_spending
from overlayd.bsv.tx import ExtendedTransaction, Transaction, read_transaction
from overlayd.model.errors import BlockUnknown, MalformedChainData, VerificationFailed
from overlayd.model.txid import HASH_BYTES, TxId, format_hash

BEEF_BYTES_MAX = 32 << 20

_MARK_ATOMIC = bytes.fromhex("01010101")
_BUMP_BYTES_MIN = 4
_ENTRY_BYTES_MIN = 33

RootAt = Callable[[int], bytes | None]
"""The Merkle root of the block at a height of the best chain, or None when no header is held there."""


class BeefVersion(IntEnum):
    """The first four bytes, little-endian."""

    V1 = 0xEFBE0001
    V2 = 0xEFBE0002


class BeefEntry(msgspec.Struct, frozen=True):
    """A transaction. `tx` is None when only its txid is given (V2), `bump_index` when it isn't proven itself."""

    txid: TxId
    tx: Transaction | None
    bump_index: int | None = None


class Beef(msgspec.Struct, frozen=True):
    """Transactions with proofs. `subject` is what it is about: Atomic names it, elsewhere it is the last one."""

    bumps: tuple[Bump, ...]
    entries: tuple[BeefEntry, ...]
    subject: TxId

    @property
    def subject_tx(self) -> Transaction:
        """The transaction that it is about. Raises MalformedChainData when only its txid is given."""
        for entry in self.entries:
            if entry.txid == self.subject and entry.tx is not None:
                return entry.tx
        raise MalformedChainData("its subject is given by txid alone", subject="BEEF")

    @property
    def subject_bump(self) -> Bump | None:
        """The subject's own proof, when it is mined."""
        for entry in self.entries:
            if entry.txid == self.subject and entry.bump_index is not None:
                return self.bumps[entry.bump_index]
        return None

    def extended(self) -> ExtendedTransaction:
        """The subject with the outputs that it spends. Raises VerificationFailed when a parent isn't there."""
        return _extend(self.subject_tx, {entry.txid: entry for entry in self.entries})

    def encode(self, version: BeefVersion = BeefVersion.V1, *, is_atomic: bool = False) -> bytes:
        """The binary form. V1 can't hold a transaction by txid alone."""
        parts = [_MARK_ATOMIC + self.subject] if is_atomic else []
        parts.append(version.to_bytes(4, "little") + encode_varint(len(self.bumps)))
        parts += [bump.encode() for bump in self.bumps]
        parts.append(encode_varint(len(self.entries)))
        parts += [_encode_entry(entry, version) for entry in self.entries]
        return b"".join(parts)


def _encode_entry(entry: BeefEntry, version: BeefVersion) -> bytes:
    proof = b"\0" if entry.bump_index is None else b"\x01" + encode_varint(entry.bump_index)
    if version is BeefVersion.V1:
        assert entry.tx is not None, "V1 holds whole transactions"
        return entry.tx.raw + proof
    return b"\x02" + entry.txid if entry.tx is None else proof + entry.tx.raw


def is_beef(raw: bytes) -> bool:
    """Whether the bytes begin as one of the three forms. A transaction would need a version of 0xEFBE0001 to do so."""
    start = raw[HASH_BYTES + 4 :] if raw.startswith(_MARK_ATOMIC) else raw
    return int.from_bytes(start[:4], "little") in (BeefVersion.V1, BeefVersion.V2)


def parse_beef(raw: bytes, *, bytes_max: int = BEEF_BYTES_MAX) -> Beef:
    """Reads BEEF in any of its forms, whole. Raises MalformedChainData."""
    if len(raw) > bytes_max:
        raise MalformedChainData(f"{len(raw)} bytes; at most {bytes_max} are taken", subject="BEEF")
    reader = ByteReader(raw, "BEEF")
    subject: TxId | None = None
    if raw.startswith(_MARK_ATOMIC):
        reader.take(len(_MARK_ATOMIC))
        subject = TxId(reader.take(HASH_BYTES))
    mark = reader.u32()
    if mark not in (BeefVersion.V1, BeefVersion.V2):
        raise reader.fault(f"begins with {mark.to_bytes(4, 'little').hex()}, which is no version of BEEF")
    bumps = tuple([read_bump(reader) for _ in range(reader.count(_BUMP_BYTES_MIN))])
    leaves = [frozenset(bump.rows[0].values()) for bump in bumps]
    entries: dict[TxId, BeefEntry] = {}
    awaited: set[TxId] = set()
    for _ in range(reader.count(_ENTRY_BYTES_MIN)):
        entry = _read_entry(reader, is_v2=mark == BeefVersion.V2)
        _check_entry(entry, reader, entries, awaited, leaves)
        entries[entry.txid] = entry
        if entry.tx is not None:
            awaited.update(item.outpoint.txid for item in entry.tx.inputs)
    reader.finish()
    if not entries:
        raise reader.fault("holds no transaction")
    if subject is not None:
        _check_atomic(subject, entries)
    return Beef(bumps, tuple(entries.values()), subject or next(reversed(entries)))


def _read_entry(reader: ByteReader, *, is_v2: bool) -> BeefEntry:
    if not is_v2:
        tx = read_transaction(reader)
        return BeefEntry(tx.txid, tx, _read_proof(reader, reader.u8()))
    kind = reader.u8()
    if kind == 2:
        return BeefEntry(TxId(reader.take(HASH_BYTES)), None)
    bump_index = _read_proof(reader, kind)
    tx = read_transaction(reader)
    return BeefEntry(tx.txid, tx, bump_index)


def _read_proof(reader: ByteReader, kind: int) -> int | None:
    if kind > 1:
        raise reader.fault(f"a transaction's mark is {kind}")
    return reader.varint() if kind else None


def _check_entry(
    entry: BeefEntry,
    reader: ByteReader,
    earlier: Mapping[TxId, BeefEntry],
    awaited: set[TxId],
    leaves: list[frozenset[bytes]],
) -> None:
    if entry.txid in earlier:
        raise reader.fault(f"{format_hash(entry.txid)} stands twice")
    if entry.txid in awaited:
        raise reader.fault(f"{format_hash(entry.txid)} comes after a transaction that spends it")
    if entry.bump_index is not None:
        if entry.bump_index >= len(leaves):
            raise reader.fault(f"there is no BUMP {entry.bump_index}")
        if entry.txid not in leaves[entry.bump_index]:
            raise reader.fault(f"BUMP {entry.bump_index} isn't of {format_hash(entry.txid)}")


def _check_atomic(subject: TxId, entries: Mapping[TxId, BeefEntry]) -> None:
    if subject not in entries:
        raise MalformedChainData("its subject isn't in it", subject="BEEF")
    related = {entry.txid for entry in _ancestry(subject, entries, past_proofs=True)}
    for txid in entries:
        if txid not in related:
            raise MalformedChainData(f"{format_hash(txid)} isn't an ancestor of its subject", subject="BEEF")


def _ancestry(subject: TxId, entries: Mapping[TxId, BeefEntry], *, past_proofs: bool = False) -> Iterable[BeefEntry]:
    """The subject and its ancestors among the entries, each once; proven ones' ancestors only if asked for."""
    waiting, seen = [subject], {subject}
    while waiting:
        entry = entries[waiting.pop()]
        yield entry
        if entry.tx is None or (entry.bump_index is not None and not past_proofs):
            continue
        for item in entry.tx.inputs:
            txid = item.outpoint.txid
            if txid in entries and txid not in seen:
                seen.add(txid)
                waiting.append(txid)


def _extend(tx: Transaction, entries: Mapping[TxId, BeefEntry]) -> ExtendedTransaction:
    spent = []
    for index, item in enumerate(tx.inputs):
        parent = entries.get(item.outpoint.txid)
        if parent is None or parent.tx is None:
            raise VerificationFailed(
                f"the transaction that input {index} spends isn't given", subject=f"transaction {format_hash(tx.txid)}"
            )
        if item.outpoint.index >= len(parent.tx.outputs):
            raise VerificationFailed(
                f"input {index} spends an output that isn't there", subject=f"transaction {format_hash(tx.txid)}"
            )
        spent.append(parent.tx.outputs[item.outpoint.index])
    return ExtendedTransaction(tx, tuple(spent))


def verify_beef(beef: Beef, root_at: RootAt) -> int:
    """Checks the subject down to mined ancestors; gives the number of inputs whose scripts aren't checked here.

    Every path must lead to the root of its block. Every transaction from the subject on that has no path of its own
    must be allowed to spend what it spends (spending.py), no output twice in all.
    Raises BlockUnknown when no header is held at a path's height, else VerificationFailed.
    """
    for bump in beef.bumps:
        root = root_at(bump.height)
        if root is None:
            raise BlockUnknown("no header is held at its height", subject=f"block {bump.height}")
        if root != bump.root:
            raise VerificationFailed(
                f"a path leads to {format_hash(bump.root)}, which isn't the block's root",
                subject=f"block {bump.height}",
            )
    entries = {entry.txid: entry for entry in beef.entries}
    unchecked = 0
    spent: set[object] = set()
    for entry in _ancestry(beef.subject, entries):
        if entry.tx is None:
            raise VerificationFailed("it is given by txid alone", subject=f"transaction {format_hash(entry.txid)}")
        if entry.bump_index is not None:
            verify_shape(entry.tx)
            continue
        verdicts = verify_spending(_extend(entry.tx, entries))
        unchecked += verdicts.count(InputVerdict.UNCHECKED)
        outpoints = {item.outpoint for item in entry.tx.inputs}
        if not spent.isdisjoint(outpoints):
            raise VerificationFailed("two of its transactions spend one output", subject="BEEF")
        spent |= outpoints
    return unchecked


def assemble_beef(subject: Transaction, parents: Mapping[TxId, tuple[Transaction, Bump | None]]) -> Beef:
    """BEEF of a transaction from what is known of its ancestors, back to those with a proof.

    Raises VerificationFailed when one is missing before a proof is reached, or proofs of one block differ.
    """
    bumps: dict[tuple[int, bytes], Bump] = {}
    order: list[tuple[Transaction, tuple[int, bytes] | None]] = []
    placed: set[TxId] = set()
    waiting: list[tuple[Transaction, Bump | None, bool]] = [(subject, None, False)]
    while waiting:
        tx, bump, is_ready = waiting.pop()
        if tx.txid in placed:
            continue
        key = (bump.height, bump.root) if bump is not None else None
        if bump is not None and key is not None:
            bumps[key] = merge_bumps(bumps[key], bump) if key in bumps else bump
        if is_ready or bump is not None:
            placed.add(tx.txid)
            order.append((tx, key))
            continue
        waiting.append((tx, None, True))
        for item in tx.inputs:
            found = parents.get(item.outpoint.txid)
            if found is None:
                raise VerificationFailed(
                    "an ancestor isn't known", subject=f"transaction {item.outpoint.txid[::-1].hex()}"
                )
            waiting.append((*found, False))
    places = {key: index for index, key in enumerate(bumps)}
    entries = tuple(BeefEntry(tx.txid, tx, None if key is None else places[key]) for tx, key in order)
    return Beef(tuple(bumps.values()), entries, subject.txid)

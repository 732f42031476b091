"""Transactions, raw and in Extended Format (BRC-30), which carries the outputs that the inputs spend.

A parsed transaction encodes to the same bytes again, since only shortest lengths are read.
"""

import msgspec

from overlayd.bsv.hashes import hash256
from overlayd.bsv.octets import U32_MAX, ByteReader, encode_varbytes, encode_varint
from overlayd.model.errors import MalformedChainData
from overlayd.model.txid import HASH_BYTES, TxId

TRANSACTION_BYTES_MAX = 10_000_000
"""What nodes relay by default (maxtxsizepolicy)."""
SATOSHIS_MAX = 21_000_000 * 100_000_000
SEQUENCE_FINAL = U32_MAX

_INPUT_BYTES_MIN = 41
_OUTPUT_BYTES_MIN = 9
_AMBIGUOUS_BYTES = 64
_EF_MARKER = bytes.fromhex("0000000000ef")
_NULL_TXID = bytes(HASH_BYTES)


class OutPoint(msgspec.Struct, frozen=True, gc=False):
    """One output of a transaction, by name."""

    txid: TxId
    index: int

    def encode(self) -> bytes:
        """36 bytes."""
        return self.txid + self.index.to_bytes(4, "little")

    def __str__(self) -> str:
        return f"{self.txid[::-1].hex()}.{self.index}"


NULL_OUTPOINT = OutPoint(TxId(_NULL_TXID), U32_MAX)
"""What a coinbase names in place of an output."""


class TxInput(msgspec.Struct, frozen=True, gc=False):
    """Spends an output. `script` unlocks it; empty until signed."""

    outpoint: OutPoint
    script: bytes = b""
    sequence: int = SEQUENCE_FINAL

    def encode(self) -> bytes:
        """As it stands in a raw transaction."""
        return self.outpoint.encode() + encode_varbytes(self.script) + self.sequence.to_bytes(4, "little")


class TxOutput(msgspec.Struct, frozen=True, gc=False):
    """An amount in satoshis behind a locking script."""

    satoshis: int
    script: bytes

    def encode(self) -> bytes:
        """As it stands in a raw transaction."""
        return self.satoshis.to_bytes(8, "little") + encode_varbytes(self.script)


class Transaction(msgspec.Struct, frozen=True):
    """A transaction. `raw` and `txid` (internal order) follow from the rest and are made with it."""

    inputs: tuple[TxInput, ...]
    outputs: tuple[TxOutput, ...]
    version: int = 1
    lock_time: int = 0
    raw: bytes = b""
    txid: TxId = TxId(b"")

    def __post_init__(self) -> None:
        raw = self.raw or b"".join((
            self.version.to_bytes(4, "little"),
            encode_varint(len(self.inputs)), *[item.encode() for item in self.inputs],
            encode_varint(len(self.outputs)), *[item.encode() for item in self.outputs],
            self.lock_time.to_bytes(4, "little"),
        ))  # fmt: skip
        msgspec.structs.force_setattr(self, "raw", raw)
        msgspec.structs.force_setattr(self, "txid", TxId(hash256(raw)))

    @property
    def is_coinbase(self) -> bool:
        """Whether it makes new coins."""
        return len(self.inputs) == 1 and self.inputs[0].outpoint == NULL_OUTPOINT

    @property
    def output_sat(self) -> int:
        """The sum of its outputs."""
        return sum(item.satoshis for item in self.outputs)

    def outpoint(self, index: int) -> OutPoint:
        """The name of one of its outputs."""
        assert 0 <= index < len(self.outputs)
        return OutPoint(self.txid, index)

    def with_scripts(self, scripts: tuple[bytes, ...]) -> "Transaction":
        """The same transaction with other unlocking scripts, hence with another txid."""
        assert len(scripts) == len(self.inputs)
        inputs = tuple(
            TxInput(item.outpoint, script, item.sequence) for item, script in zip(self.inputs, scripts, strict=True)
        )
        return Transaction(inputs, self.outputs, self.version, self.lock_time)

    def __repr__(self) -> str:
        return f"Transaction({self.txid[::-1].hex()}, {len(self.inputs)} in, {len(self.outputs)} out)"


class ExtendedTransaction(msgspec.Struct, frozen=True):
    """A transaction with the outputs that its inputs spend, in their order."""

    tx: Transaction
    spent: tuple[TxOutput, ...]

    def __post_init__(self) -> None:
        assert len(self.spent) == len(self.tx.inputs)

    @property
    def fee_sat(self) -> int:
        """Inputs less outputs; below 0 when it spends more than it has."""
        return sum(item.satoshis for item in self.spent) - self.tx.output_sat

    def encode(self) -> bytes:
        """Extended Format. Its hash isn't the txid."""
        tx = self.tx
        pairs = zip(tx.inputs, self.spent, strict=True)
        return b"".join((
            tx.version.to_bytes(4, "little"), _EF_MARKER,
            encode_varint(len(tx.inputs)), *[item.encode() + spent.encode() for item, spent in pairs],
            encode_varint(len(tx.outputs)), *[item.encode() for item in tx.outputs],
            tx.lock_time.to_bytes(4, "little"),
        ))  # fmt: skip


def parse_transaction(raw: bytes, *, bytes_max: int = TRANSACTION_BYTES_MAX) -> Transaction:
    """Reads a raw transaction, whole. Raises MalformedChainData."""
    _check_bytes(raw, bytes_max)
    reader = ByteReader(raw, "transaction")
    transaction = read_transaction(reader)
    reader.finish()
    return transaction


def read_transaction(reader: ByteReader) -> Transaction:
    """Takes one raw transaction from the front. Raises MalformedChainData."""
    start = reader.at
    version = reader.u32()
    inputs = tuple([_read_input(reader) for _ in range(_count_inputs(reader))])
    outputs = tuple([_read_output(reader) for _ in range(_count_outputs(reader))])
    lock_time = reader.u32()
    raw = reader.since(start)
    _check_ambiguous(raw, reader)
    return Transaction(inputs, outputs, version, lock_time, raw)


def is_extended(raw: bytes) -> bool:
    """Whether the bytes carry the mark of the Extended Format, which no raw transaction can."""
    return raw[4:10] == _EF_MARKER


def parse_extended(raw: bytes, *, bytes_max: int = TRANSACTION_BYTES_MAX) -> ExtendedTransaction:
    """Reads the Extended Format, whole. Raises MalformedChainData.

    The outputs that it says are spent are the sender's word: their transactions aren't here.
    """
    _check_bytes(raw, bytes_max)
    reader = ByteReader(raw, "transaction")
    version = reader.u32()
    if reader.take(len(_EF_MARKER)) != _EF_MARKER:
        raise MalformedChainData("the mark of the Extended Format is missing", subject="transaction")
    inputs, spent = [], []
    for _ in range(_count_inputs(reader)):
        inputs.append(_read_input(reader))
        spent.append(_read_output(reader))
    outputs = tuple([_read_output(reader) for _ in range(_count_outputs(reader))])
    transaction = Transaction(tuple(inputs), outputs, version, reader.u32())
    reader.finish()
    _check_ambiguous(transaction.raw, reader)
    return ExtendedTransaction(transaction, tuple(spent))


def _check_bytes(raw: bytes, bytes_max: int) -> None:
    if len(raw) > bytes_max:
        raise MalformedChainData(f"{len(raw)} bytes; at most {bytes_max} are taken", subject="transaction")


def _check_ambiguous(raw: bytes, reader: ByteReader) -> None:
    """Refuses 64 bytes, which could be a node of a block's tree as well: its proof would prove something else."""
    if len(raw) == _AMBIGUOUS_BYTES:
        raise reader.fault("64 bytes, which can't be told from an inner node of a Merkle tree")


def _count_inputs(reader: ByteReader) -> int:
    count = reader.count(_INPUT_BYTES_MIN)
    if not count:
        raise reader.fault("has no inputs")
    return count


def _count_outputs(reader: ByteReader) -> int:
    count = reader.count(_OUTPUT_BYTES_MIN)
    if not count:
        raise reader.fault("has no outputs")
    return count


def _read_input(reader: ByteReader) -> TxInput:
    outpoint = OutPoint(TxId(reader.take(32)), reader.u32())
    return TxInput(outpoint, reader.varbytes(), reader.u32())


def _read_output(reader: ByteReader) -> TxOutput:
    return TxOutput(reader.u64(), reader.varbytes())

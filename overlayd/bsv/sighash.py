"""What a transaction's signatures sign: the digest with the fork id (the chain's replay-protected form of BIP 143)."""

from overlayd.bsv.hashes import hash256
from overlayd.bsv.octets import encode_varbytes
from overlayd.bsv.tx import Transaction, TxOutput
from overlayd.model.errors import MalformedChainData

ALL = 0x01
NONE = 0x02
SINGLE = 0x03
FORKID = 0x40
ANYONECANPAY = 0x80
ALL_FORKID = ALL | FORKID
"""Signs every input and output: what wallets do."""

_ZEROS = bytes(32)
_KINDS = frozenset((ALL, NONE, SINGLE))


def is_known_flag(flag: int) -> bool:
    """Whether it is one of the six combinations with the fork id."""
    return bool(flag & FORKID) and flag & ~(FORKID | ANYONECANPAY) in _KINDS and flag <= 0xFF


class Digests:
    """The digests of one transaction's inputs. What all of them share is hashed once, so n inputs cost n."""

    __slots__ = ("_outpoints", "_outputs", "_sequences", "_tx")

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._outpoints = b""
        self._sequences = b""
        self._outputs = b""

    def digest(self, index: int, spent: TxOutput, flag: int = ALL_FORKID) -> bytes:
        """What input `index` signs; `spent` is the output that it spends, its whole script being what is signed.

        Raises MalformedChainData for a flag without the fork id or with unknown bits.
        """
        if not is_known_flag(flag):
            raise MalformedChainData(f"the signature's flag {flag:#04x} isn't one of the chain's", subject="signature")
        tx, kind = self._tx, flag & 0x1F
        item = tx.inputs[index]
        is_alone = bool(flag & ANYONECANPAY)
        return hash256(b"".join((
            tx.version.to_bytes(4, "little"),
            _ZEROS if is_alone else self._hash_outpoints(),
            _ZEROS if is_alone or kind != ALL else self._hash_sequences(),
            item.outpoint.encode(), encode_varbytes(spent.script), spent.satoshis.to_bytes(8, "little"),
            item.sequence.to_bytes(4, "little"),
            self._hash_signed_outputs(index, kind),
            tx.lock_time.to_bytes(4, "little"), flag.to_bytes(4, "little"),
        )))  # fmt: skip

    def _hash_outpoints(self) -> bytes:
        if not self._outpoints:
            self._outpoints = hash256(b"".join([item.outpoint.encode() for item in self._tx.inputs]))
        return self._outpoints

    def _hash_sequences(self) -> bytes:
        if not self._sequences:
            self._sequences = hash256(b"".join([item.sequence.to_bytes(4, "little") for item in self._tx.inputs]))
        return self._sequences

    def _hash_signed_outputs(self, index: int, kind: int) -> bytes:
        outputs = self._tx.outputs
        if kind == ALL:
            if not self._outputs:
                self._outputs = hash256(b"".join([item.encode() for item in outputs]))
            return self._outputs
        if kind == SINGLE and index < len(outputs):
            return hash256(outputs[index].encode())
        return _ZEROS


def signature_digest(tx: Transaction, index: int, spent: TxOutput, flag: int = ALL_FORKID) -> bytes:
    """The digest of one input; see `Digests`."""
    return Digests(tx).digest(index, spent, flag)

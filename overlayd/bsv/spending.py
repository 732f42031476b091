"""Signing inputs, and checking that a transaction may spend what it spends.

P2PKH and P2PK are checked. Other scripts aren't interpreted: they are counted as unchecked, never as wrong.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

import msgspec

from overlayd.bsv.hashes import hash160
from overlayd.bsv.keys import PublicKey
from overlayd.bsv.script import lock_to_key, parse_p2pk, parse_p2pkh, parse_script, unlock_with
from overlayd.bsv.sighash import ALL_FORKID, Digests
from overlayd.bsv.tx import (
    NULL_OUTPOINT,
    SATOSHIS_MAX,
    SEQUENCE_FINAL,
    ExtendedTransaction,
    Transaction,
    TxInput,
    TxOutput,
)
from overlayd.model.errors import MalformedChainData, ScriptFailed, SignatureInvalid, TransactionInvalid

P2PKH_INPUT_BYTES = 148
"""An input with a signature of 72 bytes, as large as they come; most are one less."""
P2PKH_OUTPUT_BYTES = 34
LOCK_TIME_THRESHOLD = 500_000_000
"""Lock times below it are heights, others Unix seconds."""
SATOSHIS_PER_RATE_BYTES = 1000
"""Fee rates are satoshis for so many bytes."""


class OutputKey(Protocol):
    """A key that unlocks outputs: a `PrivateKey`, or one that lies elsewhere."""

    @property
    def public_key(self) -> PublicKey: ...

    def sign_digest(self, digest: bytes) -> bytes:
        """A DER signature with low S over 32 bytes."""
        ...


class Spendable(msgspec.Struct, frozen=True):
    """An output to spend, with its name and the key that unlocks it."""

    input: TxInput
    output: TxOutput
    key: OutputKey


class InputVerdict(Enum):
    """What checking an input came to, when it didn't raise."""

    VERIFIED = "verified"
    UNCHECKED = "unchecked"


def sign_transaction(tx: Transaction, spent: Sequence[TxOutput], keys: Sequence[OutputKey]) -> Transaction:
    """The transaction with every input signed (SIGHASH_ALL). Each must spend a P2PKH output of its key.

    Raises ScriptFailed when it doesn't.
    """
    assert len(tx.inputs) == len(spent) == len(keys)
    digests = Digests(tx)
    scripts = []
    for index, (output, key) in enumerate(zip(spent, keys, strict=True)):
        public = key.public_key.encoded
        if output.script != lock_to_key(public):
            raise ScriptFailed("the key doesn't unlock the output", subject=f"input {index}")
        signature = key.sign_digest(digests.digest(index, output))
        scripts.append(unlock_with(signature + bytes((ALL_FORKID,)), public))
    return tx.with_scripts(tuple(scripts))


def fee_of(size_bytes: int, sat_per_kb: int) -> int:
    """The fee of so many bytes at a rate, rounded up to a satoshi."""
    return -(-size_bytes * sat_per_kb // SATOSHIS_PER_RATE_BYTES)


def build_spend(
    spendables: Sequence[Spendable], outputs: Sequence[TxOutput], change_script: bytes, sat_per_kb: int
) -> ExtendedTransaction:
    """A signed transaction that pays `outputs` and gives the rest, less the fee, to `change_script`, as last output.

    A rest of less than 1 satoshi after the fee makes no change output. `spendables` are P2PKH outputs.
    Raises TransactionInvalid when the inputs don't cover outputs and fee.
    """
    available = sum(item.output.satoshis for item in spendables)
    wanted = sum(item.satoshis for item in outputs)
    unsigned = Transaction(tuple(item.input for item in spendables), tuple(outputs))
    signed_bytes = len(unsigned.raw) + len(spendables) * (P2PKH_INPUT_BYTES - len(spendables[0].input.encode()))
    change = TxOutput(0, change_script)
    change_sat = available - wanted - fee_of(signed_bytes + len(change.encode()), sat_per_kb)
    if change_sat > 0:
        unsigned = Transaction(unsigned.inputs, (*outputs, TxOutput(change_sat, change_script)))
    elif available - wanted < fee_of(signed_bytes, sat_per_kb):
        raise TransactionInvalid(f"{available} satoshis don't cover {wanted} and the fee", subject="transaction")
    elif not outputs:
        raise TransactionInvalid(f"{available} satoshis leave no output after the fee", subject="transaction")
    spent = tuple(item.output for item in spendables)
    return ExtendedTransaction(sign_transaction(unsigned, spent, [item.key for item in spendables]), spent)


def verify_shape(tx: Transaction) -> None:
    """Checks what needs no other transaction: amounts in range, no output spent twice, coinbase alone.

    Raises TransactionInvalid.
    """
    subject = f"transaction {tx.txid[::-1].hex()}"
    outpoints = {item.outpoint for item in tx.inputs}
    if len(outpoints) != len(tx.inputs):
        raise TransactionInvalid("it spends an output twice", subject=subject)
    if NULL_OUTPOINT in outpoints and len(tx.inputs) > 1:
        raise TransactionInvalid("it names no output in one of its inputs", subject=subject)
    if any(item.satoshis > SATOSHIS_MAX for item in tx.outputs) or tx.output_sat > SATOSHIS_MAX:
        raise TransactionInvalid("its outputs are more than all coins", subject=subject)


def is_final(tx: Transaction, height: int, time_s: int) -> bool:
    """Whether its lock time lets it into a block of that height and median time."""
    if not tx.lock_time or all(item.sequence == SEQUENCE_FINAL for item in tx.inputs):
        return True
    return tx.lock_time < (height if tx.lock_time < LOCK_TIME_THRESHOLD else time_s)


def verify_spending(extended: ExtendedTransaction) -> list[InputVerdict]:
    """Checks shape, amounts and unlocking scripts of a transaction that isn't a coinbase; a verdict for each input.

    Raises TransactionInvalid (ScriptFailed for an input that may not spend its output). Whether the outputs that it
    spends exist and aren't spent is for others to say, and so are lock times.
    """
    tx = extended.tx
    verify_shape(tx)
    subject = f"transaction {tx.txid[::-1].hex()}"
    if tx.is_coinbase:
        raise TransactionInvalid("a coinbase spends nothing", subject=subject)
    if any(item.satoshis > SATOSHIS_MAX for item in extended.spent):
        raise TransactionInvalid("an input is more than all coins", subject=subject)
    if extended.fee_sat < 0:
        raise TransactionInvalid(f"its outputs exceed its inputs by {-extended.fee_sat} satoshis", subject=subject)
    digests = Digests(tx)
    return [_verify_input(digests, tx, index, spent) for index, spent in enumerate(extended.spent)]


def _verify_input(digests: Digests, tx: Transaction, index: int, spent: TxOutput) -> InputVerdict:
    key_hash, key = parse_p2pkh(spent.script), parse_p2pk(spent.script)
    if key_hash is None and key is None:
        return InputVerdict.UNCHECKED
    subject = f"input {index} of {tx.txid[::-1].hex()}"
    try:
        pushes = [chunk.data for chunk in parse_script(tx.inputs[index].script)]
        if key is None:
            if len(pushes) != 2 or pushes[1] is None or hash160(pushes[1]) != key_hash:
                raise ScriptFailed("its script isn't a signature and the key that the output names", subject=subject)
            key = pushes[1]
        elif len(pushes) != 1:
            raise ScriptFailed("its script isn't one signature", subject=subject)
        signature = pushes[0]
        if not signature:
            raise ScriptFailed("its script holds no signature", subject=subject)
        digest = digests.digest(index, spent, signature[-1])
        PublicKey.parse(key).verify_digest(digest, signature[:-1])
    except (MalformedChainData, SignatureInvalid) as err:
        raise ScriptFailed(err.detail, subject=subject) from err
    return InputVerdict.VERIFIED

"""Transactions, raw and extended."""

import pytest
from bsv_samples import damaged, flipped, load, reads_or_refuses, refusal, transactions
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.bsv.octets import ByteReader, encode_varint
from overlayd.bsv.tx import ExtendedTransaction, Transaction, TxOutput, is_extended, parse_extended, parse_transaction
from overlayd.model.errors import MalformedChainData
from overlayd.model.txid import format_hash, parse_block_hash, parse_txid

SAMPLE = load("ts-sdk-2.1.0-generated")["tx"]
RAW = bytes.fromhex(SAMPLE["raw"])
EXTENDED = bytes.fromhex(SAMPLE["ef"])


@given(transactions)
def test_a_transaction_comes_back_from_its_bytes(tx: Transaction) -> None:
    """Any transaction is read from what it encodes to, with the same txid."""
    parsed = parse_transaction(tx.raw)
    assert parsed == tx
    assert parsed.txid == tx.txid


@given(transactions, st.data())
def test_extended_format_comes_back_from_its_bytes(tx: Transaction, data: st.DataObject) -> None:
    """Any transaction with the outputs it spends is read from its Extended Format."""
    spent = tuple(TxOutput(data.draw(st.integers(0, 2**64 - 1)), data.draw(st.binary(max_size=30))) for _ in tx.inputs)
    extended = ExtendedTransaction(tx, spent)
    raw = extended.encode()
    assert is_extended(raw)
    assert not is_extended(tx.raw)
    assert parse_extended(raw) == extended


@settings(max_examples=300)
@given(st.one_of(damaged(RAW), damaged(EXTENDED), st.binary(max_size=200)))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    """Whatever the bytes, the parsers give a value that encodes to them again, or raise their one error."""
    tx = reads_or_refuses(parse_transaction, raw)
    assert tx is None or Transaction(tx.inputs, tx.outputs, tx.version, tx.lock_time).raw == raw
    extended = reads_or_refuses(parse_extended, raw)
    assert extended is None or extended.encode() == raw


def test_real_transactions_keep_their_txids() -> None:
    """Ten transactions of a mainnet block, raw and extended, have the txids that the block names."""
    for txid, picked in load("mainnet-block-948351")["picked"].items():
        raw = bytes.fromhex(picked["raw_hex"])
        assert format_hash(parse_transaction(raw).txid) == txid
        extended = parse_extended(bytes.fromhex(picked["raw_or_ef_hex"]))
        assert format_hash(extended.tx.txid) == txid
        assert extended.tx.raw == raw
        assert extended.fee_sat >= 0


def test_another_byte_is_another_transaction() -> None:
    """No byte of a raw transaction can be changed under its txid."""
    txid = parse_transaction(RAW).txid
    for _, raw in flipped(RAW):
        changed = reads_or_refuses(parse_transaction, raw)
        assert changed is None or changed.txid != txid


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda raw: raw + b"\0", "1 bytes too many"),
        (lambda raw: raw[:-1], "ends 1 bytes early"),
        (lambda raw: b"", "ends 4 bytes early"),
        (lambda raw: raw[:4] + b"\0" + raw[5:], "has no inputs"),
        (lambda raw: raw[:4] + b"\xfd\x01\x00" + raw[5:], "shortest form"),
        (lambda raw: raw[:4] + b"\xfe\xff\xff\xff\x7f" + raw[5:], "more than its bytes can hold"),
        (lambda raw: raw[:4] + b"\xff" + b"\xff" * 8 + raw[5:], "more than its bytes can hold"),
    ],
)
def test_a_broken_transaction_is_refused_for_its_reason(change, reason: str) -> None:  # type: ignore[no-untyped-def]
    """Trailing bytes, missing ones, no inputs, long forms and huge counts each have their words."""
    assert reason in refusal(parse_transaction, change(RAW))


def test_64_bytes_are_no_transaction() -> None:
    """What has the length of two hashes is refused: a Merkle path could pass it off as an inner node."""
    tx = Transaction(parse_transaction(RAW).inputs[:1], (TxOutput(0, b""),)).with_scripts((b"\x51\x51\x51\x51",))
    assert len(tx.raw) == 64
    assert "inner node" in refusal(parse_transaction, tx.raw)
    assert "inner node" in refusal(parse_extended, ExtendedTransaction(tx, (TxOutput(1, b""),)).encode())


def test_a_transaction_over_the_bound_is_refused() -> None:
    """The bound on bytes is looked at before anything is read."""
    assert "at most" in refusal(lambda raw: parse_transaction(raw, bytes_max=len(RAW) - 1), RAW)
    assert "at most" in refusal(lambda raw: parse_extended(raw, bytes_max=len(EXTENDED) - 1), EXTENDED)
    assert parse_transaction(RAW, bytes_max=len(RAW)).raw == RAW


@given(st.integers(0, 2**64 - 1))
def test_integers_have_one_form(value: int) -> None:
    """The shortest form is written and read; every longer one is refused."""
    raw = encode_varint(value)
    reader = ByteReader(raw, "number")
    assert reader.varint() == value
    reader.finish()
    for mark, width in ((0xFD, 2), (0xFE, 4), (0xFF, 8)):
        if len(raw) < 1 + width and value < 1 << (8 * width):
            with pytest.raises(MalformedChainData, match="shortest"):
                ByteReader(bytes((mark,)) + value.to_bytes(width, "little"), "number").varint()


def test_hashes_are_shown_reversed_and_read_strictly() -> None:
    """Text is in display order, 64 hex digits, without white space."""
    txid = parse_txid(SAMPLE["txid"])
    assert txid == parse_transaction(RAW).txid
    assert format_hash(txid) == SAMPLE["txid"]
    for text in ("", SAMPLE["txid"][1:], SAMPLE["txid"] + "0", " " + SAMPLE["txid"][1:], "g" * 64, "\u0663" * 64):
        assert "64 hex digits" in refusal(parse_txid, text)
    assert "block hash" in refusal(parse_block_hash, "00")


def test_scripts_are_put_in_without_touching_the_rest() -> None:
    """A transaction with other unlocking scripts has the same inputs, outputs and lock time, and another txid."""
    tx = parse_transaction(RAW)
    bare = tx.with_scripts((b"",))
    assert bare.inputs[0].outpoint == tx.inputs[0].outpoint
    assert (bare.outputs, bare.lock_time, bare.version) == (tx.outputs, tx.lock_time, tx.version)
    assert bare.txid != tx.txid
    assert bare.with_scripts((tx.inputs[0].script,)) == tx
    assert SAMPLE["txid"] in repr(tx)
    assert str(tx.outpoint(1)) == SAMPLE["txid"] + ".1"

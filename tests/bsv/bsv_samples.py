"""Vectors made by others (tests/data/bsv), random transactions, and ways to damage bytes."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from overlayd.bsv.keys import CURVE_ORDER, PrivateKey
from overlayd.bsv.script import lock_to_key
from overlayd.bsv.spending import Spendable, build_spend
from overlayd.bsv.tx import ExtendedTransaction, OutPoint, Transaction, TxInput, TxOutput
from overlayd.model.errors import MalformedChainData
from overlayd.model.txid import TxId

DATA = Path(__file__).parent.parent / "data" / "bsv"


@cache
def load(name: str) -> Any:
    """One of the files, decoded."""
    return json.loads((DATA / f"{name}.json").read_text())


def block_txids() -> list[TxId]:
    """The txids of mainnet's block 948,351."""
    raw = bytes.fromhex(load("mainnet-block-948351")["txids_internal_order_hex_coinbase_substituted"])
    return [TxId(raw[at : at + 32]) for at in range(0, len(raw), 32)]


secrets = st.integers(1, CURVE_ORDER - 1).map(lambda number: PrivateKey(number.to_bytes(32, "big")))
hashes = st.binary(min_size=32, max_size=32)
scripts = st.binary(max_size=60)
inputs = st.builds(
    TxInput, st.builds(OutPoint, hashes.map(TxId), st.integers(0, 2**32 - 1)), scripts, st.integers(0, 2**32 - 1)
)
outputs = st.builds(TxOutput, st.integers(0, 2**64 - 1), scripts)
transactions = st.builds(
    Transaction,
    st.lists(inputs, min_size=1, max_size=4).map(tuple),
    st.lists(outputs, min_size=1, max_size=4).map(tuple),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
).filter(lambda tx: len(tx.raw) != 64)


def key_of(number: int) -> PrivateKey:
    """A key for tests."""
    return PrivateKey(number.to_bytes(32, "big"))


def spend(
    key: PrivateKey, parent: Transaction, index: int = 0, *outputs: TxOutput, rate: int = 100
) -> ExtendedTransaction:
    """A signed transaction that spends one output of a parent, the rest going back to the key."""
    spendable = Spendable(TxInput(parent.outpoint(index)), parent.outputs[index], key)
    return build_spend([spendable], outputs, lock_to_key(key.public_key.encoded), rate)


def funding(key: PrivateKey, satoshis: int = 10_000, count: int = 1, salt: int = 0) -> Transaction:
    """A transaction out of nowhere that pays a key."""
    script = lock_to_key(key.public_key.encoded)
    source = TxInput(OutPoint(TxId(salt.to_bytes(32, "big")), 0), b"\x51")
    return Transaction((source,), (TxOutput(satoshis, script),) * count)


def flipped(raw: bytes, step: int = 1) -> Iterator[tuple[int, bytes]]:
    """The bytes with one bit turned over, for each byte and a bit that moves on."""
    for at in range(0, len(raw), step):
        yield at, raw[:at] + bytes((raw[at] ^ (1 << at % 8),)) + raw[at + 1 :]


def damaged(raw: bytes) -> st.SearchStrategy[bytes]:
    """The bytes cut, extended, or with some of them replaced."""
    replaced = st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), min_size=1, max_size=4).map(
        lambda changes: _replace(raw, changes)
    )
    cut = st.integers(0, len(raw) - 1).map(lambda end: raw[:end])
    longer = st.binary(min_size=1, max_size=8).map(lambda tail: raw + tail)
    middle = st.tuples(st.integers(0, len(raw)), st.binary(min_size=1, max_size=8)).map(
        lambda pair: raw[: pair[0]] + pair[1] + raw[pair[0] :]
    )
    return st.one_of(replaced, cut, longer, middle)


def _replace(raw: bytes, changes: list[tuple[int, int]]) -> bytes:
    octets = bytearray(raw)
    for at, value in changes:
        octets[at] = value
    return bytes(octets)


def reads_or_refuses(parse: Callable[[bytes], Any], raw: bytes) -> Any:
    """What a parser makes of any bytes: a value, or None when it refused them in its one way."""
    try:
        return parse(raw)
    except MalformedChainData as err:
        refused = err
    assert refused.subject
    assert refused.detail
    return None


def refusal(parse: Callable[[Any], Any], value: Any) -> str:
    """Why a parser refuses something."""
    with pytest.raises(MalformedChainData) as caught:
        parse(value)
    return caught.value.detail

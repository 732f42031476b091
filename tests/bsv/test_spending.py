"""Signature digests, signing, and what may spend what."""

import pytest
from bsv_samples import flipped, funding, inputs, key_of, load, outputs, secrets, spend, transactions
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.bsv.keys import PrivateKey
from overlayd.bsv.script import encode_push, lock_to_key
from overlayd.bsv.sighash import (
    ALL,
    ALL_FORKID,
    ANYONECANPAY,
    FORKID,
    NONE,
    SINGLE,
    Digests,
    is_known_flag,
    signature_digest,
)
from overlayd.bsv.spending import (
    InputVerdict,
    Spendable,
    build_spend,
    fee_of,
    is_final,
    sign_transaction,
    verify_shape,
    verify_spending,
)
from overlayd.bsv.tx import (
    NULL_OUTPOINT,
    SATOSHIS_MAX,
    ExtendedTransaction,
    OutPoint,
    Transaction,
    TxInput,
    TxOutput,
    parse_extended,
)
from overlayd.model.errors import MalformedChainData, ScriptFailed, TransactionInvalid, VerificationFailed
from overlayd.model.txid import TxId

KEY, OTHER = key_of(11), key_of(12)
FLAGS = [kind | FORKID | alone for kind in (ALL, NONE, SINGLE) for alone in (0, ANYONECANPAY)]


def test_real_inputs_verify() -> None:
    """Ten inputs of a mainnet block, made by other software, carry signatures that hold."""
    for picked in load("mainnet-block-948351")["picked"].values():
        extended = parse_extended(bytes.fromhex(picked["raw_or_ef_hex"]))
        assert set(verify_spending(extended)) == {InputVerdict.VERIFIED}


def test_an_input_signed_by_wallet_software_verifies_and_is_signed_alike() -> None:
    """A transaction made by @bsv/sdk verifies; signing it again with its key gives its very bytes."""
    extended = parse_extended(bytes.fromhex(load("ts-sdk-2.1.0-generated")["tx"]["ef"]))
    assert verify_spending(extended) == [InputVerdict.VERIFIED]
    assert sign_transaction(extended.tx, extended.spent, [KEY]).raw == extended.tx.raw


def test_no_byte_of_a_signed_transaction_can_change() -> None:
    """With any byte of the Extended Format turned, it is refused or may not spend."""
    extended = spend(KEY, funding(KEY))
    raw = extended.encode()
    for at, changed in flipped(raw):
        try:
            verdicts = verify_spending(parse_extended(changed))
        except (MalformedChainData, VerificationFailed):
            continue
        # A locking script that isn't P2PKH any more isn't judged here: it is seen as such, never as verified.
        assert verdicts == [InputVerdict.UNCHECKED], at


@settings(max_examples=50)
@given(secrets, st.integers(1, 5), st.integers(0, 500))
def test_whatever_is_built_verifies_and_pays_its_fee(key: PrivateKey, count: int, rate: int) -> None:
    """Built transactions are signed, balanced, and pay what their size costs, give or take a satoshi a kilobyte."""
    parent = funding(key, 5_000, count)
    script = lock_to_key(key.public_key.encoded)
    spendables = [Spendable(TxInput(parent.outpoint(at)), parent.outputs[at], key) for at in range(count)]
    extended = build_spend(spendables, [TxOutput(1_000, script)], script, rate)
    assert verify_spending(extended) == [InputVerdict.VERIFIED] * count
    assert fee_of(len(extended.tx.raw), rate) <= extended.fee_sat <= fee_of(len(extended.tx.raw) + 4 * count, rate)
    assert extended.tx.output_sat + extended.fee_sat == 5_000 * count


def test_a_rest_that_pays_no_output_goes_to_the_fee() -> None:
    """Without room for change there is none; without enough for the fee there is no transaction."""
    script = lock_to_key(KEY.public_key.encoded)

    def build(*paid: int) -> ExtendedTransaction:
        parent = funding(KEY, 1_000)
        spendable = Spendable(TxInput(parent.outpoint(0)), parent.outputs[0], KEY)
        return build_spend([spendable], [TxOutput(value, script) for value in paid], script, 1_000)

    assert len(build(100).tx.outputs) == 2
    assert [output.satoshis for output in build(800).tx.outputs] == [800]
    for paid in ((809,), (1_001,), (500, 501)):
        with pytest.raises(TransactionInvalid, match="don't cover"):
            build(*paid)
    parent = funding(KEY, 191)
    with pytest.raises(TransactionInvalid, match="leave no output"):
        build_spend([Spendable(TxInput(parent.outpoint(0)), parent.outputs[0], KEY)], [], script, 1_000)


@pytest.mark.parametrize("flag", FLAGS)
def test_each_flag_signs_what_it_says(flag: int) -> None:
    """Changing an input, sequence or output changes the digest exactly when the flag covers it."""
    spent = TxOutput(1_000, lock_to_key(KEY.public_key.encoded))
    items = tuple(TxInput(OutPoint(TxId(bytes(31) + bytes((at,))), at)) for at in range(2))
    paid = (TxOutput(1, b"\x51"), TxOutput(2, b"\x52"))
    base = Transaction(items, paid)
    digest = signature_digest(base, 0, spent, flag)
    kind, is_alone = flag & 0x1F, bool(flag & ANYONECANPAY)

    def covers(**changes: object) -> bool:
        changed = Transaction(**{"inputs": items, "outputs": paid, **changes})  # type: ignore[arg-type]
        return signature_digest(changed, 0, spent, flag) != digest

    assert covers(inputs=(items[0], TxInput(OutPoint(TxId(bytes(32)), 9)))) is not is_alone
    assert covers(inputs=(items[0], TxInput(items[1].outpoint, b"", 5))) is (kind == ALL and not is_alone)
    assert covers(inputs=(TxInput(items[0].outpoint, b"", 5), items[1]))
    assert covers(inputs=(TxInput(items[0].outpoint, b"unlocking"), items[1])) is False
    assert covers(outputs=(TxOutput(9, b"\x51"), paid[1])) is (kind != NONE)
    assert covers(outputs=(paid[0], TxOutput(9, b"\x52"))) is (kind == ALL)
    assert covers(lock_time=1)
    assert covers(version=2)
    assert signature_digest(base, 0, TxOutput(1_001, spent.script), flag) != digest
    assert signature_digest(base, 1, spent, flag) != digest


@given(transactions, outputs, st.sampled_from(FLAGS))
def test_digests_of_one_transaction_share_what_is_common(tx: Transaction, spent: TxOutput, flag: int) -> None:
    """Digests made together are those made one by one, also where SINGLE has no output."""
    together = Digests(tx)
    for index in range(len(tx.inputs)):
        assert together.digest(index, spent, flag) == signature_digest(tx, index, spent, flag)


def test_flags_without_the_fork_id_are_refused() -> None:
    """Of 256 flags six are signed; the rest raise."""
    tx, spent = Transaction((TxInput(OutPoint(TxId(bytes(32)), 0)),), (TxOutput(0, b""),)), TxOutput(0, b"")
    assert sorted(flag for flag in range(256) if is_known_flag(flag)) == sorted(FLAGS)
    for flag in set(range(256)) - set(FLAGS):
        with pytest.raises(MalformedChainData, match="flag"):
            signature_digest(tx, 0, spent, flag)


def _with_script(extended: ExtendedTransaction, script: bytes) -> ExtendedTransaction:
    return ExtendedTransaction(extended.tx.with_scripts((script,)), extended.spent)


def test_unlocking_scripts_are_a_signature_and_the_key() -> None:
    """Another key, a missing or extra push, a wrong flag or an opcode may not spend."""
    extended = spend(KEY, funding(KEY))
    public = KEY.public_key.encoded
    signature = KEY.sign_digest(signature_digest(extended.tx, 0, extended.spent[0]))
    good = encode_push(signature + bytes((ALL_FORKID,)))
    assert verify_spending(_with_script(extended, good + encode_push(public))) == [InputVerdict.VERIFIED]
    bad = [
        b"", good, encode_push(public), good + encode_push(OTHER.public_key.encoded), b"\x00" + encode_push(public),
        b"\x51" + good + encode_push(public), good + encode_push(public) + b"\x51", b"\x76" + encode_push(public),
        encode_push(signature + b"\x01") + encode_push(public), encode_push(signature) + encode_push(public),
        encode_push(signature + b"\xc1") + encode_push(public), b"\x4c", good + encode_push(public)[:-1],
    ]  # fmt: skip
    for script in bad:
        with pytest.raises(ScriptFailed) as caught:
            verify_spending(_with_script(extended, script))
        assert "input 0" in caught.value.subject


@pytest.mark.parametrize("flag", FLAGS)
def test_p2pk_and_every_flag_are_checked(flag: int) -> None:
    """Outputs locked to a bare key are unlocked by one signature, of any flag that the chain knows."""
    spent = TxOutput(1_000, b"\x21" + KEY.public_key.encoded + b"\xac")
    unsigned = Transaction((TxInput(OutPoint(TxId(bytes(32)), 0)),), (TxOutput(900, b"\x51"),))
    signature = KEY.sign_digest(signature_digest(unsigned, 0, spent, flag)) + bytes((flag,))
    signed = ExtendedTransaction(unsigned.with_scripts((encode_push(signature),)), (spent,))
    assert verify_spending(signed) == [InputVerdict.VERIFIED]
    for script in (b"", encode_push(signature) * 2, encode_push(OTHER.sign(b"") + bytes((flag,)))):
        with pytest.raises(ScriptFailed):
            verify_spending(_with_script(signed, script))


@given(inputs)
def test_other_scripts_are_counted_as_unchecked(item: TxInput) -> None:
    """What isn't interpreted is neither verified nor wrong."""
    if item.outpoint == NULL_OUTPOINT:
        return
    extended = ExtendedTransaction(Transaction((item,), (TxOutput(1, b""),)), (TxOutput(1, b"\x51"),))
    assert verify_spending(extended) == [InputVerdict.UNCHECKED]


def test_amounts_are_checked() -> None:
    """More out than in, more than all coins, an output spent twice, or a coinbase may not be."""
    item, output = TxInput(OutPoint(TxId(bytes(31) + b"\1"), 0)), TxOutput(5, b"\x51")

    def refuse(tx: Transaction, *spent: TxOutput) -> str:
        with pytest.raises(TransactionInvalid) as caught:
            verify_spending(ExtendedTransaction(tx, spent))
        return caught.value.detail

    assert "exceed its inputs by 1 satoshis" in refuse(Transaction((item,), (TxOutput(6, b""),)), output)
    assert "more than all coins" in refuse(Transaction((item,), (TxOutput(SATOSHIS_MAX + 1, b""),)), output)
    half = TxOutput(SATOSHIS_MAX // 2 + 1, b"")
    assert "more than all coins" in refuse(Transaction((item,), (half, half)), output)
    assert "an input is more" in refuse(Transaction((item,), (output,)), TxOutput(SATOSHIS_MAX + 1, b""))
    assert "twice" in refuse(Transaction((item, item), (output,)), output, output)
    null = TxInput(NULL_OUTPOINT)
    assert "coinbase" in refuse(Transaction((null,), (output,)), output)
    assert "no output in one" in refuse(Transaction((null, item), (output,)), output, output)
    verify_shape(Transaction((null,), (output,)))


def test_signing_with_the_wrong_key_is_refused() -> None:
    """A key that doesn't unlock the output signs nothing."""
    extended = spend(KEY, funding(KEY))
    with pytest.raises(ScriptFailed, match="doesn't unlock"):
        sign_transaction(extended.tx, extended.spent, [OTHER])


def test_lock_times() -> None:
    """Heights below the threshold, times from it on; final sequences switch it off."""

    def locked(lock_time: int, sequence: int = 0) -> Transaction:
        return Transaction((TxInput(NULL_OUTPOINT, b"", sequence),), (TxOutput(0, b""),), 1, lock_time)

    assert is_final(locked(0), 0, 0)
    assert is_final(locked(100, 0xFFFFFFFF), 1, 1)
    assert [is_final(locked(100), height, 10**9) for height in (99, 100, 101)] == [False, False, True]
    assert [is_final(locked(10**9), 500, time_s) for time_s in (10**9, 10**9 + 1)] == [False, True]

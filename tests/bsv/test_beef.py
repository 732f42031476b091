"""BEEF in its three forms, what it proves, and transactions in whatever form a wallet gives them."""

import pytest
from bsv_samples import damaged, flipped, funding, key_of, load, reads_or_refuses, refusal, spend
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.bsv.beef import Beef, BeefEntry, BeefVersion, assemble_beef, is_beef, parse_beef, verify_beef
from overlayd.bsv.blocktree import BlockTree
from overlayd.bsv.brought import BROUGHT_BYTES_MAX, Form, parse_brought
from overlayd.bsv.bump import Bump
from overlayd.bsv.octets import encode_varint
from overlayd.bsv.spending import sign_transaction, verify_spending
from overlayd.bsv.tx import ExtendedTransaction, OutPoint, Transaction, TxInput, TxOutput
from overlayd.model.errors import BlockUnknown, MalformedChainData, ScriptFailed, TransactionInvalid, VerificationFailed
from overlayd.model.txid import TxId, format_hash

SAMPLE = load("ts-sdk-2.1.0-generated")["tx"]
ROOT = bytes.fromhex(SAMPLE["root"])[::-1]
FORMS = {
    "beef": (BeefVersion.V1, False), "atomic": (BeefVersion.V1, True),
    "beefV2": (BeefVersion.V2, False), "atomicV2": (BeefVersion.V2, True),
}  # fmt: skip
KEY = key_of(11)


def root_at(height: int) -> bytes | None:
    """The made-up block of the sample."""
    return ROOT if height == SAMPLE["height"] else None


def family(generations: int, satoshis: int = 10_000) -> tuple[list[Transaction], Bump]:
    """A proven transaction and a line of descendants, each spending the one before; and the proof."""
    line = [funding(KEY, satoshis)]
    for _ in range(generations):
        line.append(spend(KEY, line[-1]).tx)
    return line, BlockTree(5, [TxId(bytes(31) + b"\1"), line[0].txid]).bump([line[0].txid])


def roots_of(*bumps: Bump) -> dict[int, bytes]:
    """Where the proofs lead."""
    return {bump.height: bump.root for bump in bumps}


@pytest.mark.parametrize("name", FORMS)
def test_wallets_beef_is_read_written_and_verified(name: str) -> None:
    """All four forms made by @bsv/sdk give the transaction, its Extended Format, and the same bytes again."""
    raw = bytes.fromhex(SAMPLE[name])
    beef = parse_beef(raw)
    version, is_atomic = FORMS[name]
    assert format_hash(beef.subject_tx.txid) == SAMPLE["txid"]
    assert beef.extended().encode().hex() == SAMPLE["ef"]
    assert beef.encode(version, is_atomic=is_atomic) == raw
    assert beef.subject_bump is None
    assert verify_beef(beef, root_at) == 0


@pytest.mark.parametrize("name", FORMS)
def test_no_byte_of_beef_can_change(name: str) -> None:
    """With any byte turned, it no longer proves the transaction. (The marks of a path's level 0 aren't proof.)"""
    raw = bytes.fromhex(SAMPLE[name])
    for at, changed in flipped(raw):
        try:
            beef = parse_beef(changed)
            verify_beef(beef, root_at)
        except (MalformedChainData, VerificationFailed):
            continue
        assert {raw[at], changed[at]} == {0, 2}
        assert beef.bumps[0].rows == parse_beef(raw).bumps[0].rows


@pytest.mark.parametrize("name", FORMS)
def test_roots_decide(name: str) -> None:
    """A path to another root proves nothing, and without a header the block is unknown: try again."""
    beef = parse_beef(bytes.fromhex(SAMPLE[name]))
    with pytest.raises(VerificationFailed, match="isn't the block's root") as caught:
        verify_beef(beef, lambda height: bytes(32))
    assert not caught.value.retryable
    with pytest.raises(BlockUnknown, match="no header"):
        verify_beef(beef, lambda height: None)


@settings(max_examples=300)
@given(st.one_of(*[damaged(bytes.fromhex(SAMPLE[name])) for name in FORMS], st.binary(max_size=100)))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    """Whatever the bytes, BEEF and the reader of any form give a value or raise their one error."""
    beef = reads_or_refuses(parse_beef, raw)
    assert beef is None or parse_beef(beef.encode(BeefVersion.V2)) == Beef(
        beef.bumps, beef.entries, beef.entries[-1].txid
    )
    brought = reads_or_refuses(parse_brought, raw)
    assert brought is None or brought.tx.txid


@given(st.integers(1, 6), st.integers(0, 5))
def test_a_line_of_unproven_transactions_is_verified(generations: int, damage: int) -> None:
    """Assembled BEEF holds exactly the ancestors, oldest first; a missing one or a broken script is found."""
    line, bump = family(generations)
    known = {tx.txid: (tx, bump if tx is line[0] else None) for tx in line}
    beef = assemble_beef(line[-1], known)
    assert [entry.tx for entry in beef.entries] == line
    assert verify_beef(beef, roots_of(bump).get) == 0
    assert parse_beef(beef.encode(is_atomic=True)) == beef
    victim = damage % generations + 1
    broken = line[victim].with_scripts((line[victim].inputs[0].script[:-1] + b"\0",))
    replaced = (*beef.entries[:victim], BeefEntry(broken.txid, broken), *beef.entries[victim + 1 :])
    with pytest.raises(VerificationFailed):
        verify_beef(
            Beef(beef.bumps, replaced, beef.subject if victim < generations else broken.txid), roots_of(bump).get
        )
    del known[line[victim - 1].txid]
    with pytest.raises(VerificationFailed, match="isn't known"):
        assemble_beef(line[-1], known)


def test_ancestors_of_several_blocks_and_paths() -> None:
    """Two parents of one block share a merged proof, a third of another block has its own."""
    parents = [funding(KEY, 1_000 + at, salt=at) for at in range(3)]
    tree, other = BlockTree(5, [parent.txid for parent in parents[:2]]), BlockTree(6, [parents[2].txid])
    children = [spend(KEY, parent).tx for parent in parents]
    joined = Transaction(
        tuple(TxInput(child.outpoint(0), b"\x51") for child in children), (TxOutput(1, b"\x51"),)
    )  # its own scripts are judged below
    known = {parent.txid: (parent, (tree if parent.txid in tree else other).bump([parent.txid])) for parent in parents}
    known |= {child.txid: (child, None) for child in children}
    beef = assemble_beef(joined, known)
    assert sorted(bump.height for bump in beef.bumps) == [5, 6]
    assert sorted(len(bump.txids) for bump in beef.bumps) == [1, 2]
    assert len(beef.entries) == 7
    assert parse_beef(beef.encode()) == beef
    with pytest.raises(ScriptFailed):
        verify_beef(beef, roots_of(*beef.bumps).get)


def test_a_proven_subject_needs_no_ancestors() -> None:
    """A mined transaction with its own path is enough, though what it spends isn't there."""
    line, bump = family(0)
    beef = Beef((bump,), (BeefEntry(line[0].txid, line[0], 0),), line[0].txid)
    assert verify_beef(beef, roots_of(bump).get) == 0
    assert beef.subject_bump == bump
    with pytest.raises(VerificationFailed, match="isn't given"):
        beef.extended()
    brought = parse_brought(beef.encode(is_atomic=True))
    assert (brought.form, brought.extended, brought.beef) == (Form.BEEF, None, beef)


def test_more_out_than_in_is_found() -> None:
    """Coins out of nothing are refused, though every script holds."""
    line, bump = family(0)
    rich = spend(KEY, line[0])
    greedy = Transaction(rich.tx.inputs, (TxOutput(10**9, b"\x51"),))
    beef = Beef((bump,), (BeefEntry(line[0].txid, line[0], 0), BeefEntry(greedy.txid, greedy)), greedy.txid)
    with pytest.raises(TransactionInvalid, match="exceed"):
        verify_beef(beef, roots_of(bump).get)


def test_two_ancestors_that_spend_one_output_are_found() -> None:
    """Each may spend it, both may not."""
    line, bump = family(0)
    one, two = spend(KEY, line[0]).tx, spend(KEY, line[0], rate=200).tx
    joined = Transaction((TxInput(one.outpoint(0)), TxInput(two.outpoint(0))), (TxOutput(1, b"\x51"),))
    known = {line[0].txid: (line[0], bump), one.txid: (one, None), two.txid: (two, None)}
    beef = assemble_beef(joined, known)
    signed = _sign_all(joined, (one.outputs[0], two.outputs[0]))
    entries = (*beef.entries[:-1], BeefEntry(signed.txid, signed))
    with pytest.raises(VerificationFailed, match="spend one output"):
        verify_beef(Beef(beef.bumps, entries, signed.txid), roots_of(bump).get)


def _sign_all(tx: Transaction, spent: tuple[TxOutput, ...]) -> Transaction:
    signed = sign_transaction(tx, spent, [KEY] * len(spent))
    verify_spending(ExtendedTransaction(signed, spent))
    return signed


def test_ancestors_by_txid_alone() -> None:
    """V2 may name one without its bytes; it is carried, but verifies nothing below it, and V1 can't hold it."""
    line, bump = family(1)
    beef = Beef((), (BeefEntry(line[0].txid, None), BeefEntry(line[1].txid, line[1])), line[1].txid)
    assert parse_beef(beef.encode(BeefVersion.V2)) == beef
    with pytest.raises(VerificationFailed, match="isn't given"):
        verify_beef(beef, roots_of(bump).get)
    alone = Beef((), (BeefEntry(line[0].txid, None),), line[0].txid)
    raw = alone.encode(BeefVersion.V2)
    with pytest.raises(VerificationFailed, match="by txid alone"):
        verify_beef(parse_beef(raw), roots_of(bump).get)
    assert "by txid alone" in refusal(parse_brought, raw)


def _raw(bumps: list[bytes], entries: list[bytes], subject: bytes | None = None, mark: str = "0100beef") -> bytes:
    atomic = b"" if subject is None else b"\1\1\1\1" + subject
    return b"".join((
        atomic, bytes.fromhex(mark), encode_varint(len(bumps)), *bumps, encode_varint(len(entries)), *entries,
    ))  # fmt: skip


LINE, BUMP = family(2)
PROVEN, CHILD, GRANDCHILD = (tx.raw for tx in LINE)
PROOF = BUMP.encode()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (_raw([], []), "no transaction"),
        (_raw([], [], mark="0300beef"), "no version"),
        (_raw([PROOF], [PROVEN + b"\1\0", PROVEN + b"\1\0"]), "stands twice"),
        (_raw([PROOF], [CHILD + b"\0", PROVEN + b"\1\0"]), "comes after"),
        (_raw([PROOF], [PROVEN + b"\1\1"]), "no BUMP 1"),
        (_raw([PROOF], [CHILD + b"\1\0"]), "isn't of"),
        (_raw([PROOF], [PROVEN + b"\2\0"]), "mark is 2"),
        (_raw([PROOF], [b"\3" + PROVEN], mark="0200beef"), "mark is 3"),
        (_raw([PROOF], [PROVEN + b"\1\0"]) + b"\0", "1 bytes too many"),
        (_raw([PROOF], [PROVEN + b"\1\0"])[:-1], "ends early"),
        (_raw([PROOF], [PROVEN + b"\1\0"], bytes(32)), "subject isn't in it"),
        (_raw([PROOF], [PROVEN + b"\1\0", CHILD + b"\0"], LINE[0].txid), "isn't an ancestor"),
        (b"\1\1\1\1" + bytes(32), "ends 4 bytes early"),
        (b"\x01\x00\xbe\xef\xfe\xff\xff\xff\xff", "more than its bytes can hold"),
    ],
)
def test_broken_beef_is_refused_for_its_reason(raw: bytes, reason: str) -> None:
    """Order, repeats, references, marks, lengths and unrelated transactions each have their words."""
    assert reason in refusal(parse_beef, raw)


def test_an_output_that_is_not_there_is_found() -> None:
    """An input must name an output that its parent has."""
    tx = Transaction((TxInput(LINE[0].outpoint(0)),), (TxOutput(1, b""),))
    beyond = Transaction((TxInput(OutPoint(LINE[0].txid, 7)),), tx.outputs)
    beef = parse_beef(_raw([PROOF], [PROVEN + b"\1\0", beyond.raw + b"\0"]))
    with pytest.raises(VerificationFailed, match="isn't there"):
        verify_beef(beef, roots_of(BUMP).get)


@pytest.mark.parametrize("name", ["raw", "ef", *FORMS])
@pytest.mark.parametrize("shape", ["hex", "HEX", "numbers", "bytes"])
def test_a_transaction_is_read_in_every_form_that_wallets_give(name: str, shape: str) -> None:
    """Raw, extended and BEEF, as hex in either case, as numbers or as bytes, are told apart by themselves."""
    text = SAMPLE[name]
    value = {"hex": text, "HEX": text.upper(), "numbers": list(bytes.fromhex(text)), "bytes": bytes.fromhex(text)}[
        shape
    ]
    brought = parse_brought(value)
    assert format_hash(brought.tx.txid) == SAMPLE["txid"]
    assert brought.form is {"raw": Form.RAW, "ef": Form.EXTENDED}.get(name, Form.BEEF)
    assert (brought.extended is None) == (name == "raw")
    assert (brought.beef is not None) == is_beef(bytes.fromhex(text))


@pytest.mark.parametrize(
    "value",
    ["", "0", "zz", "01 00", " 0100", "0100\n", [256], [-1], [True], [1.0], ["01"], [], "\u0660\u0661" * 40],
)
def test_what_is_not_bytes_is_refused(value: object) -> None:
    """Odd, foreign or spaced digits, and arrays of anything but bytes, raise the one error."""
    assert refusal(parse_brought, value)


def test_transactions_over_the_bound_are_refused() -> None:
    """The bound holds for every shape, before anything is converted."""
    size = len(SAMPLE["beef"]) // 2
    for value in (SAMPLE["beef"], list(bytes.fromhex(SAMPLE["beef"])), bytes.fromhex(SAMPLE["beef"])):
        assert "at most" in refusal(lambda brought: parse_brought(brought, bytes_max=size - 1), value)
        assert parse_brought(value, bytes_max=size).form is Form.BEEF
    assert "at most" in refusal(parse_brought, "00" * (BROUGHT_BYTES_MAX + 1))
    assert "at most" in refusal(lambda raw: parse_beef(raw, bytes_max=size - 1), bytes.fromhex(SAMPLE["beef"]))

"""Our chain formats beside @bsv/sdk's, an implementation in another language. A Node process answers for each test."""

import base64
import json
import random
from typing import Any

import msgspec
from bsv_samples import block_txids, funding, key_of, load, spend
from js_packages import needs_node, run_js

from overlayd.bsv.anchor import Anchor, AnchorKind, encode_anchor_script, find_anchor
from overlayd.bsv.base58 import address_of, format_wif
from overlayd.bsv.beef import Beef, BeefEntry, BeefVersion, assemble_beef, parse_beef, verify_beef
from overlayd.bsv.blocktree import BlockTree
from overlayd.bsv.brc42 import derive_private, derive_public
from overlayd.bsv.brc77 import parse_message_signature, sign_message
from overlayd.bsv.bump import merge_bumps
from overlayd.bsv.certificate import (
    NOT_REVOCABLE,
    Certificate,
    dictionary_key,
    parse_certificate,
    parse_certificate_json,
)
from overlayd.bsv.hashes import hash160
from overlayd.bsv.keys import ANYONE, PrivateKey
from overlayd.bsv.network import MAINNET, TESTNET
from overlayd.bsv.script import PushDrop, encode_pushdrop
from overlayd.bsv.spending import InputVerdict, verify_spending
from overlayd.bsv.tx import ExtendedTransaction, OutPoint, Transaction, TxInput, TxOutput, parse_extended
from overlayd.model.txid import TxId, format_hash

pytestmark = needs_node
RANDOM = random.Random(7)


def ask(*questions: dict[str, Any]) -> list[Any]:
    """The answers of @bsv/sdk; None where it refuses."""
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    answers = run_js("bsv-answer.mjs", text=lines)
    assert len(answers) == len(questions)
    return [answer.get("value") for answer in answers]


def octets(count: int) -> bytes:
    """The same chance every time."""
    return RANDOM.randbytes(count)


def some_key() -> PrivateKey:
    """A key of chance."""
    return PrivateKey(octets(32))


def some_transaction() -> ExtendedTransaction:
    """Inputs and outputs of chance, numbers that JavaScript can hold; it makes an output for every index below one."""
    inputs = tuple(
        TxInput(OutPoint(TxId(octets(32)), RANDOM.randrange(9)), octets(RANDOM.randrange(300)), RANDOM.randrange(2**32))
        for _ in range(RANDOM.randrange(1, 4))
    )
    outputs = tuple(
        TxOutput(RANDOM.randrange(2**52), octets(RANDOM.randrange(300))) for _ in range(RANDOM.randrange(1, 4))
    )
    tx = Transaction(inputs, outputs, RANDOM.randrange(2**31), RANDOM.randrange(2**32))
    return ExtendedTransaction(tx, tuple(TxOutput(RANDOM.randrange(2**52), octets(25)) for _ in inputs))


def test_transactions_agree() -> None:
    """Random transactions have the same txid and bytes, raw and extended."""
    sample = [some_transaction() for _ in range(40)]
    answers = ask(
        *({"ask": "transaction", "raw": item.tx.raw.hex()} for item in sample),
        *({"ask": "extended", "ef": item.encode().hex()} for item in sample),
    )
    for item, answer, ef in zip(sample, answers, answers[40:], strict=False):
        assert answer == {
            "txid": format_hash(item.tx.txid), "raw": item.tx.raw.hex(), "inputs": len(item.tx.inputs),
            "outputs": [output.satoshis for output in item.tx.outputs],
        }  # fmt: skip
        assert ef == item.encode().hex()


def test_merkle_paths_agree() -> None:
    """Paths of small blocks and of a mainnet block lead to the same roots, merged ones too."""
    trees = [BlockTree(900 + size, [TxId(octets(32)) for _ in range(size)]) for size in (1, 2, 3, 5, 8, 13)]
    trees.append(BlockTree(load("mainnet-block-948351")["height"], block_txids()))
    questions, expected = [], []
    for tree in trees:
        txids = list(tree._places)
        one, two = txids[0], txids[-1]
        merged = merge_bumps(tree.bump([one]), tree.bump([two]))
        for bump, txid in ((tree.bump([one]), one), (tree.bump([two]), two), (merged, one), (merged, two)):
            questions.append({"ask": "root", "bump": bump.encode().hex(), "txid": format_hash(txid)})
            expected.append(format_hash(tree.root))
        for _ in range(5):
            pair = [tree.bump([RANDOM.choice(txids[:9])]) for _ in range(2)]
            questions.append({"ask": "merge", "bump": pair[0].encode().hex(), "other": pair[1].encode().hex()})
            expected.append(merge_bumps(*pair).encode().hex())
    assert ask(*questions) == expected
    assert expected[-6] == load("mainnet-block-948351")["merkleRoot"]


def test_beef_made_here_is_verified_there() -> None:
    """Full SPV by @bsv/sdk takes our V1, V2 and Atomic BEEF at the right root, refuses them at another, reads them alike."""
    key = some_key()
    line = [funding(key)]
    for _ in range(3):
        line.append(spend(key, line[-1]).tx)
    bump = BlockTree(5, [TxId(octets(32)), line[0].txid, TxId(octets(32))]).bump([line[0].txid])
    beef = assemble_beef(line[-1], {tx.txid: (tx, bump if tx is line[0] else None) for tx in line})
    good, bad = {5: format_hash(bump.root)}, {5: "00" * 32}
    v1, v2 = beef.encode().hex(), beef.encode(BeefVersion.V2).hex()
    atomic = beef.encode(is_atomic=True).hex()
    txid = format_hash(beef.subject)
    answers = ask(
        {"ask": "beef", "beef": v1, "roots": good}, {"ask": "beef", "beef": v2, "roots": good},
        {"ask": "atomic", "beef": atomic, "roots": good}, {"ask": "beefV2", "beef": v2},
        {"ask": "beef", "beef": v1, "roots": bad}, {"ask": "atomic", "beef": atomic, "roots": bad},
    )  # fmt: skip
    for answer in answers[:2]:
        assert answer == {"txid": txid, "valid": True, "v1": v1, "ef": beef.extended().encode().hex()}
    assert answers[2] == {"txid": txid, "valid": True, "atomic": atomic}
    assert answers[3] == v2
    assert all(not answer or not answer["valid"] for answer in answers[4:])
    broken = line[-1].with_scripts((line[-1].inputs[0].script[:-1] + b"\0",))
    forged = Beef(beef.bumps, (*beef.entries[:-1], BeefEntry(broken.txid, broken)), broken.txid)
    (answer,) = ask({"ask": "beef", "beef": forged.encode().hex(), "roots": good})
    assert not answer or not answer["valid"]


def test_transactions_made_there_are_verified_here() -> None:
    """A commitment built, signed and extended with @bsv/sdk verifies here and is found among the outputs."""
    keys = [some_key() for _ in range(5)]
    anchors = [Anchor(AnchorKind.COMMITMENT, octets(32)) for _ in keys]
    answers = ask(*(
        {"ask": "spend", "key": key.secret.hex(), "parent": funding(key).raw.hex(), "rate": 25,
         "data": encode_anchor_script(anchor).hex()}
        for key, anchor in zip(keys, anchors, strict=True)
    ))  # fmt: skip
    for key, anchor, answer in zip(keys, anchors, answers, strict=True):
        extended = parse_extended(bytes.fromhex(answer["ef"]))
        assert format_hash(extended.tx.txid) == answer["txid"]
        assert verify_spending(extended) == [InputVerdict.VERIFIED]
        assert find_anchor(extended.tx, anchor) == 0
        assert extended.fee_sat == 25
        assert extended.spent[0] == funding(key).outputs[0]


def test_keys_agree() -> None:
    """Children, addresses, exported keys and key hashes are the same."""
    pairs = [(some_key(), some_key(), f"2-some protocol-{octets(6).hex()}") for _ in range(10)]
    children = ask(*(
        {"ask": "child", "key": one.secret.hex(), "other": two.public_key.hex(), "invoice": invoice}
        for one, two, invoice in pairs
    ))  # fmt: skip
    for (one, two, invoice), child in zip(pairs, children, strict=True):
        assert child["secret"] == derive_private(one, two.public_key, invoice).secret.hex()
        assert child["public"] == derive_public(two.public_key, one, invoice).hex()
    addresses = ask(*({"ask": "address", "key": one.secret.hex()} for one, _, _ in pairs))
    for (one, _, _), answer in zip(pairs, addresses, strict=True):
        assert answer == {
            "address": address_of(one.public_key, MAINNET), "test": address_of(one.public_key, TESTNET),
            "wif": format_wif(one, MAINNET),
        }  # fmt: skip
    data = [octets(size) for size in (0, 1, 33, 65, 200)]
    assert ask(*({"ask": "hash160", "data": item.hex()} for item in data)) == [hash160(item).hex() for item in data]


def test_signed_messages_agree() -> None:
    """Signatures of either side verify on the other, for anyone and for one, and fail on another message."""
    signer, verifier, message = some_key(), some_key(), octets(100)
    for key in (None, verifier):
        public = key.public_key if key else None
        ours = sign_message(message, signer, octets(32), public).encode()
        question = {"ask": "verifyMessage", "message": message.hex(), "signature": ours.hex()}
        question |= {"verifier": key.secret.hex()} if key else {}
        theirs, good, bad = ask(
            {"ask": "signMessage", "message": message.hex(), "key": signer.secret.hex(), "verifier": public and public.hex()},
            question, question | {"message": message.hex()[2:]},
        )  # fmt: skip
        assert good is True
        assert not bad
        assert parse_message_signature(bytes.fromhex(theirs)).verify(message, key or ANYONE) == signer.public_key


def test_pushdrops_agree() -> None:
    """What is written here is read there to the same key and fields, small numbers and long fields included."""
    key = some_key().public_key
    # 16 is left out: @bsv/sdk reads OP_16 back as nothing.
    fields = (b"a", b"\0", b"\1", b"\x0f", b"\x11", octets(75), octets(76), octets(300))
    (answer,) = ask({"ask": "pushdrop", "script": encode_pushdrop(PushDrop(key.encoded, fields)).hex()})
    assert answer == {"key": key.hex(), "fields": [field.hex() for field in fields]}


def test_certificates_agree() -> None:
    """Certificates of either side verify on the other; one with a changed field doesn't."""
    certifier, subject = some_key(), some_key().public_key
    fields = {"name": "QUJD", "zone": "", "age": "eHl6", "role": "cg=="}
    kind, serial = octets(32), octets(32)
    ours = Certificate(kind, serial, subject, certifier.public_key, NOT_REVOCABLE, fields).signed_by(certifier)
    forged = msgspec.structs.replace(ours, fields=fields | {"name": "QUJE"})
    question = {
        "ask": "issue", "certifier": certifier.secret.hex(), "subject": subject.hex(),
        "type": base64.b64encode(kind).decode(), "serial": base64.b64encode(serial).decode(), "fields": fields,
    }  # fmt: skip
    issued, good, bad, mixed = ask(
        question, {"ask": "certificate", "binary": ours.encode().hex()},
        {"ask": "certificate", "binary": forged.encode().hex()},
        question | {"fields": {"name": "QUJD", "Zone": "", "lastName": "eHl6", "last_name": "cg=="}},
    )  # fmt: skip
    assert good is True
    assert not bad
    assert bytes.fromhex(issued) == ours.encode()
    theirs = parse_certificate(bytes.fromhex(mixed))
    assert list(theirs.fields) == ["last_name", "lastName", "name", "Zone"] != sorted(theirs.fields)
    theirs.verify()
    parse_certificate_json(theirs.encode_json()).verify()
    parse_certificate(parse_certificate_json(theirs.encode_json()).encode()).verify()


def test_names_are_sorted_as_there() -> None:
    """Random names of printable ASCII stand in the order that JavaScript gives them."""
    letters = [chr(code) for code in range(0x20, 0x7F)]
    names = ["".join(RANDOM.choices(letters, k=RANDOM.randrange(1, 6))) for _ in range(500)] + letters
    assert ask({"ask": "sort", "names": names}) == [sorted(names, key=dictionary_key)]


def test_the_samples_say_what_wallets_say_now() -> None:
    """The recorded transaction and proofs are still what @bsv/sdk makes of them."""
    sample = load("ts-sdk-2.1.0-generated")["tx"]
    roots = {sample["height"]: sample["root"]}
    v1, atomic = ask(
        {"ask": "beef", "beef": sample["beef"], "roots": roots},
        {"ask": "atomic", "beef": sample["atomic"], "roots": roots},
    )
    assert v1["valid"]
    assert v1["ef"] == sample["ef"]
    assert atomic["valid"]
    assert (
        verify_beef(parse_beef(bytes.fromhex(atomic["atomic"])), lambda height: bytes.fromhex(sample["root"])[::-1])
        == 0
    )
    assert key_of(11).public_key.hex() in sample["raw"]

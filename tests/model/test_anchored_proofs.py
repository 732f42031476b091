"""Anchors of proof files: what a block shows, what it doesn't, and that no byte of a proof can be changed."""

import json
from functools import cache
from hashlib import sha256
from typing import Any

import make_vectors
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.bsv.anchor import Anchor, AnchorKind, anchor_output
from overlayd.bsv.blocktree import BlockTree
from overlayd.bsv.brc77 import sign_message
from overlayd.bsv.chain_check import ChainCheck, anchor_of
from overlayd.bsv.header import BlockHeader, encode_header, parse_header
from overlayd.bsv.keys import PrivateKey
from overlayd.bsv.known_headers import KnownHeaders, parse_headers_file
from overlayd.bsv.network import MAINNET, REGTEST
from overlayd.bsv.tx import OutPoint, Transaction, TxInput, TxOutput
from overlayd.model.entry import SIGNATURE_PREFIX
from overlayd.model.errors import RegtestAnchor, VerificationFailed
from overlayd.model.note import CheckpointText
from overlayd.model.proof import (
    Proof,
    ProofAnchor,
    TrustedKeys,
    Verdict,
    decode_proof,
    encode_proof,
    verify_proof,
)
from overlayd.model.txid import TxId, format_hash

PROOFS = {vector["name"]: vector for vector in make_vectors.proof_vectors()}
OPENED = decode_proof(PROOFS["opened, producer's commitment"]["json"].encode())
TRUSTED = TrustedKeys((make_vectors.SIGNER.key,))
assert OPENED.sealed is not None
COMMITMENT = bytes.fromhex(OPENED.sealed.commitment.removeprefix("sha256:"))
LINES = "".join(f"{line}\n" for line in OPENED.checkpoint.split("\n")[:3])
BATCH = Anchor(AnchorKind.CHECKPOINT, sha256(LINES.encode()).digest())
SINGLE = Anchor(AnchorKind.COMMITMENT, COMMITMENT)
OTHERS = [TxId(bytes((number,)) * 32) for number in range(1, 6)]


def committing_tx(anchor: Anchor) -> Transaction:
    """A transaction that commits to it in its second output."""
    spent = TxInput(OutPoint(TxId(bytes(31) + b"\x09"), 0), b"\x51")
    return Transaction((spent,), (TxOutput(1, b"\x51"), anchor_output(anchor)))


def mine(previous: BlockHeader, merkle_root: bytes) -> BlockHeader:
    """A block on top of another, with regtest's work."""
    for nonce in range(1000):
        header = parse_header(
            encode_header(
                version=4, previous=previous.hash, merkle_root=merkle_root, time_s=previous.time_s + 600,
                bits=REGTEST.limit_bits, nonce=nonce,
            )
        )  # fmt: skip
        if int.from_bytes(header.hash, "little") <= header.target:
            return header
    raise AssertionError


def branch(previous: BlockHeader, count: int) -> list[BlockHeader]:
    """Blocks on top of another."""
    headers = [previous]
    for number in range(count):
        headers.append(mine(headers[-1], bytes((number,)) * 32))
    return headers[1:]


def block_of(tx: Transaction) -> tuple[BlockHeader, bytes]:
    """A regtest block with the transaction as its fourth, and its BUMP."""
    tree = tree_of(tx)
    return mine(REGTEST.genesis, tree.bump([tx.txid]).root), tree.bump([tx.txid]).encode()


def tree_of(tx: Transaction) -> BlockTree:
    """The block's transactions."""
    return BlockTree(1, [*OTHERS[:3], tx.txid, *OTHERS[3:]])


@cache
def anchored(anchor: Anchor) -> tuple[Proof, KnownHeaders]:
    """The vectors' proof with a block, and a chain of headers that holds it under two others."""
    tx = committing_tx(anchor)
    header, bump = block_of(tx)
    proof = msgspec.structs.replace(OPENED, anchor=anchor_of("regtest", tx.raw, bump, header.raw, 1, 1))
    return proof, KnownHeaders((REGTEST.genesis, header, *branch(header, 2)))


def verify(proof: Proof, headers: KnownHeaders | None, *, allow_regtest: bool = True) -> Verdict:
    """The verdict on a proof file as it was written."""
    chain = ChainCheck(headers, allow_regtest=allow_regtest)
    return verify_proof(decode_proof(encode_proof(proof)), TRUSTED, chain)


@pytest.mark.parametrize("anchor", [SINGLE, BATCH], ids=["packet", "batch"])
def test_a_block_of_the_given_headers_dates_a_proof(anchor: Anchor) -> None:
    """The verdict names transaction, block and depth, and says what the block doesn't show."""
    proof, headers = anchored(anchor)
    verdict = verify(proof, headers)
    found = verdict.anchor
    assert verdict.level == "anchored"
    assert not verdict.is_witnessed
    assert found is not None
    assert (found.is_in_chain, found.height, found.confirmations) == (True, 1, 3)
    assert found.covers == ("commitment" if anchor is SINGLE else "checkpoint")
    assert found.block == format_hash(headers.headers[1].hash)
    assert found.txid == format_hash(committing_tx(anchor).txid)
    words = " ".join(verdict.not_proven)
    assert "3 block(s) of the given headers" in words
    assert "anybody makes at home" in words
    assert ("The packet's place in the log" in words) == (anchor is SINGLE)
    assert ("everybody is shown the same history" in words) == (anchor is SINGLE)
    assert ("others may have been shown another one" in words) == (anchor is BATCH)


@pytest.mark.parametrize("anchor", [SINGLE, BATCH], ids=["packet", "batch"])
def test_every_byte_of_an_anchored_proof_counts(anchor: Anchor) -> None:
    """One bit of each byte of the file, flipped, breaks it."""
    proof, headers = anchored(anchor)
    raw = encode_proof(proof)
    chain = ChainCheck(headers, allow_regtest=True)
    assert verify_proof(decode_proof(raw), TRUSTED, chain).level == "anchored"
    for at in range(len(raw)):
        broken = raw[:at] + bytes([raw[at] ^ 1 << (at * 5) % 8]) + raw[at + 1 :]
        with pytest.raises(VerificationFailed):
            verify_proof(decode_proof(broken), TRUSTED, chain)


@given(st.data())
def test_no_bit_of_an_anchor_can_be_changed(data: st.DataObject) -> None:
    """Any bits of any octets of transaction, path and header, flipped and written well again, break the proof."""
    proof, headers = anchored(data.draw(st.sampled_from([SINGLE, BATCH])))
    assert proof.anchor is not None
    name = data.draw(st.sampled_from(["tx", "bump", "header"]))
    octets = bytearray.fromhex(getattr(proof.anchor, name))
    for at in data.draw(st.sets(st.integers(0, len(octets) - 1), min_size=1, max_size=4)):
        octets[at] ^= data.draw(st.integers(1, 255))
    changed = msgspec.structs.replace(proof.anchor, **{name: octets.hex()})
    with pytest.raises(VerificationFailed):
        verify(msgspec.structs.replace(proof, anchor=changed), headers)


def change(**members: Any) -> tuple[Proof, KnownHeaders]:
    """The batch proof with members of its anchor changed."""
    proof, headers = anchored(BATCH)
    assert proof.anchor is not None
    return msgspec.structs.replace(proof, anchor=msgspec.structs.replace(proof.anchor, **members)), headers


def other_spellings() -> list[dict[str, Any]]:
    """Members that mean the same to a careless reader, or something else."""
    proof, _ = anchored(BATCH)
    anchor = proof.anchor
    assert anchor is not None
    tx = committing_tx(BATCH)
    both = tree_of(tx).bump([tx.txid, OTHERS[0]]).encode().hex()
    return [
        {"tx": anchor.tx.upper()}, {"bump": anchor.bump.upper()}, {"header": anchor.header[:2] + " " + anchor.header[2:]},
        {"tx": anchor.tx + "00"}, {"bump": both}, {"header": anchor.header + "00"}, {"height": 2}, {"height": -1},
        {"output_index": 0}, {"output_index": 2}, {"output_index": -1}, {"network": "Regtest"}, {"network": "mainnet"},
        {"tx": "zz"}, {"bump": ""}, {"header": ""},
    ]  # fmt: skip


@pytest.mark.parametrize("members", other_spellings(), ids=lambda members: f"{members}"[:30])
def test_there_is_one_spelling(members: dict[str, Any]) -> None:
    """Other letters, more paths than needed, other places: all refused, with or without headers."""
    proof, headers = change(**members)
    for known in (headers, None):
        with pytest.raises(VerificationFailed):
            verify(proof, known)


def test_regtest_fails_unless_it_is_allowed() -> None:
    """By an error of its own, with headers or without; but what is broken is broken first."""
    proof, headers = anchored(BATCH)
    for known in (headers, None):
        with pytest.raises(RegtestAnchor):
            verify(proof, known, allow_regtest=False)
    broken, _ = change(output_index=0)
    with pytest.raises(VerificationFailed, match="commits to nothing"):
        verify(broken, headers, allow_regtest=False)


def test_without_headers_a_block_dates_nothing() -> None:
    """Transaction, path and header fit, which is said, and the level stays; so where the headers end before the block."""
    proof, headers = anchored(BATCH)
    for known in (None, KnownHeaders(headers.headers[:1]), KnownHeaders(headers.headers[2:], 2)):
        verdict = verify(proof, known)
        assert verdict.level == "signed"
        assert verdict.anchor is not None
        assert (verdict.anchor.is_checked, verdict.anchor.is_in_chain) == (True, False)
        words = " ".join(verdict.not_proven)
        assert "compared with no others" in words
        assert "no block dates this proof" in words
        assert "everybody is shown the same history" in words


def test_a_block_that_the_headers_dont_have_is_refused() -> None:
    """Another block stands at that height: the proof is of a branch that was left, or made up."""
    proof, _ = anchored(BATCH)
    with pytest.raises(VerificationFailed, match="another block at height 1"):
        verify(proof, KnownHeaders((REGTEST.genesis, *branch(REGTEST.genesis, 1))))


@pytest.mark.parametrize(("anchor", "words"), [
    (Anchor(AnchorKind.COMMITMENT, bytes(32)), "another packet"), (Anchor(AnchorKind.CHECKPOINT, bytes(32)), "another checkpoint"),
    (Anchor(AnchorKind.CHECKPOINT, COMMITMENT), "another checkpoint"), (Anchor(AnchorKind.COMMITMENT, BATCH.hash), "another packet"),
])  # fmt: skip
def test_a_block_about_something_else_is_refused(anchor: Anchor, words: str) -> None:
    """Another packet's, another checkpoint's, or the right hash under the wrong kind."""
    proof, headers = anchored(anchor)
    with pytest.raises(VerificationFailed, match=words):
        verify(proof, headers)


def test_a_commitment_that_nothing_opens_is_in_no_block() -> None:
    """Without the opening, or with a packet that has none, a block of a commitment shows nothing."""
    proof, headers = anchored(SINGLE)
    with pytest.raises(VerificationFailed, match="another packet"):
        verify(msgspec.structs.replace(proof, sealed=None), headers)


def test_a_header_without_work_is_refused_even_alone() -> None:
    """Nobody has to hold headers to see that."""
    proof, _ = anchored(BATCH)
    assert proof.anchor is not None
    raw = bytearray.fromhex(proof.anchor.header)
    raw[72:76] = (0x1D00FFFF).to_bytes(4, "little")
    broken = msgspec.structs.replace(proof, anchor=msgspec.structs.replace(proof.anchor, header=raw.hex()))
    with pytest.raises(VerificationFailed, match="lacks the work"):
        verify(broken, None)


def test_headers_are_read_in_both_forms() -> None:
    """What a node serves, and raw headers from the first block on or from a block that this program knows."""
    _, headers = anchored(BATCH)
    raw = b"".join(header.raw for header in headers.headers)
    assert parse_headers_file(raw) == headers
    listed = [
        {"height": 4 + place, "hash": format_hash(one.hash), "raw": one.raw.hex()}
        for place, one in enumerate(headers.headers)
    ]
    parsed = parse_headers_file(json.dumps({"headers": listed}).encode())
    assert (parsed.headers, parsed.first_height) == (headers.headers, 4)
    assert parse_headers_file(raw).find(REGTEST, 1)[1] == 3
    pin = MAINNET.pins[-1]
    assert KnownHeaders((pin.header,)).find(MAINNET, pin.height) == (pin.header, 1)


@pytest.mark.parametrize("raw", [
    b"", b"{}", b'{"headers": []}', b'{"headers": [{"height": 1, "raw": "00"}]}', b'{"headers": 1}', bytes(79), b"{" * 100_000,
    b'{"headers": [{"height": -1, "raw": "' + REGTEST.genesis.raw.hex().encode() + b'"}]}',
])  # fmt: skip
def test_what_isnt_a_file_of_headers_is_refused(raw: bytes) -> None:
    """Nothing else is ever raised."""
    with pytest.raises(VerificationFailed):
        parse_headers_file(raw)


def test_headers_that_break_the_rules_are_refused() -> None:
    """A gap, a foreign first block, another network's, one without work."""
    first, second, third = branch(REGTEST.genesis, 3)
    lazy = parse_header(first.raw[:72] + (0x1D00FFFF).to_bytes(4, "little") + first.raw[76:])
    bad = [
        (KnownHeaders((first, third), 1), REGTEST), (KnownHeaders((second, third)), REGTEST),
        (KnownHeaders((lazy,), 1), REGTEST), (KnownHeaders((first,), 0), REGTEST), (KnownHeaders((first,), 1), MAINNET),
        (KnownHeaders((MAINNET.pins[-1].header,), 5), REGTEST), (KnownHeaders((first,), 1, network="regtest"), MAINNET),
        (KnownHeaders(()), REGTEST),
    ]  # fmt: skip
    for known, network in bad:
        with pytest.raises(VerificationFailed):
            known.find(network, 1)


def test_a_producers_signature_is_checked() -> None:
    """Its key is named; another commitment, another form or one made for a single verifier is refused."""
    key, chain = PrivateKey((5).to_bytes(32, "big")), ChainCheck()
    signature = sign_message(SIGNATURE_PREFIX + COMMITMENT, key, bytes(32))

    def written(octets: bytes) -> bytes:
        return msgspec.json.encode(octets)

    assert chain.check_signature(written(signature.encode()), COMMITMENT) == key.public_key.encoded.hex()
    for_one = sign_message(SIGNATURE_PREFIX + COMMITMENT, key, bytes(32), PrivateKey(b"\x01" * 32).public_key)
    for meta, commitment in [
        (written(signature.encode()), bytes(32)), (written(for_one.encode()), COMMITMENT), (b'"c2ln"', COMMITMENT),
        (b"1", COMMITMENT), (b'"!"', COMMITMENT),
    ]:  # fmt: skip
        with pytest.raises(VerificationFailed):
            chain.check_signature(meta, commitment)


def test_an_anchor_is_written_with_its_own_path_alone() -> None:
    """Of a BUMP that proves many, only what is needed goes into the file."""
    tx = committing_tx(BATCH)
    tree = tree_of(tx)
    many = tree.bump([tx.txid, OTHERS[0]]).encode()
    made = anchor_of("regtest", tx.raw, many, block_of(tx)[0].raw, 1, 1)
    assert isinstance(made, ProofAnchor)
    assert made.bump == tree.bump([tx.txid]).encode().hex()
    text = CheckpointText.parse(LINES)
    assert ChainCheck(allow_regtest=True).check_anchor(made, text, None).covers == "checkpoint"

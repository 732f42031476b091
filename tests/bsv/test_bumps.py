"""Merkle paths: vectors, a real block, damage, merging and cutting."""

import random

import pytest
from bsv_samples import block_txids, damaged, flipped, load, reads_or_refuses, refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.bsv.blocktree import BlockTree, merkle_root
from overlayd.bsv.bump import LEVELS_MAX, Bump, extract_bump, make_bump, merge_bumps, parse_bump
from overlayd.bsv.hashes import hash256
from overlayd.bsv.header import parse_header
from overlayd.bsv.octets import encode_varint
from overlayd.model.errors import MalformedChainData, VerificationFailed
from overlayd.model.txid import TxId, format_hash

VECTORS = load("bump-valid-invalid")
SAMPLE = load("mainnet-block-948351")
HEADER = parse_header(bytes.fromhex(SAMPLE["header_hex"]))


def txids_of(count: int) -> list[TxId]:
    """Made-up txids."""
    return [TxId(hash256(at.to_bytes(4, "big"))) for at in range(count)]


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=range(2))
def test_valid_vectors_are_read_and_written(vector: dict[str, str]) -> None:
    """Both lead to a root and encode to the same bytes again."""
    bump = parse_bump(bytes.fromhex(vector["bump"]))
    assert bump.encode().hex() == vector["bump"]
    bump.verify(bump.txids[0], bump.root)


REASONS = {
    "Invalid offset: 12, at height: 1, with legal offsets: 413": "invalid offset 12 at level 1",
    "Duplicate offset: 413, at height: 1": "offset 413 stands twice at level 1",
    "Duplicate offset: 231, at height: 3": "offset 231 stands twice at level 3",
    # It announces 12 levels and holds 11, the first being missing; others find that later.
    "Missing hash for index 923 at height 0": "ends early",
    "Missing hash for index 1844 at height 6": "missing hash for index 29 at level 6",
    "Mismatched roots": "mismatched roots",
}
"""The vectors' words and ours. They name the transaction's place, we that of the node: 1844 >> 6 is 28, next to 29."""


@pytest.mark.parametrize("vector", VECTORS["invalid"], ids=lambda vector: vector["error"][:20])
def test_invalid_vectors_are_refused_for_their_reason(vector: dict[str, str]) -> None:
    """Each of the six is refused for what is wrong with it."""
    assert REASONS[vector["error"]] in refusal(parse_bump, bytes.fromhex(vector["bump"]))


def test_a_path_without_its_first_level_is_refused() -> None:
    """The vector that lacks level 0, with the count of levels put right, lacks a neighbour there."""
    (raw,) = [bytes.fromhex(vector["bump"]) for vector in VECTORS["invalid"] if "index 923" in vector["error"]]
    assert raw[5] == 12
    assert "missing hash for index 922 at level 0" in refusal(parse_bump, raw[:5] + b"\x0b" + raw[6:])


def test_every_transaction_of_a_real_block_is_proven() -> None:
    """1911 proofs cut from a mainnet block lead to its header's root, and to no other transaction's."""
    txids = block_txids()
    tree = BlockTree(SAMPLE["height"], txids)
    assert len(txids) == 1911
    assert tree.root == HEADER.merkle_root == merkle_root(txids)
    for place, txid in enumerate(txids):
        bump = parse_bump(tree.bump([txid]).encode())
        bump.verify(txid, HEADER.merkle_root)
        assert bump.find(txid) == place
        assert bump.txids == [txid]
    with pytest.raises(VerificationFailed, match="isn't of this transaction"):
        bump.verify(txids[0], HEADER.merkle_root)
    for txid, picked in SAMPLE["picked"].items():
        assert format_hash(txids[picked["index"]]) == txid


@given(st.integers(1, 70), st.data())
def test_proofs_of_blocks_of_any_size(count: int, data: st.DataObject) -> None:
    """Any set of any block's transactions has one Bump, which comes back from its bytes and leads to the root."""
    txids = txids_of(count)
    chosen = data.draw(st.lists(st.sampled_from(txids), min_size=1, unique=True))
    tree = BlockTree(7, txids)
    bump = tree.bump(chosen)
    assert parse_bump(bump.encode()) == bump
    assert sorted(bump.txids) == sorted(chosen)
    for txid in chosen:
        bump.verify(txid, tree.root)
    assert txids[0] in tree
    assert TxId(bytes(32)) not in tree


@given(st.integers(2, 40), st.data())
def test_merging_and_cutting_are_each_others_reverse(count: int, data: st.DataObject) -> None:
    """Merged single proofs are the proof of all; what is cut from it are the single ones again."""
    txids = txids_of(count)
    tree = BlockTree(7, txids)
    chosen = data.draw(st.lists(st.sampled_from(txids), min_size=2, max_size=6))
    merged = tree.bump(chosen[:1])
    for txid in chosen[1:]:
        merged = merge_bumps(merged, tree.bump([txid]))
    assert merged == tree.bump(chosen)
    for txid in chosen:
        assert extract_bump(merged, [txid]) == tree.bump([txid])
    assert extract_bump(tree.bump(txids), chosen) == tree.bump(chosen)


def test_proofs_of_different_blocks_are_not_merged() -> None:
    """Height, root and levels must agree; and only what a Bump holds can be cut from it."""
    txids = txids_of(9)
    bump = BlockTree(7, txids).bump(txids[:1])
    for other in (BlockTree(8, txids), BlockTree(7, txids[:5])):
        with pytest.raises(VerificationFailed, match="different blocks"):
            merge_bumps(bump, other.bump(txids[:1]))
    with pytest.raises(VerificationFailed, match="isn't of this transaction"):
        extract_bump(bump, [txids[8]])


def _verifies(raw: bytes, txid: TxId, height: int, root: bytes) -> bool:
    try:
        bump = parse_bump(raw)
        bump.verify(txid, root)
    except (MalformedChainData, VerificationFailed):
        return False
    return bump.height == height


@pytest.mark.parametrize("count", [1, 2, 3, 7, 11])
def test_no_byte_of_a_proof_can_change(count: int) -> None:
    """With any bit turned, a proof no longer leads from its transaction to the root at its height.

    Except for the marks of level 0, hash or txid, which only say who asked.
    """
    txids = txids_of(count)
    tree = BlockTree(700_000, txids)
    for txid in txids:
        raw = tree.bump([txid]).encode()
        for at in range(len(raw)):
            for bit in range(8):
                changed = raw[:at] + bytes((raw[at] ^ 1 << bit,)) + raw[at + 1 :]
                if _verifies(changed, txid, 700_000, tree.root):
                    assert {raw[at], changed[at]} == {0, 2}
                    assert parse_bump(changed).rows == parse_bump(raw).rows


def test_no_byte_of_a_real_proof_can_change() -> None:
    """The same for a proof of 11 levels, a bit of each byte."""
    txid = block_txids()[1000]
    raw = BlockTree(SAMPLE["height"], block_txids()).bump([txid]).encode()
    for at, changed in flipped(raw):
        if _verifies(changed, txid, SAMPLE["height"], HEADER.merkle_root):
            assert {raw[at], changed[at]} == {0, 2}


@settings(max_examples=300)
@given(st.one_of(damaged(bytes.fromhex(VECTORS["valid"][0]["bump"])), st.binary(max_size=120)))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    """Whatever the bytes, the parser gives a sound Bump or raises its one error."""
    bump = reads_or_refuses(parse_bump, raw)
    assert bump is None or parse_bump(bump.encode()) == bump


def _encode(rows: list[list[tuple[int, int, bytes]]], levels: int | None = None) -> bytes:
    parts = [b"\x07", bytes((len(rows) if levels is None else levels,))]
    for row in rows:
        parts.append(encode_varint(len(row)))
        parts += [encode_varint(offset) + bytes((flag,)) + value for offset, flag, value in row]
    return b"".join(parts)


A, B, C = txids_of(3)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (_encode([]), "0 levels"),
        (_encode([[(0, 2, A)]] + [[]] * LEVELS_MAX), "65 levels"),
        (b"\xff" + b"\xff" * 8 + b"\x01\x00", "block height"),
        (_encode([[]]), "no leaves"),
        (_encode([[(0, 2, A)], []]), "missing hash for index 1 at level 0"),
        (_encode([[(1, 2, A)]]), "missing hash for index 0"),
        (_encode([[(1, 1, b"")]]), "missing hash for index 0"),
        (_encode([[(0, 1, b""), (1, 2, A)]]), "only a right side"),
        (_encode([[(0, 3, A), (1, 0, B)]]), "flag 3 at level 0"),
        (_encode([[(0, 2, A), (1, 0, B)], [(1, 2, C)]]), "flag 2 at level 1"),
        (_encode([[(0, 2, A), (1, 0, A)]]), "repeats its neighbour unmarked"),
        (_encode([[(2, 2, A), (3, 0, B)]]), "beyond 1 levels"),
        (_encode([[(0, 2, A), (1, 0, B)], [(1, 0, C), (0, 0, C)]]), "mismatched roots"),
        (_encode([[(0, 2, A), (1, 0, B)], [(1, 0, hash256(A + B))]]), "repeats its neighbour"),
        (_encode([[(0, 2, A), (1, 0, B), (2, 0, C)]]), "missing hash for index 3 at level 0"),
        (_encode([[(0, 2, A), (1, 0, B)]]) + b"\0", "1 bytes too many"),
        (_encode([[(0, 2, A), (1, 0, B[:-1])]]), "ends early"),
        (b"\x07\x01\xfd\xff\xff", "more than its bytes can hold"),
    ],
)
def test_broken_paths_are_refused_for_their_reason(raw: bytes, reason: str) -> None:
    """Each rule of the format, and the trick of repeating a block's last transactions, has its words."""
    assert reason in refusal(parse_bump, raw)


def test_a_redundant_hash_is_taken_when_it_is_right() -> None:
    """What follows from lower levels may be said again, as some software does, if it is the same."""
    raw = _encode([[(0, 2, A), (1, 0, B)], [(0, 0, hash256(A + B)), (1, 0, C)]])
    assert parse_bump(raw).root == hash256(hash256(A + B) + C)


def test_a_proof_over_the_bound_is_refused() -> None:
    """The bound on bytes is looked at before anything is read."""
    raw = _encode([[(0, 2, A), (1, 0, B)]])
    assert "at most" in refusal(lambda octets: parse_bump(octets, bytes_max=len(raw) - 1), raw)
    assert parse_bump(raw, bytes_max=len(raw)).root == hash256(A + B)


def test_many_leaves_cost_what_they_weigh() -> None:
    """All 1911 transactions of a block in one Bump, in any order on the wire, lead to the root."""
    txids = block_txids()
    bump = BlockTree(SAMPLE["height"], txids).bump(txids)
    rows = [dict(random.Random(at).sample(list(row.items()), len(row))) for at, row in enumerate(bump.rows)]
    shuffled: Bump = make_bump(bump.height, rows, bump.txid_offsets)
    assert shuffled.root == HEADER.merkle_root
    assert parse_bump(shuffled.encode()) == bump

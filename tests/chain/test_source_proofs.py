"""TSC proofs turned into BUMP: every place of every tree, and nothing that isn't a proof."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
from fakes.fake_desk import tsc_nodes
from hypothesis import given
from hypothesis import strategies as st

from overlayd.bsv.blocktree import BlockTree
from overlayd.bsv.bump import parse_bump
from overlayd.bsv.hashes import hash256
from overlayd.chain.sources.faults import words_of
from overlayd.chain.sources.proofs import convert_tsc, read_bump
from overlayd.model.errors import MalformedChainData
from overlayd.model.txid import TxId

DATA = Path(__file__).parents[1] / "data" / "bsv"


def _txids(count: int) -> list[TxId]:
    return [TxId(hash256(number.to_bytes(4, "little"))) for number in range(count)]


@given(st.integers(1, 40), st.data(), st.booleans())
def test_every_place_of_every_tree_is_converted(size: int, data: st.DataObject, is_written_out: bool) -> None:
    """Copies as `*` or written out: the BUMP is the very one that is cut from the block."""
    txids = _txids(size)
    place = data.draw(st.integers(0, size - 1))
    expected = BlockTree(77, txids).bump([txids[place]])
    nodes = tsc_nodes(expected, place, txids[place], is_written_out=is_written_out)
    bump = convert_tsc(txids[place], place, nodes, 77)
    assert bump.encode() == expected.encode()
    assert bump.root == BlockTree(77, txids).root


@given(st.integers(2, 40), st.data())
def test_a_changed_proof_leads_elsewhere_or_nowhere(size: int, data: st.DataObject) -> None:
    """Another place, another node, another transaction, a node more or less: never the block's root."""
    txids = _txids(size)
    place = data.draw(st.integers(0, size - 1))
    tree = BlockTree(77, txids)
    nodes = tsc_nodes(tree.bump([txids[place]]), place, txids[place])
    level = data.draw(st.integers(0, len(nodes) - 1))
    other = f"{int(nodes[level], 16) ^ 1:064x}" if nodes[level] != "*" else "11" * 32
    for txid, index, changed in [
        (TxId(hash256(b"other")), place, nodes), (txids[place], place ^ (1 << level), nodes),
        (txids[place], place, [*nodes[:level], other, *nodes[level + 1 :]]),
        (txids[place], place, [*nodes, "22" * 32]), (txids[place], place, nodes[:-1]),
    ]:  # fmt: skip
        with suppress(MalformedChainData):
            assert convert_tsc(txid, index, changed, 77).root != tree.root


@given(st.integers(-5, 1 << 40), st.lists(st.text(max_size=70) | st.just("*") | st.just("ab" * 32), max_size=70))
def test_nothing_else_is_ever_raised(index: int, nodes: list[str]) -> None:
    """Whatever stands in a proof, it is one or it is malformed."""
    try:
        bump = convert_tsc(TxId(bytes(32)), index, nodes, 5)
    except MalformedChainData:
        return
    assert parse_bump(bump.encode()).root == bump.root


def test_the_proof_of_a_real_transaction_is_converted() -> None:
    """A block of mainnet with 1911 transactions, whose header holds its root."""
    sample = json.loads((DATA / "mainnet-block-948351.json").read_text())
    raw = bytes.fromhex(sample["txids_internal_order_hex_coinbase_substituted"])
    txids = [TxId(raw[at : at + 32]) for at in range(0, len(raw), 32)]
    tree = BlockTree(948_351, txids)
    for place in (0, 7, 1000, len(txids) - 1):
        nodes = tsc_nodes(tree.bump([txids[place]]), place, txids[place])
        assert convert_tsc(txids[place], place, nodes, 948_351).root == tree.root


def test_a_bump_must_be_of_the_transaction() -> None:
    """One of a neighbour isn't; hex that isn't hex neither."""
    txids = _txids(6)
    bump = BlockTree(3, txids).bump([txids[2]])
    assert read_bump(bump.encode().hex(), txids[2]).root == bump.root
    for text, txid in [(bump.encode().hex(), txids[5]), ("zz", txids[2]), ("", txids[2]), ("00" * 9, txids[2])]:
        with pytest.raises(MalformedChainData):
            read_bump(text, txid)


@given(st.text(max_size=3000))
def test_foreign_words_are_bounded_and_on_one_line(text: str) -> None:
    """What a source says goes into logs and answers."""
    words = words_of(text)
    assert len(words) <= 400
    assert words.isprintable()
    assert words_of(words) == words

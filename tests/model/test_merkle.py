"""The tree: against RFC 6962's recursive definitions, the RFC's own numbers, and C2SP tiles."""

import hashlib

import independent_log_format as independent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.model.errors import VerificationFailed
from overlayd.model.merkle import (
    EMPTY_ROOT,
    TILE_WIDTH,
    Node,
    consistency_nodes,
    fold_span,
    frontier_nodes,
    hash_spans,
    inclusion_nodes,
    node_hash,
    root_of,
    span_nodes,
    tile_of,
    verify_consistency,
    verify_inclusion,
)

LEAVES = [hashlib.sha256(b"%d" % index).digest() for index in range(70)]


def read_node(node: Node) -> bytes:
    """A complete subtree's hash, by the second implementation."""
    level, index = node
    assert (index + 1) << level <= len(LEAVES), "not a complete subtree of what is there"
    return independent.tree_hash(LEAVES[index << level : (index + 1) << level])


def test_roots_of_certificate_transparency():
    """The well-known roots of the first inputs of the certificate-transparency tests."""
    inputs = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    roots = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ]
    leaves = [hashlib.sha256(b"\0" + bytes.fromhex(text)).digest() for text in inputs]
    assert [root_of(leaves[:size]).hex() for size in range(9)] == roots


@pytest.mark.parametrize("size", range(0, 70, 3))
def test_frontier_is_the_root(size):
    """A tree's complete subtrees, folded, are its root, and each is smaller than the one before."""
    span = frontier_nodes(size)
    assert (
        fold_span([read_node(node) for node in span]) == independent.tree_hash(LEAVES[:size]) == root_of(LEAVES[:size])
    )
    levels = [level for level, _ in span]
    assert levels == sorted(set(levels), reverse=True)


@pytest.mark.parametrize("size", [*range(1, 18), 31, 32, 33, 64, 65, 69])
def test_inclusion_paths(size):
    """Every leaf's path is the RFC's, needs complete subtrees only, and verifies for its own place alone."""
    root = root_of(LEAVES[:size])
    for index in range(size):
        path = hash_spans(inclusion_nodes(index, size), read_node)
        assert path == independent.audit_path(index, LEAVES[:size])
        verify_inclusion(LEAVES[index], index, size, path, root)
        for other in {(index + 1) % size, size} - {index}:
            with pytest.raises(VerificationFailed):
                verify_inclusion(LEAVES[index], other, size, path, root)


@pytest.mark.parametrize("new", [*range(0, 18), 31, 32, 33, 64, 65, 69])
def test_consistency_paths(new):
    """Every older size's proof is the RFC's and verifies; with a wrong root or a hash more or less it doesn't."""
    new_root = root_of(LEAVES[:new])
    for old in range(new + 1):
        old_root = root_of(LEAVES[:old])
        path = hash_spans(consistency_nodes(old, new), read_node)
        assert path == (independent.consistency_proof(old, LEAVES[:new]) if old else [])
        verify_consistency(old, old_root, new, new_root, path)
        for broken in ([*path, new_root], path[:-1]):
            if broken != path:
                _refuse_consistency(old, old_root, new, new_root, broken)
        _refuse_consistency(old, bytes(32), new, new_root, path)
        if old:
            _refuse_consistency(old, old_root, new, bytes(32), path)


def _refuse_consistency(*proof: object) -> None:
    with pytest.raises(VerificationFailed):
        verify_consistency(*proof)
    with pytest.raises(independent.Broken):
        independent.check_consistency(*proof)


@settings(deadline=None, max_examples=150)
@given(
    st.integers(-1, 12), st.integers(-1, 12),
    st.lists(st.sampled_from([LEAVES[0], *(read_node((level, 0)) for level in range(4))]), max_size=5),
)  # fmt: skip
def test_verifiers_agree_on_anything(index, size, path):
    """Whatever sizes and paths they are given, both implementations come to the same answer and raise nothing else."""
    roots = root_of(LEAVES[: max(index, 0)]), root_of(LEAVES[: max(size, 0)])

    def check_path():
        independent.demand(independent.root_by_path(index, size, LEAVES[0], path) == roots[1], "root")

    _same_judgement(lambda: verify_inclusion(LEAVES[0], index, size, path, roots[1]), check_path)
    _same_judgement(
        lambda: verify_consistency(index, roots[0], size, roots[1], path),
        lambda: independent.check_consistency(index, roots[0], size, roots[1], path),
    )


def _same_judgement(ours, theirs):
    try:
        ours()
    except VerificationFailed:
        with pytest.raises(independent.Broken):
            theirs()
    else:
        theirs()


def test_paths_of_a_large_log_are_short():
    """In a log of 10 million entries a path has at most 24 hashes and touches at most 40 tiles."""
    size = 10_000_000
    for index in (0, 1, 4_999_999, 8_388_607, 8_388_608, size - 1):
        spans = inclusion_nodes(index, size)
        assert len(spans) <= 24
        assert len({tile_of(node)[:2] for span in spans for node in span}) <= 40


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 20), st.integers(0, 1 << 20))
def test_tiles_hold_what_nodes_need(level, index):
    """A node's hashes lie side by side in one tile and cover just the node's leaves."""
    tile_level, tile_index, first, count = tile_of((level, index))
    assert first + count <= TILE_WIDTH
    span = 1 << (8 * tile_level)
    assert (tile_index * TILE_WIDTH + first) * span == index << level
    assert count * span == 1 << level


def test_spans_are_subtrees():
    """A range that RFC 6962 never asks for is a programming error, not a wrong hash."""
    assert span_nodes(4, 7) == ((1, 2), (0, 6))
    with pytest.raises(AssertionError):
        span_nodes(1, 3)


def test_the_empty_tree():
    """No leaves have the hash of no bytes; nothing is in it and anything extends it."""
    assert root_of([]) == fold_span([]) == EMPTY_ROOT == hashlib.sha256().digest()
    with pytest.raises(VerificationFailed):
        verify_inclusion(LEAVES[0], 0, 0, [], EMPTY_ROOT)
    verify_consistency(0, EMPTY_ROOT, 5, root_of(LEAVES[:5]), [])


def test_leaves_and_nodes_differ():
    """A node's two children can't be passed off as a leaf."""
    pair = node_hash(LEAVES[0], LEAVES[1])
    assert pair != hashlib.sha256(b"\0" + LEAVES[0] + LEAVES[1]).digest()
    with pytest.raises(VerificationFailed):
        verify_inclusion(LEAVES[0], 0, 2, [], pair)

"""The rules of block headers, and the most work, against a naive model."""

from itertools import pairwise

import msgspec
import pytest
from chain_rig import START_US, branch, child_of
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.bsv.difficulty import WINDOW_BLOCKS, required_bits
from overlayd.bsv.header import BlockHeader, bits_of_target, parse_header, target_of_bits
from overlayd.bsv.network import ADJUSTED_FROM, MAINNET, REGTEST, Network, Pin
from overlayd.chain.header_chain import FUTURE_MAX_S, Extension, HeaderChain, HeldHeader
from overlayd.model.errors import HeadersRejected, HeadersUnconnected

NOW_S = START_US // 1_000_000
GENESIS = REGTEST.genesis


def start_at(header: BlockHeader, height: int = 0) -> HeldHeader:
    """The first block of a chain."""
    return HeldHeader(header, height, header.work)


def chain_of(network: Network = REGTEST, start: HeldHeader | None = None, **limits: int) -> HeaderChain:
    """A chain of one block."""
    limits = {"window": 500, "branch_headers_max": 20_000} | limits
    return HeaderChain(network, start or start_at(network.genesis), **limits)


def take(chain: HeaderChain, headers: list[BlockHeader]) -> Extension:
    """Judges and adopts."""
    extension = chain.judge(headers, NOW_S)
    chain.adopt(extension)
    return extension


def refuse(chain: HeaderChain, headers: list[BlockHeader], kind: type[HeadersRejected] = HeadersRejected) -> str:
    """Why headers are refused; nothing is changed by it."""
    tip = chain.tip
    with pytest.raises(kind) as caught:
        chain.judge(headers, NOW_S)
    assert chain.tip == tip
    assert caught.value.subject
    return caught.value.detail


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 5)), max_size=12))
def test_the_chain_equals_a_naive_model(steps: list[tuple[int, int]]) -> None:
    """Branches off any known block, in any order: tip, best chain and reorgs are those of a model that keeps everything.

    The model's tip is the first block that had the most blocks below it, since all have the same work.
    """
    chain = chain_of()
    known: list[tuple[BlockHeader, ...]] = [(GENESIS,)]
    best = known[0]
    for number, (at, count) in enumerate(steps):
        parents = known[at % len(known)]
        fresh = branch(parents[-1], count, number + 1)
        extension = take(chain, fresh)
        known += [(*parents, *fresh[: length + 1]) for length in range(count)]
        old, longest = best, (*parents, *fresh)
        best = longest if len(longest) > len(best) else best
        common = sum(1 for one, two in zip(old, best, strict=False) if one.hash == two.hash)
        assert [held.hash for held in extension.joined] == [header.hash for header in best[common:]]
        if common < len(old):
            assert extension.reorg is not None
            assert extension.reorg.fork_height == common - 1
            assert [held.header for held in extension.reorg.old] == list(old[common:])
            assert extension.reorg.new == extension.joined
        else:
            assert extension.reorg is None
        assert chain.tip.hash == extension.tip.hash == best[-1].hash
        for height, header in enumerate(best):
            held = chain.at(height)
            assert held is not None
            assert (held.header, held.height, held.chain_work) == (header, height, 2 * (height + 1))
        assert chain.at(len(best)) is None
        for branch_off in known:
            found = chain.find(branch_off[-1].hash)
            assert found is not None
            assert chain.is_best(found) == (branch_off[-1] in best)


def test_known_headers_are_passed_over() -> None:
    """What overlaps with what is held adds only the rest, wherever it begins."""
    chain = chain_of()
    headers = branch(GENESIS, 10)
    take(chain, headers[:6])
    for start in (0, 3, 5):
        extension = chain.judge(headers[start:], NOW_S)
        assert [held.header for held in extension.added] == headers[6:]
    same = chain.judge(headers[:4], NOW_S)
    assert (same.added, same.joined, same.tip) == ((), (), chain.tip)
    take(chain, [GENESIS, *headers])
    assert chain.tip.height == 10


def test_headers_that_do_not_hold_together_are_refused() -> None:
    """Nothing held before the first, a gap, a swap, or a jump between branches."""
    chain = chain_of()
    headers, other = branch(GENESIS, 5), branch(GENESIS, 5, 9)
    assert "predecessor" in refuse(chain, headers[1:], HeadersUnconnected)
    assert "follow" in refuse(chain, [headers[0], headers[2]])
    take(chain, headers)
    take(chain, other)
    assert "follow" in refuse(chain, [headers[0], other[1], child_of(other[1], 3)])
    assert "follow" in refuse(chain, [headers[4], GENESIS])


def test_work_bits_and_times_are_checked() -> None:
    """No work, another target, a time not after the median, or far ahead of the clock."""
    chain = chain_of()
    take(chain, branch(GENESIS, 12))
    tip = chain.tip.header
    good = child_of(tip)
    weak = next(
        header
        for nonce in range(1000)
        if int.from_bytes((header := parse_header(good.raw[:76] + nonce.to_bytes(4, "little"))).hash, "little")
        > header.target
    )
    assert "lacks the work" in refuse(chain, [weak])
    harder = bits_of_target(target_of_bits(REGTEST.limit_bits) // 4)
    assert "not the network's" in refuse(chain, [child_of(tip, bits=harder)])
    median_s = tip.time_s - 5
    assert "median" in refuse(chain, [child_of(tip, time_s=median_s)])
    chain.judge([child_of(tip, time_s=median_s + 1)], NOW_S)
    chain.judge([child_of(tip, time_s=NOW_S + FUTURE_MAX_S)], NOW_S)
    assert "ahead" in refuse(chain, [child_of(tip, time_s=NOW_S + FUTURE_MAX_S + 1)])
    assert "easier" in refuse(chain_of(MAINNET, start_at(MAINNET.genesis)), [child_of(MAINNET.genesis)])


def test_a_bad_header_takes_nothing_with_it() -> None:
    """Of a batch with a bad end nothing is adopted by the judge."""
    chain = chain_of()
    headers = branch(GENESIS, 5)
    refuse(chain, [*headers[:3], headers[4]])
    assert chain.find(headers[0].hash) is None


def test_the_window_moves_and_deep_forks_are_refused() -> None:
    """Old blocks leave memory, new ones stay; a fork needs as many blocks before it as the rules look at."""
    chain = chain_of(window=200)
    headers = branch(GENESIS, 700)
    for at in range(0, 700, 50):
        take(chain, headers[at : at + 50])
    assert chain.tip.height == 700
    assert 200 <= chain.tip.height - chain.first_held + 1 <= 250
    assert chain.at(chain.first_held - 1) is None
    assert chain.find(GENESIS.hash) is None
    assert "predecessor" in refuse(chain, [child_of(headers[10], 5)], HeadersUnconnected)
    lowest = chain.first_held + WINDOW_BLOCKS - 1
    assert "deeper" in refuse(chain, [child_of(headers[lowest - 2], 5)], HeadersUnconnected)
    take(chain, [child_of(headers[lowest - 1], 5)])


def test_headers_off_the_best_chain_are_bounded() -> None:
    """Branches that lead nowhere are taken up to a number; one with more work is taken still."""
    chain = chain_of(branch_headers_max=6)
    take(chain, branch(GENESIS, 10))
    for number in range(1, 4):
        take(chain, branch(GENESIS, 2, number))
    with pytest.raises(HeadersRejected, match="too many") as caught:
        chain.judge(branch(GENESIS, 1, 9), NOW_S)
    assert caught.value.extra == {"limit": "branch_headers_max"}
    assert take(chain, branch(GENESIS, 11, 10)).reorg is not None


def test_restoring_gives_the_same_chain() -> None:
    """What was read from the disk goes on like what was never stopped."""
    chain = chain_of()
    headers, other = branch(GENESIS, 8), branch(GENESIS, 5, 3)
    take(chain, headers)
    take(chain, other)
    again = chain_of()
    best = [held for height in range(9) if (held := chain.at(height))]
    again.restore(best, [held for header in other if (held := chain.find(header.hash))])
    more = branch(other[-1], 4, 3)
    first, second = take(chain, more), take(again, more)
    assert first == second
    assert first.reorg is not None
    assert first.reorg.depth == 8


def test_pinned_blocks_hold() -> None:
    """At a pinned height only the pinned block is taken, and nothing forks off below it any more."""
    headers, other = branch(GENESIS, 8), branch(GENESIS, 8, 3)
    network = msgspec.structs.replace(REGTEST, pins=(Pin(5, headers[4]),))
    chain = chain_of(network)
    assert "another block is pinned" in refuse(chain, other)
    take(chain, other[:4])
    take(chain, headers)
    assert chain.tip.header == headers[-1]
    assert "below the pinned block" in refuse(chain, branch(headers[2], 1, 4))
    assert "below the pinned block" in refuse(chain, [child_of(other[3], 3)])
    take(chain, branch(headers[4], 1, 4))
    restored = chain_of(network)
    restored.restore([held for height in range(9) if (held := chain.at(height))], [])
    assert "below the pinned block" in refuse(restored, branch(headers[2], 1, 4))


EASY = msgspec.structs.replace(MAINNET, name="easy", genesis=GENESIS, limit_bits=REGTEST.limit_bits, pins=())
"""Mainnet's rule with a limit that tests can find blocks for."""


def _adjusted(chain: HeaderChain, count: int, interval_s: int, number: int = 0) -> list[BlockHeader]:
    """Blocks that obey the rule, at an interval."""
    lineage = [held for height in range(chain.first_held, chain.tip.height + 1) if (held := chain.at(height))]
    fresh = []
    for _ in range(count):
        last = lineage[-1]
        bits = (
            required_bits(lineage[-WINDOW_BLOCKS:], EASY.limit_bits)
            if len(lineage) >= WINDOW_BLOCKS else last.header.bits
        )  # fmt: skip
        header = child_of(last.header, number, bits=bits, time_s=last.time_s + interval_s)
        lineage.append(HeldHeader(header, last.height + 1, last.chain_work + header.work))
        fresh.append(header)
    return fresh


def test_mainnets_difficulty_is_demanded() -> None:
    """Once 147 blocks are held, every block's bits must be those of the rule, to the last bit."""
    first = child_of(GENESIS, bits=bits_of_target(target_of_bits(EASY.limit_bits) // 64))
    chain = chain_of(EASY, start_at(first, ADJUSTED_FROM))
    take(chain, _adjusted(chain, WINDOW_BLOCKS - 1, 600))
    following = _adjusted(chain, 5, 300)
    assert len({header.bits for header in following}) > 1
    take(chain, following)
    last = chain.tip.header
    right = _adjusted(chain, 1, 600)[0].bits
    for bits in (right + 1, right - 1, EASY.limit_bits, first.bits):
        assert "bits are" in refuse(chain, [child_of(last, bits=bits, time_s=last.time_s + 600)])
    take(chain, [child_of(last, bits=right, time_s=last.time_s + 600)])


def test_until_enough_blocks_are_held_only_much_easier_targets_are_refused() -> None:
    """Beginning at a pinned block, the first 147 can't be foreseen; four times easier is the bound."""
    first = child_of(GENESIS, bits=bits_of_target(target_of_bits(EASY.limit_bits) // 64))
    target = first.target
    chain = chain_of(EASY, start_at(first, ADJUSTED_FROM))
    chain.judge([child_of(first, bits=bits_of_target(target * 4))], NOW_S)
    assert "much easier" in refuse(chain, [child_of(first, bits=bits_of_target(target * 5))])


def test_heights_before_the_rule_need_only_work() -> None:
    """What is old is bound by the pinned block that comes later, not by rules that nobody uses any more."""
    chain = chain_of(EASY)
    take(chain, branch(GENESIS, 200))
    chain.judge([child_of(chain.tip.header, bits=bits_of_target(target_of_bits(EASY.limit_bits) // 8))], NOW_S)


def test_extensions_are_ascending() -> None:
    """New blocks come lowest first, each on the one before."""
    extension = take(chain_of(), branch(GENESIS, 4))
    for lower, upper in pairwise(extension.joined):
        assert upper.header.previous == lower.hash
        assert upper.height == lower.height + 1

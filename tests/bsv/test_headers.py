"""Headers, compact targets, work, the networks' first blocks, and mainnet's difficulty rule."""

from itertools import pairwise

import msgspec
import pytest
from bsv_samples import flipped, load, refusal
from hypothesis import given
from hypothesis import strategies as st

from overlayd.bsv.difficulty import WINDOW_BLOCKS, required_bits
from overlayd.bsv.header import (
    TARGET_MAX,
    BlockHeader,
    bits_of_target,
    encode_header,
    parse_header,
    target_of_bits,
    work_of_bits,
)
from overlayd.bsv.network import MAINNET, NETWORKS, REGTEST, TESTNET
from overlayd.model.errors import MalformedChainData, VerificationFailed
from overlayd.model.txid import BlockHash, format_hash

HEADERS = [parse_header(bytes.fromhex(raw)) for raw in load("mainnet-headers-0-379")["headers_hex"]]
LIMIT = MAINNET.limit_bits


def test_the_first_380_headers_of_mainnet() -> None:
    """They begin with the network's first block, each names the one before, and all have their work."""
    assert HEADERS[0] == MAINNET.genesis
    assert len(HEADERS) == 380
    for earlier, header in pairwise(HEADERS):
        assert header.previous == earlier.hash
        header.verify_work(LIMIT)
        assert header.work == 0x100010001


def test_a_recent_header_of_mainnet() -> None:
    """Block 948,351 has the hash, root and work that it is known by, and is pinned."""
    sample = load("mainnet-block-948351")
    header = parse_header(bytes.fromhex(sample["header_hex"]))
    assert str(header) == sample["blockHash"]
    assert format_hash(header.merkle_root) == sample["merkleRoot"]
    header.verify_work(LIMIT)
    assert [(pin.height, pin.header) for pin in MAINNET.pins] == [(948_351, header)]


def test_first_blocks() -> None:
    """The first blocks have the hashes that everybody knows, and the work that their network demands."""
    hashes = {
        MAINNET: "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f",
        TESTNET: "000000000933ea01ad0ee984209779baaec3ced90fa3f408719526f8d77f4943",
        REGTEST: "0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206",
    }
    assert set(NETWORKS.values()) == hashes.keys()
    for network, block_hash in hashes.items():
        assert str(network.genesis) == block_hash
        network.genesis.verify_work(network.limit_bits)


def test_no_byte_of_a_header_can_change() -> None:
    """Each turned byte loses the work."""
    for _, raw in flipped(HEADERS[100].raw):
        with pytest.raises(VerificationFailed):
            parse_header(raw).verify_work(LIMIT)


@given(st.binary(min_size=80, max_size=80))
def test_headers_come_back_from_their_bytes(raw: bytes) -> None:
    """Any 80 bytes are a header, whose fields give the bytes again; its target may be nonsense."""
    header = parse_header(raw)
    fields = {name: getattr(header, name) for name in ("version", "previous", "merkle_root", "time_s", "bits", "nonce")}
    assert encode_header(**fields) == raw
    try:
        assert header.target > 0
        assert header.work > 0
    except MalformedChainData:
        with pytest.raises(VerificationFailed):
            header.verify_work(LIMIT)


@given(st.binary(max_size=200).filter(lambda raw: len(raw) != 80))
def test_other_lengths_are_no_header(raw: bytes) -> None:
    """Exactly 80 bytes are read."""
    assert "a header has 80" in refusal(parse_header, raw)


@pytest.mark.parametrize(
    ("bits", "target"),
    [
        (0x01123456, 0x12), (0x02123456, 0x1234), (0x03123456, 0x123456), (0x04123456, 0x12345600),
        (0x05009234, 0x92340000), (0x20123456, 0x123456 << 232), (0x1D00FFFF, 0xFFFF << 208), (0x207FFFFF, 0x7FFFFF << 232),
    ],
)  # fmt: skip
def test_compact_targets(bits: int, target: int) -> None:
    """The values of the node's own tests (setcompact)."""
    assert target_of_bits(bits) == target
    assert target_of_bits(bits_of_target(target)) == target


@pytest.mark.parametrize(
    "bits", [0, 0x00123456, 0x01003456, 0x02000056, 0x03000000, 0x04923456, 0x01FEDCBA, 0xFF123456, 0x22000100]
)
def test_impossible_targets(bits: int) -> None:
    """Zero, negative and over 256 bits are refused."""
    with pytest.raises(MalformedChainData, match="bits"):
        target_of_bits(bits)


@given(st.integers(1, TARGET_MAX))
def test_compact_targets_round_down(target: int) -> None:
    """The compact form is at most the target, and loses less than one part in 2^15."""
    kept = target_of_bits(bits_of_target(target))
    assert kept <= target
    assert (target - kept) << 15 <= target
    assert bits_of_target(kept) == bits_of_target(target)


def test_work() -> None:
    """Work is 2^256 over target and one: two hashes on regtest, 2^32 and a little on the first blocks."""
    assert work_of_bits(REGTEST.limit_bits) == 2
    assert work_of_bits(LIMIT) == 0x100010001


def test_an_easier_target_than_the_networks_is_refused() -> None:
    """A regtest block has no work on mainnet, and a hash above its own target has none anywhere."""
    with pytest.raises(VerificationFailed, match="easier"):
        REGTEST.genesis.verify_work(LIMIT)
    raw = encode_header(version=1, previous=BlockHash(bytes(32)), merkle_root=bytes(32), time_s=1, bits=LIMIT, nonce=1)
    with pytest.raises(VerificationFailed, match="lacks the work"):
        parse_header(raw).verify_work(LIMIT)


class Block(msgspec.Struct, frozen=True):
    """What the rule sees of a block."""

    time_s: int
    chain_work: int
    bits: int = 0


class Chain:
    """Made-up blocks, as in the node's own test."""

    def __init__(self, bits: int) -> None:
        self.blocks = [Block(1_269_211_443, work_of_bits(bits))]
        self.next = bits

    def add(self, interval_s: int, bits: int) -> int:
        """Adds a block and gives the bits that the next one needs."""
        last = self.blocks[-1]
        self.blocks.append(Block(last.time_s + interval_s, last.chain_work + work_of_bits(bits)))
        if len(self.blocks) >= WINDOW_BLOCKS:
            self.next = required_bits(self.blocks[-WINDOW_BLOCKS:], LIMIT)
        return self.next

    def run(self, count: int, interval_s: int) -> int:
        """Adds blocks, each with the bits that the one before asked for."""
        bits = self.next
        for _ in range(count):
            bits = self.add(interval_s, bits)
        return bits


def test_the_difficulty_rule_gives_the_nodes_values() -> None:
    """Steady, false times, faster, much faster, slower, at the limit: the bits that the node's test expects."""
    start = bits_of_target((1 << 220) - 1)  # the node shifts a limit that is all ones
    chain = Chain(start)
    for _ in range(300):
        steady = chain.add(600, start)
    assert chain.run(10, 600) == steady
    assert chain.run(1, 6_000) == steady
    assert chain.run(1, 2 * 600 - 6_000) == steady
    assert chain.run(20, 600) == steady
    assert chain.run(1, 550) == steady
    assert chain.run(10, 550) == 0x1C0FE7B1
    assert chain.run(20, 10) == 0x1C0DB19F
    assert chain.run(1, 6_000) == 0x1C0D9222
    assert chain.run(93, 6_000) == 0x1C2F13B9
    assert chain.run(1, 6_000) == 0x1C2EE9BF
    assert chain.run(192, 6_000) == 0x1D00FFFF
    assert chain.run(5, 6_000) == LIMIT


def test_headers_are_values() -> None:
    """Equal bytes are equal headers, and they show as their hash."""
    again = parse_header(HEADERS[1].raw)
    assert again == HEADERS[1]
    assert isinstance(again, BlockHeader)
    assert str(again).startswith("00000000839a8e68")

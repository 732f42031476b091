"""The networks: first blocks, easiest target, prefixes of addresses and keys, pinned blocks."""

import msgspec

from overlayd.bsv.header import BlockHeader, parse_header


class Pin(msgspec.Struct, frozen=True):
    """A block that is taken as known: a chain that has another one at this height isn't the network's."""

    height: int
    header: BlockHeader


class Network(msgspec.Struct, frozen=True):
    """What differs between the networks.

    `limit_bits` is the easiest target, in compact form. `has_adjusted_difficulty`: every block's target follows from
    the 144 before it, from `adjusted_from` on (difficulty.py); where it is false, only the limit is checked.
    """

    name: str
    genesis: BlockHeader
    limit_bits: int
    address_prefix: int
    key_prefix: int
    has_adjusted_difficulty: bool = False
    is_limit_always: bool = False
    """Every block has the easiest target (regtest)."""
    pins: tuple[Pin, ...] = ()
    """Ascending by height."""


ADJUSTED_FROM = 504_032
"""The first height of mainnet whose target follows from the 144 blocks before it (13 November 2017)."""

_MERKLE_ROOT = "3ba3edfd7a7b12b27ac72c3e67768f617fc81bc3888a51323a9fb8aa4b1e5e4a"


def _first_block(time_s: int, bits: int, nonce: int) -> BlockHeader:
    start = (1).to_bytes(4, "little") + bytes(32) + bytes.fromhex(_MERKLE_ROOT)
    return parse_header(start + b"".join(value.to_bytes(4, "little") for value in (time_s, bits, nonce)))


MAINNET = Network(
    "mainnet", _first_block(1_231_006_505, 0x1D00FFFF, 2_083_236_893), 0x1D00FFFF, 0x00, 0x80,
    has_adjusted_difficulty=True,
    pins=(
        Pin(948_351, parse_header(bytes.fromhex(
            "0000003aec50312dac4b9f7c3e9eb2d70bdeeb22d6720fb463dc92030000000000000000"
            "141474ed9a949b00e66577323ff01cef9da8ff9dd891c52062b49fb39e455b21f52aff69e75b2518832584b7"
        ))),
    ),
)  # fmt: skip
TESTNET = Network("testnet", _first_block(1_296_688_602, 0x1D00FFFF, 414_098_458), 0x1D00FFFF, 0x6F, 0xEF)
REGTEST = Network(
    "regtest", _first_block(1_296_688_602, 0x207FFFFF, 2), 0x207FFFFF, 0x6F, 0xEF, is_limit_always=True
)  # fmt: skip

NETWORKS = {network.name: network for network in (MAINNET, TESTNET, REGTEST)}

"""Block headers that a verifier was given: from a file, or from a node's directory.

They follow each other and carry the work that they claim; more they don't say of themselves, so whoever gave them is
believed.
"""

from collections.abc import Sequence
from itertools import pairwise

import msgspec

from overlayd.bsv.header import HEADER_BYTES, BlockHeader, parse_header
from overlayd.bsv.network import Network
from overlayd.model.errors import MalformedChainData, VerificationFailed

HEADERS_BYTES_MAX = 256 << 20
"""Of a file; all headers of mainnet are some 80 MB, in JSON about three times as much."""


class KnownHeaders(msgspec.Struct, frozen=True):
    """Headers of one branch, ascending. `first_height`: None where the file doesn't say it, so that they begin with the
    network's first block or with one that this program knows. `tip_height`: of the newest block of that branch, where it
    lies beyond them. `network`: "" where it isn't said."""

    headers: tuple[BlockHeader, ...]
    first_height: int | None = None
    tip_height: int = 0
    network: str = ""

    def find(self, network: Network, height: int) -> tuple[BlockHeader | None, int]:
        """The header at a height, and how many blocks confirm it, itself included. Raises VerificationFailed where these
        aren't headers of the network."""
        if self.network not in ("", network.name):
            raise VerificationFailed(f"the headers are of {self.network}, not of {network.name}", subject="headers")
        first = self._place(network)
        self._check(network, first)
        if not first <= height < first + len(self.headers):
            return None, 0
        tip_height = max(self.tip_height, first + len(self.headers) - 1)
        return self.headers[height - first], tip_height - height + 1

    def _place(self, network: Network) -> int:
        if not self.headers:
            raise VerificationFailed("there are no headers", subject="headers")
        if self.first_height is not None:
            return self.first_height
        starts = {network.genesis.hash: 0, **{pin.header.hash: pin.height for pin in network.pins}}
        if self.headers[0].hash not in starts:
            raise VerificationFailed(
                f"the first of the headers is no block of {network.name} whose height is known", subject="headers",
                hint="begin with the network's first block, or give the JSON of GET /v1/chain/headers, which tells heights",
            )  # fmt: skip
        return starts[self.headers[0].hash]

    def _check(self, network: Network, first: int) -> None:
        known = {0: network.genesis.hash, **{pin.height: pin.header.hash for pin in network.pins}}
        for height, header in enumerate(self.headers, first):
            header.verify_work(network.limit_bits)
            if network.is_limit_always and header.bits != network.limit_bits:
                raise VerificationFailed(f"block {height} is none of {network.name}", subject="headers")
            if known.get(height, header.hash) != header.hash:
                raise VerificationFailed(f"{network.name} has another block at height {height}", subject="headers")
        for lower, upper in pairwise(self.headers):
            if upper.previous != lower.hash:
                raise VerificationFailed(f"block {upper} doesn't follow the one before it", subject="headers")


class _Listed(msgspec.Struct, frozen=True):
    height: int
    raw: str


class _List(msgspec.Struct, frozen=True):
    headers: list[_Listed]


def parse_headers_file(raw: bytes) -> KnownHeaders:
    """From the JSON of `GET /v1/chain/headers`, or from raw headers of 80 bytes each, one after the other.

    Raises VerificationFailed. The caller bounds the size.
    """
    if raw.lstrip()[:1] == b"{":
        try:
            listed = msgspec.json.decode(raw, type=_List).headers
            headers = tuple(parse_header(bytes.fromhex(one.raw)) for one in listed)
        except (msgspec.DecodeError, ValueError, RecursionError, MalformedChainData) as err:
            raise VerificationFailed(f"not a list of block headers: {err}", subject="headers") from err
        heights = [one.height for one in listed]
        if not heights or heights != list(range(heights[0], heights[0] + len(heights))) or heights[0] < 0:
            raise VerificationFailed("the headers' heights don't ascend by one", subject="headers")
        return KnownHeaders(headers, heights[0])
    if not raw or len(raw) % HEADER_BYTES:
        raise VerificationFailed(f"{len(raw)} bytes aren't whole headers of {HEADER_BYTES}", subject="headers")
    return KnownHeaders(split_headers(raw))


def split_headers(raw: bytes) -> tuple[BlockHeader, ...]:
    """Raw headers that stand one after the other."""
    pieces: Sequence[int] = range(0, len(raw), HEADER_BYTES)
    return tuple(parse_header(raw[at : at + HEADER_BYTES]) for at in pieces)

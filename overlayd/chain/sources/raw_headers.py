"""Block headers as sources give them, in JSON or as bytes, put back into their 80 bytes and held against their hash."""

from collections.abc import Sequence

import msgspec

from overlayd.bsv.header import HEADER_BYTES, BlockHeader, encode_header, parse_header
from overlayd.bsv.octets import U32_MAX
from overlayd.model.errors import MalformedChainData
from overlayd.model.txid import BlockHash, parse_block_hash

NO_BLOCK = "00" * 32
"""What stands for the block before the first."""


class JsonHeader(msgspec.Struct):
    """The members of a header as nodes and explorers write them. `bits`: hex digits, or a number."""

    hash: str
    version: int
    merkleroot: str
    time: int
    bits: str | int
    nonce: int
    height: int = -1
    previousblockhash: str = ""
    confirmations: int = 0

    def rebuild(self) -> BlockHeader:
        """The header. Raises MalformedChainData, also when the members don't make up the hash."""
        try:
            bits = int(self.bits, 16) if isinstance(self.bits, str) else self.bits
        except ValueError as err:
            raise MalformedChainData("its bits aren't hex digits", subject="header") from err
        return rebuild_header(
            self.hash, version=self.version, previous=self.previousblockhash, merkle_root=self.merkleroot,
            time_s=self.time, bits=bits, nonce=self.nonce,
        )  # fmt: skip


def rebuild_header(
    block_hash: str, *, version: int, previous: str, merkle_root: str, time_s: int, bits: int, nonce: int
) -> BlockHeader:
    """The header of these members. Raises MalformedChainData, also when they don't make up the hash."""
    if not all(0 <= value <= U32_MAX for value in (time_s, bits, nonce)) or not -(1 << 31) <= version <= U32_MAX:
        raise MalformedChainData("a number isn't one of 32 bits", subject="header")
    raw = encode_header(
        version=version & U32_MAX, previous=parse_block_hash(previous or NO_BLOCK),
        merkle_root=parse_block_hash(merkle_root), time_s=time_s, bits=bits, nonce=nonce,
    )  # fmt: skip
    header = parse_header(raw)
    if header.hash != parse_block_hash(block_hash):
        raise MalformedChainData("its members don't make up its hash", subject="header")
    return header


def split_headers(octets: bytes) -> list[bytes]:
    """Headers that stand one behind the other. Raises MalformedChainData."""
    if len(octets) % HEADER_BYTES:
        raise MalformedChainData(f"{len(octets)} bytes; headers have {HEADER_BYTES} each", subject="headers")
    return [octets[at : at + HEADER_BYTES] for at in range(0, len(octets), HEADER_BYTES)]


def longest_run(headers: Sequence[BlockHeader], tip: BlockHash | None) -> list[BlockHeader]:
    """Of headers among which stale ones stand, those that follow each other: up to the tip if it is among them, else
    as far as only one way leads on."""
    by_hash = {header.hash: header for header in headers}
    children: dict[BlockHash, list[BlockHeader]] = {}
    for header in headers:
        children.setdefault(header.previous, []).append(header)
    if tip in by_hash:
        return _back_from(by_hash[tip], by_hash)
    ends = [header for header in headers if header.hash not in children]
    runs = sorted((_back_from(end, by_hash) for end in ends), key=len, reverse=True)
    if not runs:
        return []
    best = runs[0]
    rivals = [run for run in runs[1:] if len(run) == len(best)]
    shared = len(best)
    for run in rivals:
        shared = min(shared, next((at for at, pair in enumerate(zip(best, run, strict=True)) if pair[0] != pair[1]), 0))
    return best[:shared]


def _back_from(end: BlockHeader, by_hash: dict[BlockHash, BlockHeader]) -> list[BlockHeader]:
    run = [end]
    while (before := by_hash.get(run[-1].previous)) is not None and len(run) <= len(by_hash):
        run.append(before)
    run.reverse()
    return run

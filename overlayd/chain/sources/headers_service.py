"""Block Headers Service: headers and the tip (bsv-blockchain/block-headers-service, `transports/http/endpoints/api`)."""

from collections.abc import Sequence

import msgspec

from overlayd.bsv.header import BlockHeader
from overlayd.bsv.network import Network
from overlayd.chain.sources.abilities import Ability
from overlayd.chain.sources.calls import SourceCalls
from overlayd.chain.sources.faults import words_of
from overlayd.chain.sources.raw_headers import longest_run, rebuild_header
from overlayd.model.chain_source import SourceTip
from overlayd.model.errors import MalformedChainData
from overlayd.model.txid import BlockHash, format_hash

HEADERS_MAX = 1000


class _Header(msgspec.Struct, rename="camel"):
    hash: str
    version: int
    prev_block_hash: str
    merkle_root: str
    creation_timestamp: int
    difficulty_target: int
    nonce: int


class _Tip(msgspec.Struct):
    header: _Header
    height: int


class _Verified(msgspec.Struct, rename="camel"):
    """`CONFIRMED`, `UNABLE_TO_VERIFY` (it hasn't come so far) or `INVALID`, for all and for each."""

    confirmation_state: str


class HeadersServiceSource:
    """A Block Headers Service."""

    abilities = frozenset({Ability.HEADERS})
    headers_max = HEADERS_MAX

    def __init__(self, calls: SourceCalls, url: str) -> None:
        self._calls = calls
        self._url = f"{url.rstrip('/')}/api/v1/chain"
        self._tip: BlockHash | None = None
        self.name = calls.name
        self.health = calls.health

    def __repr__(self) -> str:
        return f"HeadersServiceSource({self.health!r})"

    async def is_on(self, network: Network) -> bool | None:
        """By the Merkle root of the newest block that we know the network must have, None when it hasn't come so far; of
        a network without such, by its first header."""
        if network.pins:
            pin = network.pins[-1]
            state = await self.verify_roots([(pin.height, pin.header.merkle_root)])
            return {"CONFIRMED": True, "INVALID": False}.get(state)
        first = f"{self._url}/header/{format_hash(network.genesis.hash)}"
        answer = await self._calls.get("network", first, expected=(404,))
        if answer.status == 404:
            return False
        return self._rebuild(self._calls.read_json(answer, _Header)).hash == network.genesis.hash

    async def verify_roots(self, roots: Sequence[tuple[int, bytes]]) -> str:
        """What it says of Merkle roots at heights: `CONFIRMED`, `UNABLE_TO_VERIFY` or `INVALID`, the worst for all.

        A checkpoint. Raises SourceUnavailable.
        """
        body = [{"merkleRoot": format_hash(root), "blockHeight": height} for height, root in roots]
        answer = await self._calls.post("network", f"{self._url}/merkleroot/verify", body)
        return self._calls.read_json(answer, _Verified).confirmation_state

    async def read_tip(self) -> SourceTip:
        """The end of its longest chain."""
        told = self._calls.read_json(await self._calls.get("tip", f"{self._url}/tip/longest"), _Tip)
        self._tip = self._rebuild(told.header).hash
        return SourceTip(told.height, self._tip)

    async def read_headers(self, from_height: int, count: int) -> list[bytes]:
        """Headers of its longest chain: what it lists by height holds stale ones, too."""
        wanted = min(count, HEADERS_MAX)
        answer = await self._calls.get(
            "headers", f"{self._url}/header/byHeight?height={from_height}&count={wanted}", expected=(404,)
        )
        if answer.status == 404:
            return []
        told = [self._rebuild(one) for one in self._calls.read_json(answer, list[_Header])]
        return [header.raw for header in longest_run(told, self._tip)[:wanted]]

    def _rebuild(self, told: _Header) -> BlockHeader:
        try:
            return rebuild_header(
                told.hash, version=told.version, previous=told.prev_block_hash, merkle_root=told.merkle_root,
                time_s=told.creation_timestamp, bits=told.difficulty_target, nonce=told.nonce,
            )  # fmt: skip
        except MalformedChainData as err:
            raise self._calls.malformed(f"a header of its can't be read: {words_of(err.detail)}") from err

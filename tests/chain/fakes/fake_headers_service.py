"""A Block Headers Service as `transports/http/endpoints/api` of it describes it."""

import re
from typing import Any

from fakes.fake_desk import Asked, Desk, Reply, World

from overlayd.bsv.header import BlockHeader
from overlayd.model.txid import format_hash


class FakeHeadersService:
    """A Block Headers Service before the chain of `world`. It remembers blocks that were left behind."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.desk = Desk()
        self.stale: list[tuple[int, BlockHeader]] = []
        """Blocks off its longest chain, which it lists by height all the same."""
        base = "/api/v1/chain"
        self.desk.route("GET", f"{base}/tip/longest", self._tip)
        self.desk.route("GET", f"{base}/header/byHeight", self._by_height)
        self.desk.route("GET", f"{base}/header/([0-9a-f]{{64}})", self._by_hash)
        self.desk.route("POST", f"{base}/merkleroot/verify", self._verify)

    async def _tip(self, asked: Asked, match: re.Match[str]) -> Reply:
        tip = await self.world.chain.read_tip()
        header = await self.world.header(tip.height)
        assert header is not None
        return Reply(
            200,
            {
                "header": service_header(header), "state": "LONGEST_CHAIN", "chainWork": 2 * tip.height + 2,
                "height": tip.height,
            },
        )  # fmt: skip

    async def _by_height(self, asked: Asked, match: re.Match[str]) -> Reply:
        height, count = int(asked.query["height"]), int(asked.query.get("count", "1"))
        headers = list(await self.world.headers(height, count))
        # In no particular order: the real one reads them out of a table.
        headers += [header for at, header in self.stale if height <= at < height + count]
        if not headers:
            return Reply(
                404,
                {"code": "ErrHeadersForGivenRangeNotFound", "message": "could not find headers in given range"},
            )
        return Reply(200, [service_header(header) for header in headers])

    async def _by_hash(self, asked: Asked, match: re.Match[str]) -> Reply:
        height = await self.world.height_of(match[1])
        header = None if height is None else await self.world.header(height)
        if header is None:
            return Reply(404, {"code": "ErrHeaderNotFound", "message": "header not found"})
        return Reply(200, service_header(header))

    async def _verify(self, asked: Asked, match: re.Match[str]) -> Reply:
        told = []
        tip = await self.world.chain.read_tip()
        for one in asked.json:
            header = await self.world.header(one["blockHeight"])
            state = "UNABLE_TO_VERIFY" if one["blockHeight"] > tip.height else "INVALID"
            if header is not None and format_hash(header.merkle_root) == one["merkleRoot"]:
                state = "CONFIRMED"
            told.append({
                "blockHash": format_hash(header.hash) if header and state == "CONFIRMED" else "",
                "blockHeight": one["blockHeight"], "merkleRoot": one["merkleRoot"], "confirmation": state,
            })  # fmt: skip
        states = {one["confirmation"] for one in told}
        worst = next(state for state in ("INVALID", "UNABLE_TO_VERIFY", "CONFIRMED") if state in states)
        return Reply(200, {"confirmationState": worst, "confirmations": told})


def service_header(header: BlockHeader) -> dict[str, Any]:
    """A header as it writes it: the version with a sign, the target as a number."""
    version = header.version - (1 << 32) if header.version >> 31 else header.version
    return {
        "hash": format_hash(header.hash), "version": version, "prevBlockHash": format_hash(header.previous),
        "merkleRoot": format_hash(header.merkle_root), "creationTimestamp": header.time_s,
        "difficultyTarget": header.bits, "nonce": header.nonce, "work": "2",
    }  # fmt: skip

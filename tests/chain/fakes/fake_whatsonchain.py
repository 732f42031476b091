"""A WhatsOnChain as its documents and the clients of others describe it."""

import re
from collections import deque
from collections.abc import Callable

import trio
from fakes.fake_desk import Asked, Desk, Reply, World, node_header, place_of, tsc_nodes

from overlayd.bsv.tx import parse_transaction
from overlayd.model.chain_source import Outgoing, SourceState, SourceStatus
from overlayd.model.errors import MalformedChainData
from overlayd.model.txid import format_hash, parse_txid

BASE = "/v1/bsv/main"
WORDS = {
    "double spend": "258: txn-mempool-conflict", "missing-inputs": "Missing inputs", "fee too low": "66: insufficient priority",
    "": "16: mandatory-script-verify-flag-failed",
}  # fmt: skip
ARCHIVE = 40
"""Headers of one archive; the real ones hold 10,000."""


class FakeWhatsOnChain:
    """A WhatsOnChain before the chain of `world`. More than `rate` requests in a second get 429."""

    def __init__(self, world: World, rate: int = 3) -> None:
        self.world = world
        self.desk = Desk()
        self.rate = rate
        self.refused = 0
        self.is_written_out = True
        """Copies in proofs are written out, as the real one does, not as `*`."""
        self.bend: Callable[[SourceStatus], SourceStatus] = lambda status: status
        self._times: deque[float] = deque()
        self.desk.on_asked = self._keep_pace
        for method, pattern, handler in (
            ("POST", "/txs/status", self._statuses), ("GET", "/tx/([0-9a-f]{64})/proof/tsc", self._proof),
            ("GET", "/tx/([0-9a-f]{64})/hex", self._hex), ("POST", "/tx/raw", self._submit),
            ("GET", "/chain/info", self._info), ("GET", "/block/headers", self._newest),
            ("GET", "/block/headers/resources", self._resources), ("GET", "/block/headers/latest", self._latest),
            ("GET", "/block/headers/([0-9]+)_([0-9]+)_headers.bin", self._archive),
            ("GET", "/block/([0-9a-f]{64}|[0-9]+)/header", self._header),
        ):  # fmt: skip
            self.desk.route(method, BASE + pattern, handler)

    @property
    def url(self) -> str:
        """What is configured."""
        return self.desk.url + BASE

    def _keep_pace(self, asked: Asked) -> Reply | None:
        now_s = trio.current_time()
        while self._times and self._times[0] <= now_s - 1.0 + 1e-6:
            self._times.popleft()
        if len(self._times) >= self.rate:
            self.refused += 1
            return Reply(429, "Too Many Requests")
        self._times.append(now_s)
        return None

    async def _statuses(self, asked: Asked, match: re.Match[str]) -> Reply:
        shown = asked.json["txids"]
        if len(shown) > 20:
            return Reply(400, "max 20 transactions")
        told = []
        tip = await self.world.chain.read_tip()
        for one in shown:
            status = self.bend(await self.world.status(parse_txid(one)))
            if status.state is SourceState.MINED:
                assert status.block_hash is not None
                assert status.height is not None
                told.append({
                    "txid": one, "blockhash": format_hash(status.block_hash), "blockheight": status.height,
                    "blocktime": 1575841517, "confirmations": tip.height - status.height + 1,
                })  # fmt: skip
            elif status.state is SourceState.SEEN:
                told.append({"txid": one})
            else:
                told.append({"txid": one, "error": "unknown"})
        return Reply(200, told)

    async def _proof(self, asked: Asked, match: re.Match[str]) -> Reply:
        status = self.bend(await self.world.status(parse_txid(match[1])))
        if status.state is not SourceState.MINED:
            return Reply(200, None)
        assert status.block_hash is not None
        bump, index = place_of(status)
        nodes = tsc_nodes(bump, index, status.txid, is_written_out=self.is_written_out)
        return Reply(
            200, [{"index": index, "txOrId": match[1], "target": format_hash(status.block_hash), "nodes": nodes}]
        )

    async def _hex(self, asked: Asked, match: re.Match[str]) -> Reply:
        (raw,) = await self.world.chain.read_raw([parse_txid(match[1])])
        return Reply(404, "Not Found") if raw is None else Reply(200, raw.hex())

    async def _submit(self, asked: Asked, match: re.Match[str]) -> Reply:
        try:
            tx = parse_transaction(bytes.fromhex(asked.json["txhex"]))
        except (MalformedChainData, ValueError):
            return Reply(400, "unexpected response code 500: TX decode failed")
        before = await self.world.status(tx.txid)
        if before.state in (SourceState.SEEN, SourceState.MINED):
            return Reply(400, "unexpected response code 500: Transaction already in the mempool")
        (status,) = await self.world.chain.submit([Outgoing(tx.txid, tx.raw)])
        if status.state is SourceState.SEEN:
            return Reply(200, format_hash(tx.txid))
        words = next(words for start, words in WORDS.items() if status.reason.startswith(start))
        return Reply(400, f"unexpected response code 500: {words}")

    async def _info(self, asked: Asked, match: re.Match[str]) -> Reply:
        tip = await self.world.chain.read_tip()
        return Reply(
            200,
            {
                "chain": "main", "blocks": tip.height, "headers": tip.height, "bestblockhash": format_hash(tip.block_hash),
                "difficulty": 4.6e-10, "mediantime": 1589703256, "verificationprogress": 1.0, "pruned": False,
                "chainwork": f"{2 * tip.height + 2:064x}",
            },
        )  # fmt: skip

    async def _newest(self, asked: Asked, match: re.Match[str]) -> Reply:
        tip = await self.world.chain.read_tip()
        first = max(0, tip.height - 9)
        headers = await self.world.headers(first, 10)
        told = [node_header(header, first + at, tip.height - first - at + 1) for at, header in enumerate(headers)]
        return Reply(200, told[::-1])

    async def _resources(self, asked: Asked, match: re.Match[str]) -> Reply:
        tip = await self.world.chain.read_tip()
        files, first = [], 0
        while first + ARCHIVE <= tip.height:
            last = first + ARCHIVE - (1 if first else 0)
            files.append(f"https://api.whatsonchain.com{BASE}/block/headers/{first}_{last}_headers.bin")
            first = last + 1
        return Reply(200, {"files": [*files, f"https://api.whatsonchain.com{BASE}/block/headers/latest"]})

    async def _latest(self, asked: Asked, match: re.Match[str]) -> Reply:
        tip = await self.world.chain.read_tip()
        archived = (await self._resources(asked, match)).body["files"][:-1]
        first = int(archived[-1].rsplit("/", 1)[1].split("_")[1]) + 1 if archived else 0
        if "count" in asked.query:
            first = max(0, tip.height - int(asked.query["count"]) + 1)
        headers = await self.world.headers(first, tip.height - first + 1)
        return Reply(200, b"".join(header.raw for header in headers))

    async def _archive(self, asked: Asked, match: re.Match[str]) -> Reply:
        first, last = int(match[1]), int(match[2])
        return Reply(200, b"".join(header.raw for header in await self.world.headers(first, last - first + 1)))

    async def _header(self, asked: Asked, match: re.Match[str]) -> Reply:
        height = int(match[1]) if len(match[1]) < 64 else await self.world.height_of(match[1])
        header = None if height is None else await self.world.header(height)
        if header is None or height is None:
            return Reply(404, "Not Found")
        tip = await self.world.chain.read_tip()
        return Reply(200, node_header(header, height, tip.height - height + 1))

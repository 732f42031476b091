"""An SV node's JSON-RPC, as `src/rpc` of bitcoin-sv has it: batches, and errors inside of them."""

import re
from collections.abc import Callable
from typing import Any

from fakes.fake_desk import Asked, Desk, Reply, World, node_header, place_of, tsc_nodes

from overlayd.bsv.tx import parse_transaction
from overlayd.model.chain_source import Outgoing, SourceState, SourceStatus
from overlayd.model.errors import MalformedChainData
from overlayd.model.txid import format_hash, parse_txid

WORDS = {
    "double spend": (-26, "258: txn-mempool-conflict"), "missing-inputs": (-25, "Missing inputs"),
    "fee too low": (-26, "66: insufficient priority"), "": (-26, "16: mandatory-script-verify-flag-failed"),
}  # fmt: skip


class RpcFailed(Exception):
    """A call's error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class FakeNode:
    """An SV node with a txindex before the chain of `world`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.desk = Desk()
        self.bend: Callable[[SourceStatus], SourceStatus] = lambda status: status
        self.fails: dict[str, RpcFailed] = {}
        """Methods that fail whatever they are asked."""
        self.stale: set[str] = set()
        """Blocks, as shown, that it takes for off its best chain."""
        self.desk.route("POST", "/", self._calls)
        self._methods: dict[str, Callable[..., Any]] = {
            "getblockhash": self._get_block_hash, "getbestblockhash": self._get_best_block_hash,
            "getblockheader": self._get_block_header, "getmerkleproof2": self._get_merkle_proof,
            "getmempoolentry": self._get_mempool_entry, "sendrawtransaction": self._send_raw,
            "getrawtransaction": self._get_raw, "getsettings": self._get_settings,
        }  # fmt: skip

    async def _calls(self, asked: Asked, match: re.Match[str]) -> Reply:
        calls = asked.json
        return Reply(200, [await self._call(one) for one in calls])

    async def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        try:
            if call["method"] in self.fails:
                raise self.fails[call["method"]]
            if call["method"] not in self._methods:
                raise RpcFailed(-32601, "Method not found")
            result = await self._methods[call["method"]](*call["params"])
        except RpcFailed as err:
            return {"result": None, "error": {"code": err.code, "message": err.message}, "id": call["id"]}
        return {"result": result, "error": None, "id": call["id"]}

    async def _get_block_hash(self, height: int) -> str:
        header = await self.world.header(height)
        if header is None:
            raise RpcFailed(-8, "Block height out of range")
        return format_hash(header.hash)

    async def _get_best_block_hash(self) -> str:
        return format_hash((await self.world.chain.read_tip()).block_hash)

    async def _get_block_header(self, shown: str, verbose: bool = True) -> Any:
        height = await self.world.height_of(shown)
        header = None if height is None else await self.world.header(height)
        if header is None or height is None:
            raise RpcFailed(-5, "Block not found")
        tip = await self.world.chain.read_tip()
        confirmations = -1 if shown in self.stale else tip.height - height + 1
        return node_header(header, height, confirmations) if verbose else header.raw.hex()

    async def _get_merkle_proof(self, block: str, shown: str, full: bool = False, target: str = "hash") -> Any:
        status = self.bend(await self.world.status(parse_txid(shown)))
        if status.state is not SourceState.MINED:
            raise RpcFailed(-5, "Transaction not yet in block or -txindex is not enabled")
        bump, index = place_of(status)
        assert status.height is not None
        header = await self.world.header(status.height)
        assert header is not None
        told: dict[str, Any] = {"index": index, "txOrId": shown}
        if target != "hash":
            told["targetType"] = target
        told["target"] = {
            "hash": format_hash(header.hash), "header": header.raw.hex(), "merkleroot": format_hash(header.merkle_root),
        }[target]  # fmt: skip
        return {**told, "nodes": tsc_nodes(bump, index, status.txid)}

    async def _get_mempool_entry(self, shown: str) -> dict[str, Any]:
        if (await self.world.status(parse_txid(shown))).state is not SourceState.SEEN:
            raise RpcFailed(-5, "Transaction not in mempool")
        return {
            "size": 191,
            "fee": 0.00000001,
            "modifiedfee": 0.00000001,
            "time": 1589703256,
            "height": 101,
            "depends": [],
        }

    async def _send_raw(self, text: str, allow_high_fees: bool = False) -> str:
        try:
            tx = parse_transaction(bytes.fromhex(text))
        except (MalformedChainData, ValueError):
            raise RpcFailed(-22, "TX decode failed") from None
        before = await self.world.status(tx.txid)
        if before.state is SourceState.SEEN:
            raise RpcFailed(-27, "Transaction already in the mempool")
        if before.state is SourceState.MINED:
            raise RpcFailed(-26, "257: txn-already-known")
        (status,) = await self.world.chain.submit([Outgoing(tx.txid, tx.raw)])
        if status.state is SourceState.SEEN:
            return format_hash(tx.txid)
        raise RpcFailed(*next(words for start, words in WORDS.items() if status.reason.startswith(start)))

    async def _get_raw(self, shown: str, verbose: bool = False) -> str:
        (raw,) = await self.world.chain.read_raw([parse_txid(shown)])
        if raw is None:
            raise RpcFailed(
                -5, "No such mempool or blockchain transaction. Use gettransaction for wallet transactions."
            )
        return raw.hex()

    async def _get_settings(self) -> dict[str, Any]:
        return {
            "excessiveblocksize": 2000000000, "blockmaxsize": 512000000, "maxtxsizepolicy": 10000000,
            "maxscriptsizepolicy": 500000, "datacarrier": True, "minminingtxfee": 5e-7, "minconsolidationfactor": 20,
        }  # fmt: skip

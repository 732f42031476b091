"""An ARC as `pkg/api/arc.yaml` and `doc/` describe it: it knows what it was given, and calls back."""

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import trio
from fakes.fake_desk import Asked, Desk, Reply, World

from overlayd.bsv.beef import is_beef, parse_beef
from overlayd.bsv.brought import parse_brought
from overlayd.model.chain_source import Outgoing, SourceState, SourceStatus
from overlayd.model.errors import MalformedChainData
from overlayd.model.txid import TxId, format_hash, parse_txid

TIME = "2024-03-26T16:02:29.655390092Z"
CODES = {
    "fee too low": (465, "Fee too low", "The fees are too low"),
    "missing-inputs": (462, "Invalid inputs", "Transaction is invalid because the inputs are non-existent or spent"),
    "malformed": (463, "Malformed transaction", "Transaction is malformed and cannot be processed"),
    "": (461, "Malformed transaction", "Transaction is malformed and cannot be processed"),
}
POLICY = {
    "maxscriptsizepolicy": 500000, "maxtxsigopscountspolicy": 4294967295, "maxtxsizepolicy": 10000000,
    "miningFee": {"satoshis": 1, "bytes": 1000}, "standardFormatSupported": True,
}  # fmt: skip


class FakeArc:
    """An ARC before the chain of `world`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.desk = Desk()
        self.is_quiet = False
        """Refusals come with HTTP 200 and a txStatus instead of a status of their own."""
        self.says: dict[TxId, str] = {}
        """Statuses that it gives whatever the chain says."""
        self.bend: Callable[[SourceStatus], SourceStatus] = lambda status: status
        """What it does to the chain's answers before it tells them."""
        self.known: dict[TxId, tuple[str, str]] = {}
        """Transactions that it was given, with where and as whom to call back."""
        self.mined: set[TxId] = set()
        self.desk.route("POST", "/v1/tx", self._submit)
        self.desk.route("POST", "/v1/txs", self._submit_many)
        self.desk.route("GET", "/v1/tx/([0-9a-f]{64})", self._look_up)
        self.desk.route("GET", "/v1/policy", self._policy)
        self.desk.route("GET", "/v1/health", self._health)

    async def tell(self, txid: TxId) -> dict[str, Any]:
        """What it says of a transaction: the members of TransactionStatus."""
        status = self.bend(await self.world.status(txid))
        word = self.says.get(txid) or self._word(status)
        told: dict[str, Any] = {
            "timestamp": TIME, "blockHash": "", "blockHeight": 0, "txid": format_hash(txid), "merklePath": "",
            "txStatus": word, "extraInfo": "", "competingTxs": None,
        }  # fmt: skip
        if word == "MINED":
            self.mined.add(txid)
            told["blockHash"], told["blockHeight"] = format_hash(status.block_hash or b""), status.height
            told["merklePath"] = (status.bump or b"").hex()
        elif word in ("REJECTED", "DOUBLE_SPEND_ATTEMPTED"):
            told["extraInfo"] = status.reason
            told["competingTxs"] = [format_hash(other) for other in status.competing] or None
        return told

    def callback_of(self, told: dict[str, Any]) -> dict[str, Any]:
        """The same as a callback: what is empty is left out."""
        return {name: value for name, value in told.items() if value or name in ("timestamp", "txid", "txStatus")}

    async def call_back(self, *txids: TxId, is_batch: bool = False, token: str = "", url: str = "") -> list[int]:
        """Calls back about transactions: the statuses that came. `token`, `url`: others than it was given."""
        told = [self.callback_of(await self.tell(txid)) for txid in txids]
        wanted_url, wanted_token = self.known.get(txids[0], ("", ""))
        target, bearer = url or wanted_url, token or wanted_token
        if is_batch:
            return [await post_json(target, bearer, {"count": len(told), "callbacks": told})]
        return [await post_json(target, bearer, one) for one in told]

    def _word(self, status: SourceStatus) -> str:
        if status.state is SourceState.SEEN and status.txid in self.mined:
            return "MINED_IN_STALE_BLOCK"
        return {
            SourceState.SEEN: "SEEN_ON_NETWORK", SourceState.MINED: "MINED", SourceState.REJECTED: "REJECTED",
            SourceState.DOUBLE_SPEND: "DOUBLE_SPEND_ATTEMPTED", SourceState.HELD: "STORED",
            SourceState.STALE: "MINED_IN_STALE_BLOCK", SourceState.UNKNOWN: "RECEIVED",
        }[status.state]  # fmt: skip

    async def _take(self, octets: bytes, asked: Asked) -> tuple[int, dict[str, Any]]:
        """A submission's status and body."""
        try:
            brought = parse_brought(octets)
        except MalformedChainData as err:
            return 463, self._problem("malformed", err.detail, "")
        tx = brought.tx
        extended = brought.extended.encode() if brought.extended and not is_beef(octets) else None
        beef = octets if is_beef(octets) else None
        if beef is not None:
            assert parse_beef(beef).subject == tx.txid
        (status,) = await self.world.chain.submit([Outgoing(tx.txid, tx.raw, extended, beef)])
        self.known[tx.txid] = (asked.headers.get("x-callbackurl", ""), asked.headers.get("x-callbacktoken", ""))
        if status.state is SourceState.REJECTED and not self.is_quiet:
            problem = self._problem(status.reason, status.reason, format_hash(tx.txid))
            return problem["status"], problem
        return 200, {**await self.tell(tx.txid), "status": 200, "title": "OK"}

    def _problem(self, reason: str, extra: str, txid: str) -> dict[str, Any]:
        number, title, detail = next(value for start, value in CODES.items() if reason.startswith(start))
        return {
            "type": f"https://bitcoin-sv.github.io/arc/#/errors?id=_{number}", "title": title, "status": number,
            "detail": detail, "instance": None, "txid": txid or None, "extraInfo": f"arc error {number}: {extra}",
        }  # fmt: skip

    async def _submit(self, asked: Asked, match: re.Match[str]) -> Reply:
        status, body = await self._take(_octets(asked), asked)
        return Reply(status, body)

    async def _submit_many(self, asked: Asked, match: re.Match[str]) -> Reply:
        return Reply(200, [(await self._take(bytes.fromhex(one["rawTx"]), asked))[1] for one in asked.json])

    async def _look_up(self, asked: Asked, match: re.Match[str]) -> Reply:
        txid = parse_txid(match[1])
        if txid not in self.known:
            return Reply(
                404,
                {
                    "type": "https://bitcoin-sv.github.io/arc/#/errors?id=_404", "title": "Not found", "status": 404,
                    "detail": "The requested resource could not be found", "instance": None, "txid": None,
                    "extraInfo": "transaction not found",
                },
            )  # fmt: skip
        return Reply(200, await self.tell(txid))

    async def _policy(self, asked: Asked, match: re.Match[str]) -> Reply:
        return Reply(200, {"timestamp": TIME, "policy": POLICY})

    async def _health(self, asked: Asked, match: re.Match[str]) -> Reply:
        return Reply(200, {"healthy": True, "version": "v1.3.54", "reason": None})


def _octets(asked: Asked) -> bytes:
    """A transaction in any of the three content types."""
    content_type = asked.headers.get("content-type", "")
    if content_type == "application/json":
        return bytes.fromhex(asked.json["rawTx"])
    return bytes.fromhex(asked.body.decode()) if content_type == "text/plain" else asked.body


async def post_json(url: str, token: str, body: Any) -> int:
    """POSTs as ARC's callbacker does; gives the status."""
    parts = urlsplit(url)
    octets = json.dumps(body).encode()
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json; charset=UTF-8\r\n"
        f"Authorization: Bearer {token}\r\nContent-Length: {len(octets)}\r\nConnection: close\r\n\r\n"
    )
    stream = await trio.open_tcp_stream(parts.hostname or "", parts.port or 80)
    async with stream:
        await stream.send_all(head.encode() + octets)
        answer = b""
        while b"\r\n" not in answer:
            piece = await stream.receive_some()
            assert piece, "it hung up"
            answer += piece
    return int(answer.split()[1])

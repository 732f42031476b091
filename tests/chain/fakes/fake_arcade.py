"""An Arcade as its OpenAPI document and `services/sse` describe it, with chaintracks and both event streams."""

import json
import re
from typing import Any

import chaos_sink as chaos
import trio
from fakes.fake_arc import POLICY, TIME, FakeArc, _octets
from fakes.fake_desk import Asked, Desk, Reply, World

from overlayd.bsv.header import BlockHeader
from overlayd.bsv.octets import ByteReader
from overlayd.bsv.tx import is_extended, parse_extended, parse_transaction, read_transaction
from overlayd.model.chain_source import Outgoing, SourceState
from overlayd.model.errors import MalformedChainData
from overlayd.model.txid import TxId, format_hash, parse_txid


class FakeArcade:
    """An Arcade before the chain of `world`. It keeps what it was given as an ARC does; the words differ."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.arc = FakeArc(world)
        self.desk = Desk()
        self.tokens: dict[TxId, str] = {}
        self.frames: list[tuple[int, str, str]] = []
        """Status events so far: id, token, frame."""
        self._listeners: list[tuple[str, chaos.Turn, trio.Event]] = []
        self._ids = 1_716_205_200_000_000_000
        for method, pattern, handler in (
            ("POST", "/tx", self._submit), ("POST", "/txs", self._submit_many),
            ("GET", "/tx/([0-9a-f]{64})", self._look_up), ("GET", "/policy", self._policy),
            ("GET", "/events", self._events), ("GET", "/chaintracks/v2/network", self._network),
            ("GET", "/chaintracks/v2/height", self._height), ("GET", "/chaintracks/v2/tip", self._tip),
            ("GET", "/chaintracks/v2/headers", self._headers), ("GET", "/chaintracks/v2/tip/stream", self._tips),
        ):  # fmt: skip
            self.desk.route(method, pattern, handler)

    async def tell(self, txid: TxId) -> dict[str, Any]:
        """The members of its TransactionStatus: those that are empty are left out."""
        told = await self.arc.tell(txid)
        if told["txStatus"] == "MINED_IN_STALE_BLOCK":
            told |= {"txStatus": "SEEN_ON_NETWORK", "extraInfo": "reorg_unmined"}
        return {name: value for name, value in told.items() if value or name in ("txid", "txStatus", "timestamp")}

    async def send_status(self, txid: TxId, **changes: Any) -> None:
        """An event about a transaction, to those who listen with its token."""
        self._ids += 1_000_000
        told = {**await self.tell(txid), **changes}
        frame = f"id: {self._ids}\nevent: status\ndata: {json.dumps(told)}\n\n"
        self.frames.append((self._ids, self.tokens.get(txid, ""), frame))
        await self.send_frame(frame, self.tokens.get(txid, ""))

    async def send_frame(self, frame: str, token: str) -> None:
        """A raw frame to those who listen with a token; "tips" for the other stream."""
        for wanted, turn, _ in self._listeners:
            if wanted == token:
                await _send_chunk(turn, frame)

    async def send_gap(self, token: str) -> None:
        """Says that events were lost."""
        data = {"reason": "slow_consumer", "from": self._ids, "count": 3, "action": "reconcile"}
        await self.send_frame(f"event: gap\ndata: {json.dumps(data)}\n\n", token)

    async def send_tip(self) -> None:
        """The present tip, to those who listen for tips."""
        await self.send_frame(f"data: {json.dumps(await self._tip_json())}\n\n", "tips")

    def cut(self) -> None:
        """Ends all event streams."""
        for _, turn, gone in self._listeners:
            turn.reset()
            gone.set()
        self._listeners.clear()

    @property
    def listeners(self) -> list[str]:
        """The tokens that are listened with."""
        return [token for token, _, _ in self._listeners]

    async def _submit(self, asked: Asked, match: re.Match[str]) -> Reply:
        try:
            txid = await self._take(_octets(asked), asked)
        except MalformedChainData as err:
            return Reply(400, {"error": "failed to parse transaction", "reason": err.detail})
        status = await self.world.status(txid)
        if status.state is SourceState.REJECTED:
            return Reply(400, {"error": "transaction failed validation", "reason": status.reason})
        word = (await self.tell(txid))["txStatus"]
        return Reply(202, {"txid": format_hash(txid), "status": 202, "txStatus": word})

    async def _submit_many(self, asked: Asked, match: re.Match[str]) -> Reply:
        transactions, rest = [], asked.body
        while rest:
            size = _length(rest)
            transactions.append(rest[:size])
            rest = rest[size:]
        for octets in transactions:
            txid = await self._take(octets, asked)
            status = await self.world.status(txid)
            if status.state is SourceState.REJECTED:
                body = {"error": "validation failed", "reason": status.reason, "txid": format_hash(txid)}
                return Reply(400, body)
        return Reply(202, {"submitted": len(transactions), "duplicates": 0, "total": len(transactions)})

    async def _take(self, octets: bytes, asked: Asked) -> TxId:
        extended = parse_extended(octets) if is_extended(octets) else None
        tx = extended.tx if extended else parse_transaction(octets)
        await self.world.chain.submit([Outgoing(tx.txid, tx.raw, octets if extended else None)])
        self.arc.known[tx.txid] = (asked.headers.get("x-callbackurl", ""), asked.headers.get("x-callbacktoken", ""))
        self.tokens[tx.txid] = asked.headers.get("x-callbacktoken", "")
        return tx.txid

    async def _look_up(self, asked: Asked, match: re.Match[str]) -> Reply:
        txid = parse_txid(match[1])
        if txid not in self.tokens:
            return Reply(404, {"error": "transaction not found"})
        return Reply(200, await self.tell(txid))

    async def _policy(self, asked: Asked, match: re.Match[str]) -> Reply:
        return Reply(200, {"policy": POLICY, "timestamp": TIME})

    async def _network(self, asked: Asked, match: re.Match[str]) -> Reply:
        return Reply(200, {"network": "regtest"})

    async def _height(self, asked: Asked, match: re.Match[str]) -> Reply:
        return Reply(200, {"height": (await self.world.chain.read_tip()).height})

    async def _tip(self, asked: Asked, match: re.Match[str]) -> Reply:
        body = await self._tip_json()
        return Reply(200, body, {"x-block-height": str(body["height"])})

    async def _tip_json(self) -> dict[str, Any]:
        tip = await self.world.chain.read_tip()
        header = await self.world.header(tip.height)
        assert header is not None
        return chaintracks_header(header, tip.height)

    async def _headers(self, asked: Asked, match: re.Match[str]) -> Reply:
        if not {"height", "count"} <= asked.query.keys():
            return Reply(400, {"error": "Missing height or count parameter"})
        headers = await self.world.headers(int(asked.query["height"]), int(asked.query["count"]))
        return Reply(200, b"".join(header.raw for header in headers))

    async def _events(self, asked: Asked, match: re.Match[str]) -> None:
        token, last = asked.query.get("callbackToken", ""), asked.headers.get("last-event-id", "")
        turn = await self._begin(token)
        for number, owner, frame in self.frames:
            if last and token and owner == token and number > int(last):
                await _send_chunk(turn, frame)
        await self._hold(token, turn)

    async def _tips(self, asked: Asked, match: re.Match[str]) -> None:
        turn = await self._begin("tips")
        await _send_chunk(turn, f"data: {json.dumps(await self._tip_json())}\n\n")
        await self._hold("tips", turn)

    async def _begin(self, token: str) -> chaos.Turn:
        turn = self.desk.turn
        assert turn is not None
        await turn.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        return turn

    async def _hold(self, token: str, turn: chaos.Turn) -> None:
        gone = trio.Event()
        self._listeners.append((token, turn, gone))
        await gone.wait()


async def _send_chunk(turn: chaos.Turn, text: str) -> None:
    octets = text.encode()
    await turn.send(b"%x\r\n%s\r\n" % (len(octets), octets))


def chaintracks_header(header: BlockHeader, height: int) -> dict[str, Any]:
    """A header as go-chaintracks writes it."""
    return {
        "version": header.version, "previousHash": format_hash(header.previous),
        "merkleRoot": format_hash(header.merkle_root), "time": header.time_s, "bits": header.bits,
        "nonce": header.nonce, "height": height, "hash": format_hash(header.hash),
    }  # fmt: skip


def _length(octets: bytes) -> int:
    """How long the first of several transactions is."""
    reader = ByteReader(octets, "transaction")
    if not is_extended(octets):
        read_transaction(reader)
        return reader.at
    reader.take(10)
    for _ in range(reader.varint()):
        reader.take(36)
        reader.varbytes()
        reader.take(4 + 8)
        reader.varbytes()
    for _ in range(reader.varint()):
        reader.take(8)
        reader.varbytes()
    reader.take(4)
    return reader.at

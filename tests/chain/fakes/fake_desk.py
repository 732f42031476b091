"""What the fake sources share: routes over a scripted server on loopback, and the embedded chain behind them.

A fake answers as the contract of its kind says, out of a real chain with real proofs; a test can let it answer
otherwise: `desk.trick(pattern, step, …)` gives the next requests of a path to steps of the chaos sink.
"""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import chaos_sink as chaos
import msgspec
import trio

from overlayd.bsv.bump import Bump, parse_bump
from overlayd.bsv.hashes import hash256
from overlayd.bsv.header import BlockHeader, parse_header
from overlayd.chain.regtest import RegtestChain
from overlayd.model.chain_source import SourceStatus
from overlayd.model.txid import TxId, format_hash


class Asked(msgspec.Struct):
    """A request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Reply(msgspec.Struct):
    """An answer: bytes go as they are, a text as text/plain, anything else as JSON."""

    status: int
    body: Any = b""
    headers: dict[str, str] = {}

    def encode(self) -> bytes:
        content_type = "application/json"
        if isinstance(self.body, bytes):
            content_type, octets = "application/octet-stream", self.body
        elif isinstance(self.body, str):
            content_type, octets = "text/plain", self.body.encode()
        else:
            octets = json.dumps(self.body).encode()
        lines = [f"HTTP/1.1 {self.status} Said", f"content-type: {content_type}", f"content-length: {len(octets)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + octets


Handler = Callable[[Asked, re.Match[str]], Awaitable[Reply | None]]
"""Answers a request; None when it has written to the turn itself."""


class Desk:
    """Routes, tricks and a record of all that was asked."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.url = ""
        self.authorization = ""
        """What requests must bring; empty: anything."""
        self.on_asked: Callable[[Asked], Reply | None] = lambda asked: None
        self.turn: chaos.Turn | None = None
        self._routes: list[tuple[str, re.Pattern[str], Handler]] = []
        self._tricks: list[tuple[re.Pattern[str], list[chaos.Step]]] = []

    def route(self, method: str, pattern: str, handler: Handler) -> None:
        self._routes.append((method, re.compile(pattern), handler))

    def trick(self, pattern: str, *steps: chaos.Step) -> None:
        """The next requests of paths that fit get these steps, one each."""
        self._tricks.append((re.compile(pattern), list(steps)))

    def always(self, pattern: str, step: chaos.Step) -> None:
        """All further requests of paths that fit get this step."""
        self.trick(pattern, *[step] * 10_000)

    def honest(self) -> None:
        """No tricks any more."""
        self._tricks.clear()

    def count(self, pattern: str) -> int:
        """How many requests of paths that fit have come."""
        return sum(bool(re.fullmatch(pattern, asked.path)) for asked in self.asked)

    async def go_on(self, turn: chaos.Turn) -> None:
        """A trick that is none: the route answers."""
        asked = self.asked[-1]
        asked.body = await turn.body()
        await self._answer(asked, turn)

    async def serve(self, turn: chaos.Turn) -> None:
        path, _, query = turn.path.partition("?")
        pairs = [pair.partition("=") for pair in query.split("&") if pair]
        asked = Asked(turn.method, path, {name: value for name, _, value in pairs}, turn.headers, b"")
        for pattern, steps in self._tricks:
            if steps and pattern.fullmatch(path):
                self.asked.append(asked)
                return await steps.pop(0)(turn)
        asked.body = await turn.body()
        self.asked.append(asked)
        return await self._answer(asked, turn)

    async def _answer(self, asked: Asked, turn: chaos.Turn) -> None:
        reply = self.on_asked(asked)
        if reply is None and self.authorization and asked.headers.get("authorization") != self.authorization:
            reply = Reply(401, {"title": "Unauthorized", "status": 401})
        if reply is None:
            self.turn = turn
            reply = await self._dispatch(asked)
        if reply is not None:
            await turn.send(reply.encode())

    async def _dispatch(self, asked: Asked) -> Reply | None:
        for method, pattern, handler in self._routes:
            match = pattern.fullmatch(asked.path)
            if method == asked.method and match is not None:
                return await handler(asked, match)
        return Reply(404, "<html>404 page not found</html>")


@asynccontextmanager
async def served(*desks: Desk) -> AsyncIterator[None]:
    """The fakes on ports of their own, for the life of the block."""
    async with trio.open_nursery() as nursery:

        async def keep(desk: Desk, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            async with chaos.open_sink() as sink:
                sink.play(desk.serve)
                desk.url = sink.origin
                task_status.started()
                await trio.sleep_forever()

        for desk in desks:
            await nursery.start(keep, desk)
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()


class World:
    """The chain that the fakes stand before."""

    def __init__(self, chain: RegtestChain) -> None:
        self.chain = chain

    async def status(self, txid: TxId) -> SourceStatus:
        (status,) = await self.chain.look_up([txid])
        return status

    async def header(self, height: int) -> BlockHeader | None:
        raws = await self.chain.read_headers(height, 1)
        return parse_header(raws[0]) if raws else None

    async def headers(self, height: int, count: int) -> list[BlockHeader]:
        return [parse_header(raw) for raw in await self.chain.read_headers(height, count)]

    async def height_of(self, shown: str) -> int | None:
        """The height of a block of the best chain, by its hash as it is shown."""
        tip = await self.chain.read_tip()
        for height, header in enumerate(await self.headers(0, tip.height + 1)):
            if format_hash(header.hash) == shown:
                return height
        return None


def node_header(header: BlockHeader, height: int, confirmations: int) -> dict[str, Any]:
    """A header as nodes and WhatsOnChain write it in JSON."""
    members: dict[str, Any] = {
        "hash": format_hash(header.hash), "confirmations": confirmations, "size": 285, "height": height,
        "version": header.version, "versionHex": f"{header.version:08x}", "merkleroot": format_hash(header.merkle_root),
        "num_tx": 1, "time": header.time_s, "mediantime": header.time_s, "nonce": header.nonce,
        "bits": f"{header.bits:08x}", "difficulty": 4.6e-10, "chainwork": f"{2 * height + 2:064x}",
    }  # fmt: skip
    if height:
        members["previousblockhash"] = format_hash(header.previous)
    return members


def tsc_nodes(bump: Bump, index: int, txid: TxId, *, is_written_out: bool = False) -> list[str]:
    """The other sides on the way up, as in a TSC proof; a copy as `*`, or written out."""
    nodes, own = [], bytes(txid)
    for level, row in enumerate(bump.rows):
        offset = index >> level
        if len(bump.rows) == 1 and len(row) == 1:
            break
        other = row[offset ^ 1]
        nodes.append(format_hash(other or own) if other or is_written_out else "*")
        both = other + own if offset & 1 else own + (other or own)
        own = hash256(both)
    return nodes


def place_of(status: SourceStatus) -> tuple[Bump, int]:
    """The proof of a mined transaction, and its place in the block."""
    assert status.bump is not None
    bump = parse_bump(status.bump)
    index = bump.find(status.txid)
    assert index is not None
    return bump, index


def break_proof(status: SourceStatus) -> SourceStatus:
    """A proof with a hash of its path changed: well formed, and leading nowhere."""
    bump, index = place_of(status)
    rows = [dict(row) for row in bump.rows]
    level = next(level for level, row in enumerate(rows) if row.get((index >> level) ^ 1))
    other = (index >> level) ^ 1
    rows[level][other] = bytes(byte ^ 1 for byte in rows[level][other])
    raw = Bump(bump.height, tuple(rows), bump.txid_offsets, b"").encode()
    return msgspec.structs.replace(status, bump=raw)

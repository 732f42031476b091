"""`/v1/chain`: the node's own view of its chain, and, on regtest alone, what drives it."""

from typing import NoReturn

from msgspec import UNSET
from quart import Response, request
from quart_trio import QuartTrio

from overlayd.access import require
from overlayd.access.audit import AuditTrail
from overlayd.access.principal import check_standing
from overlayd.bsv.base58 import parse_address
from overlayd.bsv.script import lock_to_hash
from overlayd.chain.engine import ChainEngine
from overlayd.chain.header_chain import HeldHeader
from overlayd.chain.regtest import RegtestChain
from overlayd.model.clock import format_time_us
from overlayd.model.errors import NoChain, RegtestRefused
from overlayd.model.txid import format_hash, parse_txid
from overlayd.model.wire import encode_wire
from overlayd.model.wire_chain import (
    ChainBody,
    ChainSourceBody,
    HeaderBody,
    HeaderList,
    MineIn,
    PaidBody,
    PayIn,
    RegtestBody,
    ReorgIn,
    TipBody,
    TxidIn,
)
from overlayd.net.app import answer, author_of, principal_of
from overlayd.net.json_body import JsonBodies
from overlayd.net.lane import Lane
from overlayd.net.parameters import Parameters

HEADERS_LIMIT = 100
HEADERS_LIMIT_MAX = 2000


def add_chain_routes(
    app: QuartTrio, *, chain: ChainEngine | None, lane: Lane, bodies: JsonBodies, trail: AuditTrail
) -> None:
    """Adds `/v1/chain` and what is below it. Without a chain they all answer that there is none."""
    routes = _ChainRoutes(chain, lane, bodies, trail)
    app.add_url_rule("/v1/chain", "chain", routes.show, methods=["GET"])
    app.add_url_rule("/v1/chain/headers", "chain.headers", routes.headers, methods=["GET"])
    app.add_url_rule("/v1/chain/regtest/mine", "regtest.mine", routes.mine, methods=["POST"])
    app.add_url_rule("/v1/chain/regtest/pay", "regtest.pay", routes.pay, methods=["POST"])
    app.add_url_rule("/v1/chain/regtest/reorg", "regtest.reorg", routes.reorg, methods=["POST"])
    app.add_url_rule("/v1/chain/regtest/drop", "regtest.drop", routes.drop, methods=["POST"])
    app.add_url_rule("/v1/chain/regtest/double-spend", "regtest.double_spend", routes.double_spend, methods=["POST"])


def engine_of(chain: ChainEngine | None) -> ChainEngine:
    """The engine. Raises NoChain."""
    if chain is None:
        raise NoChain(
            "this node follows no chain", subject="chain.network", hint='set it in the table [chain], such as "regtest"'
        )
    return chain


class _ChainRoutes:
    """The routes with what they need."""

    def __init__(self, chain: ChainEngine | None, lane: Lane, bodies: JsonBodies, trail: AuditTrail) -> None:
        self._chain = chain
        self._lane = lane
        self._bodies = bodies
        self._trail = trail

    async def show(self) -> Response:
        """Tip, sources, what is waited for."""
        check_standing(principal_of(request))
        Parameters(request, ())
        engine = engine_of(self._chain)
        async with self._lane.step_out():
            await engine.watcher.count()
        measured, anchored_us = engine.watcher.measured, engine.anchorer.last_us
        body = ChainBody(
            network=engine.settings.network,  # type: ignore[arg-type]  # not none
            tip=_tip(engine.book.tip), first_height=engine.book.start.height, stale=engine.describe_staleness() or UNSET,
            sources=_sources(engine), watched=measured.pending, unfunded=measured.unfunded,
            wallet=engine.wallet.trouble or UNSET, anchor_waiting=engine.anchorer.waiting,
            anchored_at=format_time_us(anchored_us) if anchored_us else UNSET,
        )  # fmt: skip
        return answer(encode_wire(body))

    async def headers(self) -> Response:
        """Block headers of the best chain, ascending."""
        check_standing(principal_of(request))
        parameters = Parameters(request, ("from", "limit"))
        engine = engine_of(self._chain)
        limit = parameters.number("limit", minimum=1, maximum=HEADERS_LIMIT_MAX) or HEADERS_LIMIT
        from_height = parameters.number("from") or 0
        async with self._lane.step_out():
            found = await engine.book.read_headers(from_height, limit)
        headers = [
            HeaderBody(height=held.height, hash=format_hash(held.hash), raw=held.header.raw.hex()) for held in found
        ]
        return answer(encode_wire(HeaderList(headers=headers)))

    async def mine(self) -> Response:
        """Mines blocks now."""
        chain = self._regtest()
        wanted = await self._bodies.read_or(request, MineIn, "no block can be mined", MineIn())
        async with self._lane.step_out():
            await chain.mine(wanted.blocks)
            return await self._done("mine", {"blocks": wanted.blocks})

    async def reorg(self) -> Response:
        """Lets another branch overtake."""
        chain = self._regtest()
        wanted = await self._bodies.read(request, ReorgIn, "no branch can overtake")
        async with self._lane.step_out():
            await chain.reorg(wanted.depth, transactions=wanted.transactions)
            return await self._done("reorg", {"depth": wanted.depth, "transactions": wanted.transactions})

    async def drop(self) -> Response:
        """Forgets a transaction of the mempool, and those that build on it."""
        chain = self._regtest()
        wanted = await self._bodies.read(request, TxidIn, "nothing can be dropped")
        async with self._lane.step_out():
            dropped = await chain.drop(parse_txid(wanted.txid))
            return await self._done("drop", {"txid": wanted.txid}, [format_hash(txid) for txid in dropped])

    async def double_spend(self) -> Response:
        """Replaces a transaction of the mempool by another that spends the same coin of the miner's or the wallet's."""
        chain = self._regtest()
        wanted = await self._bodies.read(request, TxidIn, "nothing can be spent twice")
        async with self._lane.step_out():
            other = await chain.double_spend(parse_txid(wanted.txid), engine_of(self._chain).regtest_keys)
            return await self._done("double-spend", {"txid": wanted.txid}, [format_hash(other.txid)])

    async def pay(self) -> Response:
        """Pays an address out of the miner's coins."""
        chain = self._regtest()
        wanted = await self._bodies.read(request, PayIn, "nobody can be paid")
        script = lock_to_hash(parse_address(wanted.address, engine_of(self._chain).network))
        async with self._lane.step_out():
            paid = await chain.pay(script, wanted.satoshis, wanted.outputs)
            await self._done("pay", {"address": wanted.address, "satoshis": wanted.satoshis, "outputs": wanted.outputs})
        body = PaidBody(txid=format_hash(paid.txid), tx=paid.raw.hex(), outputs=wanted.outputs)
        return answer(encode_wire(body), 201)

    def _regtest(self) -> RegtestChain:
        require(principal_of(request), "admin")
        Parameters(request, ())
        engine = engine_of(self._chain)
        if engine.regtest is None:
            _refuse(engine.network.name)
        return engine.regtest

    async def _done(self, what: str, detail: dict[str, str | int], txids: list[str] | None = None) -> Response:
        engine = engine_of(self._chain)
        assert engine.regtest is not None
        await engine.book.follow(engine.regtest)
        await self._trail.write(author_of(request).record(f"regtest.{what}", "chain", **detail))
        body = RegtestBody(tip=_tip(engine.book.tip), txids=UNSET if txids is None else txids)
        return answer(encode_wire(body))


def _refuse(network: str) -> NoReturn:
    raise RegtestRefused(f"this node follows {network}, which nobody here can drive", subject="chain.network")


def _tip(held: HeldHeader) -> TipBody:
    return TipBody(height=held.height, hash=format_hash(held.hash), time=format_time_us(held.time_s * 1_000_000))


def _sources(engine: ChainEngine) -> list[ChainSourceBody]:
    if engine.remote is None:
        return [ChainSourceBody(name="regtest", state="ok", abilities=["everything"])]
    return [
        ChainSourceBody(
            name=report.name, state=report.state, abilities=list(report.abilities), detail=report.detail or UNSET,
            pause_s=report.pause_s or UNSET,
        )
        for report in engine.remote.pool.report()
    ]  # fmt: skip

"""`/v1/wallet`: what the node has to pay with for packets and checkpoints."""

from typing import Literal

from msgspec import UNSET
from quart import Response, request
from quart_trio import QuartTrio

from overlayd.access import require
from overlayd.access.audit import AuditTrail
from overlayd.chain.engine import ChainEngine
from overlayd.chain.wallet_tables import WalletLine
from overlayd.model.clock import format_time_us
from overlayd.model.errors import WalletRefused
from overlayd.model.txid import format_hash
from overlayd.model.wire import encode_wire
from overlayd.model.wire_chain import (
    DepositBody,
    DepositIn,
    FanOutBody,
    FanOutIn,
    WalletBody,
    WalletHistory,
    WalletTxBody,
)
from overlayd.net.app import answer, author_of, principal_of
from overlayd.net.chain_routes import engine_of
from overlayd.net.json_body import JsonBodies
from overlayd.net.lane import Lane
from overlayd.net.parameters import Parameters

LIMIT = 100
LIMIT_MAX = 1000
_ID_MAX = (1 << 63) - 1
_MADE_FOR: dict[str, Literal["packet", "checkpoint", "wallet"]] = {
    "funded": "packet", "anchor": "checkpoint", "wallet": "wallet",
}  # fmt: skip


def add_wallet_routes(
    app: QuartTrio, *, chain: ChainEngine | None, lane: Lane, bodies: JsonBodies, trail: AuditTrail
) -> None:
    """Adds `/v1/wallet` and what is below it. Without a chain they all answer that there is none."""
    routes = _WalletRoutes(chain, lane, bodies, trail)
    app.add_url_rule("/v1/wallet", "wallet", routes.show, methods=["GET"])
    app.add_url_rule("/v1/wallet/history", "wallet.history", routes.history, methods=["GET"])
    app.add_url_rule("/v1/wallet/fan-out", "wallet.fan_out", routes.fan_out, methods=["POST"])
    app.add_url_rule("/v1/wallet/deposits", "wallet.deposit", routes.deposit, methods=["POST"])


class _WalletRoutes:
    """The routes with what they need."""

    def __init__(self, chain: ChainEngine | None, lane: Lane, bodies: JsonBodies, trail: AuditTrail) -> None:
        self._chain = chain
        self._lane = lane
        self._bodies = bodies
        self._trail = trail

    async def show(self) -> Response:
        """Address and balance."""
        engine = self._ask()
        async with self._lane.step_out():
            balance = await engine.wallet.read_balance()
            fees_today = await engine.wallet.read_fees_today()
        body = WalletBody(
            network=engine.network.name, address=engine.wallet.address, confirmed=balance.confirmed,
            unconfirmed=balance.unconfirmed, doubtful=balance.doubtful, usable_coins=balance.usable_coins,
            fees_today=fees_today, low=engine.wallet.is_low, waits=engine.wallet.trouble or UNSET,
        )  # fmt: skip
        return answer(encode_wire(body))

    async def history(self) -> Response:
        """Its transactions, the newest first."""
        require(principal_of(request), "admin")
        parameters = Parameters(request, ("limit", "before"))
        engine = engine_of(self._chain)
        limit = parameters.number("limit", minimum=1, maximum=LIMIT_MAX) or LIMIT
        before = parameters.number("before", minimum=1, maximum=_ID_MAX) or _ID_MAX
        async with self._lane.step_out():
            lines = await engine.wallet.read_history(before, limit + 1)
        is_more = len(lines) > limit
        del lines[limit:]
        shown = [_shown(line) for line in lines]
        return answer(encode_wire(WalletHistory(transactions=shown, next_before=lines[-1].id if is_more else UNSET)))

    async def fan_out(self) -> Response:
        """Makes coins for the pool."""
        engine = self._ask()
        wanted = await self._bodies.read_or(request, FanOutIn, "no coins can be made", FanOutIn())
        async with self._lane.step_out():
            made = await engine.fan_out(None if wanted.coins is UNSET else wanted.coins)
            if made is None:
                raise WalletRefused(
                    engine.wallet.why_not or "the pool lacks nothing, or no coin in a block is large enough",
                    subject="wallet",
                )  # fmt: skip
            txid, coins = format_hash(made.txid), len(made.outputs)
            await self._note("fan_out", {"txid": txid, "coins": coins})
        return answer(encode_wire(FanOutBody(txid=txid, coins=coins)), 201)

    async def deposit(self) -> Response:
        """Takes note of a transaction that pays the wallet."""
        engine = self._ask()
        wanted = await self._bodies.read(request, DepositIn, "the deposit can't be taken note of")
        async with self._lane.step_out():
            tx = await engine.receive(wanted.tx)
            await self._note("deposit", {"txid": format_hash(tx.txid)})
        return answer(encode_wire(DepositBody(txid=format_hash(tx.txid))), 201)

    def _ask(self) -> ChainEngine:
        require(principal_of(request), "admin")
        Parameters(request, ())
        return engine_of(self._chain)

    async def _note(self, what: str, detail: dict[str, str | int]) -> None:
        await self._trail.write(author_of(request).record(f"wallet.{what}", "wallet", **detail))


def _shown(line: WalletLine) -> WalletTxBody:
    state: Literal["waiting", "mined", "given_up"] = "given_up" if line.verdict else "waiting"
    return WalletTxBody(
        id=line.id, txid=format_hash(line.txid), for_=_MADE_FOR[line.role], fee=line.fee_sat,
        state=state if line.height is None else "mined", height=UNSET if line.height is None else line.height,
        reason=line.reason or UNSET, at=format_time_us(line.created_us),
    )  # fmt: skip

"""`/v1/chain/callback`: where sources of the chain say that something has happened to a transaction.

A callback is never believed, only a reason to ask: of all that it says, the txids alone are looked at. So it may come
late, twice, forged by somebody who got hold of a token, or not at all.
"""

from collections.abc import Callable

import msgspec
import structlog
from msgspec import UNSET, UnsetType
from quart import Response, request
from quart_trio import QuartTrio

from overlayd.chain.sources.settings import AskingSettings
from overlayd.model.callback import CALLBACK_PATH
from overlayd.model.errors import BadRequest, BatchTooLarge, Forbidden, MalformedChainData
from overlayd.model.metrics import Metrics
from overlayd.model.txid import TxId, parse_txid
from overlayd.net.app import answer, principal_of, read_body
from overlayd.net.content import Bodies

_log = structlog.get_logger("net.callback")

OnHint = Callable[[TxId], None]
"""Something may have happened to a transaction. Neither blocks nor fails; what isn't watched is passed over."""


class CallbackMember(msgspec.Struct):
    """What ARC and Arcade tell of one transaction. Only its txid is looked at."""

    txid: str


class CallbackIn(msgspec.Struct):
    """One transaction's callback, or several: `{"count": 2, "callbacks": […]}`."""

    txid: str | UnsetType = UNSET
    callbacks: list[CallbackMember] | UnsetType = UNSET


def add_chain_callback_routes(
    app: QuartTrio, *, bodies: Bodies, settings: AskingSettings, on_hint: OnHint, metrics: Metrics
) -> None:  # fmt: skip
    """Adds the route. `on_hint` gets each txid."""
    counter = metrics.counter("overlayd_chain_callbacks", "Callbacks of sources of the chain", "source", "outcome")

    async def call_back() -> Response:
        """Takes a callback: 204, whether or not anybody waits for it."""
        principal = principal_of(request)
        if principal.kind != "source":
            raise Forbidden(
                "only sources of the chain call back here", subject=CALLBACK_PATH,
                hint="it is they who get the token, along with each transaction",
            )  # fmt: skip
        source, outcome = principal.name.partition(":")[2], "refused"
        try:
            with bodies.hold() as hold:
                raw = await read_body(request, bodies, hold, int(settings.callback_bytes), "callback_bytes")
            txids = read_callback(raw)
            if len(txids) > settings.callback_entries:
                metrics.count_limit_hit("callback_entries")
                raise BatchTooLarge(f"{len(txids)} transactions; at most {settings.callback_entries} are taken")
            outcome = "taken"
        finally:
            counter.labels(source, outcome).inc()
        for txid in txids:
            on_hint(txid)
        _log.debug("callback", source=source, transactions=len(txids))
        return answer(b"", 204)

    app.add_url_rule(CALLBACK_PATH, "chain.callback", call_back, methods=["POST"])


def read_callback(raw: bytes) -> list[TxId]:
    """The transactions that a callback is about. Raises BadRequest."""
    try:
        told = msgspec.json.decode(raw, type=CallbackIn)
        if told.callbacks is not UNSET:
            return [parse_txid(one.txid) for one in told.callbacks]
        if told.txid is not UNSET:
            return [parse_txid(told.txid)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, MalformedChainData) as err:
        raise BadRequest("the body isn't a callback of ARC's or Arcade's", subject="body") from err
    raise BadRequest("the callback names no transaction", subject="body")

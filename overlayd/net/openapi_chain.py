"""The operations about the chain and the node's wallet (openapi.py)."""

from overlayd.model import wire_chain
from overlayd.net.chain_callback_routes import CallbackIn
from overlayd.net.operations import INTEGER, JSON, LIMIT, Answer, Operation, query_of

_BODY_ERRORS = (400, 401, 403, 404, 409, 413, 415, 422, 429, 503)
_DONE = (Answer(200, "The tip afterwards", {JSON: wire_chain.RegtestBody}),)

CHAIN_OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "get", "/v1/chain", "What the node knows of its chain, and what it waits for", "chain",
        (Answer(200, "Tip, sources, what is watched", {JSON: wire_chain.ChainBody}),), (), {}, (400, 404), "any",
    ),
    Operation(
        "get", "/v1/chain/headers", "Block headers of the best chain, ascending", "chain",
        (Answer(200, "Headers", {JSON: wire_chain.HeaderList}),),
        (
            query_of("from", "From this height on", INTEGER),
            query_of("limit", "At most so many", {"type": "integer", "minimum": 1, "maximum": 2000}),
        ),
        {}, (400, 404), "any",
    ),
    Operation(
        "post", "/v1/chain/callback", "Where sources of the chain say that something happened to a transaction", "chain",
        (Answer(204, "Taken; the node looks for itself"),), (), {JSON: CallbackIn}, (400, 401, 403, 408, 413), "any",
    ),
    Operation(
        "post", "/v1/chain/regtest/mine", "Mine blocks on the embedded chain", "chain", _DONE, (),
        {JSON: wire_chain.MineIn}, _BODY_ERRORS, "admin", is_bare_allowed=True,
    ),
    Operation(
        "post", "/v1/chain/regtest/pay", "Pay an address out of the embedded chain's miner's coins", "chain",
        (Answer(201, "The payment, which the next block holds", {JSON: wire_chain.PaidBody}),), (),
        {JSON: wire_chain.PayIn}, _BODY_ERRORS, "admin",
    ),
    Operation(
        "post", "/v1/chain/regtest/reorg", "Let another branch of the embedded chain overtake", "chain", _DONE, (),
        {JSON: wire_chain.ReorgIn}, _BODY_ERRORS, "admin",
    ),
    Operation(
        "post", "/v1/chain/regtest/drop", "Make the embedded chain forget a waiting transaction", "chain", _DONE, (),
        {JSON: wire_chain.TxidIn}, _BODY_ERRORS, "admin",
    ),
    Operation(
        "post", "/v1/chain/regtest/double-spend", "Replace a waiting transaction by one that spends the same", "chain",
        _DONE, (), {JSON: wire_chain.TxidIn}, _BODY_ERRORS, "admin",
    ),
    Operation(
        "get", "/v1/wallet", "What the node has to pay with", "wallet",
        (Answer(200, "Address and balance", {JSON: wire_chain.WalletBody}),), (), {}, (400, 401, 403, 404), "admin",
    ),
    Operation(
        "get", "/v1/wallet/history", "The wallet's transactions, the newest first", "wallet",
        (Answer(200, "Transactions", {JSON: wire_chain.WalletHistory}),),
        (LIMIT, query_of("before", "What `next_before` said", INTEGER)), {}, (400, 401, 403, 404), "admin",
    ),
    Operation(
        "post", "/v1/wallet/fan-out", "Make coins for the pool out of a large one", "wallet",
        (Answer(201, "The transaction that makes them", {JSON: wire_chain.FanOutBody}),), (),
        {JSON: wire_chain.FanOutIn}, _BODY_ERRORS, "admin", is_bare_allowed=True,
    ),
    Operation(
        "post", "/v1/wallet/deposits", "Tell the node of a transaction that pays it", "wallet",
        (Answer(201, "Noted; spendable once a block holds it", {JSON: wire_chain.DepositBody}),), (),
        {JSON: wire_chain.DepositIn}, _BODY_ERRORS, "admin",
    ),
)  # fmt: skip

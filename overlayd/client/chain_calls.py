"""The requests about the chain and the node's wallet as values (calls.py)."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from overlayd.client.calls import JSON, Call, decoder_of
from overlayd.model.wire_chain import (
    ChainBody,
    DepositBody,
    FanOutBody,
    HeaderList,
    PaidBody,
    RegtestBody,
    WalletBody,
    WalletHistory,
)

Returned = Literal["return", "remine", "drop"]
_CHAIN = decoder_of(ChainBody)
_HEADERS = decoder_of(HeaderList)
_REGTEST = decoder_of(RegtestBody)
_PAID = decoder_of(PaidBody)
_WALLET = decoder_of(WalletBody)
_HISTORY = decoder_of(WalletHistory)
_FAN_OUT = decoder_of(FanOutBody)
_DEPOSIT = decoder_of(DepositBody)
_HEADERS_OF_POST = (("Content-Type", JSON),)
DRIVE_S = 60.0
"""A thousand blocks, or a deep reorg, may take a while."""


def chain() -> Call[ChainBody]:
    """What the node knows of its chain, and what it waits for."""
    return Call("GET", "/v1/chain", _CHAIN)


def headers(from_height: int = 0, limit: int = 0) -> Call[HeaderList]:
    """Block headers of the best chain, ascending."""
    named = (("from", str(from_height)), ("limit", str(limit or "")))
    return Call("GET", "/v1/chain/headers", _HEADERS, params=tuple(pair for pair in named if pair[1]))


def mine(blocks: int = 1) -> Call[RegtestBody]:
    """Mines blocks on the node's regtest chain."""
    return _drive("mine", {"blocks": blocks})


def reorg(depth: int, transactions: Returned = "return") -> Call[RegtestBody]:
    """Lets another branch of the regtest chain overtake."""
    return _drive("reorg", {"depth": depth, "transactions": transactions})


def drop(txid: str) -> Call[RegtestBody]:
    """Makes the regtest chain forget a waiting transaction; `txids` are those that it forgot."""
    return _drive("drop", {"txid": txid})


def double_spend(txid: str) -> Call[RegtestBody]:
    """Replaces a waiting transaction of the regtest chain; `txids` holds the conflicting one."""
    return _drive("double-spend", {"txid": txid})


def pay(address: str, satoshis: int, outputs: int = 1) -> Call[PaidBody]:
    """Pays an address out of the regtest miner's coins."""
    content = msgspec.json.encode({"address": address, "satoshis": satoshis, "outputs": outputs})
    return Call("POST", "/v1/chain/regtest/pay", _PAID, headers=_HEADERS_OF_POST, content=content, is_repeatable=False)


def _drive(what: str, body: Mapping[str, Any]) -> Call[RegtestBody]:
    return Call(
        "POST", f"/v1/chain/regtest/{what}", _REGTEST, headers=_HEADERS_OF_POST, content=msgspec.json.encode(body),
        is_repeatable=False, hold_s=DRIVE_S,
    )  # fmt: skip


def wallet() -> Call[WalletBody]:
    """What the node has to pay with."""
    return Call("GET", "/v1/wallet", _WALLET)


def wallet_history(*, limit: int = 0, before: int = 0) -> Call[WalletHistory]:
    """One page of the wallet's transactions, the newest first."""
    named = (("limit", str(limit or "")), ("before", str(before or "")))
    return Call("GET", "/v1/wallet/history", _HISTORY, params=tuple(pair for pair in named if pair[1]))


def fan_out(coins: int = 0) -> Call[FanOutBody]:
    """Makes coins for the wallet's pool: so many, or as many as it lacks."""
    content = msgspec.json.encode({"coins": coins} if coins else {})
    return Call(
        "POST", "/v1/wallet/fan-out", _FAN_OUT, headers=_HEADERS_OF_POST, content=content, is_repeatable=False,
        hold_s=DRIVE_S,
    )  # fmt: skip


def deposit(tx: str) -> Call[DepositBody]:
    """Tells the node of a transaction that pays its wallet: raw, Extended Format or BEEF, in hex."""
    content = msgspec.json.encode({"tx": tx})
    return Call("POST", "/v1/wallet/deposits", _DEPOSIT, headers=_HEADERS_OF_POST, content=content)

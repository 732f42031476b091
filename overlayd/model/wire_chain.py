"""The bodies about the chain and the node's wallet, as they travel (docs/api.md, Chain)."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from overlayd.model.wire import Time

Hash = Annotated[str, Meta(description="64 hex digits, display order", pattern="^[0-9a-f]{64}$")]
Height = Annotated[int, Meta(ge=0)]
Satoshis = Annotated[int, Meta(description="In satoshis")]


class TipBody(msgspec.Struct, kw_only=True):
    """The newest block of our best chain."""

    height: Height
    hash: Hash
    time: Annotated[Time, Meta(description="The time in its header: its miner's word")]


class ChainSourceBody(msgspec.Struct, kw_only=True):
    """Somebody who is asked about the chain, and how that goes."""

    name: str
    state: Annotated[str, Meta(description="ok, backing_off, or refused when somebody has to mend something")]
    abilities: Annotated[list[str], Meta(description="What it is asked")]
    detail: Annotated[str | UnsetType, Meta(description="What was wrong last")] = UNSET
    pause_s: Annotated[float | UnsetType, Meta(description="It is left alone for so long")] = UNSET


class ChainBody(msgspec.Struct, kw_only=True):
    """Answer of `GET /v1/chain`: what the node knows of its chain, and what it waits for."""

    network: Literal["regtest", "mainnet", "testnet"]
    tip: TipBody
    first_height: Annotated[Height, Meta(description="Of the oldest block header that is held")]
    stale: Annotated[str | UnsetType, Meta(description="Why confirmations may not come in time")] = UNSET
    sources: list[ChainSourceBody]
    watched: Annotated[int, Meta(description="Transactions that no block holds")]
    unfunded: Annotated[int, Meta(description="Packets and ranges that wait for a transaction of the node's wallet")]
    wallet: Annotated[str | UnsetType, Meta(description="Why the wallet pays for nothing now")] = UNSET
    anchor_waiting: Annotated[int, Meta(description="Packets since the last anchor, as counted since the start")]
    anchored_at: Annotated[
        Time | UnsetType, Meta(description="When a checkpoint was anchored last, since the start")
    ] = UNSET


class HeaderBody(msgspec.Struct, kw_only=True):
    """A block header."""

    height: Height
    hash: Hash
    raw: Annotated[str, Meta(description="Its 80 bytes in hex")]


class HeaderList(msgspec.Struct, kw_only=True):
    """Block headers of our best chain, ascending."""

    headers: list[HeaderBody]


class WalletBody(msgspec.Struct, kw_only=True):
    """Answer of `GET /v1/wallet`: what the node has to pay with."""

    network: str
    address: Annotated[str, Meta(description="Pay here, then tell the node of the transaction")]
    confirmed: Satoshis
    unconfirmed: Satoshis
    doubtful: Annotated[int, Meta(description="In coins whose spending is refused or was conflicted")]
    usable_coins: Annotated[int, Meta(description="Coins that may be spent now, each for one transaction")]
    fees_today: Annotated[int, Meta(description="Paid since midnight UTC")]
    low: Annotated[bool, Meta(description="Whether the balance is below the alarm")]
    waits: Annotated[str | UnsetType, Meta(description="Why nothing is paid now")] = UNSET


class WalletTxBody(msgspec.Struct, kw_only=True, rename={"for_": "for"}):
    """One transaction of the wallet."""

    id: int
    txid: Hash
    for_: Annotated[
        Literal["packet", "checkpoint", "wallet"],
        Meta(description="What it was made for; wallet: a fan-out or a payment to it"),
    ]
    fee: Satoshis
    state: Literal["waiting", "mined", "given_up"]
    height: Height | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    at: Time


class WalletHistory(msgspec.Struct, kw_only=True):
    """Transactions of the wallet, the newest first."""

    transactions: list[WalletTxBody]
    next_before: Annotated[int | UnsetType, Meta(description="Give it as `before` for older ones")] = UNSET


class FanOutIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How many coins to make; left out: as many as the pool lacks."""

    coins: Annotated[int, Meta(ge=2, le=10_000)] | UnsetType = UNSET


class FanOutBody(msgspec.Struct, kw_only=True):
    """The transaction that makes them."""

    txid: Hash
    coins: int


class DepositIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A transaction that pays the wallet: raw, Extended Format or BEEF, in hex."""

    tx: Annotated[str, Meta(min_length=2, max_length=8 << 20)]


class DepositBody(msgspec.Struct, kw_only=True):
    """What was taken note of; it can be spent once a block holds it."""

    txid: Hash


class MineIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How many blocks."""

    blocks: Annotated[int, Meta(ge=1, le=1000)] = 1


class ReorgIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How deep, and what becomes of the transactions that lose their block."""

    depth: Annotated[int, Meta(ge=1, le=100)]
    transactions: Annotated[
        Literal["return", "remine", "drop"],
        Meta(description="To the mempool, into the new branch, or forgotten"),
    ] = "return"


class TxidIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A transaction in the mempool."""

    txid: Hash


class PayIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Whom the regtest chain's miner pays, and how much."""

    address: Annotated[str, Meta(min_length=26, max_length=64, description="A P2PKH address of regtest")]
    satoshis: Annotated[int, Meta(ge=1, le=100_000_000, description="Of each output")]
    outputs: Annotated[int, Meta(ge=1, le=1000)] = 1


class PaidBody(msgspec.Struct, kw_only=True):
    """The payment, which the next block holds; its first `outputs` outputs are the address's."""

    txid: Hash
    tx: Annotated[str, Meta(description="The transaction in hex")]
    outputs: int


class RegtestBody(msgspec.Struct, kw_only=True):
    """What the regtest chain did."""

    tip: TipBody
    txids: Annotated[list[Hash] | UnsetType, Meta(description="Forgotten transactions, or the conflicting one")] = UNSET

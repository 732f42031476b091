"""What the node asks of the outside world about the chain. Nothing that a source says is believed by itself.

A source is whatever answers for a network: ARC, Arcade, WhatsOnChain, a header service, a node's RPC, or the embedded
regtest chain, which nothing above it can tell from a remote one. Not all of them answer everything, hence three
Protocols; an object may implement several. Bytes are given as they came: proofs and headers are parsed and checked by
the one who asked.

Every method is a checkpoint, and raises SourceUnavailable when there is no usable answer (no connection, a refusal to
serve, nonsense), with `retry_after_s` when the source named a time. What the network says about a transaction is an
answer, never an error. Timeouts belong to the caller.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from enum import Enum
from typing import Protocol

import msgspec

from overlayd.model.txid import BlockHash, TxId


class SourceState(Enum):
    """What a source says of a transaction. None of it is a state of a packet."""

    UNKNOWN = "unknown"
    """It knows of no such transaction."""
    HELD = "held"
    """It took it and hasn't seen it on the network yet, or a parent is missing."""
    SEEN = "seen"
    """Other nodes announced it, or this one holds it in its mempool."""
    MINED = "mined"
    """In a block of what the source takes for the best chain; `bump` is its proof, if it gave one."""
    STALE = "stale"
    """Was in a block that isn't in the best chain any more."""
    REJECTED = "rejected"
    """Refused, for `reason`. Another source, or the same one later, may take it."""
    DOUBLE_SPEND = "double_spend"
    """Another transaction spends one of its inputs; `competing` names those that it told. May go on for ever."""
    NO_ANSWER = "no_answer"
    """Nobody could be asked about this one just now: an outage, no news. Others of the same call were answered."""


class SourceStatus(msgspec.Struct, frozen=True):
    """A source's answer about one transaction.

    `reason` is the source's own words, to be shown, never acted on. `bump` is a raw BRC-74 proof, unchecked;
    `block_hash` and `height` go with it or stand alone. `source`: the name of who said so, when there are several.
    """

    txid: TxId
    state: SourceState
    reason: str = ""
    competing: tuple[TxId, ...] = ()
    block_hash: BlockHash | None = None
    height: int | None = None
    bump: bytes | None = None
    source: str = ""


class Outgoing(msgspec.Struct, frozen=True):
    """A transaction to broadcast, in the forms that are at hand; a source takes the one that it understands.

    `extended` (BRC-30) serves most; `beef` brings unconfirmed ancestors along.
    """

    txid: TxId
    raw: bytes
    extended: bytes | None = None
    beef: bytes | None = None


class SourcePolicy(msgspec.Struct, frozen=True):
    """What a source asks of transactions: `fee_sat` for each `fee_bytes`, and their largest size."""

    fee_sat: int
    fee_bytes: int
    transaction_bytes_max: int

    @property
    def sat_per_kb(self) -> int:
        """The rate in satoshis for 1000 bytes, rounded up."""
        return -(-self.fee_sat * 1000 // self.fee_bytes)


class SourceTip(msgspec.Struct, frozen=True):
    """The newest block of what a source takes for the best chain."""

    height: int
    block_hash: BlockHash


class TransactionMoved(msgspec.Struct, frozen=True):
    """An event: a transaction's status changed."""

    status: SourceStatus


class TipMoved(msgspec.Struct, frozen=True):
    """An event: there is another tip, by a block or by a reorg."""

    tip: SourceTip


class EventsMissed(msgspec.Struct, frozen=True):
    """An event: some were lost, because the reader was slow or the connection broke. Poll what is pending."""


SourceEvent = TransactionMoved | TipMoved | EventsMissed


class TransactionSource(Protocol):
    """Broadcasts transactions and answers what became of them."""

    @property
    def name(self) -> str:
        """What the operator calls it; in metrics and logs."""
        ...

    @property
    def batch_max(self) -> int:
        """Most transactions in one call of `submit` or `look_up`."""
        ...

    async def submit(self, transactions: Sequence[Outgoing]) -> list[SourceStatus]:
        """Broadcasts, parents before children; an answer for each, in order. Repeating it is harmless."""
        ...

    async def look_up(self, txids: Sequence[TxId]) -> list[SourceStatus]:
        """What it knows of each, in order."""
        ...

    async def read_policy(self) -> SourcePolicy:
        """What it asks of transactions now."""
        ...


class RawSource(Protocol):
    """Gives the bytes of transactions, where a source can."""

    async def read_raw(self, txids: Sequence[TxId]) -> list[bytes | None]:
        """Raw transactions in order, None for those that it hasn't got. Whoever asks checks their hashes."""
        ...


class HeaderSource(Protocol):
    """Gives the headers of the best chain that it knows."""

    @property
    def name(self) -> str: ...

    @property
    def headers_max(self) -> int:
        """Most headers in one answer."""
        ...

    async def read_tip(self) -> SourceTip:
        """The newest block."""
        ...

    async def read_headers(self, from_height: int, count: int) -> list[bytes]:
        """Up to `count` headers of 80 bytes of its best chain, ascending without a gap from a height on.

        Fewer, or none, when its chain ends before.
        """
        ...


class EventReader(Protocol):
    """Events one after the other."""

    async def receive(self) -> SourceEvent:
        """Waits for the next event. Raises trio.EndOfChannel when the source ended the stream."""
        ...


class EventSource(Protocol):
    """Tells what happens as it happens. Only a hint to look: events may be lost, and polling must do without them."""

    @property
    def name(self) -> str: ...

    def open_events(self) -> AbstractAsyncContextManager[EventReader]:
        """Listens for the life of the block."""
        ...


class ChainSource(TransactionSource, HeaderSource, EventSource, Protocol):
    """A source that does all of it."""

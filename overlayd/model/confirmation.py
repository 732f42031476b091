"""How a packet gets onto the chain: its states and their moves, and the seams between the log, the engine and readers.

The log tells a `Confirmations` of every packet that is to be confirmed, in the transaction that makes it durable. The
engine (chain/) appends what becomes of it as status entries, and answers through `ConfirmationReads` how things stand.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol

import msgspec
import trio

from overlayd.model.definition import ConfirmRule
from overlayd.model.txid import BlockHash, TxId
from overlayd.model.usage import GroupWriting

ConfirmationState = Literal["none", "pending", "seen", "mined", "confirmed", "failed", "dropped"]
"""`none`: not to be confirmed. `pending`: no block, and no source that saw it on the network. `seen`: one did.
`mined`: a proof leads to a block of our best chain, but its first depth isn't reached or it isn't its turn.
`confirmed`: told at one of its stream's depths. `failed`: invalid by our own check, or a conflicting spend is proven
and deep. `dropped`: no source knew it, or all refused it, for too long."""

MOVES: Mapping[ConfirmationState, frozenset[ConfirmationState]] = {
    "none": frozenset(("pending",)),
    "pending": frozenset(("seen", "mined", "failed", "dropped")),
    "seen": frozenset(("pending", "mined", "failed", "dropped")),
    "mined": frozenset(("confirmed", "pending")),
    "confirmed": frozenset(("confirmed", "pending")),
    "failed": frozenset(("mined",)),
    "dropped": frozenset(("mined",)),
}
"""What may follow what. `confirmed` follows itself at another depth; only a checked proof leads out of `failed` and
`dropped`; a reorg leads from `mined` and `confirmed` back to `pending`."""

FINAL_STATES: frozenset[ConfirmationState] = frozenset(("failed", "dropped"))
"""States that let later packets of the stream have their turn without a block."""

AGAIN = "confirmed again"
"""Reason of a `confirmed` entry whose packets were told as confirmed at this depth before, and taken back since. It is
no second delivery: readers of confirmed packets get it as `status`."""


def check_move(old: ConfirmationState, new: ConfirmationState) -> None:
    """Raises AssertionError for a move that isn't in the table: the engine would be about to tell a falsehood."""
    if new not in MOVES[old]:
        raise AssertionError(f"no move from {old} to {new}")


class BroughtTx(msgspec.Struct, frozen=True, gc=False):
    """The transaction that a producer brought for its packet. Whoever makes one has checked the bytes.

    `txid` in internal order. `raw` is b"" when only its name was given: then the packet isn't confirmed before the
    engine has seen the bytes. `extended` (BRC-30) and `beef` are handed on to sources as they are. `vout`: the output
    that commits to the packet, None with the bytes unseen.
    """

    txid: TxId
    raw: bytes = b""
    extended: bytes | None = None
    beef: bytes | None = None
    vout: int | None = None


class NewPacket(msgspec.Struct, frozen=True, gc=False):
    """A packet that is being appended to a stream whose `confirm.commit` isn't `none`.

    `commitment`: what its transaction commits to; Z32 where `commit` is `batch` and the producer brought none.
    """

    offset: int
    stream_hash: bytes
    sequence: int
    commitment: bytes
    rule: ConfirmRule
    brought: BroughtTx | None = None


class Confirmations(Protocol):
    """Hears of packets to be confirmed, in the very transaction that makes them durable."""

    def begin(self, appended_us: int, packets: Sequence[NewPacket]) -> GroupWriting:
        """The packets of one group, ascending by offset. Neither blocks nor fails."""
        ...


class ConfirmationNow(msgspec.Struct, frozen=True):
    """How a packet stands at this moment.

    `confirmations`: blocks from its own to our tip, both counted, while a checked proof holds; else None. `depth`: the
    deepest listed depth that was told. `reason`: why it isn't further, in words for people; sources' words among them.
    """

    state: ConfirmationState = "none"
    confirmations: int | None = None
    depth: int | None = None
    txid: TxId | None = None
    vout: int | None = None
    height: int | None = None
    block_hash: BlockHash | None = None
    anchor_size: int | None = None
    reason: str = ""
    late: bool = False


NOT_CONFIRMED = ConfirmationNow()
"""Of a packet that isn't to be confirmed."""


class AnchorProof(msgspec.Struct, frozen=True):
    """What a proof file says about the chain; every part was checked against our own headers.

    `bump`: BRC-74. `header`: the block's 80 bytes. For a packet's own transaction output `output_index` is the anchor
    of its commitment, and `checkpoint` and `size` are empty; for a batch it is that of `checkpoint`, the signed note
    over the first `size` entries, to which the inclusion path must lead.
    """

    network: str
    raw_tx: bytes
    bump: bytes
    header: bytes
    height: int
    output_index: int
    checkpoint: str = ""
    size: int = 0


class ConfirmationReads(Protocol):
    """How packets stand now. Frames never ask it: they tell what their trigger tells."""

    async def status_of(self, stream_hash: bytes, rule: ConfirmRule, offset: int) -> ConfirmationNow:
        """Of one packet; `rule` is its stream's. A checkpoint."""
        ...

    async def statuses(
        self, stream_hash: bytes, rule: ConfirmRule, offsets: Iterable[int]
    ) -> dict[int, ConfirmationNow]:
        """Of packets of one stream, by offset; each of them is there. A checkpoint."""
        ...

    async def settled_offset(self, stream_hash: bytes, rule: ConfirmRule, depth: int) -> int:
        """Up to this offset (inclusive) every packet of the stream is confirmed at a listed depth, failed or dropped;
        the first one beyond it isn't. The head where all are. A checkpoint."""
        ...

    async def find_by_txid(self, txid: TxId, limit: int) -> list[int]:
        """Offsets of the packets whose own transaction it is, ascending. A checkpoint."""
        ...

    async def proof_of(self, stream_hash: bytes, rule: ConfirmRule, offset: int) -> AnchorProof | None:
        """The packet's proof on the chain; None while there is none. A checkpoint."""
        ...


class NothingConfirmed:
    """`ConfirmationReads` of a node without a chain."""

    async def status_of(self, stream_hash: bytes, rule: ConfirmRule, offset: int) -> ConfirmationNow:
        await trio.lowlevel.checkpoint()
        return NOT_CONFIRMED

    async def statuses(
        self, stream_hash: bytes, rule: ConfirmRule, offsets: Iterable[int]
    ) -> dict[int, ConfirmationNow]:
        await trio.lowlevel.checkpoint()
        return dict.fromkeys(offsets, NOT_CONFIRMED)

    async def settled_offset(self, stream_hash: bytes, rule: ConfirmRule, depth: int) -> int:
        await trio.lowlevel.checkpoint()
        return 0

    async def find_by_txid(self, txid: TxId, limit: int) -> list[int]:
        await trio.lowlevel.checkpoint()
        return []

    async def proof_of(self, stream_hash: bytes, rule: ConfirmRule, offset: int) -> AnchorProof | None:
        await trio.lowlevel.checkpoint()
        return None

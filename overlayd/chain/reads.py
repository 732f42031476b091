"""How packets stand on the chain now, and their proofs: read from the tables, for whoever shows the present."""

import sqlite3
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from overlayd.chain import item_tables as items
from overlayd.chain import watch_tables as txs
from overlayd.chain.headers import HeaderBook
from overlayd.chain.item_tables import Item
from overlayd.model.confirmation import NOT_CONFIRMED, AnchorProof, ConfirmationNow
from overlayd.model.definition import ConfirmRule
from overlayd.model.entry import Z32
from overlayd.model.txid import TxId

T = TypeVar("T")
WAITS_FOR_ANCHOR = "waits for the next anchor"
WAITS_FOR_WALLET = "waits for a transaction of the node's wallet"


class ReadLog(Protocol):
    """What is needed of the log."""

    @property
    def head(self) -> int: ...

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T: ...


class ConfirmationTable:
    """`ConfirmationReads` of a node with a chain."""

    def __init__(
        self, log: ReadLog, book: HeaderBook, network: str, why_unfunded: Callable[[], str] = lambda: ""
    ) -> None:
        """`why_unfunded`: what keeps the wallet from paying now; "" when nothing does."""
        self._log = log
        self._book = book
        self._network = network
        self._why_unfunded = why_unfunded

    async def status_of(self, stream_hash: bytes, rule: ConfirmRule, offset: int) -> ConfirmationNow:
        return (await self.statuses(stream_hash, rule, (offset,)))[offset]

    async def statuses(
        self, stream_hash: bytes, rule: ConfirmRule, offsets: Iterable[int]
    ) -> dict[int, ConfirmationNow]:
        wanted = list(offsets)

        def read(c: sqlite3.Connection) -> tuple[dict[int, Item], dict[int, Item | None]]:
            own = items.find_items(c, wanted)
            rest = [offset for offset in wanted if offset not in own] if rule.commit != "none" else []
            return own, _find_ranges(c, rest)

        own, ranges = await self._log.read(read)
        found = {}
        for offset in wanted:
            item = own.get(offset) or ranges.get(offset)
            if item is not None:
                found[offset] = self._now(item)
            elif rule.commit == "batch":
                found[offset] = ConfirmationNow("pending", reason=self._why_unfunded() or WAITS_FOR_ANCHOR)
            else:
                found[offset] = NOT_CONFIRMED
        return found

    def _now(self, item: Item) -> ConfirmationNow:
        depths = [int(depth) for depth in item.told.split(",") if depth]
        reason = item.reason or ""
        if item.tx_id is None:
            reason = self._why_unfunded() or (WAITS_FOR_ANCHOR if item.is_range else WAITS_FOR_WALLET)
        return ConfirmationNow(
            "pending" if item.state == "none" else item.state,
            None if item.height is None else self._book.depth_of(item.height), max(depths, default=None), item.txid,
            item.vout, item.height, item.block, item.anchor_size, reason, bool(item.is_late),
        )  # fmt: skip

    async def settled_offset(self, stream_hash: bytes, rule: ConfirmRule, depth: int) -> int:
        head = self._log.head

        def read(c: sqlite3.Connection) -> int:
            firsts = [items.find_first_unsettled(c, stream_hash, depth)]
            if rule.commit == "batch":
                firsts.append(items.find_first_unsettled(c, Z32, depth))
                firsts.append(items.read_anchored_to(c) + 1)
            return min((first - 1 for first in firsts if first is not None), default=head)

        return min(head, await self._log.read(read))

    async def find_by_txid(self, txid: TxId, limit: int) -> list[int]:
        return await self._log.read(lambda c: items.find_offsets(c, txid, limit))

    async def proof_of(self, stream_hash: bytes, rule: ConfirmRule, offset: int) -> AnchorProof | None:
        candidates = await self._log.read(lambda c: _read_proofs(c, offset))
        for item, raw, bump, anchor in candidates:
            held = None if item.height is None else await self._book.read_at(item.height)
            # Between a reorg and the watcher's next step the header may be another one.
            if held is None or held.hash != item.block or raw is None or bump is None or item.vout is None:
                continue
            size, note = anchor if anchor is not None else (0, "")
            return AnchorProof(self._network, raw, bump, held.header.raw, held.height, item.vout, note, size)
        return None


_Found = tuple[Item, bytes | None, bytes | None, tuple[int, str] | None]


def _read_proofs(c: sqlite3.Connection, offset: int) -> list[_Found]:
    """What may prove a packet: its own transaction, then the first anchor in a block whose checkpoint covers it, whether
    or not its stream asked for that."""
    own, anchored = items.find_items(c, (offset,)).get(offset), items.find_mined_range(c, offset)
    found = []
    for item in (own, anchored):
        if item is not None and item.tx_id is not None and item.height is not None:
            tx = txs.read_txs(c, (item.tx_id,)).get(item.tx_id)
            raw = None if tx is None else tx.raw
            found.append((item, raw, txs.read_bump(c, item.tx_id), txs.read_anchor(c, item.tx_id)))
    return found


def _find_ranges(c: sqlite3.Connection, offsets: list[int]) -> dict[int, Item | None]:
    """Ranges by the offsets that they cover; neighbors are mostly in the same one."""
    found: dict[int, Item | None] = {}
    last: Item | None = None
    for offset in sorted(offsets):
        if last is None or not last.offset <= offset <= last.to_offset:
            last = items.find_range(c, offset)
        found[offset] = last
    return found

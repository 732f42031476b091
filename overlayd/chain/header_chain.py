"""The chain of block headers in memory: rules, branches, the most work. Pure; headers.py keeps it on the disk.

The newest `window` blocks of the best chain and every branch off them are held; what is older is only on the disk and
can't be forked from any more. `judge` checks headers and says what they would change, `adopt` changes it: in between,
the caller makes it durable.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec

from overlayd.bsv.difficulty import WINDOW_BLOCKS, required_bits
from overlayd.bsv.header import BlockHeader, target_of_bits
from overlayd.bsv.network import ADJUSTED_FROM, Network
from overlayd.model.errors import HeadersRejected, HeadersUnconnected, VerificationFailed
from overlayd.model.txid import BlockHash

MEDIAN_BLOCKS = 11
FUTURE_MAX_S = 2 * 3600
"""A header may be this much ahead of our clock."""
EASING_MAX = 4
"""How much easier than the first held block's a target may be while too few blocks are held to know what it must be."""


class HeldHeader(msgspec.Struct, frozen=True):
    """A header with its place. `chain_work`: of all blocks from the first to this one."""

    header: BlockHeader
    height: int
    chain_work: int

    @property
    def hash(self) -> BlockHash:
        return self.header.hash

    @property
    def time_s(self) -> int:
        return self.header.time_s


class Reorg(msgspec.Struct, frozen=True):
    """Another branch has more work. `old` left the best chain, `new` came, both ascending from `fork_height` + 1."""

    fork_height: int
    old: tuple[HeldHeader, ...]
    new: tuple[HeldHeader, ...]

    @property
    def depth(self) -> int:
        """How many blocks were taken back."""
        return len(self.old)


class Extension(msgspec.Struct, frozen=True):
    """What headers change: `added` are new (on any branch), `joined` enter the best chain, ascending.

    `reorg` is set when blocks leave the best chain for them. `tip` is the best chain's end afterwards.
    """

    added: tuple[HeldHeader, ...]
    joined: tuple[HeldHeader, ...]
    reorg: Reorg | None
    tip: HeldHeader


class HeaderChain:
    """The held headers. `start` is the oldest block of all: the network's first, or a pinned one."""

    def __init__(self, network: Network, start: HeldHeader, *, window: int, branch_headers_max: int) -> None:
        assert window > WINDOW_BLOCKS + MEDIAN_BLOCKS
        self._network = network
        self._window = window
        self.start = start
        self._best = [start]
        self._held = {start.hash: start}
        self._held_at: dict[int, list[HeldHeader]] = {start.height: [start]}
        self._branch_headers_max = branch_headers_max
        self._pinned_height = start.height

    @property
    def tip(self) -> HeldHeader:
        """The end of the best chain."""
        return self._best[-1]

    @property
    def first_held(self) -> int:
        """The lowest height of the best chain that is in memory."""
        return self._best[0].height

    def find(self, block_hash: BlockHash) -> HeldHeader | None:
        """A held block of any branch."""
        return self._held.get(block_hash)

    def at(self, height: int) -> HeldHeader | None:
        """The best chain's block at a height, if it is in memory."""
        index = height - self._best[0].height
        return self._best[index] if 0 <= index < len(self._best) else None

    def is_best(self, held: HeldHeader) -> bool:
        """Whether a block is on the best chain."""
        found = self.at(held.height)
        return found is not None and found.hash == held.hash

    def find_root(self, height: int, root: bytes) -> HeldHeader | None:
        """A held block off the best chain of that height and Merkle root."""
        for held in self._held_at.get(height, ()):
            if held.header.merkle_root == root and not self.is_best(held):
                return held
        return None

    def restore(self, best: Sequence[HeldHeader], branches: Iterable[HeldHeader]) -> None:
        """Puts back what the disk holds: the newest of the best chain, ascending, and blocks off it."""
        assert best
        assert all(lower.hash == upper.header.previous for lower, upper in pairwise(best))
        self._best = list(best)
        self._held, self._held_at = {}, {}
        self._hold((*branches, *best))
        self._note_pins(best)
        self._forget()

    def judge(self, headers: Sequence[BlockHeader], now_s: int) -> Extension:
        """Checks headers, each following the one before, the first a held block; and says what they change.

        Nothing is changed. Headers that are held already are passed over.
        Raises HeadersUnconnected (also for a fork so deep that the rules can't be checked), HeadersRejected.
        """
        assert headers
        parent = self._held.get(headers[0].previous)
        if headers[0].hash in self._held:
            parent = self._held[headers[0].hash]
        elif parent is None:
            raise HeadersUnconnected("its predecessor isn't held", subject=f"block {headers[0]}")
        assert parent is not None
        lineage = self._lineage(parent)
        if len(lineage) < WINDOW_BLOCKS and lineage[0].hash != self.start.hash:
            raise HeadersUnconnected("it forks off deeper than is kept", subject=f"block {headers[0]}")
        added: list[HeldHeader] = []
        for header in headers:
            if header.hash == lineage[-1].hash:
                continue
            if header.previous != lineage[-1].hash:
                raise HeadersRejected("it doesn't follow the header before it", subject=f"block {header}")
            known = self._held.get(header.hash)
            if known is None:
                known = self._check(header, lineage, now_s)
                added.append(known)
            lineage.append(known)
        if (
            len(added) + len(self._held) - len(self._best) > self._branch_headers_max
            and lineage[-1].chain_work <= self.tip.chain_work
        ):
            raise HeadersRejected(
                "too many headers off the best chain are held", subject=f"block {headers[-1]}",
                extra={"limit": "branch_headers_max"},
            )  # fmt: skip
        return self._decide(added, lineage[-1])

    def adopt(self, extension: Extension) -> None:
        """Makes the change that `judge` described. Nothing else may have been adopted in between."""
        self._hold(extension.added)
        if extension.joined:
            assert extension.joined[-1] == extension.tip
            if extension.reorg is not None:
                assert extension.reorg.old[-1].hash == self.tip.hash
                del self._best[-extension.reorg.depth :]
            assert extension.joined[0].header.previous == self.tip.hash
            self._best += extension.joined
            self._note_pins(extension.joined)
        self._forget()
        assert self.tip == extension.tip

    def _decide(self, added: list[HeldHeader], end: HeldHeader) -> Extension:
        # The first to come keeps its place among equals.
        if end.chain_work <= self.tip.chain_work:
            return Extension(tuple(added), (), None, self.tip)
        fresh = {held.hash: held for held in added}
        joined = []
        held = end
        while not self.is_best(held):
            joined.append(held)
            previous = held.header.previous
            held = fresh.get(previous) or self._held[previous]
        joined.reverse()
        old = tuple(self._best[held.height - self._best[0].height + 1 :])
        reorg = Reorg(held.height, old, tuple(joined)) if old else None
        return Extension(tuple(added), tuple(joined), reorg, end)

    def _lineage(self, held: HeldHeader) -> list[HeldHeader]:
        """A block and those before it, oldest first, as many as the rules look at and memory holds."""
        lineage = [held]
        while len(lineage) < WINDOW_BLOCKS:
            before = self._held.get(lineage[-1].header.previous)
            if before is None:
                break
            lineage.append(before)
        lineage.reverse()
        return lineage

    def _check(self, header: BlockHeader, lineage: list[HeldHeader], now_s: int) -> HeldHeader:
        """The rules that need no transactions; `lineage` ends with its parent."""
        parent, network, subject = lineage[-1], self._network, f"block {header}"
        height = parent.height + 1
        if height <= self._pinned_height:
            raise HeadersRejected(f"it forks off below the pinned block {self._pinned_height}", subject=subject)
        pin = next((pin for pin in network.pins if pin.height == height), None)
        if pin is not None and pin.header.hash != header.hash:
            raise HeadersRejected(f"another block is pinned at height {height}", subject=subject)
        try:
            header.verify_work(network.limit_bits)
        except VerificationFailed as err:
            raise HeadersRejected(err.detail, subject=subject) from err
        self._check_target(header, height, lineage, subject)
        recent = lineage[-MEDIAN_BLOCKS:]
        if len(recent) == MEDIAN_BLOCKS or recent[0].height == 0:
            median_s = sorted(held.time_s for held in recent)[len(recent) // 2]
            if header.time_s <= median_s:
                raise HeadersRejected(f"its time isn't after the median {median_s} of those before", subject=subject)
        if header.time_s > now_s + FUTURE_MAX_S:
            raise HeadersRejected(
                f"its time is {header.time_s - now_s} s ahead of this node's clock", subject=subject,
                hint="is the node's clock right?",
            )  # fmt: skip
        return HeldHeader(header, height, parent.chain_work + header.work)

    def _check_target(self, header: BlockHeader, height: int, lineage: list[HeldHeader], subject: str) -> None:
        network = self._network
        if network.is_limit_always:
            if header.bits != network.limit_bits:
                raise HeadersRejected(f"its bits are {header.bits:08x}, not the network's", subject=subject)
            return
        # What lies below a pinned block is held together by its hash: nobody can make another chain up to it.
        if not network.has_adjusted_difficulty or height < ADJUSTED_FROM:
            return
        if len(lineage) >= WINDOW_BLOCKS:
            wanted = required_bits(lineage[-WINDOW_BLOCKS:], network.limit_bits)
            if header.bits != wanted:
                raise HeadersRejected(f"its bits are {header.bits:08x}, not {wanted:08x}", subject=subject)
        elif header.target > EASING_MAX * target_of_bits(self.start.header.bits):
            raise HeadersRejected(f"its bits {header.bits:08x} are much easier than the first block's", subject=subject)

    def _note_pins(self, joined: Iterable[HeldHeader]) -> None:
        heights = {pin.height for pin in self._network.pins}
        for held in joined:
            if held.height in heights:
                self._pinned_height = max(self._pinned_height, held.height)

    def _forget(self) -> None:
        """Lets go of what is beyond the window, a good part of it at a time."""
        if len(self._best) <= self._window + self._window // 4:
            return
        del self._best[: -self._window]
        lowest = self._best[0].height
        kept = [held for held in self._held.values() if held.height >= lowest]
        self._held, self._held_at = {}, {}
        self._hold(kept)

    def _hold(self, blocks: Iterable[HeldHeader]) -> None:
        for held in blocks:
            self._held[held.hash] = held
            self._held_at.setdefault(held.height, []).append(held)

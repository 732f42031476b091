"""The node's own view of the chain: block headers, checked, kept, and what proofs are held against.

`HeaderBook` follows sources (`follow`), keeps every header of the best chain in the log's database, and answers whether
a transaction's proof leads to a block of it (`check_proof`). A first start begins at the network's newest pinned block,
so that a sync is 80 bytes a block from there, or at its first block.
"""

import sqlite3
from collections.abc import Awaitable, Callable, Iterable
from typing import Annotated, Any, Literal, Protocol

import msgspec
import trio
from msgspec import Meta

from overlayd.bsv.bump import Bump
from overlayd.bsv.header import HEADER_BYTES, BlockHeader, parse_header
from overlayd.bsv.network import Network
from overlayd.chain import header_tables
from overlayd.chain.header_chain import Extension, HeaderChain, HeldHeader, Reorg
from overlayd.model.chain_source import HeaderSource
from overlayd.model.clock import Clock
from overlayd.model.errors import (
    ConfigInvalid,
    HeadersRejected,
    HeadersUnconnected,
    MalformedChainData,
    SourceUnavailable,
    VerificationFailed,
)
from overlayd.model.metrics import Metrics
from overlayd.model.txid import BlockHash, TxId, format_hash

STEPS_BACK_MAX = 64
SLICE_HEADERS = 200
"""Headers that are judged between two checkpoints; about 8 ms."""


class HeadersSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the chain of block headers is kept."""

    start: Annotated[
        str,
        Meta(
            pattern=r"^(pinned|genesis|[0-9]{1,9}:[0-9a-fA-F]{160})$",
            description="Where a new directory begins: the newest block that this program knows (`pinned`), the first of "
            "all (`genesis`), or a block that you trust, as `<height>:<header in hex>`",
        ),
    ] = "pinned"
    window: Annotated[
        int, Meta(ge=500, le=100_000, description="Newest block headers in memory; a deeper reorg isn't followed")
    ] = 8192
    branch_headers_max: Annotated[
        int, Meta(ge=100, description="Block headers off the best chain that are held; more are refused")
    ] = 20_000


class Store(Protocol):
    """The two calls of the log that are needed here."""

    async def write(self, job: Callable[[sqlite3.Connection], Any]) -> Any: ...

    def read(self, function: Callable[[sqlite3.Connection], Any]) -> Awaitable[Any]: ...


class Proven(msgspec.Struct, frozen=True):
    """A proof leads to a block of the best chain."""

    height: int
    block_hash: BlockHash


class ProofUnknownBlock(msgspec.Struct, frozen=True):
    """A proof is sound but leads to no block of the best chain.

    `ahead`: its height is above our tip; ask again after the next block. `behind`: below the first block we hold, so
    it can't be checked. `stale`: to a block that we know (`block_hash`) and that isn't, or isn't yet, in the best chain.
    `foreign`: our block at that height has another root, and no block we know of has this one.
    """

    height: int
    root: bytes
    reason: Literal["ahead", "behind", "stale", "foreign"]
    block_hash: BlockHash | None = None


class Followed(msgspec.Struct, frozen=True):
    """What came of asking a source: how many headers were new, and the reorgs on the way, in order."""

    added: int
    reorgs: tuple[Reorg, ...]
    tip: HeldHeader


class HeaderBook:
    """The best chain. Changed only through `accept` and `follow`, after the disk has it; read without waiting."""

    def __init__(
        self, chain: HeaderChain, store: Store, clock: Clock, metrics: Metrics, settings: HeadersSettings
    ) -> None:
        self._chain = chain
        self._store = store
        self._clock = clock
        self._settings = settings
        self._metrics = metrics
        self._turn = trio.Lock()
        self._moved = trio.Event()
        self._reorg_depth = metrics.histogram(
            "overlayd_chain_reorg_blocks", "Blocks that a reorg took back", buckets=(1, 2, 3, 6, 12, 100)
        )
        metrics.gauge("overlayd_chain_tip_height", "Height of the best chain's newest block").set_function(
            lambda: self.tip.height
        )
        metrics.gauge(
            "overlayd_chain_tip_age_seconds", "Seconds since the time in the newest block's header"
        ).set_function(lambda: clock.now_us() / 1e6 - self.tip.time_s)

    @property
    def tip(self) -> HeldHeader:
        """The newest block."""
        return self._chain.tip

    @property
    def start(self) -> HeldHeader:
        """The oldest block that is held."""
        return self._chain.start

    def depth_of(self, height: int) -> int:
        """How many blocks confirm one at that height, itself included; 0 or less above the tip."""
        return self.tip.height - height + 1

    def find(self, block_hash: BlockHash) -> HeldHeader | None:
        """A block of any branch, if it is recent enough to be in memory."""
        return self._chain.find(block_hash)

    def is_best(self, held: HeldHeader) -> bool:
        """Whether a recent block is on the best chain."""
        return self._chain.is_best(held)

    async def wait_moved(self, tip: HeldHeader) -> HeldHeader:
        """The newest block, once it isn't `tip` any more. A checkpoint."""
        await trio.lowlevel.checkpoint()
        while self.tip.hash == tip.hash:
            await self._moved.wait()
        return self.tip

    async def read_at(self, height: int) -> HeldHeader | None:
        """The best chain's block at a height; old ones come from the disk. A checkpoint."""
        held = self._chain.at(height)
        if held is not None or not self.start.height <= height <= self.tip.height:
            await trio.lowlevel.checkpoint()
            return held
        found: HeldHeader | None = await self._store.read(lambda c: header_tables.read_header_at(c, height))
        return found

    async def read_headers(self, from_height: int, count: int) -> list[HeldHeader]:
        """Up to `count` blocks of the best chain, ascending. A checkpoint."""
        found: list[HeldHeader] = await self._store.read(
            lambda c: header_tables.read_headers_from(c, from_height, count)
        )
        return found

    async def read_roots(self, heights: Iterable[int]) -> dict[int, bytes]:
        """The Merkle roots at the heights that are held, for `verify_beef`. A checkpoint."""
        roots = {}
        for height in set(heights):
            held = await self.read_at(height)
            if held is not None:
                roots[height] = held.header.merkle_root
        await trio.lowlevel.checkpoint()
        return roots

    async def check_proof(self, txid: TxId, bump: Bump) -> Proven | ProofUnknownBlock:
        """Whether a transaction is in a block of the best chain. A checkpoint.

        Raises VerificationFailed when the proof isn't of this transaction.
        """
        if bump.find(txid) is None:
            raise VerificationFailed("the proof isn't of this transaction", subject=f"txid {format_hash(txid)}")
        held = await self.read_at(bump.height)
        if held is not None and held.header.merkle_root == bump.root:
            return Proven(bump.height, held.hash)
        other = self._chain.find_root(bump.height, bump.root)
        if other is not None:
            return ProofUnknownBlock(bump.height, bump.root, "stale", other.hash)
        if held is not None:
            return ProofUnknownBlock(bump.height, bump.root, "foreign")
        return ProofUnknownBlock(bump.height, bump.root, "ahead" if bump.height > self.tip.height else "behind")

    async def accept(self, headers: list[BlockHeader]) -> list[Extension]:
        """Checks and keeps headers that follow each other; what changed, slice by slice. A checkpoint.

        What came before a bad one stays. Raises HeadersUnconnected, HeadersRejected.
        """
        extensions = []
        for start in range(0, len(headers), SLICE_HEADERS):
            async with self._turn:
                extension = self._judge(headers[start : start + SLICE_HEADERS])
                if extension.added or extension.joined:
                    keep_from = extension.tip.height - self._settings.window
                    await self._store.write(lambda c: header_tables.write_extension(c, extension, keep_from))  # noqa: B023
                    self._adopt(extension)
                extensions.append(extension)
        await trio.lowlevel.checkpoint()
        return extensions

    def _judge(self, headers: list[BlockHeader]) -> Extension:
        try:
            return self._chain.judge(headers, self._clock.now_us() // 1_000_000)
        except HeadersRejected as err:
            if "limit" in err.extra:
                self._metrics.count_limit_hit(err.extra["limit"])
            raise

    def _adopt(self, extension: Extension) -> None:
        self._chain.adopt(extension)
        if extension.reorg is not None:
            self._reorg_depth.observe(extension.reorg.depth)
        if extension.joined:
            self._moved.set()
            self._moved = trio.Event()

    async def follow(self, source: HeaderSource) -> Followed:
        """Takes over what a source has that we haven't, stepping back where it is on another branch.

        Its chain is adopted only if it has more work than ours. A checkpoint.
        Raises SourceUnavailable (also for headers that can't be read or don't lead to its tip), HeadersRejected, and
        HeadersUnconnected when it branched off before the window. What was taken over before stays.
        """
        target = await source.read_tip()
        if self.find(target.block_hash) is not None:
            return Followed(0, (), self.tip)
        at, step = min(self.tip.height + 1, target.height), 1
        added, reorgs = 0, []
        # A source that keeps changing its mind doesn't keep us asking.
        for _ in range((target.height - self.start.height) // source.headers_max + STEPS_BACK_MAX):
            headers = parse_headers(await source.read_headers(at, source.headers_max), source)
            if not headers:
                raise SourceUnavailable("it has no headers up to its own tip", subject=f"source {source.name}")
            try:
                extensions = await self.accept(headers)
            except HeadersUnconnected:
                if at <= self._chain.first_held + 1:
                    raise
                at, step = max(at - step, self._chain.first_held + 1), step * 2
                continue
            added += sum(len(extension.added) for extension in extensions)
            reorgs += [extension.reorg for extension in extensions if extension.reorg is not None]
            at += len(headers)
            if at > target.height:
                return Followed(added, tuple(reorgs), self.tip)
        raise SourceUnavailable("its headers never came to its tip", subject=f"source {source.name}")


def parse_headers(raws: Iterable[bytes], source: HeaderSource) -> list[BlockHeader]:
    """A source's headers. Raises SourceUnavailable for what isn't 80 bytes."""
    try:
        return [parse_header(raw) for raw in raws]
    except MalformedChainData as err:
        raise SourceUnavailable(
            f"it gave a header that isn't {HEADER_BYTES} bytes", subject=f"source {source.name}"
        ) from err


async def open_headers(
    store: Store, network: Network, *, settings: HeadersSettings, clock: Clock, metrics: Metrics
) -> HeaderBook:
    """The chain that the directory holds, or a new one. A checkpoint.

    Raises ConfigInvalid when the directory is another network's, DamagedEntry, HeadersRejected when the stored chain
    contradicts a pinned block.
    """
    stored = await store.read(lambda c: header_tables.read_headers(c, network, settings.window))
    if stored is None:
        start = first_header(network, settings)
        await store.write(lambda c: header_tables.write_start(c, network, start))
        return HeaderBook(_make_chain(network, start, settings), store, clock, metrics, settings)
    chain = _make_chain(network, stored.start, settings)
    chain.restore(stored.best, stored.branches)
    book = HeaderBook(chain, store, clock, metrics, settings)
    for pin in network.pins:
        held = await book.read_at(pin.height)
        if held is not None and held.hash != pin.header.hash:
            raise HeadersRejected(
                f"the stored chain has another block at the pinned height {pin.height}", subject=f"block {held.header}"
            )
    return book


def _make_chain(network: Network, start: HeldHeader, settings: HeadersSettings) -> HeaderChain:
    return HeaderChain(network, start, window=settings.window, branch_headers_max=settings.branch_headers_max)


def first_header(network: Network, settings: HeadersSettings) -> HeldHeader:
    """Where a new chain begins. Its own work stands for all before it: only differences are ever compared.

    Raises ConfigInvalid for a header that can't be one of the network's.
    """
    if settings.start == "pinned" and network.pins:
        pin = network.pins[-1]
        return HeldHeader(pin.header, pin.height, pin.header.work)
    if ":" in settings.start:
        height, _, raw = settings.start.partition(":")
        header = parse_header(bytes.fromhex(raw))
        try:
            header.verify_work(network.limit_bits)
        except VerificationFailed as err:
            raise ConfigInvalid(f"not a block of {network.name}: {err.detail}", subject="chain.headers.start") from err
        return HeldHeader(header, int(height), header.work)
    return HeldHeader(network.genesis, 0, network.genesis.work)

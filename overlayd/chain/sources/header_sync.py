"""Keeps our headers up with the sources': asks every one of them now and then, takes the most work, tells what came."""

from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog
import trio

from overlayd.bsv.bump import parse_bump
from overlayd.chain.headers import Followed, HeaderBook, Proven
from overlayd.chain.sources.abilities import RemoteSource
from overlayd.chain.sources.faults import Fault
from overlayd.chain.sources.health import SourceMetrics
from overlayd.chain.sources.pool import ProofVerdict
from overlayd.chain.sources.settings import AskingSettings
from overlayd.model.chain_source import HeaderSource, SourceTip
from overlayd.model.clock import Clock
from overlayd.model.errors import HeadersRejected, SourceUnavailable, StorageFull, VerificationFailed
from overlayd.model.txid import TxId

RECENT_BLOCKS = 12
"""So near our tip, a block that we don't have may well be one of a branch that we haven't heard of yet."""
_log = structlog.get_logger("chain")

OnFollowed = Callable[[Followed], Awaitable[None]]
"""Gets what was new, before the next source is asked."""


class Feeds(Protocol):
    """Who gives headers (`SourcePool`)."""

    def header_sources(self) -> list[tuple[HeaderSource, RemoteSource]]: ...

    async def is_ready(self, source: RemoteSource) -> bool: ...


class HeaderSync:
    """The task that follows the sources. Several may lag, lie or be on other branches: each is followed, so the branch
    with the most work that any of them knows is ours."""

    def __init__(
        self, book: HeaderBook, feeds: Feeds, *, settings: AskingSettings, clock: Clock, metrics: SourceMetrics,
        on_followed: OnFollowed | None = None,
    ) -> None:  # fmt: skip
        self._book = book
        self._feeds = feeds
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._on_followed = on_followed
        self._nudged = trio.Event()
        self.nudges = 0
        """How often somebody thought that there might be a new block."""
        self.is_synced = False
        """Whether a source has been followed to its end since the start."""

    def __repr__(self) -> str:
        return f"HeaderSync(tip={self._book.tip.height}, is_synced={self.is_synced})"

    def nudge(self) -> None:
        """There may be a new block: ask at once instead of at the next interval. Never waits."""
        self.nudges += 1
        self._nudged.set()
        self._nudged = trio.Event()

    async def run(self) -> None:
        """Follows the sources until cancelled, each at its own speed: one that hangs holds up no other."""
        async with trio.open_nursery() as nursery:
            for source, owner in self._feeds.header_sources():
                nursery.start_soon(self._keep_up, source, owner)
            await trio.sleep_forever()

    async def follow_all(self) -> None:
        """Asks each source once, one after the other. A checkpoint."""
        for source, owner in self._feeds.header_sources():
            if await self._feeds.is_ready(owner):
                await self._follow(_Measured(source, owner.name, self._metrics), owner)

    async def _keep_up(self, source: HeaderSource, owner: RemoteSource) -> None:
        measured = _Measured(source, owner.name, self._metrics)
        while True:
            heard = self.nudges
            if await self._feeds.is_ready(owner):
                await self._follow(measured, owner)
            with trio.move_on_after(self._settings.header_interval):
                if heard == self.nudges:
                    await self._nudged.wait()

    def describe_staleness(self) -> str:
        """Why proofs can't be relied upon to come in time; empty when all is well. For readiness."""
        if not self.is_synced:
            return "no source has given us block headers yet"
        age_s = self._clock.now_us() / 1e6 - self._book.tip.time_s
        if age_s > self._settings.tip_stale_after:
            return f"the newest block is {age_s / 60:.0f} minutes old; sources don't answer or don't go on"
        return ""

    async def judge(self, txid: TxId, raw: bytes) -> ProofVerdict:
        """What our headers say of a proof; a block that isn't there yet is asked for. A checkpoint.

        As `JudgeProof` of the pool.
        """
        bump = parse_bump(raw)
        try:
            found = await self._book.check_proof(txid, bump)
        except VerificationFailed:
            return ProofVerdict.BAD
        if isinstance(found, Proven):
            return ProofVerdict.GOOD
        if found.reason == "foreign" and self._book.depth_of(found.height) > RECENT_BLOCKS:
            return ProofVerdict.BAD
        if found.reason in ("ahead", "foreign"):
            self.nudge()
        return ProofVerdict.LATER

    async def _follow(self, source: "_Measured", owner: RemoteSource) -> None:
        health, before = owner.health, owner.health.faults
        try:
            followed = await self._book.follow(source)
        except SourceUnavailable as err:
            # Faults of requests are noted where they happen; this one is about what came.
            if health.faults == before:
                health.note_fault(Fault.BAD_HEADERS, err.detail)
            return
        except HeadersRejected as err:
            health.note_fault(Fault.BAD_HEADERS, f"{err.detail} ({err.subject})")
            _log.warning("a source's headers break the rules", source=owner.name, error=err.detail, block=err.subject)
            return
        except StorageFull as err:
            _log.warning("headers can't be kept", error=err.detail)
            return
        if health.faults == before:
            health.note_good()
        self.is_synced = True
        if followed.added:
            _log.info(
                "headers", source=owner.name, added=followed.added, height=followed.tip.height,
                reorgs=[reorg.depth for reorg in followed.reorgs],
            )  # fmt: skip
            if self._on_followed is not None:
                await self._on_followed(followed)


class _Measured:
    """A source of headers whose tip is measured on the way."""

    def __init__(self, source: HeaderSource, name: str, metrics: SourceMetrics) -> None:
        self._source = source
        self._tip = metrics.tip.labels(name)
        self.name = name
        self.headers_max = source.headers_max

    async def read_tip(self) -> SourceTip:
        tip = await self._source.read_tip()
        self._tip.set(tip.height)
        return tip

    async def read_headers(self, from_height: int, count: int) -> list[bytes]:
        return await self._source.read_headers(from_height, count)

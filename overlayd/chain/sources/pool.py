"""All sources as one: asked in turn, left alone while they fail, and never believed.

To whoever uses it the pool is one source (`ChainSource` of the model), as the embedded regtest chain is one:

* a source that fails is left alone for a while, and the next one asked; only when none is left is that an error;
* an answer that isn't the last word (seen, but no proof yet; refused; unknown) is a reason to ask the next one, too, and
  the best of all answers is given. A refusal stays beside a better answer, as its `reason`;
* a proof is held against our own headers before it ends the asking.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from enum import Enum
from typing import Any, TypeVar, cast

import msgspec
import trio

from overlayd.bsv.hashes import hash256
from overlayd.bsv.network import Network
from overlayd.chain.sources.abilities import Ability, RemoteSource
from overlayd.chain.sources.events import EventBox
from overlayd.chain.sources.faults import Fault
from overlayd.chain.sources.health import SourceMetrics
from overlayd.chain.sources.settings import AskingSettings
from overlayd.model.chain_source import (
    EventsMissed,
    EventSource,
    HeaderSource,
    Outgoing,
    RawSource,
    SourcePolicy,
    SourceState,
    SourceStatus,
    TransactionSource,
)
from overlayd.model.errors import SourceUnavailable
from overlayd.model.txid import TxId, format_hash

T = TypeVar("T")
BATCH_MAX = 1000
RAW_BATCH = 20


class ProofVerdict(Enum):
    """What our headers say of a proof."""

    GOOD = "good"
    """It leads to a block of our best chain."""
    LATER = "later"
    """Our headers haven't come so far, or are on another branch just now."""
    BAD = "bad"
    """It leads to a block that there isn't."""


JudgeProof = Callable[[TxId, bytes], Awaitable[ProofVerdict]]

_RANKS = {
    SourceState.NO_ANSWER: 0,
    SourceState.UNKNOWN: 1,
    SourceState.REJECTED: 2,
    SourceState.DOUBLE_SPEND: 3,
    SourceState.HELD: 4,
    SourceState.STALE: 5,
    SourceState.SEEN: 6,
    SourceState.MINED: 7,
}
_TAKEN = frozenset({SourceState.HELD, SourceState.STALE, SourceState.SEEN, SourceState.MINED})
_COMPLAINTS = frozenset({SourceState.REJECTED, SourceState.DOUBLE_SPEND})


class SourceReport(msgspec.Struct, frozen=True):
    """How a source is doing, for people. `pause_s`: how long it is still left alone."""

    name: str
    abilities: tuple[str, ...]
    state: str
    """`ok`, `backing_off`, or `refused` when somebody has to mend something."""
    fault: str
    detail: str
    pause_s: float
    faults: int


class SourcePool:
    """The sources of one network."""

    name = "sources"
    batch_max = BATCH_MAX

    def __init__(
        self, sources: Sequence[RemoteSource], network: Network, *, asking: AskingSettings, metrics: SourceMetrics,
        judge: JudgeProof,
    ) -> None:  # fmt: skip
        self._sources = tuple(sources)
        self._replaced = trio.Event()
        self._network = network
        self._asking = asking
        self._metrics = metrics
        self._judge = judge
        self._checked: set[str] = set()

    def __repr__(self) -> str:
        return f"SourcePool({[source.health for source in self._sources]})"

    # One source for everybody.

    async def submit(self, transactions: Sequence[Outgoing]) -> list[SourceStatus]:
        """Broadcasts by the first source that takes them; those that it refuses are offered to the next.

        A checkpoint. Raises SourceUnavailable when no source could be asked about any.
        """
        found: dict[TxId, list[SourceStatus]] = {}
        rest = list(transactions)
        for source in self._able(Ability.SUBMIT):
            if not await self.is_ready(source):
                continue
            target = cast(TransactionSource, source)
            for batch in _batches(rest, target.batch_max):
                statuses = await self._try(source, lambda: target.submit(batch))  # noqa: B023 - called at once
                if statuses is None:
                    break
                _gather(found, statuses, source.name)
            rest = [item for item in rest if not any(one.state in _TAKEN for one in found.get(item.txid, ()))]
            if not rest:
                break
        return self._answers([item.txid for item in transactions], found, Ability.SUBMIT)

    async def look_up(self, txids: Sequence[TxId]) -> list[SourceStatus]:
        """The best that any source knows of each; one with a proof that our headers bear out ends the asking.

        Those about which nobody could be asked have NO_ANSWER. A checkpoint. Raises SourceUnavailable when that is so
        for all.
        """
        found: dict[TxId, list[SourceStatus]] = {}
        proven: set[TxId] = set()
        rest = list(txids)
        for source in self._able(Ability.STATUS):
            if not await self.is_ready(source):
                continue
            target = cast(TransactionSource, source)
            for batch in _batches(rest, target.batch_max):
                statuses = await self._try(source, lambda: target.look_up(batch))  # noqa: B023 - called at once
                if statuses is None:
                    break
                _gather(found, [await self._judged(source, status, proven) for status in statuses], source.name)
            rest = [txid for txid in rest if txid not in proven]
            if not rest:
                break
        return self._answers(txids, found, Ability.STATUS)

    async def read_raw(self, txids: Sequence[TxId]) -> list[bytes | None]:
        """Raw transactions that hash to their txids, None for those that no source has. A checkpoint.

        Raises SourceUnavailable when there are sources for it and none could be asked.
        """
        found: dict[TxId, bytes] = {}
        rest, has_answer = list(txids), False
        for source in self._able(Ability.RAW):
            if not await self.is_ready(source):
                continue
            target = cast(RawSource, source)
            for batch in _batches(rest, RAW_BATCH):
                raws = await self._try(source, lambda: target.read_raw(batch))  # noqa: B023 - called at once
                if raws is None:
                    break
                has_answer = True
                for txid, raw in zip(batch, raws, strict=True):
                    if raw is not None and hash256(raw) == txid:
                        found[txid] = raw
                    elif raw is not None:
                        source.health.count(Fault.MALFORMED, f"it gave other bytes for {format_hash(txid)}")
            rest = [txid for txid in rest if txid not in found]
            if not rest:
                break
        if self._able(Ability.RAW) and not has_answer and txids:
            raise self._nobody(Ability.RAW)
        return [found.get(txid) for txid in txids]

    async def read_policy(self) -> SourcePolicy:
        """What the first source asks of transactions that can be asked itself. A checkpoint. Raises SourceUnavailable."""
        for source in self._able(Ability.POLICY):
            if not await self.is_ready(source):
                continue
            policy = await self._try(source, cast(TransactionSource, source).read_policy)
            if policy is not None:
                return policy
        raise self._nobody(Ability.POLICY)

    @asynccontextmanager
    async def open_events(self) -> AsyncIterator[EventBox]:
        """What all sources tell of what happens, for the life of the block. Only hints: polling must do without."""
        box = EventBox(
            self._asking.source_events, "events of sources", on_full=lambda: self._metrics.limit_hit("source_events")
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, box)
            try:
                yield box
            finally:
                nursery.cancel_scope.cancel()
                box.close()

    # What only a pool has.

    @property
    def sources(self) -> tuple[RemoteSource, ...]:
        """Who is asked, in the order of the settings."""
        return self._sources

    def replace(self, sources: Sequence[RemoteSource]) -> None:
        """Asks these from now on. Who is being asked goes on to its answer; who told of events and is gone is left."""
        gone = {source.name for source in self._sources} - {
            source.name for source in sources if source in self._sources
        }
        self._checked -= gone
        self._sources = tuple(sources)
        self._replaced.set()
        self._replaced = trio.Event()

    async def _listen(self, box: EventBox) -> None:
        """Passes on what the sources tell, until cancelled."""
        while True:
            replaced = self._replaced
            async with trio.open_nursery() as nursery:
                for source in self._sources:
                    if Ability.EVENTS in source.abilities:
                        nursery.start_soon(_pass_on, cast(EventSource, source), box)
                await replaced.wait()
                nursery.cancel_scope.cancel()
            box.offer(EventsMissed())

    @property
    def is_telling(self) -> bool:
        """Whether some source sends events."""
        return any(Ability.EVENTS in source.abilities for source in self._sources)

    def header_sources(self) -> list[tuple[HeaderSource, RemoteSource]]:
        """Who gives headers."""
        return [(cast(HeaderSource, source), source) for source in self._able(Ability.HEADERS)]

    def report(self) -> list[SourceReport]:
        """How each source is doing, in the order of the settings."""
        return [_report(source) for source in self._sources]

    def _able(self, ability: Ability) -> list[RemoteSource]:
        """Who can do it, in the order of the settings."""
        return [source for source in self._sources if ability in source.abilities]

    async def is_ready(self, source: RemoteSource) -> bool:
        """Whether it isn't left alone now, and answers for our network. A checkpoint."""
        await trio.lowlevel.checkpoint()
        return not source.health.pause_s and await self._is_right(source)

    async def _is_right(self, source: RemoteSource) -> bool:
        """Whether it answers for our network; asked once, and again after every doubt."""
        if source.name in self._checked:
            return True
        is_on = await self._try(source, lambda: _ask_network(source, self._network))
        if is_on is None:
            return False
        if not is_on:
            source.health.note_fault(Fault.WRONG_NETWORK, f"it answers for another network than {self._network.name}")
            return False
        self._checked.add(source.name)
        return True

    async def _try(self, source: RemoteSource, ask: Callable[[], Awaitable[T]]) -> T | None:
        """The answer; None when there is none. The source has noted why."""
        before = source.health.faults
        try:
            answer = await ask()
        except SourceUnavailable as err:
            if source.health.faults == before:
                source.health.note_fault(Fault.FAILED, err.detail, err.retry_after_s)
            return None
        if source.health.faults == before:
            source.health.note_good()
        return answer

    async def _judged(self, source: RemoteSource, status: SourceStatus, proven: set[TxId]) -> SourceStatus:
        """The status, without a proof that our headers contradict."""
        if status.state is not SourceState.MINED or status.bump is None:
            return status
        verdict = await self._judge(status.txid, status.bump)
        if verdict is ProofVerdict.GOOD:
            proven.add(status.txid)
        elif verdict is ProofVerdict.BAD:
            source.health.count(
                Fault.BAD_PROOF, f"its proof of {format_hash(status.txid)} leads to no block at height {status.height}"
            )
            return msgspec.structs.replace(status, bump=None, block_hash=None, height=None)
        return status

    def _answers(
        self, txids: Sequence[TxId], found: dict[TxId, list[SourceStatus]], ability: Ability
    ) -> list[SourceStatus]:
        answers = [
            best_of(found[txid]) if txid in found else SourceStatus(txid, SourceState.NO_ANSWER) for txid in txids
        ]
        if txids and all(answer.state is SourceState.NO_ANSWER for answer in answers):
            raise self._nobody(ability)
        return answers

    def _nobody(self, ability: Ability) -> SourceUnavailable:
        """No source is left that could be asked."""
        able = self._able(ability)
        if not able:
            return SourceUnavailable(f"no source is configured for {ability}", subject="chain.sources")
        words = "; ".join(f"{source.name}: {source.health.last_detail or 'no answer'}" for source in able)
        pause_s = min(source.health.pause_s for source in able)
        return SourceUnavailable(
            f"no source can be asked for {ability} now ({words})", subject="chain.sources",
            retry_after_s=max(pause_s, float(self._asking.backoff_first)),
        )  # fmt: skip


def best_of(statuses: Sequence[SourceStatus]) -> SourceStatus:
    """The best of several answers about one transaction, the first among equals; the first refusal among them stays
    beside it as its reason, unless there is a proof."""
    best = max(statuses, key=_rank)
    if best.bump is not None or best.reason:
        return best
    complaint = next((one for one in statuses if one.state in _COMPLAINTS and one.reason), None)
    if complaint is None:
        return best
    return msgspec.structs.replace(
        best, reason=f"{complaint.source}: {complaint.reason}", competing=best.competing or complaint.competing
    )


def _rank(status: SourceStatus) -> tuple[int, bool]:
    return _RANKS[status.state], status.bump is not None


def _gather(found: dict[TxId, list[SourceStatus]], statuses: Sequence[SourceStatus], name: str) -> None:
    for status in statuses:
        if status.state is not SourceState.NO_ANSWER:
            found.setdefault(status.txid, []).append(msgspec.structs.replace(status, source=name))


async def _ask_network(source: RemoteSource, network: Network) -> bool:
    """False for another network; who can't be asked is taken for right: its proofs are checked anyway."""
    is_on = await source.is_on(network)
    return is_on is not False


async def _pass_on(source: EventSource, box: EventBox) -> None:
    async with source.open_events() as reader:
        while True:
            try:
                event = await reader.receive()
            except trio.EndOfChannel:
                return
            box.offer(event)


def _batches(items: Sequence[Any], size: int) -> Iterator[Any]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _report(source: RemoteSource) -> SourceReport:
    health = source.health
    pause_s = health.pause_s
    state = "ok" if not pause_s else "refused" if health.is_lasting else "backing_off"
    return SourceReport(
        source.name, tuple(sorted(source.abilities)), state, health.last_fault, health.last_detail, pause_s,
        health.faults,
    )  # fmt: skip

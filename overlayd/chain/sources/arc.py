"""ARC: broadcasts, tells states, proves, calls back (bitcoin-sv/arc, `pkg/api/arc.yaml`)."""

from collections.abc import Sequence
from typing import Any

import msgspec
import trio

from overlayd.bsv.network import Network
from overlayd.chain.sources.abilities import Ability
from overlayd.chain.sources.arc_words import (
    OTHER_FORM,
    REFUSALS,
    ArcProblem,
    ArcStatus,
    look_up_one,
    read_answer,
    read_arc_policy,
    refusal_of,
    status_of,
)
from overlayd.chain.sources.calls import SourceCalls
from overlayd.chain.sources.faults import Fault, words_of
from overlayd.chain.sources.forms import as_beef, portions
from overlayd.chain.sources.many import ask_each, submit_portions
from overlayd.model.chain_source import Outgoing, SourcePolicy, SourceState, SourceStatus
from overlayd.model.txid import TxId, format_hash
from overlayd.outbound import OutboundAnswer

BATCH_MAX = 100
BATCH_BYTES_MAX = 4 << 20


class Callback(msgspec.Struct, frozen=True):
    """Where a source may tell what happens, and with which bearer it says who it is."""

    url: str
    token: str


class ArcSource:
    """An ARC. It keeps what it knows of a transaction for some days, and only of those that it was given."""

    abilities = frozenset({Ability.SUBMIT, Ability.STATUS, Ability.PROOFS, Ability.POLICY})
    batch_max = BATCH_MAX

    def __init__(self, calls: SourceCalls, url: str, callback: Callback | None) -> None:
        self._calls = calls
        self._url = f"{url.rstrip('/')}/v1"
        self._headers: tuple[tuple[str, str], ...] = ()
        if callback is not None:
            self._headers = (
                ("X-CallbackUrl", callback.url), ("X-CallbackToken", callback.token), ("X-CallbackBatch", "true"),
                ("X-FullStatusUpdates", "true"),
            )  # fmt: skip
        self.name = calls.name
        self.health = calls.health

    def __repr__(self) -> str:
        return f"ArcSource({self.health!r})"

    async def is_on(self, network: Network) -> bool | None:
        """It can't be asked. A transaction of another network is refused, and a proof of one leads to no block of ours."""
        await trio.lowlevel.checkpoint()
        return None

    async def submit(self, transactions: Sequence[Outgoing]) -> list[SourceStatus]:
        """Broadcasts: with ancestors as BEEF, otherwise many at once in Extended Format."""
        groups: list[list[Outgoing]] = []
        plain: list[Outgoing] = []
        for item in transactions:
            if item.beef is None:
                plain.append(item)
                continue
            groups += [*portions(plain, count_max=BATCH_MAX, bytes_max=BATCH_BYTES_MAX), [item]]
            plain = []
        groups += portions(plain, count_max=BATCH_MAX, bytes_max=BATCH_BYTES_MAX)
        return await submit_portions(groups, self._submit_portion)

    async def look_up(self, txids: Sequence[TxId]) -> list[SourceStatus]:
        """Asks about each: ARC has no question about many."""
        return await ask_each(txids, self._look_up, concurrency=self._calls.concurrency)

    async def read_policy(self) -> SourcePolicy:
        """Its fee and its largest transaction."""
        return await read_arc_policy(self._calls, f"{self._url}/policy")

    async def _look_up(self, txid: TxId) -> SourceStatus:
        return await look_up_one(self._calls, f"{self._url}/tx/{format_hash(txid)}", txid)

    async def _submit_portion(self, portion: list[Outgoing]) -> list[SourceStatus]:
        if len(portion) == 1:
            return [await self._submit_one(portion[0])]
        body = [{"rawTx": (item.extended or item.raw).hex()} for item in portion]
        answer = await self._calls.post("submit", f"{self._url}/txs", body, headers=self._headers, expected=REFUSALS)
        if answer.status >= 300:
            # One of them has spoilt it for all.
            return [await self._submit_one(item) for item in portion]
        return self._sort(answer, portion)

    async def _submit_one(self, item: Outgoing) -> SourceStatus:
        beef = as_beef(item)
        if beef is not None:
            answer = await self._post(beef)
            if answer.status not in OTHER_FORM:
                return read_answer(self._calls, answer, item.txid)
        return read_answer(self._calls, await self._post(item.extended or item.raw), item.txid)

    async def _post(self, octets: bytes) -> OutboundAnswer:
        return await self._calls.post("submit", f"{self._url}/tx", octets, headers=self._headers, expected=REFUSALS)

    def _sort(self, answer: OutboundAnswer, portion: list[Outgoing]) -> list[SourceStatus]:
        """Which of many answers is about which transaction."""
        told = self._calls.read_json(answer, object)
        if isinstance(told, dict):
            told = told.get("transactions")
        if not isinstance(told, list):
            raise self._calls.malformed("its answers aren't a list")
        by_txid = {one.get("txid"): one for one in told if isinstance(one, dict)}
        return [self._read_member(by_txid.get(format_hash(item.txid)), item.txid) for item in portion]

    def _read_member(self, told: dict[str, Any] | None, txid: TxId) -> SourceStatus:
        """One of many answers: a state or a refusal."""
        try:
            if told is not None and "txStatus" in told:
                return status_of(msgspec.convert(told, ArcStatus), txid, self._calls)
            if told is not None:
                problem = msgspec.convert(told, ArcProblem)
                return refusal_of(problem, problem.status or 0, txid)
            detail = f"it was given {format_hash(txid)} and says nothing about it"
        except msgspec.ValidationError as err:
            detail = f"its answer can't be read: {words_of(str(err))}"
        self.health.count(Fault.MALFORMED, detail)
        return SourceStatus(txid, SourceState.NO_ANSWER)

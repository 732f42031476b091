"""Arcade: broadcasts, tells states, proves, keeps headers, sends events (bsv-blockchain/arcade, its OpenAPI document)."""

import random
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

import msgspec

from overlayd.bsv.header import parse_header
from overlayd.bsv.network import Network
from overlayd.chain.sources.abilities import Ability
from overlayd.chain.sources.arc import BATCH_BYTES_MAX, BATCH_MAX, Callback
from overlayd.chain.sources.arc_words import REFUSALS, look_up_one, read_answer, read_arc_policy
from overlayd.chain.sources.arcade_events import ArcadeEvents
from overlayd.chain.sources.calls import SourceCalls
from overlayd.chain.sources.events import EventBox
from overlayd.chain.sources.forms import portions, with_ancestors
from overlayd.chain.sources.many import ask_each, submit_portions
from overlayd.chain.sources.raw_headers import split_headers
from overlayd.chain.sources.settings import AskingSettings, ChainSourceSettings
from overlayd.model.chain_source import Outgoing, SourcePolicy, SourceState, SourceStatus, SourceTip
from overlayd.model.errors import MalformedChainData
from overlayd.model.txid import TxId, format_hash, parse_block_hash

HEADERS_MAX = 2000


class _Tip(msgspec.Struct):
    height: int
    hash: str


class _Counts(msgspec.Struct):
    submitted: int
    duplicates: int
    total: int


class ArcadeSource:
    """An Arcade, with its chaintracks and its event stream, which may stand at other addresses."""

    abilities = frozenset(Ability) - {Ability.RAW}
    batch_max = BATCH_MAX
    headers_max = HEADERS_MAX

    def __init__(
        self, calls: SourceCalls, settings: ChainSourceSettings, *, token: str, callback: Callback | None,
        asking: AskingSettings, chance: random.Random,
    ) -> None:  # fmt: skip
        """`token`: what transactions are submitted under, so that events about them can be told from others'."""
        self._calls = calls
        self._url = settings.url.rstrip("/")
        self._headers_url = (settings.headers_url or settings.url).rstrip("/") + "/chaintracks/v2"
        self._headers: tuple[tuple[str, str], ...] = (("X-CallbackToken", token), ("X-FullStatusUpdates", "true"))
        if callback is not None:
            self._headers += (("X-CallbackUrl", callback.url),)
        self._events = ArcadeEvents(
            calls, status_url=f"{(settings.events_url or settings.url).rstrip('/')}/events?callbackToken={token}",
            tip_url=f"{self._headers_url}/tip/stream", asking=asking, chance=chance,
        )  # fmt: skip
        self.name = calls.name
        self.health = calls.health

    def __repr__(self) -> str:
        return f"ArcadeSource({self.health!r})"

    async def is_on(self, network: Network) -> bool | None:
        """By its first header."""
        answer = await self._calls.get("network", f"{self._headers_url}/headers?height=0&count=1")
        headers = self._split(answer.body)
        if not headers:
            raise self._calls.malformed("it has no first header")
        return parse_header(headers[0]).hash == network.genesis.hash

    async def submit(self, transactions: Sequence[Outgoing]) -> list[SourceStatus]:
        """Broadcasts, ancestors first, in Extended Format where that is at hand: it reads no BEEF."""
        every = list(with_ancestors(transactions))
        groups = list(portions(every, count_max=BATCH_MAX, bytes_max=BATCH_BYTES_MAX))
        statuses = {status.txid: status for status in await submit_portions(groups, self._submit_portion)}
        return [statuses[item.txid] for item in transactions]

    async def look_up(self, txids: Sequence[TxId]) -> list[SourceStatus]:
        """Asks about each: Arcade has no question about many."""
        return await ask_each(txids, self._look_up, concurrency=self._calls.concurrency)

    async def read_policy(self) -> SourcePolicy:
        """Its fee and its largest transaction."""
        return await read_arc_policy(self._calls, f"{self._url}/policy")

    async def read_tip(self) -> SourceTip:
        """The newest block that it knows."""
        tip = self._calls.read_json(await self._calls.get("tip", f"{self._headers_url}/tip"), _Tip)
        try:
            return SourceTip(tip.height, parse_block_hash(tip.hash))
        except MalformedChainData as err:
            raise self._calls.malformed(f"its tip can't be read: {err.detail}") from err

    async def read_headers(self, from_height: int, count: int) -> list[bytes]:
        """Headers, 80 bytes each."""
        wanted = min(count, HEADERS_MAX)
        answer = await self._calls.get(
            "headers", f"{self._headers_url}/headers?height={from_height}&count={wanted}", expected=(404,)
        )
        return [] if answer.status == 404 else self._split(answer.body)[:wanted]

    def open_events(self) -> AbstractAsyncContextManager[EventBox]:
        """Events about what was submitted under our token, and about every new tip."""
        return self._events.open()

    async def _look_up(self, txid: TxId) -> SourceStatus:
        return await look_up_one(self._calls, f"{self._url}/tx/{format_hash(txid)}", txid)

    async def _submit_portion(self, portion: list[Outgoing]) -> list[SourceStatus]:
        if len(portion) == 1:
            return [await self._submit_one(portion[0])]
        body = b"".join(item.extended or item.raw for item in portion)
        answer = await self._calls.post("submit", f"{self._url}/txs", body, headers=self._headers, expected=REFUSALS)
        if answer.status < 300:
            counts = self._calls.read_json(answer, _Counts)
            if counts.total != len(portion):
                raise self._calls.malformed(f"it was given {len(portion)} transactions and counted {counts.total}")
            return [SourceStatus(item.txid, SourceState.HELD) for item in portion]
        # One of them has spoilt it for all.
        return [await self._submit_one(item) for item in portion]

    async def _submit_one(self, item: Outgoing) -> SourceStatus:
        answer = await self._calls.post(
            "submit", f"{self._url}/tx", item.extended or item.raw, headers=self._headers, expected=REFUSALS
        )
        return read_answer(self._calls, answer, item.txid)

    def _split(self, octets: bytes) -> list[bytes]:
        try:
            return split_headers(octets)
        except MalformedChainData as err:
            raise self._calls.malformed(f"its headers can't be read: {err.detail}") from err

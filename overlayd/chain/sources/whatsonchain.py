"""WhatsOnChain: broadcasts, tells states of many at once, proves, lists headers (docs.taal.com, WhatsOnChain).

Its broadcasts go to a node of its own, whose words come back: "unexpected response code 500: 258: txn-mempool-conflict".
"""

import re
from collections.abc import Sequence

import msgspec
import trio

from overlayd.bsv.header import BlockHeader, parse_header
from overlayd.bsv.network import Network
from overlayd.chain.sources.abilities import Ability
from overlayd.chain.sources.calls import SourceCalls
from overlayd.chain.sources.faults import Fault, unavailable, words_of
from overlayd.chain.sources.forms import with_ancestors
from overlayd.chain.sources.many import submit_portions
from overlayd.chain.sources.node_words import read_refusal
from overlayd.chain.sources.proofs import convert_tsc
from overlayd.chain.sources.raw_headers import JsonHeader, split_headers
from overlayd.model.chain_source import Outgoing, SourcePolicy, SourceState, SourceStatus, SourceTip
from overlayd.model.errors import MalformedChainData, SourceUnavailable
from overlayd.model.txid import BlockHash, TxId, format_hash, parse_block_hash, parse_txid

PUBLIC_URL = "https://api.whatsonchain.com/v1/bsv"
PATHS = {"mainnet": "main", "testnet": "test"}
BATCH_MAX = 20
HEADERS_MAX = 10_000
NEWEST = 10
"""Headers that it lists in JSON, in one request."""
LATEST_MAX = 2000
"""Newest headers that are asked for as bytes; what is older is in its archives."""
_ARCHIVE = re.compile(r"(?:.*/)?([0-9]{1,9})_([0-9]{1,9})_headers\.bin", re.ASCII)
_NODE_WORDS = re.compile(r"unexpected response code [0-9]+: *(.*)", re.DOTALL)


class _Told(msgspec.Struct):
    """One answer of `/txs/status`."""

    txid: str
    blockhash: str = ""
    blockheight: int | None = None
    confirmations: int | None = None
    error: str = ""


class _TscProof(msgspec.Struct):
    index: int
    nodes: list[str]
    target: str
    tx_or_id: str = msgspec.field(name="txOrId", default="")


class _ChainInfo(msgspec.Struct):
    blocks: int
    bestblockhash: str


class _Archives(msgspec.Struct):
    files: list[str]


class WhatsOnChainSource:
    """WhatsOnChain, the public one or another by its contract."""

    abilities = frozenset({Ability.SUBMIT, Ability.STATUS, Ability.PROOFS, Ability.RAW, Ability.HEADERS})
    batch_max = BATCH_MAX
    headers_max = HEADERS_MAX

    def __init__(self, calls: SourceCalls, url: str) -> None:
        """`url`: with the network's name at its end."""
        self._calls = calls
        self._url = url.rstrip("/")
        self.name = calls.name
        self.health = calls.health

    def __repr__(self) -> str:
        return f"WhatsOnChainSource({self.health!r})"

    async def is_on(self, network: Network) -> bool | None:
        """By the first header of the network, which no other has."""
        genesis = format_hash(network.genesis.hash)
        answer = await self._calls.get("network", f"{self._url}/block/{genesis}/header", expected=(400, 404))
        if answer.status != 200:
            return False
        return self._rebuild(self._calls.read_json(answer, JsonHeader)).hash == network.genesis.hash

    async def submit(self, transactions: Sequence[Outgoing]) -> list[SourceStatus]:
        """Broadcasts one after the other, ancestors first."""
        groups = [[item] for item in with_ancestors(transactions)]
        statuses = {status.txid: status for status in await submit_portions(groups, self._submit_one)}
        return [statuses[item.txid] for item in transactions]

    async def look_up(self, txids: Sequence[TxId]) -> list[SourceStatus]:
        """States of all in one request, then a proof for each that is mined."""
        assert len(txids) <= BATCH_MAX
        answer = await self._calls.post(
            "look_up", f"{self._url}/txs/status", {"txids": [format_hash(t) for t in txids]}
        )
        told = {one.txid: one for one in self._calls.read_json(answer, list[_Told])}
        statuses = [self._status(txid, told.get(format_hash(txid))) for txid in txids]
        for at, status in enumerate(statuses):
            if status.state is SourceState.MINED:
                try:
                    statuses[at] = await self._prove(status)
                except SourceUnavailable:
                    break  # what is known already is worth more than an error
        return statuses

    async def read_raw(self, txids: Sequence[TxId]) -> list[bytes | None]:
        """The bytes of those that it has, one request each."""
        return [await self._read_raw(txid) for txid in txids]

    async def read_policy(self) -> SourcePolicy:
        """It has none of its own. Raises SourceUnavailable."""
        await trio.lowlevel.checkpoint()
        raise unavailable(Fault.FAILED, "WhatsOnChain tells no policy", source=self.name)

    async def read_tip(self) -> SourceTip:
        """The newest block."""
        info = self._calls.read_json(await self._calls.get("tip", f"{self._url}/chain/info"), _ChainInfo)
        return SourceTip(info.blocks, self._hash(info.bestblockhash))

    async def read_headers(self, from_height: int, count: int) -> list[bytes]:
        """The newest ones as JSON or bytes, others out of its archives of 10,000."""
        wanted = min(count, HEADERS_MAX)
        tip = await self.read_tip()
        missing = tip.height - from_height + 1
        if missing <= 0:
            return []
        if missing <= NEWEST:
            return (await self._read_newest(from_height))[:wanted]
        if missing <= LATEST_MAX:
            found = self._split(
                (await self._calls.get("headers", f"{self._url}/block/headers/latest?count={missing}")).body
            )
            if len(found) == missing and parse_header(found[-1]).hash == tip.block_hash:
                return found[:wanted]
        return (await self._read_archive(from_height))[:wanted]

    async def _submit_one(self, portion: list[Outgoing]) -> list[SourceStatus]:
        (item,) = portion
        answer = await self._calls.post(
            "submit", f"{self._url}/tx/raw", {"txhex": item.raw.hex()}, expected=(400, 409, 422, 500)
        )
        text = answer.body.decode("utf-8", "replace").strip().strip('"').strip()
        if answer.status < 300:
            try:
                is_same = parse_txid(text) == item.txid
            except MalformedChainData:
                is_same = False
            if not is_same:
                raise self._calls.malformed(f"it answered {words_of(text)} to {format_hash(item.txid)}")
            return [SourceStatus(item.txid, SourceState.SEEN)]
        match = _NODE_WORDS.search(text)
        if match is None and answer.status == 500:
            raise self._calls.fail(Fault.FAILED, f"it answered 500: {words_of(text)}")
        return [read_refusal(item.txid, words_of(match[1] if match else text))]

    async def _read_raw(self, txid: TxId) -> bytes | None:
        answer = await self._calls.get("raw", f"{self._url}/tx/{format_hash(txid)}/hex", expected=(404,))
        if answer.status == 404:
            return None
        try:
            return bytes.fromhex(answer.body.decode().strip().strip('"'))
        except ValueError as err:
            raise self._calls.malformed(f"the bytes of {format_hash(txid)} can't be read") from err

    def _status(self, txid: TxId, told: _Told | None) -> SourceStatus:
        if told is None:
            self.health.count(Fault.MALFORMED, f"it was asked about {format_hash(txid)} and says nothing about it")
            return SourceStatus(txid, SourceState.NO_ANSWER)
        if told.error:
            if told.error == "unknown":
                return SourceStatus(txid, SourceState.UNKNOWN)
            self.health.count(Fault.FAILED, f"about {format_hash(txid)}: {words_of(told.error)}")
            return SourceStatus(txid, SourceState.NO_ANSWER)
        if not told.blockhash:
            return SourceStatus(txid, SourceState.SEEN)
        return SourceStatus(txid, SourceState.MINED, block_hash=self._hash(told.blockhash), height=told.blockheight)

    async def _prove(self, status: SourceStatus) -> SourceStatus:
        """The status with its proof, when there is one for the same block. Raises SourceUnavailable."""
        url = f"{self._url}/tx/{format_hash(status.txid)}/proof/tsc"
        answer = await self._calls.get("proof", url, expected=(404,))
        if answer.status == 404 or answer.body.strip() in (b"", b"null"):
            return status
        told = self._calls.read_json(answer, list[_TscProof] | _TscProof)  # type: ignore[arg-type] # a union is a type
        for proof in told if isinstance(told, list) else [told]:
            if status.height is None or self._hash(proof.target) != status.block_hash:
                continue  # of another block than the status: a reorg came in between, or it is a stale one
            try:
                bump = convert_tsc(status.txid, proof.index, proof.nodes, status.height)
            except MalformedChainData as err:
                self.health.count(Fault.BAD_PROOF, f"its proof of {format_hash(status.txid)}: {err.detail}")
            else:
                return msgspec.structs.replace(status, bump=bump.encode())
        return status

    async def _read_newest(self, from_height: int) -> list[bytes]:
        told = self._calls.read_json(await self._calls.get("headers", f"{self._url}/block/headers"), list[JsonHeader])
        ordered = sorted((one for one in told if one.height >= from_height), key=lambda one: one.height)
        if not ordered or ordered[0].height != from_height:
            return []
        return [self._rebuild(one).raw for one in ordered]

    async def _read_archive(self, from_height: int) -> list[bytes]:
        listed = self._calls.read_json(
            await self._calls.get("headers", f"{self._url}/block/headers/resources"), _Archives
        )
        last = -1
        for link in listed.files:
            match = _ARCHIVE.fullmatch(link)
            if match is None:
                continue
            first, last = int(match[1]), int(match[2])
            if first <= from_height <= last:
                # Only the name is taken: where it lies is ours to say.
                name = f"{match[1]}_{match[2]}_headers.bin"
                octets = (await self._calls.get("headers", f"{self._url}/block/headers/{name}")).body
                return self._split(octets)[from_height - first :]
        # Behind the last archive comes what isn't in one yet.
        octets = (await self._calls.get("headers", f"{self._url}/block/headers/latest")).body
        return self._split(octets)[from_height - last - 1 :] if from_height > last >= 0 else []

    def _split(self, octets: bytes) -> list[bytes]:
        try:
            return split_headers(octets)
        except MalformedChainData as err:
            raise self._calls.malformed(f"its headers can't be read: {err.detail}") from err

    def _rebuild(self, told: JsonHeader) -> BlockHeader:
        try:
            return told.rebuild()
        except MalformedChainData as err:
            raise self._calls.malformed(f"a header of its can't be read: {err.detail}") from err

    def _hash(self, text: str) -> BlockHash:
        try:
            return parse_block_hash(text)
        except MalformedChainData as err:
            raise self._calls.malformed(f"a block's hash can't be read: {words_of(text)}") from err

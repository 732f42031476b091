"""An SV node over JSON-RPC: broadcasts, tells states, proves, lists headers (bitcoin-sv, `src/rpc`).

Every question goes as a batch, so that many cost one request. Blocks of transactions are found by the node's txindex, or
while an output of theirs is unspent.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from overlayd.bsv.header import parse_header
from overlayd.bsv.network import Network
from overlayd.chain.sources.abilities import Ability
from overlayd.chain.sources.calls import SourceCalls
from overlayd.chain.sources.faults import Fault, words_of
from overlayd.chain.sources.forms import portions, with_ancestors
from overlayd.chain.sources.many import submit_portions
from overlayd.chain.sources.node_words import read_refusal
from overlayd.chain.sources.proofs import convert_tsc
from overlayd.chain.sources.raw_headers import JsonHeader
from overlayd.model.chain_source import Outgoing, SourcePolicy, SourceState, SourceStatus, SourceTip
from overlayd.model.errors import MalformedChainData
from overlayd.model.txid import BlockHash, TxId, format_hash, parse_block_hash, parse_txid

BATCH_MAX = 100
BATCH_BYTES_MAX = 4 << 20
HEADERS_MAX = 500
SATOSHIS = 100_000_000

NO_SUCH = -5
DECODE_FAILED = -22
MISSING_INPUTS = -25
REFUSED = -26
KNOWN = -27
_VERDICTS = frozenset({DECODE_FAILED, MISSING_INPUTS, REFUSED, KNOWN})
"""Errors of a submission that are about the transaction. Others are about the node."""
_BLOCK_NOT_FOUND = "block for this transaction not found"


class RpcError(msgspec.Struct):
    """Why a call failed."""

    code: int = 0
    message: str = ""


class _Reply(msgspec.Struct):
    id: int
    result: Any = None
    error: RpcError | None = None


class _Proof(msgspec.Struct):
    """`getmerkleproof2` with `header` as its target."""

    index: int
    nodes: list[str]
    target: str


class _Settings(msgspec.Struct):
    maxtxsizepolicy: int
    minminingtxfee: float


class NodeSource:
    """An SV node."""

    abilities = frozenset(Ability) - {Ability.EVENTS}
    batch_max = BATCH_MAX
    headers_max = HEADERS_MAX

    def __init__(self, calls: SourceCalls, url: str) -> None:
        self._calls = calls
        self._url = url
        self.name = calls.name
        self.health = calls.health

    def __repr__(self) -> str:
        return f"NodeSource({self.health!r})"

    async def is_on(self, network: Network) -> bool | None:
        """By its first block."""
        (first,) = await self._ask("network", [("getblockhash", [0])])
        return self._hash(self._result(first)) == network.genesis.hash

    async def submit(self, transactions: Sequence[Outgoing]) -> list[SourceStatus]:
        """Broadcasts, ancestors first."""
        every = [Outgoing(item.txid, item.raw) for item in with_ancestors(transactions)]
        groups = list(portions(every, count_max=BATCH_MAX, bytes_max=BATCH_BYTES_MAX))
        statuses = {status.txid: status for status in await submit_portions(groups, self._submit_portion)}
        return [statuses[item.txid] for item in transactions]

    async def look_up(self, txids: Sequence[TxId]) -> list[SourceStatus]:
        """Proofs of those that are mined, and which of the others are in the mempool."""
        assert len(txids) <= BATCH_MAX
        shown = [format_hash(txid) for txid in txids]
        replies = await self._ask(
            "look_up",
            [("getmerkleproof2", ["", text, False, "header"]) for text in shown]
            + [("getmempoolentry", [text]) for text in shown],
        )
        proofs: dict[TxId, _Proof] = {}
        statuses: dict[TxId, SourceStatus] = {}
        for txid, proven, waiting in zip(txids, replies[: len(txids)], replies[len(txids) :], strict=True):
            if proven.error is None:
                proofs[txid] = self._convert(proven.result, _Proof)
            elif not _is_unknown(proven.error):
                raise self._fault(proven.error)
            elif waiting.error is not None and waiting.error.code != NO_SUCH:
                raise self._fault(waiting.error)
            else:
                statuses[txid] = SourceStatus(txid, SourceState.UNKNOWN if waiting.error else SourceState.SEEN)
        places = await self._read_places(proofs)
        return [statuses.get(txid) or self._mined(txid, proofs[txid], places) for txid in txids]

    async def read_raw(self, txids: Sequence[TxId]) -> list[bytes | None]:
        """The bytes of those that it has."""
        assert len(txids) <= BATCH_MAX
        replies = await self._ask("raw", [("getrawtransaction", [format_hash(txid), False]) for txid in txids])
        return [self._raw(reply) for reply in replies]

    async def read_policy(self) -> SourcePolicy:
        """Its fee and its largest transaction."""
        (reply,) = await self._ask("policy", [("getsettings", [])])
        told = self._convert(self._result(reply), _Settings)
        if not 0 <= told.minminingtxfee < 1 or told.maxtxsizepolicy <= 0:
            raise self._calls.malformed(f"its fee is {told.minminingtxfee} for 1000 bytes")
        return SourcePolicy(round(told.minminingtxfee * SATOSHIS), 1000, told.maxtxsizepolicy)

    async def read_tip(self) -> SourceTip:
        """The end of its best chain."""
        (best,) = await self._ask("tip", [("getbestblockhash", [])])
        shown = format_hash(self._hash(self._result(best)))
        (reply,) = await self._ask("tip", [("getblockheader", [shown, True])])
        header = self._convert(self._result(reply), JsonHeader)
        return SourceTip(header.height, self._hash(header.hash))

    async def read_headers(self, from_height: int, count: int) -> list[bytes]:
        """Headers, by their hashes at the heights."""
        wanted = min(count, HEADERS_MAX)
        hashes = []
        for reply in await self._ask(
            "headers", [("getblockhash", [height]) for height in range(from_height, from_height + wanted)]
        ):
            if reply.error is not None:
                break  # its chain ends here
            hashes.append(format_hash(self._hash(reply.result)))
        if not hashes:
            return []
        replies = await self._ask("headers", [("getblockheader", [shown, False]) for shown in hashes])
        return [self._octets(self._result(reply)) for reply in replies]

    async def _submit_portion(self, portion: list[Outgoing]) -> list[SourceStatus]:
        replies = await self._ask("submit", [("sendrawtransaction", [item.raw.hex()]) for item in portion])
        return [self._taken(item.txid, reply) for item, reply in zip(portion, replies, strict=True)]

    def _raw(self, reply: _Reply) -> bytes | None:
        if reply.error is not None and reply.error.code == NO_SUCH:
            return None
        try:
            return bytes.fromhex(str(self._result(reply)))
        except ValueError as err:
            raise self._calls.malformed("a transaction's bytes can't be read") from err

    def _taken(self, txid: TxId, reply: _Reply) -> SourceStatus:
        if reply.error is None:
            try:
                if parse_txid(str(reply.result)) == txid:
                    return SourceStatus(txid, SourceState.SEEN)
            except MalformedChainData:
                pass
            self.health.count(Fault.MALFORMED, f"it answered {words_of(str(reply.result))} to {format_hash(txid)}")
            return SourceStatus(txid, SourceState.NO_ANSWER)
        if reply.error.code in _VERDICTS:
            return read_refusal(txid, words_of(reply.error.message))
        self._fault(reply.error)
        return SourceStatus(txid, SourceState.NO_ANSWER)

    async def _read_places(self, proofs: dict[TxId, _Proof]) -> dict[BlockHash, JsonHeader]:
        """Height of each block, and whether it is on the node's best chain."""
        hashes: dict[BlockHash, None] = {}
        for proof in proofs.values():
            hashes[parse_header(self._octets(proof.target)).hash] = None
        if not hashes:
            return {}
        replies = await self._ask("look_up", [("getblockheader", [format_hash(one), True]) for one in hashes])
        headers = [self._convert(self._result(reply), JsonHeader) for reply in replies]
        return dict(zip(hashes, headers, strict=True))

    def _mined(self, txid: TxId, proof: _Proof, places: dict[BlockHash, JsonHeader]) -> SourceStatus:
        header = parse_header(self._octets(proof.target))
        place = places[header.hash]
        if place.confirmations < 0:
            return SourceStatus(txid, SourceState.STALE, block_hash=header.hash, height=place.height)
        status = SourceStatus(txid, SourceState.MINED, block_hash=header.hash, height=place.height)
        try:
            bump = convert_tsc(txid, proof.index, proof.nodes, place.height)
        except MalformedChainData as err:
            self.health.count(Fault.BAD_PROOF, f"its proof of {format_hash(txid)}: {err.detail}")
            return status
        if bump.root != header.merkle_root:
            self.health.count(
                Fault.BAD_PROOF, f"its proof of {format_hash(txid)} leads to another root than its block's"
            )
            return status
        return msgspec.structs.replace(status, bump=bump.encode())

    async def _ask(self, call: str, questions: Sequence[tuple[str, list[Any]]]) -> list[_Reply]:
        """A reply for each question, in order. A checkpoint. Raises SourceUnavailable."""
        body = [
            {"jsonrpc": "1.0", "id": number, "method": method, "params": params}
            for number, (method, params) in enumerate(questions)
        ]
        answer = await self._calls.post(call, self._url, body)
        replies = {reply.id: reply for reply in self._calls.read_json(answer, list[_Reply])}
        if len(replies) != len(questions) or not all(number in replies for number in range(len(questions))):
            raise self._calls.malformed(f"it was asked {len(questions)} questions and replied to {len(replies)}")
        return [replies[number] for number in range(len(questions))]

    def _result(self, reply: _Reply) -> Any:
        if reply.error is not None:
            raise self._fault(reply.error)
        return reply.result

    def _fault(self, error: RpcError) -> Exception:
        return self._calls.fail(Fault.FAILED, f"its error {error.code}: {words_of(error.message)}")

    def _convert(self, value: Any, kind: Any) -> Any:
        try:
            return msgspec.convert(value, kind, strict=False)
        except msgspec.ValidationError as err:
            raise self._calls.malformed(f"its reply can't be read: {words_of(str(err))}") from err

    def _hash(self, value: Any) -> BlockHash:
        try:
            return parse_block_hash(str(value))
        except MalformedChainData as err:
            raise self._calls.malformed(f"a block's hash can't be read: {words_of(str(value))}") from err

    def _octets(self, value: Any) -> bytes:
        """A header of 80 bytes in hex."""
        try:
            octets = bytes.fromhex(str(value))
            parse_header(octets)
        except (ValueError, MalformedChainData) as err:
            raise self._calls.malformed(f"a header of its can't be read: {words_of(str(value))}") from err
        return octets


def _is_unknown(error: RpcError) -> bool:
    """Whether a proof failed because the transaction is in no block that the node can find."""
    return (
        error.code == NO_SUCH
        or _BLOCK_NOT_FOUND in error.message.lower()
        or "not yet in block" in error.message.lower()
    )

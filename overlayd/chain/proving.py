"""What sources say about watched transactions, checked: proofs against our headers, bytes against what they must hold,
conflicting spends against both. Nothing is changed here; the watcher writes down what comes out.
"""

from collections.abc import Sequence

import msgspec

from overlayd.bsv.anchor import Anchor, AnchorKind, find_anchor
from overlayd.bsv.bump import parse_bump
from overlayd.bsv.tx import Transaction, parse_transaction
from overlayd.chain.headers import HeaderBook, Proven
from overlayd.chain.watch_tables import Answered, Mined, WatchedTx
from overlayd.model.chain_source import RawSource, SourceState, SourceStatus, TransactionSource
from overlayd.model.errors import MalformedChainData, SourceUnavailable, VerificationFailed
from overlayd.model.txid import BlockHash, TxId, format_hash

CONFLICT_DEPTH = 6
"""A spend of the same coins ends a transaction once so many blocks confirm it."""
REFUSED_BLOCKS = 6
"""A transaction that every source refuses is given up after so many blocks."""
COMPETING_MAX = 8
"""Conflicting transactions, named by a source, that are looked into."""
REASON_CHARS = 500


class Verdict(msgspec.Struct, frozen=True):
    """A transaction is given up, as `failed` or `dropped`. `is_conflict`: another one spent its coins."""

    tx_id: int
    state: str
    reason: str
    is_conflict: bool = False


class Prover:
    """Checks what sources say."""

    def __init__(self, book: HeaderBook, source: TransactionSource, raws: RawSource | None) -> None:
        self._book = book
        self._source = source
        self._raws = raws

    async def prove(self, txid: TxId, status: SourceStatus) -> tuple[int, bytes, bytes] | str:
        """Height, block and BUMP when the proof leads to a block of our best chain; else why not. A checkpoint."""
        if status.bump is None:
            return "a source says that it is mined, without a proof"
        try:
            bump = parse_bump(status.bump)
            found = await self._book.check_proof(txid, bump)
        except (MalformedChainData, VerificationFailed) as err:
            return f"a source's proof is wrong: {err.detail}"
        if isinstance(found, Proven):
            return found.height, found.block_hash, status.bump
        return f"its proof leads to a block at height {found.height} that isn't in our best chain ({found.reason})"

    async def judge(self, tx: WatchedTx, status: SourceStatus, *, is_reply: bool) -> Mined | Answered | Verdict:
        """What an answer about a transaction, that no block of ours holds, comes to. `is_reply`: to its broadcast; else
        who doesn't have it gets it again. A checkpoint."""
        if status.state is SourceState.MINED:
            proof = await self.prove(tx.txid, status)
            if not isinstance(proof, str):
                return Mined(tx.id, proof[0], BlockHash(proof[1]), proof[2])
            return Answered(tx.id, tx.is_seen, tx.reason if tx.verdict else proof, tx.unknown_since, None, False)
        if tx.verdict or status.state is SourceState.NO_ANSWER:
            return Answered(
                tx.id, tx.is_seen, tx.reason, tx.unknown_since, tx.refused_since, is_reply and not tx.verdict
            )
        is_sent = is_reply or tx.raw is None
        if status.state is SourceState.UNKNOWN:
            return self._judge_unknown(tx, is_sent)
        if status.state is SourceState.REJECTED:
            return self._judge_refused(tx, status, is_sent)
        if status.state is SourceState.DOUBLE_SPEND:
            verdict = await self._judge_conflict(tx, status)
            return verdict or _known(tx, tx.is_seen, _reason("a source saw a double spend", status))
        is_seen = status.state is SourceState.SEEN or (tx.is_seen and status.state is SourceState.HELD)
        return _known(tx, is_seen, "its block is stale" if status.state is SourceState.STALE else status.reason)

    def _judge_unknown(self, tx: WatchedTx, is_sent: bool) -> Answered | Verdict:
        tip_height = self._book.tip.height
        since = tip_height if tx.unknown_since is None else tx.unknown_since
        if tip_height - since >= tx.timeout_blocks:
            return Verdict(tx.id, "dropped", f"no source knew it for {tip_height - since} blocks")
        return Answered(tx.id, False, "no source knows it", since, None, not is_sent)

    def _judge_refused(self, tx: WatchedTx, status: SourceStatus, is_sent: bool) -> Answered | Verdict:
        reason, tip_height = _reason("refused", status), self._book.tip.height
        since = tip_height if tx.refused_since is None else tx.refused_since
        if tip_height - since >= REFUSED_BLOCKS:
            return Verdict(tx.id, "dropped", f"{reason}, for {tip_height - since} blocks")
        return Answered(tx.id, False, reason, tx.unknown_since, since, not is_sent)

    async def _judge_conflict(self, tx: WatchedTx, status: SourceStatus) -> Verdict | None:
        """The end of a transaction, if another spend of its coins is proven and deep."""
        if self._raws is None or tx.raw is None or not status.competing:
            return None
        competing = status.competing[:COMPETING_MAX]
        try:
            raws = await self._raws.read_raw(competing)
            answers = await self._source.look_up(competing)
        except SourceUnavailable:
            return None
        spent = {item.outpoint for item in parse_transaction(tx.raw).inputs}
        for txid, raw, answer in zip(competing, raws, answers, strict=True):
            other = _parse(txid, raw)
            if other is None or spent.isdisjoint(item.outpoint for item in other.inputs) or txid == tx.txid:
                continue
            proof = await self.prove(txid, answer)
            if not isinstance(proof, str) and self._book.depth_of(proof[0]) >= CONFLICT_DEPTH:
                reason = f"{format_hash(txid)}, which spends the same coins, is in block {proof[0]}"
                return Verdict(tx.id, "failed", reason, is_conflict=True)
        return None

    async def find_raw(self, txids: Sequence[TxId]) -> dict[TxId, bytes]:
        """The bytes of transactions that go by their names alone, as far as a source has them. A checkpoint."""
        if self._raws is None or not txids:
            return {}
        try:
            raws = await self._raws.read_raw(txids)
        except SourceUnavailable:
            return {}
        return {
            txid: raw
            for txid, raw in zip(txids, raws, strict=True)
            if raw is not None and _parse(txid, raw) is not None
        }


def find_output(raw: bytes, commitment: bytes) -> int | None:
    """The output of a transaction that commits to a packet."""
    return find_anchor(parse_transaction(raw), Anchor(AnchorKind.COMMITMENT, commitment))


def _parse(txid: TxId, raw: bytes | None) -> Transaction | None:
    """A source's bytes, if they are what was asked for."""
    if raw is None:
        return None
    try:
        tx = parse_transaction(raw)
    except MalformedChainData:
        return None
    return tx if tx.txid == txid else None


def _known(tx: WatchedTx, is_seen: bool, reason: str) -> Answered:
    return Answered(tx.id, is_seen, reason[:REASON_CHARS], None, None, False)


def _reason(words: str, status: SourceStatus) -> str:
    return f"{words}: {status.reason}"[:REASON_CHARS] if status.reason else words

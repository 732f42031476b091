"""ARC's words about transactions, which Arcade speaks too, also in callbacks and events: read into values.

Sources: `pkg/api/arc.yaml` and `doc/` of ARC, `openapi/arcade.openapi.yaml` and `models/transaction.go` of Arcade.
"""

import msgspec

from overlayd.chain.sources.calls import SourceCalls
from overlayd.chain.sources.faults import Fault, words_of
from overlayd.chain.sources.proofs import read_bump
from overlayd.model.chain_source import SourcePolicy, SourceState, SourceStatus
from overlayd.model.errors import MalformedChainData
from overlayd.model.txid import TxId, format_hash, parse_block_hash, parse_txid
from overlayd.outbound import OutboundAnswer

STATES = {
    "UNKNOWN": SourceState.UNKNOWN,
    "QUEUED": SourceState.HELD,
    "RECEIVED": SourceState.HELD,
    "STORED": SourceState.HELD,
    "ANNOUNCED_TO_NETWORK": SourceState.HELD,
    "REQUESTED_BY_NETWORK": SourceState.HELD,
    "SENT_TO_NETWORK": SourceState.HELD,
    "ACCEPTED_BY_NETWORK": SourceState.HELD,
    "SEEN_IN_ORPHAN_MEMPOOL": SourceState.HELD,
    "PENDING_RETRY": SourceState.HELD,
    "SEEN_ON_NETWORK": SourceState.SEEN,
    "SEEN_MULTIPLE_NODES": SourceState.SEEN,
    "STUMP_PROCESSING": SourceState.SEEN,
    "DOUBLE_SPEND_ATTEMPTED": SourceState.DOUBLE_SPEND,
    "REJECTED": SourceState.REJECTED,
    "MINED_IN_STALE_BLOCK": SourceState.STALE,
    "MINED": SourceState.MINED,
    "IMMUTABLE": SourceState.MINED,
}
CONFLICT = 466
"""The one of its numbers that is about a double spend."""
REFUSALS = (400, 409, 413, 422, *range(460, 477))
"""Statuses of its own by which a transaction is refused."""
OTHER_FORM = frozenset({400, 460, 463, 467, 468, 469})
"""Refusals of BEEF that another form of the same transaction may not meet."""
_TALKATIVE = frozenset({SourceState.REJECTED, SourceState.DOUBLE_SPEND, SourceState.STALE})


class ArcStatus(msgspec.Struct, rename="camel"):
    """What is told of a transaction: the answer of a submission or a look-up, a callback, an event."""

    txid: str
    tx_status: str
    block_hash: str | None = None
    block_height: int | None = None
    merkle_path: str | None = None
    extra_info: str | None = None
    competing_txs: list[str] | None = None
    status: int | None = None


class ArcProblem(msgspec.Struct, rename="camel"):
    """A refusal (RFC 9457), or Arcade's plainer one. `error` and `reason` are Arcade's."""

    status: int | None = None
    title: str = ""
    detail: str = ""
    extra_info: str | None = None
    txid: str | None = None
    error: str = ""
    reason: str = ""

    @property
    def words(self) -> str:
        """All that it says, each part once."""
        number = str(self.status) if self.status else ""
        parts = (number, self.title, self.detail, self.extra_info or "", self.error, self.reason)
        return words_of(": ".join(dict.fromkeys(part for part in parts if part)))


class _Fee(msgspec.Struct):
    satoshis: int
    bytes: int


class _PolicyMembers(msgspec.Struct):
    maxtxsizepolicy: int
    fee: _Fee = msgspec.field(name="miningFee")


class ArcPolicy(msgspec.Struct):
    """The answer of `/v1/policy`."""

    policy: _PolicyMembers


def status_of(told: ArcStatus, txid: TxId, calls: SourceCalls) -> SourceStatus:
    """What a source tells of one transaction. A proof that isn't one is noted and left out.

    Raises SourceUnavailable when it is about another transaction, or makes no sense.
    """
    try:
        if parse_txid(told.txid) != txid:
            raise calls.malformed(f"it was asked about {format_hash(txid)} and tells of {words_of(told.txid)}")
        competing = tuple(parse_txid(other) for other in told.competing_txs or ())
        block_hash = parse_block_hash(told.block_hash) if told.block_hash else None
    except MalformedChainData as err:
        raise calls.malformed(f"its answer can't be read: {err.detail}") from err
    state = STATES.get(told.tx_status, SourceState.HELD)
    if told.status == CONFLICT and state is SourceState.REJECTED:
        state = SourceState.DOUBLE_SPEND
    status = SourceStatus(
        txid, state, _reason(told, state), tuple(other for other in competing if other != txid),
        block_hash, told.block_height or None,
    )  # fmt: skip
    if state is SourceState.MINED and told.merkle_path:
        return _with_proof(status, told.merkle_path, calls)
    return status


def refusal_of(problem: ArcProblem, status: int, txid: TxId) -> SourceStatus:
    """A refused transaction. `status` is HTTP's, for a problem that names none."""
    is_conflict = CONFLICT in (problem.status, status)
    state = SourceState.DOUBLE_SPEND if is_conflict else SourceState.REJECTED
    return SourceStatus(txid, state, problem.words or f"refused with {status}")


def read_problem(answer: OutboundAnswer) -> ArcProblem | None:
    """The refusal in an answer; None when it is somebody else's error page."""
    try:
        problem = msgspec.json.decode(answer.body, type=ArcProblem)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return problem if problem.words else None


async def look_up_one(calls: SourceCalls, url: str, txid: TxId) -> SourceStatus:
    """What became of one transaction. A checkpoint. Raises SourceUnavailable."""
    answer = await calls.get("look_up", url, expected=(404,))
    if answer.status == 404:
        # Anybody's page for a wrong address would say so, too, but not in these words.
        if read_problem(answer) is None:
            raise calls.fail(Fault.FAILED, "it answered 404, but not as it does for a transaction it doesn't know")
        return SourceStatus(txid, SourceState.UNKNOWN)
    return status_of(calls.read_json(answer, ArcStatus), txid, calls)


async def read_arc_policy(calls: SourceCalls, url: str) -> SourcePolicy:
    """What it asks of transactions. A checkpoint. Raises SourceUnavailable."""
    told = calls.read_json(await calls.get("policy", url), ArcPolicy).policy
    if told.fee.bytes <= 0 or told.fee.satoshis < 0 or told.maxtxsizepolicy <= 0:
        raise calls.malformed(f"its fee is {told.fee.satoshis} satoshis for {told.fee.bytes} bytes")
    return SourcePolicy(told.fee.satoshis, told.fee.bytes, told.maxtxsizepolicy)


def read_answer(calls: SourceCalls, answer: OutboundAnswer, txid: TxId) -> SourceStatus:
    """A submission's answer, good or not. Raises SourceUnavailable."""
    if answer.status < 300:
        return status_of(calls.read_json(answer, ArcStatus), txid, calls)
    problem = read_problem(answer)
    if problem is None:
        raise calls.fail(Fault.FAILED, f"it answered {answer.status}, but not with a refusal")
    if answer.status == 400 and "callback" in problem.words.lower():
        raise calls.fail(Fault.FAILED, f"it doesn't take our callback_url: {problem.words}")
    return refusal_of(problem, answer.status, txid)


def _reason(told: ArcStatus, state: SourceState) -> str:
    """Its own words, where they say why things don't go on."""
    words = words_of(told.extra_info or "")
    if state in _TALKATIVE or told.tx_status not in STATES or told.tx_status == "SEEN_IN_ORPHAN_MEMPOOL":
        return f"{words_of(told.tx_status)}: {words}" if words else words_of(told.tx_status)
    return words


def _with_proof(status: SourceStatus, text: str, calls: SourceCalls) -> SourceStatus:
    try:
        bump = read_bump(text, status.txid)
    except MalformedChainData as err:
        calls.health.count(Fault.BAD_PROOF, f"its proof of {format_hash(status.txid)}: {err.detail}")
        return status
    if status.height is not None and status.height != bump.height:
        calls.health.count(
            Fault.BAD_PROOF, f"its proof of {format_hash(status.txid)} is for block {bump.height}, not {status.height}"
        )
        return msgspec.structs.replace(status, height=None, block_hash=None)
    return msgspec.structs.replace(status, height=bump.height, bump=bump.encode())

"""An SV node's words about a transaction that it doesn't take, also as others pass them on. Pure."""

from overlayd.model.chain_source import SourceState, SourceStatus
from overlayd.model.txid import TxId

KNOWN = ("already in the mempool", "txn-already-in-mempool", "txn-already-known", "already in block chain")
CONFLICTS = ("txn-mempool-conflict", "txn-double-spend-detected", "bad-txns-inputs-spent")


def read_refusal(txid: TxId, words: str) -> SourceStatus:
    """What they mean: that it holds the transaction already, that another spends the same, or that it refuses it.

    "Missing inputs" is a refusal like others: whether a parent is unknown or spent, the node doesn't say.
    """
    lower = words.lower()
    if any(known in lower for known in KNOWN):
        return SourceStatus(txid, SourceState.SEEN)
    if any(conflict in lower for conflict in CONFLICTS):
        return SourceStatus(txid, SourceState.DOUBLE_SPEND, words)
    return SourceStatus(txid, SourceState.REJECTED, words or "refused without a word")

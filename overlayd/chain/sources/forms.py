"""The forms in which a transaction goes to a source. Pure."""

from collections.abc import Iterable, Iterator, Sequence

from overlayd.bsv.beef import BeefVersion, parse_beef
from overlayd.model.chain_source import Outgoing
from overlayd.model.errors import MalformedChainData
from overlayd.model.txid import TxId


def with_ancestors(transactions: Iterable[Outgoing]) -> Iterator[Outgoing]:
    """The transactions, each after those that its BEEF brings along unproven: for sources that don't read BEEF.

    An ancestor of several comes once.
    """
    given: set[TxId] = set()
    for item in transactions:
        for ancestor in (*_ancestors(item), item):
            if ancestor.txid not in given:
                given.add(ancestor.txid)
                yield ancestor


def as_beef(item: Outgoing) -> bytes | None:
    """Its BEEF as BRC-62 has it, when there is one and it can be put so."""
    if item.beef is None:
        return None
    try:
        beef = parse_beef(item.beef)
    except MalformedChainData:
        return None
    if beef.subject != item.txid or any(entry.tx is None for entry in beef.entries):
        return None
    return beef.encode(BeefVersion.V1)


def portions(transactions: Sequence[Outgoing], *, count_max: int, bytes_max: int) -> Iterator[list[Outgoing]]:
    """The transactions in their order, so many and so many bytes at a time; at least one."""
    portion: list[Outgoing] = []
    size = 0
    for item in transactions:
        own = len(item.extended or item.raw)
        if portion and (len(portion) == count_max or size + own > bytes_max):
            yield portion
            portion, size = [], 0
        portion.append(item)
        size += own
    if portion:
        yield portion


def _ancestors(item: Outgoing) -> list[Outgoing]:
    if item.beef is None:
        return []
    try:
        entries = parse_beef(item.beef).entries
    except MalformedChainData:
        return []
    return [
        Outgoing(entry.txid, entry.tx.raw)
        for entry in entries if entry.tx is not None and entry.bump_index is None and entry.txid != item.txid
    ]  # fmt: skip

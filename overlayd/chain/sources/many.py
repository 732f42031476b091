"""Several requests to one source at the same time, for sources that answer about one transaction at a time."""

from collections.abc import Awaitable, Callable, Sequence

import trio

from overlayd.model.chain_source import Outgoing, SourceState, SourceStatus
from overlayd.model.errors import SourceUnavailable
from overlayd.model.txid import TxId


async def ask_each(
    txids: Sequence[TxId], ask: Callable[[TxId], Awaitable[SourceStatus]], *, concurrency: int
) -> list[SourceStatus]:
    """An answer for each, in order. The first fault ends it: who isn't answered by then has NO_ANSWER.

    A checkpoint. Raises SourceUnavailable when nobody was answered.
    """
    answers: dict[int, SourceStatus] = {}
    faults: list[SourceUnavailable] = []
    waiting = iter(range(len(txids)))

    async def work() -> None:
        for at in waiting:
            if faults:
                return
            try:
                answers[at] = await ask(txids[at])
            except SourceUnavailable as err:
                faults.append(err)

    async with trio.open_nursery() as nursery:
        for _ in range(min(concurrency, len(txids))):
            nursery.start_soon(work)
    if faults and not answers:
        raise faults[0]
    return [answers.get(at) or SourceStatus(txid, SourceState.NO_ANSWER) for at, txid in enumerate(txids)]


async def submit_portions(
    groups: Sequence[list[Outgoing]], submit: Callable[[list[Outgoing]], Awaitable[list[SourceStatus]]]
) -> list[SourceStatus]:
    """An answer for each transaction, group by group. A fault ends it: the rest has NO_ANSWER.

    A checkpoint. Raises SourceUnavailable when nobody was answered.
    """
    statuses: list[SourceStatus] = []
    for at, group in enumerate(groups):
        try:
            statuses += await submit(group)
        except SourceUnavailable:
            if not statuses:
                raise
            return statuses + [SourceStatus(item.txid, SourceState.NO_ANSWER) for rest in groups[at:] for item in rest]
    return statuses

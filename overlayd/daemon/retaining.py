"""Who still needs packets: told to retention before it begins."""

from overlayd.chain.watch_tables import read_anchor_sizes
from overlayd.delivery.subscriptions.parts import DurableSubscriptions
from overlayd.model.confirmation import ConfirmationReads
from overlayd.pipeline.own_streams import EVENTS, OwnStream
from overlayd.storage import Log, Stream


def prepare_retention(log: Log, durable: DurableSubscriptions, confirmations: ConfirmationReads | None) -> None:
    """Has retention wait for durable subscriptions and for confirmations, and tell about the disk in the events stream."""
    announce = OwnStream(EVENTS, log.append_own).append

    async def not_yet_read(stream: Stream) -> int:
        return durable.needed_from(stream.name)

    async def not_yet_confirmed(stream: Stream) -> int:
        rule = stream.definition.confirm
        if confirmations is None or rule.commit == "none":
            return 1 << 62
        return 1 + await confirmations.settled_offset(stream.stream_hash, rule, max(rule.depths, default=1))

    log.retention.wait_for(not_yet_read)
    log.retention.wait_for(not_yet_confirmed)
    if confirmations is not None:
        log.retention.cutter.prove_from(read_anchor_sizes)
    log.retention.announce_with(announce)

"""Which messages are steps of traces that somebody wants written down."""

from collections.abc import Iterable

from overlayd.delivery.frames import Message
from overlayd.delivery.matching import PacketView
from overlayd.model.traces import Followed, is_sampled


def followed_of(messages: Iterable[Message]) -> list[Followed]:
    """Those about packets whose publishing was part of such a trace. When they were appended is when they were
    triggered: a confirmation goes on from its status, not from the packet."""
    found = []
    for message in messages:
        subject = message.subject
        if isinstance(subject, PacketView) and is_sampled(subject.meta.traceparent):
            entry = subject.entry
            found.append(
                Followed(
                    subject.meta.traceparent, subject.stream, entry.epoch, entry.offset, entry.sequence,
                    message.trigger_us or entry.appended_us,
                )
            )  # fmt: skip
    return found

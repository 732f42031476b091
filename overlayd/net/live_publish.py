"""Publishing over a live connection: the message's packets through the same function as a request's."""

from overlayd.access import Principal
from overlayd.access.metering import NO_PASSAGE, Metering
from overlayd.access.stream_guard import StreamGuard
from overlayd.delivery.socket import PublishPackets
from overlayd.model.errors import BatchTooLarge, InvalidPacket, OverlaydError, Violation
from overlayd.model.limits import Limits
from overlayd.model.names import parse_stream_name
from overlayd.model.wire import PublishMessage, ReceiptMessage
from overlayd.net.publish_answers import Rejected, list_violations, receipt_bodies
from overlayd.pipeline.intake import Intake
from overlayd.storage import Log


def live_publisher(
    intake: Intake, log: Log, limits: Limits, metering: Metering | None = None, streams: StreamGuard | None = None
) -> PublishPackets:
    """The function that live connections publish with. `metering`: None when nobody is held to a rate or quota;
    `streams`: None where no stream has an owner."""
    guard = streams or StreamGuard(log.find_stream)

    async def publish(message: PublishMessage, principal: Principal) -> ReceiptMessage:
        """Durable when it returns. Raises what refuses the whole message."""
        guard.require(principal, "publish", message.stream)
        if not message.packets:
            detail = "holds no packet; at least one is needed"
            raise InvalidPacket(
                f"packets {detail}", subject="packets", violations=[Violation("/packets", "member.empty", detail)]
            )
        if len(message.packets) > limits.batch_packets_max:
            intake.count_limit_hit("batch_packets_max")
            raise BatchTooLarge(
                f"{len(message.packets)} packets in one message; {limits.batch_packets_max} are taken",
                subject="batch_packets_max", hint="send several messages",
            )  # fmt: skip
        expected = message.expected_sequence if isinstance(message.expected_sequence, int) else None
        packets, passage = [bytes(packet) for packet in message.packets], NO_PASSAGE
        if metering is not None and metering.concerns(principal):
            size = sum(map(len, packets))
            passage = await metering.publish(principal, message.stream, packets=len(packets), size=size)
        with passage:
            answer = await intake.publish(
                message.stream, packets, principal=principal.name, may_create=principal.may_create,
                atomic=message.atomic, expected_sequence=expected,
            )  # fmt: skip
        rejections: list[tuple[int, OverlaydError]] = answer.rejections
        receipts = await receipt_bodies(log, parse_stream_name(message.stream), answer.receipts, with_proof=False)
        return ReceiptMessage(
            ref=message.ref, accepted=answer.accepted, duplicates=answer.duplicates, rejected=len(rejections),
            receipts=receipts,
            errors=list_violations((Rejected(error, index=at) for at, error in rejections), limits.errors_max),
        )  # fmt: skip

    return publish

"""Replies: packets that an agent makes of what it was given, in the transaction that settles the delivery.

The settling is a row of its own beside them, so either both are durable or neither is: a delivery that is repeated
because nobody knows how it ended finds the reply that is there, and settles without another one.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import msgspec
import trio

from overlayd.delivery.frames import Message, packet_id_of
from overlayd.delivery.matching import PacketView
from overlayd.delivery.subscriptions.subscription import Reading, Subscription
from overlayd.delivery.subscriptions.tables import floor_statement, settling_statement
from overlayd.delivery.subscriptions.units import Unit
from overlayd.model.cursor import Cursor
from overlayd.model.entry import StoredEntry
from overlayd.model.errors import (
    Forbidden,
    IdReused,
    IntakeBusy,
    InvalidReply,
    OverlaydError,
    StorageFull,
    Violation,
)
from overlayd.model.limits import HOPS_MAX, Limits
from overlayd.model.meta import decode_meta
from overlayd.model.metrics import Metrics
from overlayd.model.subscription import AgentRule
from overlayd.model.wire_agents import Reply
from overlayd.pipeline.intake import Made, PublishAnswer
from overlayd.pipeline.json_text import parse_json
from overlayd.storage import Log
from overlayd.storage.own import Statement

TRIES = 5
TRY_PAUSE_S = 0.5
"""A log that takes nothing at the moment is asked again, before the agent would be run again."""

_ENVELOPE_DEPTH = 3
_decode_reply = msgspec.json.Decoder(Reply).decode
_decode_metadata = msgspec.json.Decoder(dict[str, Any]).decode


class PublishMade(Protocol):
    """`pipeline.intake.Intake.publish_made`."""

    def __call__(
        self, stream: str, objects: Sequence[bytes], *, principal: str, made: Made, traceparent: str = ""
    ) -> Awaitable[PublishAnswer]: ...


def parse_reply(body: bytes, limits: Limits, metrics: Metrics) -> list[dict[str, msgspec.Raw]]:
    """The packets of a reply, without ids; none for an empty body, and for an object without `packets`.

    Raises InvalidReply, and what reading JSON raises.
    """
    if not body.strip():
        return []
    if len(body) > limits.agent_reply_bytes:
        metrics.count_limit_hit("agent_reply_bytes")
        raise InvalidReply(f"the reply has over {limits.agent_reply_bytes}", subject="agent_reply_bytes")
    parse_json(body, limits.json_depth_max + _ENVELOPE_DEPTH)
    try:
        packets = _decode_reply(body).packets
    except msgspec.ValidationError as err:
        raise InvalidReply(
            f"the reply can't be used: {err}", subject="reply", hint='reply {"packets": [{"data": …}]}, or nothing'
        ) from err
    if len(packets) > limits.agent_reply_packets:
        metrics.count_limit_hit("agent_reply_packets")
        raise InvalidReply(
            f"the reply has {len(packets)} packets; {limits.agent_reply_packets} are taken",
            subject="agent_reply_packets",
        )
    return [
        {name: value for name in one.__struct_fields__ if isinstance(value := getattr(one, name), msgspec.Raw)}
        for one in packets
    ]


class Replies:
    """Appends replies. One for the node."""

    def __init__(
        self, log: Log, publish: PublishMade, may_reply: Callable[[Reading, str], bool], *, limits: Limits,
        metrics: Metrics,
    ) -> None:  # fmt: skip
        """`may_reply`: whether an owner may publish to a stream now."""
        self._log = log
        self._publish = publish
        self._may_reply = may_reply
        self._limits = limits
        self._metrics = metrics
        self._too_deep = metrics.counter(
            "overlayd_agent_hops_exceeded", "Packets not given to an agent, made from others too often in a row"
        )
        self._appended = metrics.counter("overlayd_agent_replies", "Packets that agents replied with")
        self._repeated = metrics.counter("overlayd_agent_replies_repeated", "Replies to what was replied to before")
        self._refused = metrics.counter("overlayd_agent_replies_refused", "Replies that were refused, by code", "code")

    def too_deep(self, subscription: Subscription, messages: Sequence[Message]) -> bool:
        """Whether a reply to them would be made from others too often in a row."""
        agent = subscription.definition.agent
        if not isinstance(agent, AgentRule) or not isinstance(agent.output, str):
            return False
        if _hops_of(messages) < HOPS_MAX:
            return False
        self._too_deep.inc()
        return True

    async def take(self, subscription: Subscription, unit: Unit, messages: Sequence[Message], body: bytes) -> int:
        """Appends the packets of a reply together with the row that settles the unit; gives how many bytes they have.

        0 for a reply without packets, where nothing is written, and for one to what was replied to before. The caller
        then settles the unit in memory. Checkpoint. Raises InvalidReply, Forbidden, HopsExceeded, and as publishing.
        """
        statement = settling_statement(subscription.number, unit)
        size = await self._counted(subscription, unit.items[-1].after, statement, messages, body)
        unit.has_row = unit.has_row or bool(size and not unit.dead_id)
        return size

    async def take_at(self, subscription: Subscription, cursor: Cursor, message: Message, body: bytes) -> int:
        """The same where everything up to a cursor is settled by it."""
        statement = floor_statement(subscription.number, cursor)
        return await self._counted(subscription, cursor, statement, [message], body)

    async def _counted(
        self, subscription: Subscription, cursor: Cursor, statement: Statement, messages: Sequence[Message], body: bytes
    ) -> int:
        try:
            return await self._take(subscription, cursor, statement, messages, body)
        except OverlaydError as err:
            self._refused.labels(err.code).inc()
            raise

    async def _take(
        self, subscription: Subscription, cursor: Cursor, statement: Statement, messages: Sequence[Message], body: bytes
    ) -> int:
        packets = parse_reply(body, self._limits, self._metrics)
        if not packets:
            await trio.lowlevel.checkpoint()
            return 0
        output = self._output_of(subscription)
        start = f"reply:{subscription.id}:{cursor}:"
        if await self._is_replied(output, f"{start}1"):
            self._repeated.inc()
            return 0
        objects = _objects_of(packets, start, messages)
        views = _views_of(messages)
        made = Made(
            hops=_hops_of(messages) + 1, derived_from=tuple(sorted({view.entry.offset for view in views})),
            along=(statement,),
        )  # fmt: skip
        traces = {view.meta.traceparent for view in views}
        try:
            await self._append(output, objects, subscription, made, traces.pop() if len(traces) == 1 else "")
        except IdReused:
            if not await self._is_replied(output, f"{start}1"):
                raise  # somebody published something else under an id of the reply
            self._repeated.inc()  # its first reply is there since just now
            return 0
        self._appended.inc(len(objects))
        return sum(map(len, objects))

    def _output_of(self, subscription: Subscription) -> str:
        """Raises InvalidReply without one, Forbidden where the owner may not publish to it now."""
        agent = subscription.definition.agent
        if not isinstance(agent, AgentRule) or not isinstance(agent.output, str):
            raise InvalidReply(
                f"{subscription.name} has no output stream, so it can't reply", subject="reply",
                hint="name one as agent.output",
            )  # fmt: skip
        if not self._may_reply(subscription.reading, agent.output):
            raise Forbidden(
                f"{subscription.reading.principal} may not publish to {agent.output} as an agent", subject=agent.output
            )
        return agent.output

    async def _append(
        self, stream: str, objects: list[bytes], subscription: Subscription, made: Made, trace: str
    ) -> None:
        """Once it is queued it is committed whatever becomes of the task, so that one isn't let go before it ended."""
        for tries in range(TRIES):
            try:
                with trio.CancelScope(shield=True):
                    principal = subscription.reading.principal
                    await self._publish(stream, objects, principal=principal, made=made, traceparent=trace)
                return
            except (IntakeBusy, StorageFull):
                if tries == TRIES - 1:
                    raise
            await trio.sleep(TRY_PAUSE_S)

    async def _is_replied(self, stream: str, first_id: str) -> bool:
        """Whether the packet with the id was made from others, as only the node says of packets: ids can be guessed, and
        what a publisher put there in advance is no reply. Of one that was erased nobody knows any more."""
        found = self._log.find_stream(stream)
        entries: list[StoredEntry] = [] if found is None else await self._log.find_by_id(first_id)
        return any(
            found is not None
            and entry.stream_hash == found.stream_hash
            and (entry.is_reduced or decode_meta(entry.meta).hops > 0)
            for entry in entries
        )


def _objects_of(packets: list[dict[str, msgspec.Raw]], start: str, messages: Sequence[Message]) -> list[bytes]:
    """The packets as publishing takes them: with their ids, and what they answer in their metadata."""
    last = _views_of(messages)[-1]
    asked = _decode_metadata(last.meta.metadata) if last.meta.metadata else {}
    correlation = asked.get("correlation_id")
    cause = packet_id_of(last)
    links = {"correlation_id": correlation if isinstance(correlation, str) else cause, "causation_id": cause}
    objects = []
    for number, packet in enumerate(packets, 1):
        try:
            own = _decode_metadata(packet["metadata"]) if "metadata" in packet else {}
        except msgspec.ValidationError as err:
            raise InvalidReply(
                f"packet {number} of the reply: its metadata isn't an object", subject="reply",
                violations=[Violation(f"/packets/{number - 1}/metadata", "reply.invalid", "must be an object")],
            ) from err  # fmt: skip
        members: dict[str, Any] = {**packet, "id": f"{start}{number}", "metadata": own | links}
        objects.append(msgspec.json.encode(members))
    return objects


def _views_of(messages: Sequence[Message]) -> list[PacketView]:
    views = [message.subject for message in messages if isinstance(message.subject, PacketView)]
    assert views, "only packets are replied to"
    return views


def _hops_of(messages: Sequence[Message]) -> int:
    return max(
        (message.subject.meta.hops for message in messages if isinstance(message.subject, PacketView)), default=0
    )

"""What a WebSocket client asks for: subscribing, publishing, acknowledging. One task per client that is asking."""

from typing import TYPE_CHECKING, Any

import msgspec
import trio

from overlayd.access import require_some
from overlayd.delivery.messages import error_message
from overlayd.delivery.session import CLOSE_LIMIT, CLOSE_PROTOCOL, Ending
from overlayd.delivery.websocket import Inbox
from overlayd.model.cursor import Cursor
from overlayd.model.errors import BadParameter, BadRequest, LimitReached, MalformedJson, OverlaydError
from overlayd.model.wire import PublishMessage, Ref

if TYPE_CHECKING:
    from overlayd.delivery.socket import SocketSession

LINGER_S = 1.0
"""The task waits so long for the next message before it ends: clients ask several things in a row."""
_ID_CHARS_MAX = 64
_PIPELINED_BYTES = 16 << 10
_STREAMS_KNOWN_MAX = 1000


class _Envelope(msgspec.Struct):
    """What every client message may have. `ref` comes back with the answer."""

    type: str
    ref: Ref | None = None
    id: Any = None


class _Publish(PublishMessage, tag_field="type", tag="publish", forbid_unknown_fields=True):
    """As served, but a misspelled member is an error."""


class _Begun(msgspec.Struct):
    """A publish message on its way; `held` of the inbox's room is given back when it was answered."""

    message: PublishMessage
    ref: Ref | None
    inbox: Inbox
    held: int


_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_publish = msgspec.json.Decoder(_Publish).decode
_decode_members = msgspec.json.Decoder(dict[str, Any]).decode


class SocketMessages:
    """Takes the messages of one socket in turn; publishing goes on beside it."""

    def __init__(self, socket: "SocketSession") -> None:
        self._socket = socket
        self._limits = socket.parts.lane.delivery.limits
        self._metrics = socket.parts.lane.delivery.metrics
        self._publishing = trio.Semaphore(self._limits.publishes_in_flight)
        self._published: dict[str, int] = {}
        self._news = trio.Event()
        self._taken = trio.Event()
        self._done = trio.Event()

    def notice(self) -> None:
        """There is another message, or the session is ending."""
        self._news.set()

    async def wait_taken(self) -> None:
        """Until another message has been looked at. Checkpoint."""
        await self._taken.wait()

    async def wait_done(self) -> None:
        """Until everything that was begun has been answered. No more messages are looked at once the session ends.
        Checkpoint."""
        self.notice()
        await self._done.wait()

    async def run(self) -> None:
        """Until nothing came for a moment, or the session is over. Raises nothing but Cancelled."""
        try:
            async with trio.open_nursery() as tasks:
                await self._take_all(tasks)
        finally:
            self._socket.messages = None
            self._done.set()
            self._taken.set()
            if not self._is_over and self._has_messages:
                self._socket.look_at_messages()  # one came in the very moment

    @property
    def _is_over(self) -> bool:
        return self._socket.session.ending is not None or self._socket.line.is_closing

    @property
    def _has_messages(self) -> bool:
        return self._socket.inbox is not None and bool(self._socket.inbox.messages)

    async def _take_all(self, tasks: trio.Nursery) -> None:
        while not self._is_over:
            inbox = self._socket.inbox
            if inbox is not None and inbox.messages:
                message = inbox.messages.popleft()
                self._taken.set()
                self._taken = trio.Event()
                try:
                    await self._take(message, inbox, tasks)
                except trio.BrokenResourceError:
                    return  # the connection's own task sees it, too
                continue
            self._news = trio.Event()
            with trio.move_on_after(LINGER_S) as idle:
                await self._news.wait()
            is_publishing = self._publishing.value < self._limits.publishes_in_flight
            if idle.cancelled_caught and not is_publishing and not self._has_messages:
                return

    async def _take(self, message: str | bytes, inbox: Inbox, tasks: trio.Nursery) -> None:
        """One client message. What is wrong with it is told, and the session goes on. A checkpoint, so that messages
        are begun one after the other. Raises BrokenResourceError."""
        socket, held = self._socket, len(message)
        if isinstance(message, bytes):
            socket.session.end(Ending(CLOSE_PROTOCOL, "messages are JSON in text frames"))
            await trio.lowlevel.checkpoint()
            return
        envelope = _Envelope("")
        try:
            envelope = _decode(_decode_envelope, message)
            if envelope.type == "publish":
                publish = _Begun(_decode(_decode_publish, message), envelope.ref, inbox, held)
                held = await self._begin_publish(publish, tasks)
                return
            self._check_rate(held)
            if envelope.type == "ping":
                own = socket.line.seats.get("")
                await socket.send(socket.scribe.heartbeat(own.cursor if own else None))
            else:
                await self._take_subscription(envelope.type, message)
        except OverlaydError as error:
            await socket.send(error_message(error, ref=envelope.ref, sub=self._refused(envelope)))
        finally:
            inbox.give_back(held)

    def _check_rate(self, size: int) -> None:
        """Raises LimitReached, with which the session ends: its messages come faster than they may."""
        control = self._socket.parts.control
        if control is None:
            return
        try:
            control(self._socket.principal, size)
        except LimitReached as error:
            self._socket.session.end(Ending(CLOSE_LIMIT, error.code, error.retry_after_s))
            raise

    def _refused(self, envelope: _Envelope) -> str:
        """The subscription that an error is about; "" when one of that id goes on."""
        name = envelope.id
        is_named = envelope.type == "subscribe" and isinstance(name, str) and 1 <= len(name) <= _ID_CHARS_MAX
        return name if is_named and name not in self._socket.line.seats else ""

    async def _begin_publish(self, begun: "_Begun", tasks: trio.Nursery) -> int:
        """Publishes, waiting for the answer only where that keeps the order; gives what of the input is left to be
        given back. Checkpoint. Raises OverlaydErrors and BrokenResourceError."""
        require_some(self._socket.principal, "publish")
        if not self._publishing.value:
            self._metrics.count_limit_hit("publishes_in_flight")
        await self._publishing.acquire()
        if self._may_overtake(begun.message.stream, begun.held):
            await self._publish(begun)
        else:
            tasks.start_soon(self._publish, begun)
            await trio.lowlevel.checkpoint()  # the next one is begun after this one
        return 0

    def _may_overtake(self, stream: str, size: int) -> bool:
        """Whether a message that follows could be appended before this one, unless it waits for its answer.

        Messages of one socket are to be appended in the order they were sent. Small ones reach the writer's queue
        in the same few steps, each begun after the one before; a large one may take a way through a thread, and the
        first of a stream may have to wait until its schema is compiled.
        """
        found = self._socket.parts.lane.delivery.log.find_stream(stream)
        if found is None:
            return True
        is_known = self._published.get(stream) == found.definition_version
        if len(self._published) >= _STREAMS_KNOWN_MAX:
            self._published.clear()
        self._published[stream] = found.definition_version
        return not is_known or size > _PIPELINED_BYTES

    async def _publish(self, begun: "_Begun") -> None:
        """Publishes and answers. Raises nothing but Cancelled."""
        socket = self._socket
        try:
            try:
                receipt = await socket.parts.publish(begun.message, socket.principal)
                outcome = "accepted" if not receipt.rejected else "rejected"
                await socket.send(receipt)
            except OverlaydError as error:
                outcome = "refused"
                await socket.send(error_message(error, ref=begun.ref))
            socket.parts.lane.delivery.meters.published.labels(outcome).inc()
        except trio.BrokenResourceError:
            pass
        finally:
            self._publishing.release()
            begun.inbox.give_back(begun.held)

    async def _take_subscription(self, kind: str, message: str) -> None:
        """Raises OverlaydErrors and BrokenResourceError."""
        if kind not in ("subscribe", "unsubscribe", "ack"):
            raise BadParameter(
                f"no such message: {kind[:60]!r}", subject="type",
                hint="known are subscribe, unsubscribe, ack, publish and ping",
            )  # fmt: skip
        members = _decode(_decode_members, message)
        name = members.get("id")
        if not isinstance(name, str) or not 1 <= len(name) <= _ID_CHARS_MAX:
            raise BadParameter(f"id must be a text of 1 to {_ID_CHARS_MAX} characters", subject="id")
        if kind == "subscribe":
            await self._subscribe(name, members)
            return
        seat = self._socket.line.seats.get(name)
        if seat is None:
            raise BadParameter(f"there is no subscription {name!r} on this connection", subject="id")
        if kind == "ack":
            await self._acknowledge(name, members, message)
        else:
            self._socket.drop(seat)
            await trio.lowlevel.checkpoint()

    async def _acknowledge(self, name: str, members: dict[str, Any], message: str) -> None:
        """Raises OverlaydErrors."""
        named = None if self._socket.named is None else self._socket.named.get(name)
        if named is None:
            raise BadParameter(
                f"subscription {name!r} isn't durable, so there is nothing to acknowledge", subject="id",
                hint="keep the cursor of what you have dealt with and resume with after=<cursor>",
            )  # fmt: skip
        text = members.get("cursor")
        if not isinstance(text, str):
            raise BadParameter("cursor must be the cursor of a message that was dealt with", subject="cursor")
        reply = _decode(_cut_reply, message).reply if "reply" in members else b""
        await named.ack(Cursor.parse(text), bytes(reply))

    async def _subscribe(self, name: str, members: dict[str, Any]) -> None:
        socket = self._socket
        if name in socket.line.seats:
            raise BadParameter(f"there is a subscription {name!r} on this connection already", subject="id")
        if len(socket.line.seats) >= self._limits.subscriptions_per_session:
            self._metrics.count_limit_hit("subscriptions_per_session")
            raise LimitReached(
                f"{self._limits.subscriptions_per_session} subscriptions are open on this connection already",
                subject="subscriptions_per_session",
            )
        attach = socket.parts.attach_named
        if attach is not None and "name" in members:
            await self._attach(name, members)
            return
        query = socket.parts.lane.delivery.parse_message(members)
        if query.seen is not None:
            raise BadParameter("seen goes into the connection's URL", subject="seen")
        await socket.begin(name, await socket.open(query))

    async def _attach(self, name: str, members: dict[str, Any]) -> None:
        """Reads a durable subscription, which says by itself what it selects. Raises OverlaydErrors."""
        socket = self._socket
        others = sorted(members.keys() - {"type", "id", "ref", "name"})
        if others:
            raise BadParameter(
                f"{others[0]} is what the named subscription says by itself", subject=others[0][:60],
                hint="leave out everything but id and name",
            )  # fmt: skip
        durable = members["name"]
        if not isinstance(durable, str):
            raise BadParameter("name must be the name of a durable subscription", subject="name")
        assert socket.parts.attach_named is not None
        named = await socket.parts.attach_named(durable, socket.principal, socket.session, socket.forced)
        if socket.named is None:
            socket.named = {}
        socket.named[name] = named
        try:
            await socket.begin(name, await socket.open(named.query))
        except BaseException:
            socket.detach(name)
            raise


class _AckReply(msgspec.Struct):
    """The reply of an `ack`, as it was sent."""

    reply: msgspec.Raw


_cut_reply = msgspec.json.Decoder(_AckReply).decode


def _decode(decode: Any, message: str) -> Any:
    """Raises MalformedJson for what isn't JSON, BadRequest for what isn't the message that it says it is."""
    try:
        return decode(message)
    except msgspec.ValidationError as err:
        raise BadRequest(f"the message can't be read: {err}", subject="message") from err
    except (msgspec.DecodeError, RecursionError) as err:
        raise MalformedJson(f"the message isn't JSON: {err}", subject="message") from err

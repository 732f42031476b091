"""The node's own messages on a live connection, and how any message is written in the format of a subscription."""

import itertools

from msgspec import UNSET, Struct

from overlayd.delivery.delivery import Delivery, OpenReader
from overlayd.delivery.frames import Message, tag_frame, wrap_event
from overlayd.delivery.query import FrameFormat
from overlayd.delivery.session import Ending
from overlayd.model.clock import Clock, format_time_us
from overlayd.model.cursor import Cursor, format_epoch
from overlayd.model.errors import OverlaydError
from overlayd.model.wire import (
    ByeMessage,
    ConsistencyBody,
    ErrorMessage,
    HeartbeatMessage,
    LossBody,
    Ref,
    SubscribedMessage,
    WelcomeMessage,
    encode_wire,
)


class Scribe:
    """Writes messages for one session."""

    def __init__(self, delivery: Delivery, session_id: str) -> None:
        self._delivery = delivery
        self._session_id = session_id
        self._clock: Clock = delivery.clock
        self._numbers = itertools.count(1)

    def own(self, body: Struct, format: FrameFormat) -> bytes:
        """The JSON text of one of the node's own messages."""
        if format != "cloudevents":
            return encode_wire(body)
        source = f"/sessions/{self._session_id}"
        name = f"{self._session_id}/{next(self._numbers)}"
        cursor = getattr(body, "cursor", UNSET)
        return encode_wire(wrap_event(body, id=name, source=source, time_us=self._clock.now_us(), cursor=cursor))

    def frame(self, message: Message, format: FrameFormat, sub: str = "") -> bytes:
        """The JSON text of a message out of the log; with member `sub` for a named subscription."""
        text = self._delivery.frames.text(message, format)
        return tag_frame(text, sub) if sub else text

    def welcome(self, node: str, proof: ConsistencyBody | LossBody | None = None) -> WelcomeMessage:
        log = self._delivery.log
        return WelcomeMessage(
            node=node,
            epoch=format_epoch(log.epoch),
            head=log.head,
            session=self._session_id,
            consistency=proof if isinstance(proof, ConsistencyBody) else UNSET,
            loss=proof if isinstance(proof, LossBody) else UNSET,
        )

    def heartbeat(self, cursor: Cursor | None = None, sub: str = "") -> HeartbeatMessage:
        """With the cursor of a subscription, else with the head as one."""
        log = self._delivery.log
        return HeartbeatMessage(
            timestamp=format_time_us(self._clock.now_us()),
            head=log.head,
            cursor=str(cursor or Cursor(log.epoch, log.head)),
            sub=sub or UNSET,
        )


def subscribed_message(opened: OpenReader, sub: str = "") -> SubscribedMessage:
    """What a subscription begins with."""
    return SubscribedMessage(id=sub or UNSET, cursor=str(opened.start), never=opened.never)


def error_message(error: OverlaydError, *, ref: Ref | None = None, sub: str = "") -> ErrorMessage:
    """An error as live clients see it."""
    detail = f"{error.detail}; {error.hint}" if error.hint else error.detail
    return ErrorMessage(
        code=error.code,
        detail=detail,
        ref=UNSET if ref is None else ref,
        sub=sub or UNSET,
        retryable=error.retryable,
        errors=list(error.violations) or UNSET,
    )


def bye_message(ending: Ending) -> ByeMessage:
    """The last message before the node closes."""
    return ByeMessage(reason=ending.reason, retry_after=UNSET if ending.retry_after_s is None else ending.retry_after_s)

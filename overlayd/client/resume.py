"""Where a live reading stands, and what to do when its connection ends. No I/O here.

The WebSocket reader and the NDJSON reader share it, so that both resume in the same way.
"""

import random
from collections.abc import Iterable
from typing import Literal

import msgspec

from overlayd.client.problems import error_of_message
from overlayd.client.retry import Backoff, RetryPolicy
from overlayd.client.trust import LogView
from overlayd.model.cursor import Cursor, parse_epoch
from overlayd.model.errors import (
    CursorExpired,
    Forbidden,
    NodeUnreachable,
    OverlaydError,
    SessionClosed,
    Unauthorized,
    UnexpectedAnswer,
)
from overlayd.model.units import Duration
from overlayd.model.wire import (
    ByeMessage,
    ErasedMessage,
    ErrorMessage,
    GapMessage,
    HeartbeatMessage,
    LogMessage,
    PacketMessage,
    ServerMessage,
    StatusMessage,
    SubscribedMessage,
    WelcomeMessage,
)

RECONNECT_CODES = frozenset({1001, 1005, 1006, 1011, 1012, 1013, 4008, 4029, 4500})
"""Close codes after which coming back makes sense. 1005 and 1006 stand for a connection that just broke."""
LIVE_POLICY = RetryPolicy(attempts=1 << 62, first_s=0.25, max_s=30.0)
HEARTBEAT_S = 15.0
_ABNORMAL = 1006

_HINTS = {
    1008: "read faster, or send less",
    1009: "the message was over the node's limit",
    4009: "another client attached under the same name",
}
_DECODER: "msgspec.json.Decoder[ServerMessage]" = msgspec.json.Decoder(ServerMessage)


class LiveQuery(msgspec.Struct, frozen=True):
    """What to read. Empty means everything the caller may read; docs/api.md explains each member."""

    streams: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    deliver: Literal["", "appended", "confirmed", "both"] = ""
    min_confirmations: int = 0
    filter: str = ""
    after: str = ""
    start: str = ""
    """`now`, `beginning`, `last` or a time; not together with `after`."""
    status: bool = False
    on_gap: Literal["message", "error"] = "message"

    def params(self, cursor: str = "", heartbeat_s: float = 0.0, seen: str = "") -> list[tuple[str, str]]:
        """Query parameters. `cursor`, where reading got to, takes the place of `after` and `start`."""
        after = cursor or self.after
        many = (("stream", self.streams), ("topic", self.topics), ("type", self.types), ("key", self.keys))
        params = [(name, value) for name, values in many for value in values]
        single = (
            ("deliver", self.deliver),
            ("min_confirmations", str(self.min_confirmations or "")),
            ("filter", self.filter),
            ("after", after),
            ("from", "" if after else self.start),
            ("status", "true" if self.status else ""),
            ("on_gap", "" if self.on_gap == "message" else self.on_gap),
            ("heartbeat", str(Duration(heartbeat_s)) if heartbeat_s else ""),
            ("seen", seen),
        )
        return params + [(name, value) for name, value in single if value]


def live_query(
    streams: str | Iterable[str] = (),
    *,
    topics: Iterable[str] = (),
    types: Iterable[str] = (),
    keys: Iterable[str] = (),
    start: str = "",
    after: str = "",
    **rest: object,
) -> LiveQuery:
    """A LiveQuery from what callers find handy: any iterables, and one pattern as a plain string."""
    named = (streams,) if isinstance(streams, str) else tuple(streams)
    return msgspec.convert(
        {"streams": named, "topics": tuple(topics), "types": tuple(types), "keys": tuple(keys)}
        | {"start": start, "after": after}
        | rest,
        LiveQuery,
    )


class Resume:
    """Follows one reading over any number of connections.

    `cursor` is behind everything that was handed out; a reader that keeps it can go on in another process.
    """

    def __init__(
        self, query: LiveQuery, policy: RetryPolicy, chance: random.Random, view: LogView | None = None
    ) -> None:
        self.query = query
        self.cursor = query.after
        self.welcome: WelcomeMessage | None = None
        self._view = view
        self._backoff = Backoff(policy, chance)
        self._is_proven = False
        self._retry_after_s: float | None = None
        self._bye = ""

    def params(self) -> list[tuple[str, str]]:
        """What to ask for when connecting now."""
        return self.query.params(self.cursor, HEARTBEAT_S, self._view.seen if self._view else "")

    def decode(self, text: str | bytes) -> ServerMessage:
        """Raises UnexpectedAnswer."""
        try:
            return _DECODER.decode(text)
        except msgspec.DecodeError as err:
            raise UnexpectedAnswer(f"a message can't be read: {err}: {text[:200]!r}") from err

    def take(self, message: ServerMessage) -> LogMessage | None:
        """Moves the position; gives the message back if it is one for the reader. Raises what an error message says."""
        if isinstance(message, WelcomeMessage):
            self._take_welcome(message)
        elif isinstance(message, HeartbeatMessage | SubscribedMessage):
            self._take_cursor(message.cursor)
        elif isinstance(message, ByeMessage):
            self._bye = message.reason
            self._retry_after_s = message.retry_after or None
        elif isinstance(message, ErrorMessage):
            error = error_of_message(message)
            if not error.retryable or not self._is_proven:
                raise error
        elif isinstance(message, GapMessage):
            self._take_cursor(message.cursor or message.to)
            return message
        elif isinstance(message, PacketMessage | StatusMessage | ErasedMessage):
            self._take_cursor(message.cursor)
            return message
        return None

    def _take_welcome(self, message: WelcomeMessage) -> None:
        if self._view is not None and self._view.seen:
            self._view.take_welcome(message)
        self.welcome = message
        self._is_proven = True
        if not self.cursor and self.query.start in ("", "now"):
            # Until something with a cursor comes, this is where "now" was; a reconnection must not move it.
            self.cursor = str(Cursor(parse_epoch(message.epoch), message.head))

    def _take_cursor(self, cursor: str) -> None:
        self.cursor = cursor
        self._backoff.reset()

    def judge_close(self, code: int, reason: str) -> float:
        """Seconds to wait before connecting again. Raises if the close code says that it would be no use."""
        if code in RECONNECT_CODES or self._retry_after_s is not None:
            return self._pause()
        detail = f"close code {code}: {reason or self._bye or 'no reason given'}"
        if code == 4001:
            raise Unauthorized(detail)
        if code == 4003:
            raise Forbidden(detail)
        if code == 4010:
            raise CursorExpired(detail, subject=self.cursor)
        raise SessionClosed(detail, hint=_HINTS.get(code, ""), extra={"close_code": code})

    def judge_end(self, reason: str) -> float:
        """As `judge_close` for a transport without close codes: a `bye` that names no time to come back is final."""
        if self._bye and self._retry_after_s is None:
            raise SessionClosed(f"the node ended the session: {self._bye}")
        return self.judge_close(_ABNORMAL, reason)

    def judge_error(self, error: OverlaydError) -> float:
        """Seconds to wait after a connection that failed. Raises it if it is the first one, or not worth a repeat."""
        is_passing = error.retryable or (isinstance(error, UnexpectedAnswer) and self._is_proven)
        if not self._is_proven or not is_passing or self._backoff.is_spent:
            raise error
        self._retry_after_s = error.retry_after_s
        return self._pause()

    def _pause(self) -> float:
        if self._backoff.is_spent:
            raise NodeUnreachable(f"gave up after {self._backoff.count} attempts", is_sent=True)
        retry_after_s, self._retry_after_s, self._bye = self._retry_after_s, None, ""
        return self._backoff.fail(retry_after_s)

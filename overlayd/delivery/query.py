"""What a live reader asks for: the same query as URL arguments, or as a `subscribe` message."""

import base64
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias, cast

import msgspec

from overlayd.access.stream_guard import Sight
from overlayd.model.clock import parse_time_us
from overlayd.model.cursor import Cursor
from overlayd.model.errors import BadCursor, BadParameter
from overlayd.model.limits import Limits
from overlayd.model.names import NAME_CHARS_MAX, Pattern
from overlayd.model.units import Duration
from overlayd.model.wire import QueryBody, parse_sha256

Deliver: TypeAlias = Literal["appended", "confirmed", "both"]
Format: TypeAlias = Literal["packet", "cloudevents"]
FrameFormat: TypeAlias = Literal["packet", "cloudevents", "agent"]
"""`agent`: as `packet`, and packets say who they are from. Nobody asks for it; agents get it."""
OnGap: TypeAlias = Literal["message", "error"]

_LISTS = {"stream": "streams", "topic": "topics", "type": "types", "key": "keys"}
_SINGLES = (
    "deliver", "min_confirmations", "filter", "after", "from", "format", "status", "on_gap", "heartbeat", "seen",
)  # fmt: skip
PARAMETERS = (*_LISTS, *_SINGLES)
_MESSAGE_MEMBERS = {plural: single for single, plural in _LISTS.items()} | {name: name for name in _SINGLES}
_ROOT_BASE64_CHARS = 44
_SEEN = re.compile(r"(0|[1-9][0-9]{0,18}):(.+)", re.ASCII)


class Now(msgspec.Struct, frozen=True):
    """Begins behind the newest entry."""


class Beginning(msgspec.Struct, frozen=True):
    """Begins with the oldest entry there is."""


class Last(msgspec.Struct, frozen=True):
    """Begins with the newest packet of each stream, or key, then goes on live."""


class At(msgspec.Struct, frozen=True):
    """Begins with the first entry appended at or after this time."""

    time_us: int


Start: TypeAlias = Cursor | Now | Beginning | Last | At


class Seen(msgspec.Struct, frozen=True):
    """Size and root of the newest checkpoint that a resuming client knows."""

    size: int
    root: bytes


class TopicPattern:
    """A pattern over topics: as for stream names, but the tokens may hold any character except the dot."""

    __slots__ = ("_regex", "text")

    def __init__(self, text: str) -> None:
        """Raises BadParameter."""
        words = text.split(".")
        if not text or len(text) > NAME_CHARS_MAX or ">" in words[:-1]:
            raise BadParameter(
                f"not a topic or a pattern over topics: {text[:200]!r}", subject="topic",
                hint="at most 128 characters; * stands for one token, > for the rest and only at the end",
            )  # fmt: skip
        parts = ["[^.]+" if word == "*" else ".+" if word == ">" else re.escape(word) for word in words]
        self.text = text
        self._regex = re.compile(r"\.".join(parts), re.DOTALL) if "*" in words or ">" in words else None

    def is_match(self, topic: str) -> bool:
        """Whether the topic falls under the pattern."""
        return topic == self.text if self._regex is None else self._regex.fullmatch(topic) is not None

    def __repr__(self) -> str:
        return f"TopicPattern({self.text!r})"


class Selection(msgspec.Struct, frozen=True):
    """Which entries a reader gets, apart from where it begins and how they are written.

    Equal selections share their work. No stream at all means every stream except the node's own. `sight`: what the
    reader may see of the streams, None for all.
    """

    streams: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()
    types: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    deliver: Deliver = "appended"
    min_confirmations: int | None = None
    filter: str | None = None
    status: bool = False
    sight: Sight | None = None


class LiveQuery(msgspec.Struct, frozen=True):
    """A whole live query, checked as far as that goes without the log."""

    selection: Selection = Selection()
    start: Start = Now()
    format: FrameFormat = "packet"
    on_gap: OnGap = "message"
    heartbeat_s: float = 15.0
    seen: Seen | None = None

    def body(self) -> QueryBody:
        """As `GET /v1/sessions` shows it."""
        chosen = self.selection
        return QueryBody(
            streams=list(chosen.streams), topics=list(chosen.topics), types=sorted(chosen.types),
            keys=sorted(chosen.keys), deliver=chosen.deliver, format=self.format, status=chosen.status,
            min_confirmations=msgspec.UNSET if chosen.min_confirmations is None else chosen.min_confirmations,
            filter=msgspec.UNSET if chosen.filter is None else chosen.filter,
        )  # fmt: skip


def with_sight(query: LiveQuery, sight: Sight | None) -> LiveQuery:
    """The query of somebody who may see so much."""
    if sight is None:
        return query
    return msgspec.structs.replace(query, selection=msgspec.structs.replace(query.selection, sight=sight))


def parse_arguments(
    arguments: Iterable[tuple[str, str]], limits: Limits, *, heartbeat_s: float, start: Start | None = None
) -> LiveQuery:
    """The query of URL arguments, in pairs as they came, percent-decoded.

    `start` is where it begins when the arguments don't say; None stands for now. Raises BadParameter or BadCursor.
    """
    values: dict[str, list[str]] = {}
    for name, value in arguments:
        if name not in PARAMETERS:
            raise _unknown(name, PARAMETERS)
        values.setdefault(name, []).append(value)
    for name in _SINGLES:
        if len(values.get(name, ())) > 1:
            raise BadParameter(f"{name} may be given once", subject=name)
    return _build(values, limits, heartbeat_s, Now() if start is None else start)


def parse_message(members: Mapping[str, Any], limits: Limits, *, heartbeat_s: float) -> LiveQuery:
    """The query of a `subscribe` message, whose lists have plural names. Raises BadParameter or BadCursor."""
    values: dict[str, list[str]] = {}
    for member, value in members.items():
        if member in ("type", "id", "ref"):
            continue
        if member == "name":
            raise BadParameter(
                "named, durable subscriptions can't be attached to on this node", subject="name",
                hint="leave name out and resume with after=<cursor>",
            )  # fmt: skip
        name = _MESSAGE_MEMBERS.get(member) or (member if member in _LISTS else None)
        if name is None:
            raise _unknown(member, _MESSAGE_MEMBERS)
        values.setdefault(name, []).extend(_texts_of(member, value, is_list=name in _LISTS))
    return _build(values, limits, heartbeat_s, Now())


def _unknown(name: str, known: Iterable[str]) -> BadParameter:
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    return BadParameter(f"no such parameter: {name[:60]!r}", subject=name[:60], hint=hint)


def _texts_of(name: str, value: Any, *, is_list: bool) -> list[str]:
    """A member's value as URL arguments would hold it."""
    if isinstance(value, bool):
        return ["true" if value else "false"]
    if isinstance(value, int) or (isinstance(value, str) and not is_list):
        return [str(value)]
    if is_list and isinstance(value, str):
        return [value]
    if is_list and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return cast("list[str]", value)
    expected = "a text or a list of texts" if is_list else "a text, a number or a boolean"
    raise BadParameter(f"{name} must be {expected}", subject=name)


def _build(values: dict[str, list[str]], limits: Limits, heartbeat_s: float, start: Start) -> LiveQuery:
    terms = sum(len(values.get(name, ())) for name in _LISTS)
    if terms > limits.query_terms:
        raise BadParameter(
            f"the query names {terms} streams, topics, types and keys; {limits.query_terms} are allowed",
            subject="query_terms", hint="use a pattern, or several subscriptions",
        )  # fmt: skip
    deliver = _choice(values, "deliver", ("appended", "confirmed", "both"))
    selection = Selection(
        streams=tuple(sorted({Pattern(text).text for text in values.get("stream", ())})),
        topics=tuple(sorted({TopicPattern(text).text for text in values.get("topic", ())})),
        types=frozenset(_words(values, "type", limits)),
        keys=frozenset(_words(values, "key", limits)),
        deliver=cast("Deliver", deliver),
        min_confirmations=_parse_confirmations(values, deliver),
        filter=_parse_filter_text(values, limits),
        status=_choice(values, "status", ("false", "true")) == "true",
    )
    start = _parse_start(values, start)
    if isinstance(start, Last) and deliver == "confirmed":
        raise BadParameter("from=last doesn't go with deliver=confirmed", subject="from", hint="use after or a time")
    return LiveQuery(
        selection=selection,
        start=start,
        format=cast("Format", _choice(values, "format", ("packet", "cloudevents"))),
        on_gap=cast("OnGap", _choice(values, "on_gap", ("message", "error"))),
        heartbeat_s=_parse_heartbeat(values, limits, heartbeat_s),
        seen=_parse_seen(values),
    )


def _choice(values: dict[str, list[str]], name: str, choices: tuple[str, ...]) -> str:
    """The value, the first choice when absent."""
    value = values.get(name, [choices[0]])[-1]
    if value not in choices:
        raise BadParameter(f"{name} must be {' or '.join(choices)}, not {value[:60]!r}", subject=name)
    return value


def _words(values: dict[str, list[str]], name: str, limits: Limits) -> list[str]:
    words = values.get(name, [])
    for word in words:
        if not 1 <= len(word) <= limits.id_chars:
            raise BadParameter(f"{name} must have 1 to {limits.id_chars} characters", subject=name)
    return words


def _parse_confirmations(values: dict[str, list[str]], deliver: str) -> int | None:
    if "min_confirmations" not in values:
        return None
    if deliver == "appended":
        raise BadParameter(
            "min_confirmations needs deliver=confirmed or deliver=both: packets are delivered here when they are "
            "appended, before any block holds them", subject="min_confirmations",
        )  # fmt: skip
    text = values["min_confirmations"][-1]
    if re.fullmatch(r"[1-9][0-9]{0,3}", text, re.ASCII) is None:
        raise BadParameter(f"min_confirmations must be a whole number from 1, not {text[:60]!r}",
                           subject="min_confirmations")  # fmt: skip
    return int(text)


def _parse_filter_text(values: dict[str, list[str]], limits: Limits) -> str | None:
    if "filter" not in values:
        return None
    text = values["filter"][-1]
    if not text.strip():
        raise BadParameter("filter is empty", subject="filter", hint="leave it out to get everything")
    if len(text.encode("utf-8", "surrogatepass")) > limits.filter_bytes:
        raise BadParameter(f"filter is over {limits.filter_bytes} bytes", subject="filter")
    return text


def _parse_start(values: dict[str, list[str]], start: Start) -> Start:
    if "after" in values:
        if "from" in values:
            raise BadParameter("after and from exclude each other", subject="from")
        try:
            return Cursor.parse(values["after"][-1])
        except BadCursor as err:
            raise BadCursor(f"after: {err.detail}", subject="after", hint=err.hint) from err
    if "from" not in values:
        return start
    text = values["from"][-1]
    named: dict[str, Start] = {"now": Now(), "beginning": Beginning(), "last": Last()}
    if text in named:
        return named[text]
    try:
        return At(parse_time_us(text))
    except (ValueError, OverflowError) as err:
        raise BadParameter(
            f"from must be now, beginning, last or an RFC 3339 time with a zone, not {text[:60]!r}", subject="from",
            hint="a cursor goes into after; in a URL, write + as %2B",
        ) from err  # fmt: skip


def _parse_heartbeat(values: dict[str, list[str]], limits: Limits, default_s: float) -> float:
    if "heartbeat" not in values:
        return default_s
    try:
        seconds = Duration.parse(values["heartbeat"][-1])
    except ValueError as err:
        raise BadParameter(f"heartbeat: {err}", subject="heartbeat") from err
    if not limits.heartbeat_min <= seconds <= limits.heartbeat_max or not math.isfinite(seconds):
        raise BadParameter(
            f"heartbeat must be from {limits.heartbeat_min} to {limits.heartbeat_max}", subject="heartbeat"
        )
    return float(seconds)


def _parse_seen(values: dict[str, list[str]]) -> Seen | None:
    if "seen" not in values:
        return None
    text = values["seen"][-1]
    match = _SEEN.fullmatch(text)
    try:
        if match is None:
            raise ValueError("no size in front of the root")
        return Seen(int(match[1]), _parse_root(match[2]))
    except ValueError as err:
        raise BadParameter(
            f"seen must be <size>:<root>, not {text[:90]!r}", subject="seen",
            hint="the size and root of a checkpoint; the root as 64 hex digits or as base64, as the note has it",
        ) from err  # fmt: skip


def _parse_root(text: str) -> bytes:
    """Raises ValueError."""
    if len(text) == _ROOT_BASE64_CHARS:
        return base64.b64decode(text, validate=True)
    return parse_sha256(text if text.startswith("sha256:") else f"sha256:{text}")

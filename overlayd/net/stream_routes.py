"""Streams: their definitions, states, and the list of them."""

import re
from bisect import bisect_right
from collections.abc import Callable
from functools import partial

import msgspec
import trio
from msgspec import UNSET
from quart import Request, Response, request
from quart_trio import QuartTrio

from overlayd.access.principal import check_standing
from overlayd.access.stream_changes import StreamChanges
from overlayd.access.stream_guard import StreamGuard
from overlayd.delivery.packets import find_confirmed_sequence
from overlayd.model.clock import format_time_us
from overlayd.model.confirmation import ConfirmationReads, NothingConfirmed
from overlayd.model.definition import Definition, complete_definition
from overlayd.model.errors import (
    BadParameter,
    DefinitionConflict,
    InvalidDefinition,
    UnknownStream,
    Violation,
    WrongContentType,
)
from overlayd.model.limits import Limits
from overlayd.model.names import parse_stream_name
from overlayd.model.wire import StreamBody, StreamList, StreamRemoved, StreamStateBody, encode_wire
from overlayd.net.app import answer, author_of, principal_of, read_body
from overlayd.net.conditions import wanted_tags
from overlayd.net.content import Bodies
from overlayd.net.lane import Lane
from overlayd.net.parameters import Parameters
from overlayd.pipeline.definitions import check_definition
from overlayd.pipeline.json_text import parse_json
from overlayd.pipeline.schema import SchemaCache
from overlayd.storage import Log, Stream
from overlayd.storage.definitions import Unchanged

LIST_LIMIT = 100
LIST_LIMIT_MAX = 1000
STREAMS_PER_TURN = 1000
STATES = ("active", "paused", "stopped")
_STATE_BYTES_MAX = 4096
_PLACE = re.compile(r"(.*) - at `\$(.*)`", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
_decode_state = msgspec.json.Decoder(StreamStateBody).decode


def add_stream_routes(
    app: QuartTrio,
    *,
    log: Log,
    limits: Limits,
    lane: Lane,
    bodies: Bodies,
    schemas: SchemaCache,
    streams: StreamGuard,
    changes: StreamChanges,
    count_subscribers: Callable[[str], int],
    on_stopped: Callable[[str], None],
    confirmations: ConfirmationReads | None = None,
) -> None:
    """Adds `/v1/streams`, `/v1/streams/{stream}` and its state. `on_stopped`: tells the stream's live sessions.
    `confirmations`: None where the node follows no chain."""
    reads: ConfirmationReads = confirmations or NothingConfirmed()
    routes = _StreamRoutes(log, limits, lane, bodies, schemas, streams, changes, count_subscribers, on_stopped, reads)
    one = "/v1/streams/<stream>"
    app.add_url_rule("/v1/streams", "streams.list", routes.list_streams, methods=["GET"])
    app.add_url_rule(one, "streams.show", routes.show, methods=["GET"])
    app.add_url_rule(one, "streams.define", routes.define, methods=["PUT"])
    app.add_url_rule(one, "streams.delete", routes.delete, methods=["DELETE"])
    app.add_url_rule(f"{one}/state", "streams.set_state", routes.set_state, methods=["PUT"])


class _StreamRoutes:
    """The routes with what they need."""

    def __init__(
        self, log: Log, limits: Limits, lane: Lane, bodies: Bodies, schemas: SchemaCache, streams: StreamGuard,
        changes: StreamChanges, count_subscribers: Callable[[str], int], on_stopped: Callable[[str], None],
        reads: ConfirmationReads,
    ) -> None:  # fmt: skip
        self._log = log
        self._limits = limits
        self._lane = lane
        self._bodies = bodies
        self._schemas = schemas
        self._streams = streams
        self._changes = changes
        self._count_subscribers = count_subscribers
        self._on_stopped = on_stopped
        self._reads = reads

    async def list_streams(self) -> Response:
        """The streams that the caller may know of, by name, a page at a time."""
        principal = principal_of(request)
        check_standing(principal)
        parameters = Parameters(request, ("q", "tag", "state", "limit", "after"))
        limit = parameters.number("limit", minimum=1, maximum=LIST_LIMIT_MAX) or LIST_LIMIT
        wanted = _Wanted(parameters.text("q").lower(), parameters.text("tag"), parameters.choice("state", STATES))
        may_know = partial(self._streams.may_know, principal)
        found, is_more = await _find_streams(
            self._log.list_streams(), wanted, parameters.text("after"), limit, may_know
        )
        page = StreamList(
            streams=[stream_body(stream, owned_by=self._streams.owners.get(stream.name, "")) for stream in found],
            next_after=found[-1].name if is_more else UNSET,
        )
        return answer(encode_wire(page))

    async def show(self, stream: str) -> Response:
        """A stream and where it stands."""
        self._streams.require(principal_of(request), "read", stream)
        Parameters(request, ())
        found = known_stream(self._log, stream)
        return self._answer(found, confirmed=await find_confirmed_sequence(self._log, self._reads, found))

    async def define(self, stream: str) -> Response:
        """Creates a stream, or gives it another definition."""
        principal = principal_of(request)
        self._streams.require_define(principal, stream)
        Parameters(request, ())
        name = parse_stream_name(stream)
        if_version = _wanted_version(request, self._log.find_stream(name), name)
        raw = await self._read_json(int(self._limits.definition_bytes), "definition_bytes", f"/v1/streams/{name}")
        definition = read_definition(raw, self._limits, self._log.defaults)
        async with self._lane.step_out():
            await check_definition(definition, self._schemas, self._limits)
            defined, is_new = await self._changes.define(
                name, definition, if_version=if_version, author=author_of(request)
            )
        return self._answer(defined, 201 if is_new else 200)

    async def delete(self, stream: str) -> Response:
        """Deletes a stream with its packets, if the query says its name again."""
        self._streams.require(principal_of(request), "manage", stream)
        parameters = Parameters(request, ("confirm", "expected_sequence"))
        found = known_stream(self._log, stream)
        name = found.name
        if parameters.text("confirm") != name:
            raise BadParameter("deleting a stream needs its name again", subject="confirm", hint=f"add ?confirm={name}")
        version = None if wanted_tags(request) is None else _wanted_version(request, found, name)
        only = Unchanged(found.stream_hash, version, parameters.number("expected_sequence"))
        async with self._lane.step_out():
            removed = await self._changes.delete(name, author_of(request), only)
        return answer(encode_wire(StreamRemoved(stream=name, packets_removed=removed)))

    async def set_state(self, stream: str) -> Response:
        """Pauses, stops or resumes a stream."""
        self._streams.require(principal_of(request), "manage", stream)
        Parameters(request, ())
        name = known_stream(self._log, stream).name
        raw = await self._read_json(_STATE_BYTES_MAX, "body_bytes", f"/v1/streams/{name}/state")
        parse_json(raw, self._limits.json_depth_max)
        try:
            body = _decode_state(raw)
        except msgspec.ValidationError as err:
            raise _invalid(err, "the state can't be set") from err
        async with self._lane.step_out():
            changed = await self._changes.set_state(name, body.state, author_of(request))
        if changed.state == "stopped":
            self._on_stopped(name)
        return self._answer(changed)

    async def _read_json(self, bytes_max: int, limit: str, path: str) -> bytes:
        _check_json_type(request, path)
        with self._bodies.hold() as hold:
            return await read_body(request, self._bodies, hold, bytes_max, limit)

    def _answer(self, stream: Stream, status: int = 200, *, confirmed: int | None = None) -> Response:
        owned_by = self._streams.owners.get(stream.name, "")
        body = encode_wire(stream_body(stream, self._count_subscribers(stream.name), confirmed, owned_by=owned_by))
        return answer(body, status, etag=stream_etag(stream))


def known_stream(log: Log, text: str) -> Stream:
    """The stream of that name. Raises BadParameter, UnknownStream."""
    name = parse_stream_name(text)
    stream = log.find_stream(name)
    if stream is None:
        raise UnknownStream(f"there is no stream {name}", subject=name, hint="GET /v1/streams lists what there is")
    return stream


def read_definition(raw: bytes, limits: Limits, defaults: Definition) -> Definition:
    """The definition, its shape checked; what it doesn't say is as in `defaults`. Raises MalformedJson, UnusableJson, InvalidDefinition."""
    parse_json(raw, limits.json_depth_max)
    try:
        return complete_definition(raw, defaults)
    except msgspec.ValidationError as err:
        raise _invalid(err, "the definition can't be used") from err


def stream_etag(stream: Stream) -> str:
    """Names the definition: version, and which stream of that name it is."""
    return f'"{stream.definition_version}-{stream.stream_hash[:8].hex()}"'


def stream_body(
    stream: Stream, subscribers: int | None = None, confirmed_sequence: int | None = None, *, owned_by: str = ""
) -> StreamBody:  # fmt: skip
    """The stream as it is shown. `owned_by`: "" for nobody."""
    definition = {name: getattr(stream.definition, name) for name in Definition.__struct_fields__}
    return StreamBody(
        **definition,
        stream=stream.name,
        owner=stream.owner,
        owned_by=owned_by or UNSET,
        state=stream.state,
        definition_version=stream.definition_version,
        created_at=format_time_us(stream.created_us),
        head_sequence=stream.head_sequence,
        oldest_sequence=stream.oldest_sequence,
        packets=stream.packets,
        bytes=stream.bytes,
        confirmed_sequence=UNSET if confirmed_sequence is None else confirmed_sequence,
        subscribers=UNSET if subscribers is None else subscribers,
        last_packet_at=format_time_us(stream.last_packet_us) if stream.last_packet_us else UNSET,
    )


class _Wanted(msgspec.Struct, frozen=True):
    """What a list is narrowed to; "" for anything."""

    text: str
    tag: str
    state: str

    def is_match(self, stream: Stream) -> bool:
        if self.state and stream.state != self.state:
            return False
        if self.tag and self.tag not in stream.definition.tags:
            return False
        return not self.text or self.text in stream.name or self.text in stream.definition.title.lower()


async def _find_streams(
    streams: list[Stream], wanted: _Wanted, after: str, limit: int, may_know: Callable[[Stream], bool]
) -> tuple[list[Stream], bool]:
    """At most `limit` streams behind `after`, and whether there are more. Lets others run in between."""
    found: list[Stream] = []
    start = bisect_right(streams, after, key=lambda stream: stream.name)
    for at in range(start, len(streams)):
        if at % STREAMS_PER_TURN == 0:
            await trio.lowlevel.checkpoint()
        if wanted.is_match(streams[at]) and may_know(streams[at]):
            if len(found) == limit:
                return found, True
            found.append(streams[at])
    await trio.lowlevel.checkpoint()
    return found, False


def _wanted_version(asked: Request, stream: Stream | None, name: str) -> int | None:
    """The version that a conditional PUT wants to replace: 0 for none, None for whatever there is."""
    if "If-None-Match" in asked.headers:
        if asked.headers["If-None-Match"].strip() != "*":
            raise BadParameter("If-None-Match can only be * here", subject="If-None-Match")
        return 0
    tags = wanted_tags(asked)
    if tags is None:
        return None
    if stream is not None and ("*" in tags or stream_etag(stream) in tags):
        return stream.definition_version
    now = "there is no such stream" if stream is None else f"its ETag is {stream_etag(stream)}"
    raise DefinitionConflict(
        f"{name} isn't what If-Match names: {now}", subject=name, hint="read the definition again and decide anew"
    )


def _check_json_type(asked: Request, path: str) -> None:
    content_type = asked.mimetype
    if content_type and content_type != "application/json" and not content_type.endswith("+json"):
        raise WrongContentType(
            f"the body must be JSON, not {content_type[:80]}; for example: curl --unix-socket overlayd.sock -X PUT "
            f"-H 'Content-Type: application/json' -d '{{…}}' http://localhost{path}",
            subject="Content-Type",
        )


def _invalid(error: msgspec.ValidationError, what: str) -> InvalidDefinition:
    """msgspec's words with a JSON pointer: "Expected `str`, got `int` - at `$.tags[0]`"."""
    text = str(error)
    match = _PLACE.fullmatch(text)
    detail, path = (match[1], match[2]) if match else (text, "")
    pointer = "".join(f"/{name or index}" for name, index in _STEP.findall(path))
    return InvalidDefinition(
        f"{what}: {detail}" + (f" at {pointer}" if pointer else ""),
        violations=[Violation(pointer, "definition.member", detail)],
    )

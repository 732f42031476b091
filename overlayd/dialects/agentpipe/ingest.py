"""`POST /api/ingest`: one event, an array of events, or one a line. Answered once what was taken is durable."""

from collections.abc import Sequence
from typing import Any

import msgspec
import trio
from quart import Blueprint, Request, Response, request

from overlayd.access import Principal
from overlayd.dialects.agentpipe.answers import (
    error_body,
    error_headers,
    issues_body,
    json_answer,
    status_of,
    unknown_conversation,
)
from overlayd.dialects.agentpipe.events import PATTERN, Dialect, Event, Refused, read_event
from overlayd.dialects.agentpipe.facts import Message
from overlayd.dialects.agentpipe.surface import Surface
from overlayd.dialects.agentpipe.throttle import CONVERSATION, INGEST
from overlayd.dialects.agentpipe.times import iso_ms
from overlayd.model.errors import BatchTooLarge, MalformedJson, OverlaydError
from overlayd.net.app import principal_of
from overlayd.net.publish import NDJSON_TYPES, Ask
from overlayd.pipeline.decode import is_array, split_array

SECONDS = (0.001, 0.01, 0.05, 0.1, 0.5, 1.0)
MULTI_STATUS = 207
_object = msgspec.json.Encoder().encode


class Result(msgspec.Struct, frozen=True):
    """What became of one event."""

    type: str
    status: int
    body: dict[str, Any]
    headers: dict[str, str] = {}


def add_ingest_routes(blueprint: Blueprint, surface: Surface) -> None:
    """Adds `/api/ingest`."""
    blueprint.add_url_rule("/api/ingest", "ingest", IngestRoute(surface).ingest, methods=["POST"])


class IngestRoute:
    """The route with what it needs."""

    def __init__(self, surface: Surface) -> None:
        self._surface = surface
        metrics = surface.metrics
        self._events = metrics.counter(
            "agentpipe_ingest_events", "Events by type and what became of them", "type", "status"
        )
        self._seconds = metrics.histogram(
            "agentpipe_ingest_duration_seconds", "From an event's body to its durable answer", "type", buckets=SECONDS
        )

    async def ingest(self) -> Response:
        """Events of either dialect."""
        principal, surface = principal_of(request), self._surface
        self._require_some(principal)
        with surface.hold() as hold:
            raw = await surface.read_body(request, hold, int(surface.settings.batch_bytes), "agentpipe.batch_bytes")
            texts = await self._split(request, raw)
            if texts is None:
                surface.refuse_size(len(raw), int(surface.settings.event_bytes), "agentpipe.event_bytes")
                result = (await self._take([raw.strip()], principal))[0]
                return json_answer(result.body, result.status, result.headers)
            return _answer_batch(await self._take(texts, principal))

    def _require_some(self, principal: Principal) -> None:
        """Raises Forbidden for who may publish nothing at all, before anything is read."""
        if "publish" not in principal.rights and "publish" not in principal.grants.rights:
            self._surface.streams.require(principal, "publish", PATTERN.replace(">", "any"))

    async def _split(self, asked: Request, raw: bytes) -> list[bytes] | None:
        """The texts of several events; None when the body is one. Raises MalformedJson, BatchTooLarge."""
        count_max = self._surface.settings.batch_events
        if asked.mimetype in NDJSON_TYPES:
            texts = [line for line in (line.strip() for line in raw.split(b"\n")) if line]
        elif is_array(raw):
            texts = split_array(raw, self._surface.limits)
        else:
            return None
        if len(texts) > count_max:
            self._surface.metrics.count_limit_hit("agentpipe.batch_events")
            raise BatchTooLarge(f"{len(texts)} events; {count_max} are taken", subject="agentpipe.batch_events")
        if not texts:
            raise MalformedJson("there is no event in the body")
        await trio.lowlevel.checkpoint()
        return texts

    async def _take(self, texts: Sequence[bytes], principal: Principal) -> list[Result]:
        """What becomes of each event. Those of one stream that follow on one another are appended together."""
        started = trio.current_time()
        results: list[Result] = []
        waiting: list[Event] = []
        for text in texts:
            read = await self._read(text, principal)
            is_other = bool(waiting) and (isinstance(read, Result) or read.stream != waiting[0].stream)
            if is_other:
                results += await self._append(waiting, principal)
                waiting = []
            if isinstance(read, Event):
                read = self._admit(read, principal)
            if isinstance(read, Event):
                waiting.append(read)
            else:
                results.append(read)
        if waiting:
            results += await self._append(waiting, principal)
        seconds = trio.current_time() - started
        for result in results:
            self._events.labels(result.type, _word_of(result.status)).inc()
            self._seconds.labels(result.type).observe(seconds)
        return results

    async def _read(self, raw: bytes, principal: Principal) -> Event | Result:
        """Judges one text."""
        surface = self._surface
        try:
            surface.refuse_size(len(raw), int(surface.settings.event_bytes), "agentpipe.event_bytes")
            value = await surface.parse(raw)
        except OverlaydError as error:
            return self._refused("unknown", error)
        read = read_event(value, raw, draw_id=surface.draw_id, now=surface.now())
        if isinstance(read, Refused):
            try:
                surface.throttle.take(INGEST[read.dialect], principal)
            except OverlaydError as error:
                return self._refused(read.type, error)
            headers = self._rate_headers(read.dialect, principal)
            return Result(read.type, 400, issues_body(read.dialect, read.issues), headers)
        return read

    def _admit(self, event: Event, principal: Principal) -> Event | Result:
        """Whether its sender may send it now."""
        surface = self._surface
        try:
            surface.streams.require(principal, "publish", event.stream)
            surface.throttle.take(INGEST[event.dialect], principal)
            if event.conversation:
                surface.throttle.take(CONVERSATION, principal, event.stream)
        except OverlaydError as error:
            return self._refused(event.type, error)
        is_open = event.is_new or not event.conversation or event.dialect == "wire"
        if not is_open and surface.log.find_stream(event.stream) is None:
            headers = self._rate_headers(event.dialect, principal)
            return Result(event.type, 404, unknown_conversation(event.conversation), headers)
        return event

    async def _append(self, events: list[Event], principal: Principal) -> list[Result]:
        """Puts events of one stream into the log. Checkpoint."""
        first, surface = events[0], self._surface
        ask = Ask(first.stream, principal, "application/json", (), "")
        try:
            await surface.ensure_stream(first.stream, first.conversation, principal)
            given = await surface.publisher.submit(ask, [_packet_of(event) for event in events], atomic=False)
        except OverlaydError as error:
            return [self._refused(event.type, error) for event in events]
        refused = dict(given.rejections)
        return [
            self._refused(event.type, refused[at])
            if at in refused
            else Result(event.type, *self._answer(event), self._rate_headers(event.dialect, principal))
            for at, event in enumerate(events)
        ]

    def _refused(self, kind: str, error: OverlaydError) -> Result:
        return Result(kind, status_of(error), error_body(error), error_headers(error, self._surface.clock))

    def _rate_headers(self, dialect: Dialect, principal: Principal) -> dict[str, str]:
        return self._surface.throttle.headers(INGEST[dialect], principal)

    def _answer(self, event: Event) -> tuple[int, dict[str, Any]]:
        """As the dialect's own server answers."""
        is_wire = event.dialect == "wire"
        if event.type == "conversation.started":
            if is_wire:
                return 201, {"conversation_id": event.conversation}
            return 201, {"conversationId": event.conversation, "status": "created"}
        if isinstance(event.fact, Message):
            if is_wire:
                return 201, {"message_id": event.fact.id}
            return 201, {"messageId": event.fact.id, "status": "created"}
        if event.type.startswith("bridge."):
            what = "Bridge test successful" if event.type == "bridge.test" else "Bridge connection registered"
            received_at = iso_ms(self._surface.clock.now_us())
            return 200, {"success": True, "message": what, "received_at": received_at}
        return 200, {"success": True}


def _packet_of(event: Event) -> bytes:
    """The packet object."""
    return b'{"id":%b,"type":%b,"data":%b}' % (_object(event.id), _object(event.type), event.body)


def _word_of(status: int) -> str:
    """As the metric's label."""
    return "success" if status < 300 else "error"


def _answer_batch(results: list[Result]) -> Response:
    """200 when everything was taken, 207 when some of it was; else the status of the first. With the headers of the
    rate that has the least left."""
    taken = sum(result.status < 300 for result in results)
    status = 200 if taken == len(results) else MULTI_STATUS if taken else results[0].status
    body = {
        "success": taken == len(results), "accepted": taken, "rejected": len(results) - taken,
        "results": [{"status": result.status, "type": result.type, **result.body} for result in results],
    }  # fmt: skip
    told = [result.headers for result in results if "X-RateLimit-Remaining" in result.headers]
    least = min(told, key=lambda headers: int(headers["X-RateLimit-Remaining"]), default=None)
    return json_answer(body, status, least)

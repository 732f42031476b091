"""`POST /api/sessions/upload`: a finished session in one body, in the log whole or not at all."""

from functools import partial
from typing import Any

import msgspec
from quart import Blueprint, Response, request

from overlayd.access import Principal
from overlayd.dialects.agentpipe.answers import issues_body, json_answer
from overlayd.dialects.agentpipe.events import cuid_of, stream_of
from overlayd.dialects.agentpipe.facts import PICO, Message, pico, whole
from overlayd.dialects.agentpipe.queries import find_original
from overlayd.dialects.agentpipe.surface import Surface
from overlayd.dialects.agentpipe.throttle import UPLOAD
from overlayd.dialects.agentpipe.uploads import HEADER_TYPE, MESSAGE_TYPE, Header, Upload, read_upload
from overlayd.model.errors import IdReused, SequenceMismatch
from overlayd.net.app import principal_of
from overlayd.net.publish import Ask

_encode = msgspec.json.Encoder().encode


def add_upload_routes(blueprint: Blueprint, surface: Surface) -> None:
    """Adds `/api/sessions/upload`."""
    blueprint.add_url_rule("/api/sessions/upload", "upload", UploadRoute(surface).upload, methods=["POST"])


class UploadRoute:
    """The route with what it needs."""

    def __init__(self, surface: Surface) -> None:
        self._surface = surface
        self._uploads = surface.metrics.counter(
            "overlayd_agentpipe_uploads", "Uploaded sessions by what became of them", "status"
        )

    async def upload(self) -> Response:
        """A session in either shape."""
        principal, surface = principal_of(request), self._surface
        surface.streams.require(principal, "publish", stream_of(cuid_of(b"")))
        surface.throttle.take(UPLOAD, principal)
        try:
            response = await self._upload(principal)
        except BaseException:
            self._uploads.labels("error").inc()
            raise
        self._uploads.labels("success" if response.status_code < 300 else "error").inc()
        return response

    async def _upload(self, principal: Principal) -> Response:
        surface, settings = self._surface, self._surface.settings
        with surface.hold() as hold:
            raw = await surface.read_body(request, hold, int(settings.upload_bytes), "agentpipe.upload_bytes")
            value = await surface.parse(raw)
            drawn = surface.draw_id()
            read = await surface.in_thread(
                partial(read_upload, value, drawn, messages_max=settings.upload_messages)
            )  # fmt: skip
            if not isinstance(read, Upload):
                if any(issue.path == ["messages"] and issue.code == "too_big" for issue in read):
                    surface.metrics.count_limit_hit("agentpipe.upload_messages")
                return json_answer(issues_body("documented", read), 400)
            del value, raw
            return await self._store(read, drawn, principal)

    async def _store(self, upload: Upload, drawn: str, principal: Principal) -> Response:
        surface = self._surface
        conversation = _id_of(upload, drawn)
        existing = await self._find_existing(upload, conversation)
        if existing:
            return _duplicate(existing)
        stream = stream_of(conversation)
        surface.streams.require(principal, "publish", stream)
        await surface.ensure_stream(stream, conversation, principal)
        objects = await surface.in_thread(partial(_packets_of, upload, conversation))
        ask = Ask(stream, principal, "application/json", (), "", expected_sequence=0)
        try:
            given = await surface.publisher.submit(ask, objects, atomic=True)
        except (SequenceMismatch, IdReused):
            return _duplicate(conversation)
        if given.duplicates:
            return _duplicate(conversation)
        return json_answer(_answer_of(upload, conversation), 201)

    async def _find_existing(self, upload: Upload, conversation: str) -> str:
        """The session that is there already, "" for none. Checkpoint."""
        log = self._surface.log
        for id in (conversation, upload.original_id):
            stream = log.find_stream(stream_of(id)) if id else None
            if stream is not None and stream.head_sequence:
                return id
        if not upload.original_id:
            return ""
        await self._surface.catch_up()
        return await log.read(partial(find_original, original_id=upload.original_id)) or ""


def _id_of(upload: Upload, drawn: str) -> str:
    """The client's own id in the web server's shape; else one that is the same for the same `originalId`."""
    if not upload.original_id:
        return drawn
    return cuid_of(b"upload:" + upload.original_id.encode()) if upload.is_documented else upload.original_id


def _packets_of(upload: Upload, conversation: str) -> list[bytes]:
    """What goes into the log: how it began and ended, then every message."""
    replace = msgspec.structs.replace
    ended = None if upload.ended is None else replace(upload.ended, conversation=conversation)
    header = Header(replace(upload.started, conversation=conversation), ended, upload.original_id)
    packets = [_packet(HEADER_TYPE, HEADER_TYPE, header)]
    for message in upload.messages:
        own = replace(message, conversation=conversation)
        packets.append(_packet(f"{MESSAGE_TYPE}:{message.id}", MESSAGE_TYPE, own))
    return packets


def _packet(id: str, kind: str, data: Header | Message) -> bytes:
    return _encode({"id": id, "type": kind, "data": data})


def _answer_of(upload: Upload, conversation: str) -> dict[str, Any]:
    body = {
        "success": True, "conversationId": conversation, "messagesCreated": len(upload.messages),
        "participantsCreated": len(upload.started.agents),
        "totalTokens": sum(whole(message.tokens) for message in upload.messages),
        "totalCost": sum(pico(message.cost) for message in upload.messages) / PICO,
    }  # fmt: skip
    return body if upload.is_documented else {"conversation_id": conversation, **body}


def _duplicate(existing: str) -> Response:
    body = {
        "error": "Duplicate upload", "message": "This session was uploaded, or streamed, before",
        "existingConversationId": existing,
    }  # fmt: skip
    return json_answer(body, 409)

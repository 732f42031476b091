"""Requests to a node's AgentPipe surface, whose errors aren't problems: `{"error", "message"}`."""

from collections.abc import Sequence
from typing import Any

import msgspec

from overlayd.client.calls import JSON, NDJSON, Answer, Call, decoder_of
from overlayd.client.problems import error_of_answer
from overlayd.model.errors import (
    BadRequest,
    BodyTooLarge,
    Forbidden,
    IntakeBusy,
    LimitReached,
    NotFound,
    OverlaydError,
    Unauthorized,
)


class EventResult(msgspec.Struct, kw_only=True):
    """What became of one event."""

    status: int
    type: str = ""
    error: str = ""
    message: str = ""
    field: str = ""


class IngestBody(msgspec.Struct):
    """What became of several."""

    accepted: int
    rejected: int
    results: list[EventResult]


class UploadBody(msgspec.Struct, rename="camel"):
    """An uploaded session, or the one that was there already."""

    conversation_id: str = ""
    messages_created: int = 0
    existing_conversation_id: str = ""


class RebuildBody(msgspec.Struct):
    """How far the log goes from which the sessions are made again."""

    head: int


class _Worded(msgspec.Struct):
    error: str = ""
    message: str = ""


_INGEST = decoder_of(IngestBody)
_UPLOAD = decoder_of(UploadBody)
_REBUILD = decoder_of(RebuildBody)
_HEALTH = decoder_of(dict[str, Any])
_OFF_HINT = "the node must run with [agentpipe] enabled = true"


class _AgentPipeCall(Call[Any], frozen=True):
    """`taken`: statuses beside those below 300 whose bodies are answers, not errors."""

    taken: tuple[int, ...] = ()

    def read(self, answer: Answer) -> Any:
        if answer.status < 300 or (answer.status in self.taken and b'"results"' in answer.body) or answer.status == 409:
            return self.parse(answer)
        if "problem" in answer.headers.get("content-type", ""):
            if answer.status == 404:
                raise NotFound("there is no AgentPipe surface here", subject=self.path, hint=_OFF_HINT)
            raise error_of_answer(answer.status, answer.headers, answer.body)
        raise _error_of(answer)


def ingest(events: Sequence[bytes]) -> Call[IngestBody]:
    """Events, each on a line of its own."""
    return _AgentPipeCall(
        "POST", "/api/ingest", _INGEST, headers=(("Content-Type", NDJSON),), content=b"\n".join(events),
        taken=(400, 403, 404, 413, 429, 503),
    )  # fmt: skip


def upload_session(body: bytes) -> Call[UploadBody]:
    """A finished session."""
    return _AgentPipeCall("POST", "/api/sessions/upload", _UPLOAD, headers=(("Content-Type", JSON),), content=body)


def rebuild_sessions() -> Call[RebuildBody]:
    """Has the node make its sessions again from the log."""
    return _AgentPipeCall("POST", "/api/sessions/rebuild", _REBUILD)


def health() -> Call[dict[str, Any]]:
    """How the surface is doing."""
    return _AgentPipeCall("GET", "/api/health", _HEALTH)


def _error_of(answer: Answer) -> OverlaydError:
    try:
        worded = msgspec.json.decode(answer.body, type=_Worded)
    except msgspec.DecodeError:
        worded = _Worded()
    detail = worded.message or worded.error or f"status {answer.status}"
    text = answer.headers.get("retry-after", "")
    retry_after_s = float(text) if text.isascii() and text.isdigit() else None
    kinds: dict[int, type[OverlaydError]] = {
        401: Unauthorized, 403: Forbidden, 404: NotFound, 413: BodyTooLarge, 429: LimitReached, 503: IntakeBusy,
    }  # fmt: skip
    kind = kinds.get(answer.status, BadRequest if answer.status < 500 else OverlaydError)
    return kind(detail, retry_after_s=retry_after_s)

"""AgentPipe's routes in the served OpenAPI document. A test holds them against the routes."""

from typing import Any

from overlayd.dialects.agentpipe.export import FORMATS
from overlayd.dialects.agentpipe.facts import STATUSES
from overlayd.dialects.agentpipe.queries import SORTS
from overlayd.net.operations import BOOLEAN, INTEGER, JSON, TEXT, Answer, Operation, Parameter, query_of

TAG = "agentpipe"
OBJECT: dict[str, Any] = {"type": "object"}
ERROR: dict[str, Any] = {
    "type": "object", "required": ["error"],
    "properties": {
        "error": TEXT, "message": TEXT, "field": TEXT, "retryAfter": INTEGER, "conversationId": TEXT,
        "existingConversationId": TEXT, "details": {},
    },
}  # fmt: skip
_ID = Parameter("id", "path", "Id of the conversation", TEXT, True)
_PAGE = (query_of("page", "From 1", INTEGER), query_of("limit", "Rows on a page", INTEGER))
_DATES = (query_of("startDate", "Created at or after"), query_of("endDate", "Created at or before"))
_LIST = (
    *_PAGE, query_of("status", "Status", {"enum": list(STATUSES)}), query_of("mode", "Mode"),
    query_of("source", "cli-stream or upload"), query_of("agentType", "With such an agent"),
    query_of("model", "With such a model"), *_DATES, query_of("sort", "Order", {"enum": list(SORTS)}),
    query_of("order", "Direction", {"enum": ["asc", "desc"]}),
)  # fmt: skip
_STREAM = (
    query_of("conversationId", "Events of one conversation; conversation_id is the same"),
    query_of("lastEventId", "As the header Last-Event-ID"), query_of("ticket", "Opens it in place of a key"),
)  # fmt: skip
_EVENTS = {"text/event-stream": TEXT}


def _read(path: str, summary: str, *parameters: Parameter, content: dict[str, Any] | None = None) -> Operation:
    return Operation(
        "get", path, summary, TAG, (Answer(200, "Found", content or {JSON: OBJECT}),), parameters,
        errors=(400, 401, 403, 404, 429), right="read", error_schema=ERROR,
    )  # fmt: skip


def _post(path: str, summary: str, answers: tuple[Answer, ...], right: str, request: dict[str, Any]) -> Operation:
    return Operation(
        "post", path, summary, TAG, answers, (), request, (400, 401, 403, 404, 409, 413, 429, 503), right,
        error_schema=ERROR,
    )  # fmt: skip


_FILE = {JSON: OBJECT, "text/csv": TEXT, "text/markdown": TEXT}
_FORMAT = query_of("format", "Form of the file", {"enum": list(FORMATS)})
_SPEED = query_of(
    "speed", "So many times as fast; 0: without pauses", {"type": "number", "minimum": 0, "maximum": 1000}
)
OPERATIONS: tuple[Operation, ...] = (
    _post(
        "/api/ingest", "Take events of AgentPipe's client; answered when they are durable",
        (
            Answer(200, "Taken", {JSON: OBJECT}), Answer(201, "Taken; something new began", {JSON: OBJECT}),
            Answer(207, "Some of several were taken", {JSON: OBJECT}),
        ),
        "publish", {JSON: {"anyOf": [OBJECT, {"type": "array", "items": OBJECT}]}, "application/x-ndjson": TEXT},
    ),
    _post(
        "/api/sessions/upload", "Take a finished session, whole or not at all", (Answer(201, "Taken", {JSON: OBJECT}),),
        "publish", {JSON: OBJECT},
    ),
    _post(
        "/api/sessions/rebuild", "Make the sessions again from the log", (Answer(200, "Begun", {JSON: OBJECT}),),
        "admin", {},
    ),
    _post(
        "/api/search", "Find sessions by their words", (Answer(200, "Found", {JSON: OBJECT}),), "read", {JSON: OBJECT}
    ),
    _read("/api/search", "What can be searched by", query_of("type", "Which", {"enum": ["agents", "models"]})),
    _read("/api/sessions", "List sessions", *_LIST),
    _read(
        "/api/sessions/{id}", "One session", _ID, query_of("includeMessages", "With messages", BOOLEAN),
        query_of("messageLimit", "At most so many", INTEGER),
    ),
    _read("/api/sessions/{id}/export", "A session as a file", _ID, _FORMAT, content=_FILE),
    _read("/api/sessions/{id}/replay", "A session at its own pace", _ID, _SPEED, content=_EVENTS),
    _read("/api/conversations", "List sessions as AgentPipe's page does", *_LIST),
    _read("/api/conversations/{id}", "One session as AgentPipe's page shows it", _ID),
    _read("/api/conversations/{id}/messages", "Messages by their times", _ID, *_PAGE),
    _read("/api/conversations/{id}/export", "A session as a file", _ID, _FORMAT, content=_FILE),
    _read("/api/conversations/{id}/replay", "A session at its own pace", _ID, _SPEED, content=_EVENTS),
    _read(
        "/api/messages/recent", "The newest messages", query_of("limit", "At most 50", INTEGER),
        query_of("status", "Of sessions with it", {"enum": list(STATUSES)}),
    ),
    _read("/api/metrics/summary", "Sums over sessions", *_DATES),
    _read("/api/realtime/stats", "How many listen"),
    _read("/api/realtime/stream", "Events live, with the documents' first frame", *_STREAM, content=_EVENTS),
    _read("/api/stream", "Events live, with the page's first frame", *_STREAM, content=_EVENTS),
    Operation(
        "get", "/api/health", "Whether all is well; needs no credential", TAG,
        (Answer(200, "Well, or behind", {JSON: OBJECT}), Answer(503, "Takes nothing now", {JSON: OBJECT})),
        error_schema=ERROR,
    ),
)  # fmt: skip

"""Answers in AgentPipe's words, errors among them: `{"error", …}` instead of problems."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from quart import Response

from overlayd.dialects.agentpipe.checks import Issue
from overlayd.dialects.agentpipe.events import Dialect
from overlayd.dialects.agentpipe.times import iso_ms
from overlayd.model.clock import Clock
from overlayd.model.errors import (
    Forbidden,
    IdReused,
    InvalidPacket,
    LimitReached,
    MalformedJson,
    OverlaydError,
    Rate,
    Unauthorized,
    UnusableJson,
)
from overlayd.net import problem

JSON = "application/json"
_WORDS = {
    403: "Forbidden", 404: "Not found", 405: "Method not allowed", 408: "Request timeout", 409: "Conflict",
    413: "Payload too large", 415: "Unsupported media type", 429: "Rate limit exceeded",
    503: "Service unavailable", 507: "Storage full",
}  # fmt: skip
_encode = msgspec.json.Encoder().encode


class Answered(Exception):
    """An answer that ends a request before its time."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status_code)
        self.response = response


def json_answer(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(_encode(body), status=status, content_type=JSON, headers=dict(headers or {}))


def issues_body(dialect: Dialect, issues: Sequence[Issue]) -> dict[str, Any]:
    """What is wrong with an event or an upload; `error` as the dialect's own server words it."""
    first = issues[0]
    return {
        "error": "Invalid event format" if dialect == "wire" else "Validation failed",
        "message": first.message, "field": first.field, "details": list(issues),
    }  # fmt: skip


def unknown_conversation(conversation: str) -> dict[str, Any]:
    """There is none, or none that the asker may see."""
    return {"error": "Conversation not found", "conversationId": conversation}


def error_body(error: OverlaydError) -> dict[str, Any]:
    """An error of the node's in AgentPipe's words; `message` holds the node's."""
    message = f"{error.detail} ({error.hint})" if error.hint else error.detail
    if isinstance(error, Unauthorized):
        is_known = error.subject != "Authorization"
        details = "Invalid API key" if is_known else "Missing or invalid authorization header"
        return {"error": "Unauthorized", "message": message, "details": details}
    if isinstance(error, LimitReached):
        return {"error": "Rate limit exceeded", "retryAfter": _wait_s(error), "message": message}
    if isinstance(error, IdReused):
        return {"error": "Duplicate id", "message": message}
    if isinstance(error, (MalformedJson, UnusableJson, InvalidPacket)):
        issues = [Issue(one.code, list(one.pointer.split("/")[1:]), one.detail) for one in error.violations]
        issues = issues or [Issue(error.code, [], error.detail)]
        return issues_body("wire", issues)
    word = _WORDS.get(error.status, "Failed to process event" if error.status >= 500 else error.title)
    if isinstance(error, Forbidden):
        word = "Forbidden"
    return {"error": word, "message": message}


def error_headers(error: OverlaydError, clock: Clock) -> dict[str, str]:
    """What goes with the error's status."""
    headers: dict[str, str] = {}
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="overlayd"'
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(_wait_s(error))
    if isinstance(error, LimitReached) and error.rate is not None:
        headers |= rate_headers(error.rate, clock)
    return headers


def error_answer(error: OverlaydError, clock: Clock) -> Response:
    """The whole answer."""
    return json_answer(error_body(error), status_of(error), error_headers(error, clock))


def status_of(error: OverlaydError) -> int:
    """The status that AgentPipe's API has for it: its client tries nothing again below 500."""
    if isinstance(error, IdReused):
        return 409
    return 400 if isinstance(error, (MalformedJson, UnusableJson, InvalidPacket)) else error.status


def rate_headers(rate: Rate, clock: Clock) -> dict[str, str]:
    """What AgentPipe's documents say about a rate's headers, and what the node says of it everywhere else."""
    reset_us = clock.now_us() + math.ceil(rate.reset_s * 1_000_000)
    return {
        "X-RateLimit-Limit": str(rate.quota), "X-RateLimit-Remaining": str(rate.remaining),
        "X-RateLimit-Reset": iso_ms(reset_us), **dict(problem.rate_headers(rate)),
    }  # fmt: skip


def _wait_s(error: OverlaydError) -> int:
    return max(1, math.ceil(error.retry_after_s or 1))

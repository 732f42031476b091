"""Problem bodies (RFC 9457) back into the errors that the node raised."""

from typing import Any

import msgspec

from overlayd.model.errors import ApiProblem, OverlaydError, UnexpectedAnswer, error_classes
from overlayd.model.wire import ErrorMessage, Problem

_SHOWN_CHARS = 200


def error_of_answer(status: int, headers: dict[str, str], body: bytes) -> OverlaydError:
    """The error that an answer with `status` >= 400 stands for. Header names are lower case."""
    try:
        problem = _PROBLEM.decode(body)
        members = msgspec.json.decode(body)
    except msgspec.DecodeError:
        shown = body[:_SHOWN_CHARS].decode("utf-8", "replace").strip()
        kind = headers.get("content-type", "no content type")
        return UnexpectedAnswer(
            f"status {status} ({kind}) without a problem body: {shown}", hint="is this an overlayd node's address?"
        )
    known = set(Problem.__struct_fields__) - {"instance"}
    return error_of_code(
        problem.code,
        problem.detail,
        status=problem.status,
        is_retryable=problem.retryable,
        subject=problem.subject or "",
        hint=problem.hint or "",
        violations=problem.errors or (),
        retry_after_s=_seconds_of(headers.get("retry-after")),
        extra={name: value for name, value in members.items() if name not in known},
    )


def error_of_message(message: ErrorMessage) -> OverlaydError:
    """The error that an `error` message of a live connection stands for."""
    return error_of_code(
        message.code, message.detail, status=500, is_retryable=message.retryable, violations=message.errors or ()
    )


def error_of_code(code: str, detail: str, *, status: int, is_retryable: bool, **rest: Any) -> OverlaydError:
    """An instance of the class that has this code; ApiProblem when none has."""
    kind = _CLASSES.get(code)
    if kind is None:
        return ApiProblem(detail, given_code=code, given_status=status, is_retryable=is_retryable, **rest)
    return kind(detail, **rest)


def _seconds_of(text: str | None) -> float | None:
    """Retry-After in seconds; its date form isn't used by the API."""
    return float(text) if text is not None and text.isascii() and text.isdigit() else None


_PROBLEM = msgspec.json.Decoder(Problem)
_CLASSES = {kind.code: kind for kind in error_classes() if not kind.code.startswith("client.")}

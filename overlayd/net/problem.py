"""Errors as RFC 9457 problem bodies, and the headers that every answer carries."""

import math
from collections.abc import Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import TypeAlias

import msgspec
from msgspec import UNSET

from overlayd.model.errors import LimitReached, OverlaydError, Rate
from overlayd.model.wire import Problem, encode_wire

Words: TypeAlias = tuple[bytes, list[tuple[str, str]]]
"""An error's body and headers as an outside system words them."""

PROBLEM_TYPE = "application/problem+json"
DOCS_PATH = "/docs/errors"
_RETRY_AFTER_S = {429: 1, 503: 1, 507: 10}
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"cache-control", b"no-store"),
)


def problem_body(error: OverlaydError, request_id: str) -> bytes:
    """The error as problem JSON. Members of `error.extra` stand beside the standard ones."""
    problem = Problem(
        type=f"{DOCS_PATH}#{error.code}",
        title=error.title,
        status=error.status,
        detail=error.detail,
        instance=request_id,
        code=error.code,
        retryable=error.retryable,
        subject=error.subject or UNSET,
        hint=error.hint or UNSET,
        errors=list(error.violations) or UNSET,
    )
    body = encode_wire(problem)
    return body[:-1] + b"," + msgspec.json.encode(error.extra)[1:] if error.extra else body


def problem_headers(error: OverlaydError) -> list[tuple[str, str]]:
    """What the error's status demands besides the content type."""
    headers = [("content-type", PROBLEM_TYPE)]
    retry_after_s = _RETRY_AFTER_S.get(error.status) if error.retry_after_s is None else error.retry_after_s
    if retry_after_s is not None:
        headers.append(("retry-after", str(max(1, math.ceil(retry_after_s)))))
    if isinstance(error, LimitReached) and error.rate is not None:
        headers += rate_headers(error.rate)
    if error.status == 401:
        headers.append(("www-authenticate", 'Bearer realm="overlayd"'))
    if "allow" in error.extra:
        headers.append(("allow", ", ".join(error.extra["allow"])))
    return headers


def rate_headers(rate: Rate) -> list[tuple[str, str]]:
    """What an answer says about a rate (draft-ietf-httpapi-ratelimit-headers)."""
    return [
        ("ratelimit-policy", f'"{rate.name}";q={rate.quota};w={rate.window_s}'),
        ("ratelimit", f'"{rate.name}";r={rate.remaining};t={math.ceil(rate.reset_s)}'),
    ]


def complete_headers(headers: list[tuple[bytes, bytes]], request_id: str) -> list[tuple[bytes, bytes]]:
    """The answer's headers with the request id and with those security headers that it doesn't set itself."""
    present = {name.lower() for name, _ in headers}
    headers.append((b"x-request-id", request_id.encode("ascii")))
    headers.extend(pair for pair in _SECURITY_HEADERS if pair[0] not in present)
    return headers


def plain_answer(
    error: OverlaydError, request_id: str, *, is_head: bool = False, more: Iterable[tuple[bytes, bytes]] = (),
    words: Words | None = None,
) -> bytes:  # fmt: skip
    """A whole HTTP/1.1 answer that ends the connection, for errors that no application sees. `more`: further headers.
    `words`: what is told instead of a problem."""
    body, named = words or (problem_body(error, request_id), problem_headers(error))
    headers = [(name.encode("ascii"), value.encode("latin-1")) for name, value in named]
    headers += [
        (b"content-length", str(len(body)).encode("ascii")),
        (b"date", formatdate(usegmt=True).encode("ascii")),
        (b"connection", b"close"),
        *more,
    ]
    reason = HTTPStatus(error.status).phrase
    lines = [f"HTTP/1.1 {error.status} {reason}".encode("ascii")]
    lines += [name + b": " + value for name, value in complete_headers(headers, request_id)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + (b"" if is_head else body)

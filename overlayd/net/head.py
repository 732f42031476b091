"""Request heads (RFC 9112), read strictly: what two parsers could read differently is refused.

Sans-IO. The door looks for the end of a head and parses it before Hypercorn or anything else sees a byte,
so that the bytes that decide where a message ends mean one thing only (no request smuggling).
"""

import re

import msgspec

from overlayd.model.errors import (
    BadRequest,
    HeadTooLarge,
    LengthRequired,
    MethodNotAllowed,
    NotSupported,
)
from overlayd.model.limits import Limits

H2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
HEAD_END = b"\r\n\r\n"
_CUT_FROM_REST = frozenset((b"upgrade", b"http2-settings", b"te", b"keep-alive", b"proxy-connection", b"connection"))
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_HEADER = re.compile(rb"(" + _TOKEN + rb"):[ \t]*(.*?)[ \t]*", re.DOTALL)
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)|(?<!\r)\n")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#@]+)([/?].*)?")
_AUTHORITY = re.compile(rb"(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+)(?::[0-9]{1,5})?")
_LABELS = re.compile(rb"\[.*|[^.:]{1,63}(?:\.[^.:]{1,63})*\.?(?::.*)?")
_LENGTH = re.compile(rb"[0-9]{1,18}")


class Head(msgspec.Struct, frozen=True):
    """A request's head. Header names are in lower case; `raw` are the bytes as they came, to the empty line.

    `path` and `query` are as sent (percent-encoded), from an absolute target too, whose authority
    replaced the Host. `content_length` is None without the header; `is_chunked` excludes it.
    """

    raw: bytes
    method: str
    path: str
    query: str
    version: str
    headers: tuple[tuple[bytes, bytes], ...]
    content_length: int | None = None
    is_chunked: bool = False

    def get(self, name: bytes) -> str | None:
        """The first header of the name, None without one."""
        for known, value in self.headers:
            if known == name:
                return value.decode("latin-1")
        return None

    def has_token(self, name: bytes, token: str) -> bool:
        """Whether a comma-separated header lists the token."""
        return any(
            part.strip().lower() == token
            for known, value in self.headers
            if known == name
            for part in value.decode("latin-1").split(",")
        )

    @property
    def is_websocket(self) -> bool:
        return (
            self.method == "GET"
            and self.has_token(b"upgrade", "websocket")
            and self.has_token(b"connection", "upgrade")
        )

    @property
    def has_body(self) -> bool:
        return self.is_chunked or bool(self.content_length)


def find_head(buffer: bytes | bytearray, start: int, limits: Limits) -> int:
    """Index behind the head's end in the buffer, or -1 while it isn't there.

    `start`: how much of the buffer an earlier call looked at. Raises what `parse_head` would raise for
    bytes that no head can begin with or hold, so that they needn't wait for its end.
    """
    if len(buffer) >= 3 and buffer[:14] == H2_PREFACE[: min(len(buffer), 14)]:
        raise NotSupported(
            "this port speaks HTTP/1.1; the connection began with the preface of HTTP/2", subject="HTTP/2",
            hint="turn off HTTP/2 with prior knowledge; behind a proxy, let it speak HTTP/1.1 upstream",
        )  # fmt: skip
    if buffer[:1] == b"\x16":
        raise BadRequest("this looks like TLS, and the port speaks plain HTTP", hint="use http:// instead of https://")
    end = buffer.find(HEAD_END, max(0, start - 3))
    seen = len(buffer) if end < 0 else end + 4
    bad = _CONTROL.search(buffer, max(0, start - 1), seen)
    if bad is not None and not (end < 0 and bad.start() == seen - 1 and buffer[-1:] == b"\r"):
        raise BadRequest(
            "the head holds a control character or a bare CR or LF",
            hint="lines end with CR LF; names and values hold no other control characters than tabs",
        )  # fmt: skip
    if seen > limits.head_bytes:
        raise HeadTooLarge(f"the request's head is over {limits.head_bytes} bytes", subject="head_bytes")
    return -1 if end < 0 else seen


def parse_head(raw: bytes, limits: Limits) -> Head:
    """The head, checked. `raw` ends with the empty line and went through `find_head`. Raises OverlaydErrors."""
    lines = raw[:-4].split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(lines[0])
    if match is None:
        raise BadRequest("the request line can't be read", subject=lines[0][:80].decode("latin-1"))
    if len(lines) - 1 > limits.head_lines:
        raise HeadTooLarge(f"the request has over {limits.head_lines} header lines", subject="head_lines")
    method, target, major, minor = match.groups()
    if major != b"1" or minor not in b"01":
        raise NotSupported(f"HTTP/{major.decode()}.{minor.decode()} isn't spoken here", hint="use HTTP/1.1")
    headers = [_parse_header(line) for line in lines[1:]]
    path, query, authority = _split_target(method, target)
    headers = _with_one_host(headers, authority, is_optional=minor == b"0")
    length, is_chunked = _framing(headers, minor)
    if method in (b"GET", b"HEAD") and (is_chunked or length):
        raise BadRequest(f"a {method.decode()} request takes no body", subject="Content-Length")
    if path == "*" and (is_chunked or length):  # nobody would read it, and the next request would begin inside it
        raise BadRequest("OPTIONS * takes no body here", subject="Content-Length")
    return Head(
        raw=raw, method=method.decode(), path=path, query=query, version=f"1.{minor.decode()}",
        headers=tuple(headers), content_length=length, is_chunked=is_chunked,
    )  # fmt: skip


def rebuild_head(head: Head) -> bytes:
    """The head for Hypercorn: origin-form target, and nothing that asks for another protocol.

    `Upgrade: h2c` is what some clients send with every request; ignoring it is always allowed (RFC 9110
    7.8). Hop-by-hop headers that mean nothing to the application go too.
    """
    target = head.path + (f"?{head.query}" if head.query else "")
    parts = [f"{head.method} {target} HTTP/{head.version}\r\n".encode("latin-1")]
    for name, value in head.headers:
        if name not in _CUT_FROM_REST:
            parts.append(name + b": " + value + b"\r\n")
    if head.has_token(b"connection", "close"):
        parts.append(b"connection: close\r\n")
    parts.append(b"\r\n")
    return b"".join(parts)


def _parse_header(line: bytes) -> tuple[bytes, bytes]:
    match = _HEADER.fullmatch(line)
    if match is None:
        is_folded = line[:1] in (b" ", b"\t")
        raise BadRequest(
            "a header is folded over several lines" if is_folded else "a header line can't be read",
            subject=line[:80].decode("latin-1"),
        )  # fmt: skip
    return match[1].lower(), match[2]


def _split_target(method: bytes, target: bytes) -> tuple[str, str, bytes | None]:
    """Path, query, and the authority of an absolute target. Methods are told apart by case (RFC 9110 9.1); what comes
    behind would take `get` for `GET`."""
    authority = None
    if method in (b"CONNECT", b"TRACE") or method != method.upper():
        raise MethodNotAllowed(
            f"{method.decode()} isn't answered here", subject=method.decode(), extra={"allow": list(METHODS)}
        )
    if target == b"*" and method == b"OPTIONS":
        return "*", "", None
    if not target.startswith(b"/"):
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None:
            raise BadRequest("the request's target isn't a path", subject=target[:80].decode("latin-1"))
        authority, target = absolute[1], absolute[2] or b"/"
        if target.startswith(b"?"):
            target = b"/" + target
    if b"#" in target:
        raise BadRequest("the request's target has a fragment", subject=target[:80].decode("latin-1"))
    path, _, query = target.decode("ascii").partition("?")
    return path, query, authority


def _with_one_host(
    headers: list[tuple[bytes, bytes]], authority: bytes | None, *, is_optional: bool
) -> list[tuple[bytes, bytes]]:
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1:
        raise BadRequest("there is more than one Host header", subject="Host")
    if not hosts and not is_optional:
        raise BadRequest("the Host header is missing", subject="Host")
    for value in (*hosts, *(() if authority is None else (authority,))):
        if _AUTHORITY.fullmatch(value) is None or _LABELS.fullmatch(value) is None:
            raise BadRequest("the Host isn't a name or address with an optional port", subject="Host")
    if authority is None:
        return headers
    return [(b"host", authority), *((name, value) for name, value in headers if name != b"host")]


def _framing(headers: list[tuple[bytes, bytes]], minor: bytes) -> tuple[int | None, bool]:
    """Content length and whether the body is chunked; a request that says it twice or both ways is refused."""
    lengths = [value for name, value in headers if name == b"content-length"]
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if codings:
        if lengths:
            raise LengthRequired("the request has both Content-Length and Transfer-Encoding", subject="Content-Length")
        if len(codings) > 1 or codings[0].lower() != b"chunked" or minor == b"0":
            raise LengthRequired(
                "the request's Transfer-Encoding isn't exactly chunked (in HTTP/1.1)", subject="Transfer-Encoding"
            )
        return None, True
    if len(lengths) > 1 or (lengths and _LENGTH.fullmatch(lengths[0]) is None):
        raise LengthRequired("the request's Content-Length isn't one number", subject="Content-Length")
    return (int(lengths[0]) if lengths else None), False

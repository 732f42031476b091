"""Request heads: what is read, and what is refused because two parsers could read it differently."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.errors import (
    BadRequest,
    HeadTooLarge,
    LengthRequired,
    MethodNotAllowed,
    NotSupported,
    OverlaydError,
)
from overlayd.model.limits import Limits
from overlayd.net.head import Head, find_head, parse_head, rebuild_head

LIMITS = Limits()


def _parse(text: bytes) -> Head:
    end = find_head(text, 0, LIMITS)
    assert end > 0
    return parse_head(text[:end], LIMITS)


def _post(*headers: bytes, version: bytes = b"1.1") -> bytes:
    lines = [b"POST /v1/streams/a/data HTTP/" + version, b"Host: localhost", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def test_plain_head() -> None:
    """A head gives method, path, query, version, headers in lower case and its exact bytes."""
    raw = b"GET /a%20b?x=1&y HTTP/1.1\r\nHost: localhost:7878\r\nX-Thing: \t a b \t\r\n\r\n"
    head = _parse(raw + b"body")
    assert (head.method, head.path, head.query, head.version) == ("GET", "/a%20b", "x=1&y", "1.1")
    assert head.headers == ((b"host", b"localhost:7878"), (b"x-thing", b"a b"))
    assert head.raw == raw
    assert not head.has_body


def test_incomplete_head() -> None:
    """Every cut of a head is asked to go on, never refused."""
    raw = _post(b"Content-Length: 3", b"X-Long: " + b"v" * 200)
    for end in range(len(raw)):
        assert find_head(raw[:end], 0, LIMITS) == -1
        assert find_head(raw[:end], max(0, end - 1), LIMITS) == -1
    assert find_head(raw, len(raw) - 1, LIMITS) == len(raw)


def test_absolute_target() -> None:
    """An absolute target's authority replaces the Host, as RFC 9112 3.2.2 asks."""
    head = _parse(b"GET http://evil.example:80/v1?x HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (head.path, head.query, head.get(b"host")) == ("/v1", "x", "evil.example:80")
    assert _parse(b"GET http://a.example?x HTTP/1.1\r\nHost: a\r\n\r\n").path == "/"


def test_http_1_0_without_host() -> None:
    """Clients of HTTP/1.0 may leave the Host out."""
    assert _parse(b"GET / HTTP/1.0\r\n\r\n").get(b"host") is None


def test_framing() -> None:
    """A body's length comes from one Content-Length or from chunks."""
    assert _parse(_post(b"Content-Length: 12")).content_length == 12
    assert _parse(_post(b"Transfer-Encoding: Chunked")).is_chunked
    assert _parse(_post()).content_length is None


def test_rebuilt_head_drops_other_protocols() -> None:
    """What goes to Hypercorn asks for no other protocol, and keeps the wish to close."""
    head = _parse(
        _post(b"Upgrade: h2c", b"HTTP2-Settings: !!", b"Connection: Upgrade, HTTP2-Settings, close", b"X-Kept: 1")
    )
    assert rebuild_head(head) == (
        b"POST /v1/streams/a/data HTTP/1.1\r\nhost: localhost\r\nx-kept: 1\r\nconnection: close\r\n\r\n"
    )


def test_websocket_is_seen() -> None:
    """Only a GET whose Upgrade and Connection both say so is a WebSocket handshake."""
    upgrade = b"Host: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert _parse(b"GET /v1/live HTTP/1.1\r\n" + upgrade).is_websocket
    assert not _parse(b"POST /v1/live HTTP/1.1\r\n" + upgrade).is_websocket
    assert not _parse(b"GET /v1/live HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n").is_websocket


SMUGGLING = {
    "two lengths": _post(b"Content-Length: 5", b"Content-Length: 6"),
    "the same length twice": _post(b"Content-Length: 5", b"Content-Length: 5"),
    "a list of lengths": _post(b"Content-Length: 5, 5"),
    "a signed length": _post(b"Content-Length: +5"),
    "a negative length": _post(b"Content-Length: -5"),
    "a hexadecimal length": _post(b"Content-Length: 0x5"),
    "an underscored length": _post(b"Content-Length: 1_0"),
    "an empty length": _post(b"Content-Length: "),
    "an endless length": _post(b"Content-Length: " + b"9" * 30),
    "length and chunks": _post(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "chunks and length": _post(b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    "two codings": _post(b"Transfer-Encoding: gzip, chunked"),
    "two coding headers": _post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "an unknown coding": _post(b"Transfer-Encoding: xchunked"),
    "identity": _post(b"Transfer-Encoding: identity"),
    "chunks with a vertical tab": _post(b"Transfer-Encoding: \x0bchunked"),
    "chunks in HTTP/1.0": _post(b"Transfer-Encoding: chunked", version=b"1.0"),
    "space before the colon": _post(b"Content-Length : 5"),
    "tab before the colon": _post(b"Transfer-Encoding\t: chunked"),
    "space before the name": _post(b" Content-Length: 5"),
    "a folded line": _post(b"X-A: b", b" Content-Length: 5"),
    "no colon": _post(b"Content-Length 5"),
    "an empty name": _post(b": 5"),
    "a NUL in a value": _post(b"X-A: b\x00c"),
    "a NUL in a name": _post(b"X-\x00A: b"),
    "a bare CR in a value": _post(b"X-A: b\rContent-Length: 5"),
    "a bare LF between lines": b"POST / HTTP/1.1\r\nHost: a\nContent-Length: 5\r\n\r\n",
    "bare LFs only": b"POST / HTTP/1.1\nHost: a\n\n",
    "a name that isn't ASCII": _post("Content-Längth: 5".encode()),
    "two hosts": _post(b"Host: evil.example"),
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "a host with a path": b"GET / HTTP/1.1\r\nHost: localhost/evil\r\n\r\n",
    "a host with a user": b"GET / HTTP/1.1\r\nHost: localhost@evil.example\r\n\r\n",
    "a list of hosts": b"GET / HTTP/1.1\r\nHost: localhost, evil.example\r\n\r\n",
    "two spaces in the request line": b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a tab in the request line": b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "a trailing space in the request line": b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
    "a lower-case protocol": b"GET / http/1.1\r\nHost: a\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "a target that isn't ASCII": b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
    "a target that isn't a path": b"GET v1 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a fragment": b"GET /#a HTTP/1.1\r\nHost: a\r\n\r\n",
    "an authority with a user": b"GET http://a@b/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "a GET with a body": b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
    "a GET with chunks": b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
}


@pytest.mark.parametrize("raw", SMUGGLING.values(), ids=SMUGGLING.keys())
def test_ambiguous_heads_are_refused(raw: bytes) -> None:
    """A head that could hide a second request is 400."""
    with pytest.raises((BadRequest, LengthRequired)):
        _parse(raw)


def test_other_protocols_are_refused() -> None:
    """HTTP/2's preface, other versions, TLS and proxy methods each get their own answer."""
    for raw in (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", b"GET / HTTP/3.1\r\n\r\n"):
        with pytest.raises(NotSupported):
            _parse(raw)
    with pytest.raises(NotSupported):
        find_head(b"PRI * HT", 0, LIMITS)
    with pytest.raises(BadRequest, match="TLS"):
        find_head(b"\x16\x03\x01", 0, LIMITS)
    for method in (b"CONNECT a:1", b"TRACE /"):
        with pytest.raises(MethodNotAllowed):
            _parse(method + b" HTTP/1.1\r\nHost: a\r\n\r\n")


def test_head_limits() -> None:
    """Heads over `head_bytes`, complete or not, and over `head_lines` are 431."""
    limits = Limits(head_lines=3)
    with pytest.raises(HeadTooLarge):
        find_head(b"GET / HTTP/1.1\r\nX: " + b"a" * LIMITS.head_bytes, 0, LIMITS)
    with pytest.raises(HeadTooLarge):
        find_head(_post(b"X: " + b"a" * LIMITS.head_bytes), 0, LIMITS)
    with pytest.raises(HeadTooLarge):
        parse_head(_post(b"A: 1", b"B: 1", b"C: 1"), limits)


@given(st.binary(max_size=300) | st.binary(max_size=60).map(lambda noise: _post(noise)))
def test_noise_never_raises_anything_else(noise: bytes) -> None:
    """Whatever the bytes, there is a head, a wish for more, or one of our errors."""
    try:
        end = find_head(noise, 0, LIMITS)
        if end > 0:
            head = parse_head(noise[:end], LIMITS)
            assert find_head(rebuild_head(head), 0, LIMITS) == len(rebuild_head(head))
    except OverlaydError:
        pass

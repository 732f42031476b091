"""Compressed answers, for clients that say they take them."""

import gzip

import trio
from quart import Response, request
from werkzeug.http import parse_accept_header

from overlayd.net.app import answer

GZIP_MIN_BYTES = 1 << 10
"""Shorter answers hardly shrink."""
THREAD_BYTES = 64 << 10
"""Longer ones would hold the event loop for milliseconds."""
_LEVEL = 5
_VARY = "Accept-Encoding"


def takes_gzip(accept_encoding: str) -> bool:
    """Whether the header asks for gzip by name, or for anything (RFC 9110, 12.5.3). Without it nothing is compressed."""
    if not accept_encoding:
        return False
    wanted = parse_accept_header(accept_encoding)
    quality = wanted.quality("gzip")
    return quality > 0 and quality >= wanted.quality("identity")


async def packed_answer(body: bytes, limiter: trio.CapacityLimiter) -> Response:
    """The answer, its JSON body compressed if the client takes that and it is worth it. A checkpoint for long ones."""
    if len(body) < GZIP_MIN_BYTES or not takes_gzip(request.headers.get("Accept-Encoding", "")):
        return answer(body, vary=_VARY)
    if len(body) > THREAD_BYTES:
        body = await trio.to_thread.run_sync(_compress, body, limiter=limiter)
    else:
        body = _compress(body)
    return answer(body, vary=_VARY, content_encoding="gzip")


def _compress(body: bytes) -> bytes:
    return gzip.compress(body, _LEVEL, mtime=0)

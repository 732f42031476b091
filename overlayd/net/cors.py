"""Pages of other sites: which may use the API, and what every answer tells browsers because of it (CORS, HSTS).

Credentials that a browser adds by itself (cookies, client certificates) are never allowed across origins: a page shows
a key or a ticket. So a listed page can do what its visitor's key can do, and nothing by the visitor's mere presence.
"""

import re
from collections.abc import Callable, Iterable, Sequence

from quart_trio import QuartTrio

from overlayd.access import Peer
from overlayd.access.origin import is_loopback_address
from overlayd.model.errors import ConfigInvalid
from overlayd.net.head import METHODS, Head
from overlayd.net.settings import ListenSettings

HeaderPairs = tuple[tuple[bytes, bytes], ...]
MethodsOf = Callable[[str], Sequence[str]]
"""The methods that a path's route takes; none for a path without a route."""

PREFLIGHT_S = 600
"""How long a browser may remember what was allowed: as long as most of them do at all."""
REQUEST_HEADERS = frozenset(
    (
        "accept", "authorization", "cache-control", "content-encoding", "content-type", "idempotency-key", "if-match",
        "if-none-match", "last-event-id", "traceparent", "tracestate", "x-identity-key", "x-nonce", "x-request-id",
        "x-signature",
    )
)  # fmt: skip
REQUEST_PREFIXES = ("ce-", "x-bsv-")
ANSWER_HEADERS = (
    "etag", "location", "ratelimit", "ratelimit-policy", "retry-after", "x-bsv-auth-identity-key",
    "x-bsv-auth-message-type", "x-bsv-auth-nonce", "x-bsv-auth-request-id", "x-bsv-auth-requested-certificates",
    "x-bsv-auth-signature", "x-bsv-auth-version", "x-bsv-auth-your-nonce", "x-request-id",
)  # fmt: skip
"""Those that a page's script may read besides the few that it always may."""
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::([0-9]{1,5}))?", re.ASCII)
_TOKEN = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,100}", re.ASCII)
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_VARY = (b"vary", b"origin")
_REQUESTED_MAX = 50


def parse_origins(texts: Iterable[str]) -> frozenset[str]:
    """Origins as browsers write them. Raises ConfigInvalid; for `*` and `null` too, which name nobody."""
    return frozenset(_parse_origin(text) for text in texts)


def methods_of(app: QuartTrio) -> MethodsOf:
    """Asks the application's routes."""
    adapter = app.url_map.bind("localhost")
    return lambda path: sorted(adapter.allowed_methods(path))


class OriginHeaders:
    """What answers carry because of who asked from where. One for the node."""

    def __init__(self, settings: ListenSettings, methods_of: MethodsOf = lambda path: ()) -> None:
        """Raises ConfigInvalid."""
        self._origins = {origin.encode("ascii") for origin in parse_origins(settings.origins)}
        self._methods_of = methods_of
        exposed = (b"access-control-expose-headers", ", ".join(ANSWER_HEADERS).encode())
        self._by_origin: dict[bytes, HeaderPairs] = {
            origin: ((b"access-control-allow-origin", origin), exposed, _VARY) for origin in self._origins
        }
        self._for_others: HeaderPairs = (_VARY,) if self._origins else ()
        seconds = int(settings.hsts)
        self._hsts: HeaderPairs = ((b"strict-transport-security", b"max-age=%d" % seconds),) if seconds else ()

    def __repr__(self) -> str:
        return f"OriginHeaders(origins={len(self._origins)})"

    def of(self, head: Head, peer: Peer) -> HeaderPairs:
        """For the answer to this request, whatever it will be."""
        if not self._origins and not peer.is_tls:
            return ()
        # A browser that was told this by a node on its own machine would keep it for every other server there.
        hsts = self._hsts if peer.is_tls and not is_loopback_address(peer.local) else ()
        return hsts + self._cors_of(head)

    def preflight(self, head: Head) -> HeaderPairs | None:
        """The answer to a browser that asks, before a page's request, whether the page may; None for any other
        request, and for pages that aren't listed."""
        if head.method != "OPTIONS" or head.has_body or not self._origins:
            return None
        allowed = self._cors_of(head)
        asked = head.get(b"access-control-request-method")
        if len(allowed) == 1 or asked is None:
            return None
        methods = self._methods_of(head.path) or METHODS
        answer = [
            *allowed,
            (b"access-control-allow-methods", ", ".join(methods).encode()),
            (b"access-control-max-age", b"%d" % PREFLIGHT_S),
            (b"vary", b"access-control-request-method, access-control-request-headers"),
        ]
        if headers := _allowed_of(head.get(b"access-control-request-headers") or ""):
            answer.append((b"access-control-allow-headers", ", ".join(headers).encode()))
        if head.get(b"access-control-request-private-network") == "true":
            answer.append((b"access-control-allow-private-network", b"true"))
        return tuple(answer)

    def _cors_of(self, head: Head) -> HeaderPairs:
        if not self._origins:
            return ()
        origins = [value for name, value in head.headers if name == b"origin"]
        return self._by_origin.get(origins[0], self._for_others) if len(origins) == 1 else self._for_others


def _allowed_of(requested: str) -> list[str]:
    """Those of the headers that a page wants to send which something here reads."""
    names = [name.strip().lower() for name in requested.split(",", _REQUESTED_MAX)[:_REQUESTED_MAX]]
    return [
        name
        for name in dict.fromkeys(names)
        if _TOKEN.fullmatch(name) and (name in REQUEST_HEADERS or name.startswith(REQUEST_PREFIXES))
    ]


def _parse_origin(text: str) -> str:
    match = _ORIGIN.fullmatch(text.lower())
    if match is None or (match[3] is not None and int(match[3]) > 65535):
        raise ConfigInvalid(
            f"not an origin: {text!r}", subject="listen.origins",
            hint='write scheme, host and maybe port, as in "https://app.example"; there is no "*": name the pages',
        )  # fmt: skip
    scheme, host, port = match.groups()
    return f"{scheme}://{host}" + ("" if port in (None, _DEFAULT_PORTS.get(scheme)) else f":{port}")

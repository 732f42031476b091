"""URLs that are called: one strict reading, so that what was checked is what is connected to. Pure.

Stricter than RFC 3986 where parsers disagree: no userinfo, no backslashes, no fragments, and an IPv4 address only as
four decimal numbers, because others read `0x7f.1`, `017700000001` and `2130706433` as 127.0.0.1.
"""

import ipaddress
import re
from functools import lru_cache

import idna
import msgspec

from overlayd.model.errors import OutboundFailure
from overlayd.outbound.networks import Address
from overlayd.outbound.reasons import Reason

URL_CHARS_MAX = 2048
HOST_CHARS_MAX = 253
_DEFAULT_PORTS = {"http": 80, "https": 443}

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^#]*)(#.*)?", re.DOTALL)
_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]*))?")
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f\\]")
_TARGET = re.compile(r"(?:[A-Za-z0-9\-._~:/?@!$&'()*+,;=\[\]|{}^`\"<>]|%[0-9A-Fa-f]{2})*")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")
_DECIMAL = re.compile(r"(?:0|[1-9][0-9]{0,2})(?:\.(?:0|[1-9][0-9]{0,2})){3}")


class Target(msgspec.Struct, frozen=True):
    """A URL taken apart. `host` is lower-case ASCII without a dot at its end; an IPv6 address without brackets."""

    scheme: str
    host: str
    port: int
    path: str
    """What stands in the request line: path and query."""
    address: Address | None
    """Set when the host is an address itself."""

    @property
    def authority(self) -> str:
        """The Host header's value."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """The URL without path and query, for logs: those may hold secrets."""
        return f"{self.scheme}://{self.authority}"


@lru_cache(maxsize=4096)
def parse_url(url: str) -> Target:
    """Raises OutboundFailure with reason `url.invalid`, in words for whoever wrote the URL; the words don't repeat
    its path, query or userinfo."""
    if len(url) > URL_CHARS_MAX:
        raise _bad(f"a URL has at most {URL_CHARS_MAX} characters")
    if _UNPRINTABLE.search(url):
        raise _bad("a URL has no spaces, control characters or backslashes; write them percent-encoded")
    match = _URL.fullmatch(url)
    if match is None or match[1].lower() not in _DEFAULT_PORTS:
        raise _bad('expected a URL that begins with "https://" or "http://"')
    scheme, authority, path, fragment = match[1].lower(), match[2], match[3], match[4]
    if fragment is not None:
        raise _bad("a URL that is called has no fragment (#)")
    if "@" in authority:
        raise _bad("a URL with a user name or password isn't called; send an Authorization header instead")
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        raise _bad("the host can't be read")
    host, address = parse_host(parts[1])
    port = _DEFAULT_PORTS[scheme] if parts[2] is None else _parse_port(parts[2])
    if not _TARGET.fullmatch(path):
        raise _bad("path and query are ASCII; write other characters percent-encoded")
    return Target(scheme, host, port, path if path.startswith("/") else f"/{path}", address)


def parse_host(text: str) -> tuple[str, Address | None]:
    """A host as it is called, and its address when it is one. Raises OutboundFailure."""
    if text.startswith("["):
        return _parse_v6(text[1:-1])
    host = _to_ascii(text)
    if host.endswith("."):
        host = host[:-1]
    labels = host.split(".")
    if len(host) > HOST_CHARS_MAX or not all(_LABEL.fullmatch(label) for label in labels):
        raise _bad("the host isn't a name or an address")
    if not _NUMERIC.fullmatch(labels[-1]):
        return host, None
    # A host whose last label is a number is an IPv4 address to everybody (WHATWG URL, "ends in a number").
    if not _DECIMAL.fullmatch(host):
        raise _bad("an IPv4 address is written as four decimal numbers, such as 192.0.2.1")
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError as err:
        raise _bad("not an IPv4 address") from err
    return str(address), address


def _parse_v6(text: str) -> tuple[str, Address]:
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError as err:
        raise _bad("not an IPv6 address") from err
    if address.scope_id is not None:
        raise _bad("an IPv6 address with a zone isn't called")
    return str(address), address


def _to_ascii(text: str) -> str:
    """Names in other scripts as DNS has them (IDNA 2008 after the mapping of UTS 46)."""
    if text.isascii():
        return text.lower()
    if len(text) > HOST_CHARS_MAX:
        raise _bad(f"a host has at most {HOST_CHARS_MAX} characters")
    try:
        return idna.encode(text, uts46=True).decode("ascii").lower()
    except (idna.IDNAError, UnicodeError) as err:
        raise _bad("the host isn't a name that DNS can have") from err


def _parse_port(text: str) -> int:
    port = int(text) if text and len(text) <= 5 else 0
    if not 1 <= port <= 65_535:
        raise _bad("a port is a number from 1 to 65535")
    return port


def _bad(detail: str) -> OutboundFailure:
    return OutboundFailure.of(Reason.URL_INVALID, detail, subject="url")

"""A Sentry DSN: `{scheme}://{public key}[:{secret}]@{host}{path}/{project}` (develop.sentry.dev, DSN)."""

import re

import msgspec

_DSN = re.compile(
    r"(?P<scheme>https?)://(?P<key>[A-Za-z0-9_-]{1,128})(?::[A-Za-z0-9_-]*)?@(?P<host>[^/@\s?#]+)(?P<path>(?:/[^/\s?#]+)*)/(?P<project>\w{1,64})/?",
    re.ASCII,
)


class Dsn(msgspec.Struct, frozen=True):
    """Where reports go, and with which key. `str()` and `repr()` hide the key."""

    url: str
    key: str

    def __repr__(self) -> str:
        return f"Dsn({self.url})"


def parse_dsn(text: str) -> Dsn:
    """Raises ValueError, which doesn't repeat the text."""
    found = _DSN.fullmatch(text.strip())
    if found is None:
        raise ValueError("dsn: not of the form https://KEY@HOST/PROJECT")
    return Dsn(f"{found['scheme']}://{found['host']}{found['path']}/api/{found['project']}/envelope/", found["key"])

"""Where a node is: `http://host:port`, `https://host` or `unix:/path/overlayd.sock`."""

from urllib.parse import urlsplit

import msgspec

from overlayd.model.errors import BadParameter

_HINT = "write http://HOST:PORT, https://HOST or unix:/PATH/overlayd.sock"
_PORTS = {"http": 80, "https": 443}


class Address(msgspec.Struct, frozen=True):
    """A node's address, taken apart. `prefix` is the path below which a proxy shows the API, else empty.

    `socket_path` is set for Unix sockets only, and `host` is then what goes into the Host header.
    """

    host: str
    port: int
    is_tls: bool = False
    prefix: str = ""
    socket_path: str = ""

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Raises BadParameter."""
        if url.startswith("unix:"):
            path = url.removeprefix("unix:").removeprefix("//")
            if not path:
                raise BadParameter(f"no path in {url!r}", subject="url", hint=_HINT)
            return cls("localhost", 80, socket_path=path)
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as err:
            raise BadParameter(f"not a node's address: {url!r}", subject="url", hint=_HINT) from err
        if parts.scheme not in _PORTS or not parts.hostname or parts.query or parts.fragment or "@" in parts.netloc:
            raise BadParameter(f"not a node's address: {url!r}", subject="url", hint=_HINT)
        return cls(
            parts.hostname,
            _PORTS[parts.scheme] if port is None else port,
            is_tls=parts.scheme == "https",
            prefix=parts.path.rstrip("/"),
        )

    @property
    def host_header(self) -> str:
        """Host and, unless it is the scheme's own, port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS["https" if self.is_tls else "http"] else f"{host}:{self.port}"

    @property
    def base_url(self) -> str:
        """What request paths are put behind."""
        return f"{'https' if self.is_tls else 'http'}://{self.host_header}{self.prefix}"

    def __str__(self) -> str:
        return f"unix:{self.socket_path}" if self.socket_path else self.base_url

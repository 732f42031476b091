"""What is asked of another server, and what it answered."""

from typing import Literal, TypeAlias

import msgspec

from overlayd.outbound.networks import NetworkPolicy

Method: TypeAlias = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
Headers: TypeAlias = tuple[tuple[str, str], ...]


class OutboundRequest(msgspec.Struct, frozen=True):
    """One HTTP request. Redirects are never followed; nothing is sent to an address that `policy` refuses."""

    method: Method
    url: str
    headers: Headers = ()
    """Names and values as they are written. Host, Content-Length, Connection and Accept-Encoding are set here."""
    body: bytes = b""
    timeout_s: float = 15.0
    """From the first look-up to the last byte of the answer."""
    body_max: int = 64 << 10
    """Bytes of the answer's body that are taken, after inflating."""
    is_body_evidence: bool = False
    """The status is what counts: a body that is too long, too slow or broken off is cut instead of failing the call."""
    is_repeatable: bool = False
    """The receiver does no harm when it gets the request twice, so it may be sent again, once, over a new connection
    when a kept one turns out to be dead before anything of the answer came. GET is repeatable anyway."""
    policy: NetworkPolicy | None = None
    """Which addresses may be called; None: the client's own policy."""


class OutboundAnswer(msgspec.Struct, frozen=True):
    """The final answer: 1xx are passed over."""

    status: int
    headers: tuple[tuple[str, str], ...]
    """Names in lower case, in the order they came."""
    body: bytes
    """Inflated when the server compressed it unasked."""
    is_cut: bool
    """The body is not whole (only with `is_body_evidence`)."""
    duration_us: int
    """From the call to the last byte that was read, monotonic."""
    address: str
    """IP address that answered."""

    def header(self, name: str) -> str:
        """The first value of a header, "" when it isn't there. `name` in lower case."""
        return next((value for found, value in self.headers if found == name), "")

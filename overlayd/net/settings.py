"""Table `[listen]`: where the node listens and whom it believes."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from overlayd.model.units import Duration

_ALLOW = "Networks whose peers may connect; empty: all"
_DENY = "Networks whose peers are closed at once; beats `allow`"
_PROXY = "Networks of balancers that begin each connection with a PROXY protocol header, version 2"


class PlainListener(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A TCP listener with rules of its own."""

    address: Annotated[
        str,
        Meta(description='Where: "HOST:PORT", or "fd:NAME" for a socket of the service manager', examples=["127.0.0.1:7880"]),
    ]  # fmt: skip
    allow: Annotated[tuple[str, ...], Meta(description=_ALLOW)] = ()
    deny: Annotated[tuple[str, ...], Meta(description=_DENY)] = ()
    proxy_protocol: Annotated[tuple[str, ...], Meta(description=_PROXY)] = ()


class TlsListener(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A TCP listener that speaks TLS, 1.2 or later."""

    address: Annotated[
        str,
        Meta(description='Where: "HOST:PORT", or "fd:NAME" for a socket of the service manager', examples=["0.0.0.0:7879"]),
    ]  # fmt: skip
    cert: Annotated[
        str,
        Meta(description="PEM file: the certificate, then those that lead to its root", examples=["/etc/overlayd/node.pem"]),
    ]  # fmt: skip
    key: Annotated[str, Meta(description="PEM file of the private key; empty: it is in the certificate's file")] = ""
    client_ca: Annotated[
        str, Meta(description="PEM file of the authorities whose client certificates count; empty: none is asked for")
    ] = ""
    client_certificates: Annotated[
        Literal["required", "optional"],
        Meta(description="With `client_ca`: whether clients without a certificate are let in to show a key instead"),
    ] = "required"
    allow: Annotated[tuple[str, ...], Meta(description=_ALLOW)] = ()
    deny: Annotated[tuple[str, ...], Meta(description=_DENY)] = ()
    proxy_protocol: Annotated[tuple[str, ...], Meta(description=_PROXY)] = ()


class ListenSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Listeners and the names they go by. `overlayd.sock` in the data directory is always open."""

    tcp: Annotated[tuple[str, ...], Meta(description='Addresses such as "127.0.0.1:7878"; port 0 takes a free one')] = (
        "127.0.0.1:7878",
    )
    unix: Annotated[tuple[str, ...], Meta(description="Further Unix sockets, by path")] = ()
    unix_mode: Annotated[
        Literal["0600", "0660", "0666"],
        Meta(description="File mode of the Unix sockets: who on this machine may connect"),
    ] = "0600"
    hosts: Annotated[
        tuple[str, ...], Meta(description='Names the node goes by besides localhost, "name" or "name:port"')
    ] = ()
    insecure: Annotated[
        bool, Meta(description="Let everybody who reaches a TCP listener publish and read without a key")
    ] = False
    trusted_proxies: Annotated[
        tuple[str, ...],
        Meta(description='Networks of proxies whose forwarding headers count; "unix" for the Unix sockets\' peers'),
    ] = ()
    allow: Annotated[tuple[str, ...], Meta(description="Networks whose TCP peers may connect at all; empty: all")] = ()
    deny: Annotated[
        tuple[str, ...],
        Meta(description="Networks whose TCP peers are closed at once, as are clients that proxies name; beats `allow`"),
    ] = ()  # fmt: skip
    proxy_protocol: Annotated[
        tuple[str, ...], Meta(description=_PROXY + "; such a peer without a header is refused")
    ] = ()
    origins: Annotated[
        tuple[str, ...],
        Meta(description='Origins of pages elsewhere that may use the API and read its answers: "https://app.example"'),
    ] = ()  # fmt: skip
    hsts: Annotated[
        Duration, Meta(description="How long browsers that came by TLS are told to come by nothing else; 0s: not told")
    ] = Duration(365 * 86400)
    backlog: Annotated[int, Meta(ge=1, le=65535, description="Connections that may wait to be accepted")] = 1024
    fast_lanes: Annotated[
        bool, Meta(description="Take packets without the web framework; false: the same through it, slower")
    ] = True
    plain: Annotated[
        tuple[PlainListener, ...],
        Meta(description="A TCP listener in clear text as those of `tcp`, with rules of its own beside the general ones"),
    ] = ()  # fmt: skip
    tls: Annotated[
        tuple[TlsListener, ...],
        Meta(description="A TCP listener that speaks TLS. SIGHUP reads certificate and key anew"),
    ] = ()

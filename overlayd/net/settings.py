"""Table `[listen]`: where the node listens and whom it believes."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


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
    backlog: Annotated[int, Meta(ge=1, le=65535, description="Connections that may wait to be accepted")] = 1024
    fast_lanes: Annotated[
        bool, Meta(description="Take packets without the web framework; false: the same through it, slower")
    ] = True

"""The PROXY protocol's binary header, version 2, with which a balancer says whose connection it passes on.

https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt, section 2.2. Sans-IO. Version 1, the line of text, isn't
spoken: its end is looked for byte by byte, and every balancer of the last ten years knows the other.
"""

import ipaddress
import struct

import msgspec

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
VERSION_1 = b"PROXY "
HEAD_BYTES = 16
_VERSION = 2
_LOCAL, _PROXY = 0, 1
_STREAM_OVER_IPV4, _STREAM_OVER_IPV6 = 0x11, 0x21
_ADDRESS_BYTES = {0x00: 0, 0x11: 12, 0x12: 12, 0x21: 36, 0x22: 36, 0x31: 216, 0x32: 216}
"""By family and transport: unspecified, IPv4, IPv6, Unix, each as stream or datagram."""


class WrongProxyHeader(Exception):
    """What the peer sent isn't a header of version 2, or is one that can't be believed."""


class LongProxyHeader(WrongProxyHeader):
    """It says that it is longer than is taken."""


class ProxyHeader(msgspec.Struct, frozen=True):
    """What the balancer says. Without `source` the client's address isn't told.

    `is_local`: the connection is the balancer's own, to see whether the node is well. `size`: bytes of the header.
    """

    size: int
    is_local: bool = False
    source: str = ""
    source_port: int = 0
    destination: str = ""
    destination_port: int = 0


def parse_proxy_header(data: bytes, bytes_max: int) -> ProxyHeader | None:
    """The header that the data begin with; None while more must come. Fields behind the addresses are skipped.

    Raises WrongProxyHeader, and LongProxyHeader for one that says it is longer than `bytes_max`.
    """
    if not SIGNATURE.startswith(data[: len(SIGNATURE)]):
        if VERSION_1.startswith(data[: len(VERSION_1)]):
            raise WrongProxyHeader("the header is of version 1; version 2 is what is understood")
        raise WrongProxyHeader("the connection doesn't begin with a PROXY protocol header")
    if len(data) < HEAD_BYTES:
        return None
    version_command, family, length = struct.unpack_from(">BBH", data, len(SIGNATURE))
    if version_command >> 4 != _VERSION:
        raise WrongProxyHeader(f"the header is of version {version_command >> 4}; version 2 is what is understood")
    command = version_command & 0x0F
    if command not in (_LOCAL, _PROXY):
        raise WrongProxyHeader(f"the header's command {command} isn't known")
    size = HEAD_BYTES + length
    if size > bytes_max:
        raise LongProxyHeader(f"the header says it has {size} bytes; at most {bytes_max} are taken")
    if command == _PROXY:  # behind LOCAL anything may stand
        _check_family(family, length)
    if len(data) < size:
        return None
    if command == _LOCAL:
        return ProxyHeader(size, is_local=True)
    return _parse_addresses(data, family, size)


def _check_family(family: int, length: int) -> None:
    needed = _ADDRESS_BYTES.get(family)
    if needed is None:
        raise WrongProxyHeader(f"the header's address family {family:#04x} isn't known")
    if length < needed:
        raise WrongProxyHeader(f"the header has {length} bytes of addresses where {needed} belong")
    if family & 0x0F == 2:
        raise WrongProxyHeader("the header tells of a datagram, not of a connection")


def _parse_addresses(data: bytes, family: int, size: int) -> ProxyHeader:
    if family == _STREAM_OVER_IPV4:
        source, destination, source_port, destination_port = struct.unpack_from(">4s4sHH", data, HEAD_BYTES)
    elif family == _STREAM_OVER_IPV6:
        source, destination, source_port, destination_port = struct.unpack_from(">16s16sHH", data, HEAD_BYTES)
    else:  # a Unix socket in front of the balancer, or nothing that it knows of
        return ProxyHeader(size)
    return ProxyHeader(
        size, source=_text_of(source), source_port=source_port, destination=_text_of(destination),
        destination_port=destination_port,
    )  # fmt: skip


def _text_of(raw: bytes) -> str:
    """An address as text, an IPv4 address mapped into IPv6 as IPv4."""
    address = ipaddress.ip_address(raw)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)

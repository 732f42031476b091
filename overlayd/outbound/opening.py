"""From a URL to an open connection: look up, check every address, connect to one that was checked, TLS."""

import errno
import ipaddress
import os
import ssl

import trio

from overlayd.model.errors import OutboundFailure
from overlayd.model.limits import Limits
from overlayd.outbound.exchange import Deadline, Part
from overlayd.outbound.networks import Address, NetworkPolicy, is_allowed_by_name, refuse_address, refuse_port
from overlayd.outbound.pool import Connection, Endpoint
from overlayd.outbound.reasons import Reason
from overlayd.outbound.resolver import Resolver
from overlayd.outbound.url import Target
from overlayd.outbound.wire import Wire, connect, is_own_address

_SHARE_MIN_S = 1.0
"""An address gets at least so long to answer, however many there are."""
_EXPIRED = frozenset({9, 10})
_OTHER_NAME = frozenset({62, 63, 64})
"""OpenSSL's X509_V_ERR_… numbers: not yet valid, has expired; host, email, IP address mismatch."""
_LOCAL_FAULTS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})


class Opener:
    """Opens connections that the policy allows."""

    def __init__(self, limits: Limits, resolver: Resolver, context: ssl.SSLContext) -> None:
        self._limits = limits
        self._resolver = resolver
        self._context = context

    async def open(self, target: Target, policy: NetworkPolicy, deadline: Deadline) -> Connection:
        """A new connection. Checkpoint. Raises OutboundFailure; the deadline's scope cancels it."""
        addresses = await self._allowed_addresses(target, policy, deadline)
        address, wire = await self._connect(target, addresses, deadline)
        try:
            if is_own_address(wire) and not is_allowed_by_name(address, policy):
                raise _refused(target, address, "this machine's own")
            if target.scheme == "https":
                await self._start_tls(target, wire, deadline)
        except OSError as err:
            wire.close()
            raise OutboundFailure.of(
                Reason.CONNECT_FAILED, f"the connection to {target.origin} broke at once", subject=target.origin
            ) from err
        except BaseException:
            wire.close()
            raise
        endpoint: Endpoint = (target.scheme, target.host, target.port, policy.key)
        return Connection(endpoint, str(address), wire)

    async def _allowed_addresses(
        self, target: Target, policy: NetworkPolicy, deadline: Deadline
    ) -> tuple[Address, ...]:
        refusal = refuse_port(target.port, policy)
        if refusal:
            raise OutboundFailure.of(Reason.PORT_REFUSED, refusal, subject=target.origin)
        if target.address is not None:
            addresses: tuple[Address, ...] = (target.address,)
        else:
            deadline.enter(Part.LOOKUP, self._limits.outbound_lookup_timeout)
            addresses = await self._resolver.resolve(target.host)
        refusals = [refuse_address(address, policy) for address in addresses]
        allowed = tuple(address for address, refusal in zip(addresses, refusals, strict=True) if not refusal)
        if not allowed:
            raise _refused(target, addresses[0], refusals[0])
        return allowed[: self._limits.outbound_addresses]

    async def _connect(
        self, target: Target, addresses: tuple[Address, ...], deadline: Deadline
    ) -> tuple[Address, Wire]:
        deadline.enter(Part.CONNECT, self._limits.outbound_connect_timeout)
        failure = OutboundFailure.of(Reason.CONNECT_TIMEOUT, f"{target.origin} doesn't answer", subject=target.origin)
        for position, address in enumerate(addresses):
            left = len(addresses) - position
            with trio.move_on_after(max(_SHARE_MIN_S, deadline.left_s / left)):
                try:
                    return address, await connect(str(address), target.port)
                except OSError as err:
                    failure = _connect_failure(target, address, err)
        raise failure

    async def _start_tls(self, target: Target, wire: Wire, deadline: Deadline) -> None:
        deadline.enter(Part.TLS, self._limits.outbound_tls_timeout)
        try:
            await wire.start_tls(self._context, target.host)
        except ssl.SSLCertVerificationError as err:
            raise _certificate_failure(target, err) from err
        except (ssl.SSLError, EOFError, OSError) as err:
            words = getattr(err, "reason", None) or "the other side closed the connection"
            raise OutboundFailure.of(
                Reason.TLS_FAILED, f"the TLS handshake with {target.origin} failed: {words}", subject=target.origin
            ) from err


def make_context(ca_file: str) -> ssl.SSLContext:
    """How certificates of called servers are judged: the system's authorities and those of the file, TLS 1.2 or later.

    Raises OSError, ssl.SSLError for a file that can't be used.
    """
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    if ca_file:
        context.load_verify_locations(cafile=ca_file)
    return context


def _refused(target: Target, address: Address, why: str) -> OutboundFailure:
    where = str(address) if target.address is not None else f"{target.host} is {address}, which"
    sentence = f"{where} isn't called: {why}"
    return OutboundFailure.of(
        Reason.ADDRESS_REFUSED, sentence, subject=target.origin,
        hint="the configuration names the inner networks that may be called: [webhooks] allow_private",
    )  # fmt: skip


def _connect_failure(target: Target, address: Address, err: OSError) -> OutboundFailure:
    if err.errno == errno.ECONNREFUSED:
        reason, words = Reason.CONNECT_REFUSED, "nobody listens there"
    elif err.errno == errno.ETIMEDOUT:
        reason, words = Reason.CONNECT_TIMEOUT, "no answer"
    else:
        reason, words = Reason.CONNECT_FAILED, os.strerror(err.errno or 0)
        if err.errno in _LOCAL_FAULTS:
            words += " (on this machine)"
    where = address if isinstance(address, ipaddress.IPv4Address) else f"[{address}]"
    return OutboundFailure.of(reason, f"no connection to {where}:{target.port}: {words}", subject=target.origin)


def _certificate_failure(target: Target, err: ssl.SSLCertVerificationError) -> OutboundFailure:
    if err.verify_code in _EXPIRED:
        reason = Reason.TLS_EXPIRED
    elif err.verify_code in _OTHER_NAME:
        reason = Reason.TLS_NAME
    else:
        reason = Reason.TLS_UNTRUSTED
    return OutboundFailure.of(
        reason, f"the certificate of {target.origin} isn't accepted: {err.verify_message}", subject=target.origin
    )

"""Names to addresses, through the operating system's resolver: in threads of their own, few, each name once."""

import ipaddress
import socket
from collections import OrderedDict
from typing import Protocol

import msgspec
import trio

from overlayd.model.errors import OutboundFailure
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.outbound.networks import Address
from overlayd.outbound.reasons import Reason

_NO_SUCH_NAME = (socket.EAI_NONAME, socket.EAI_NODATA)


class Resolver(Protocol):
    """Gives a name's addresses. Tests put their own in its place."""

    async def resolve(self, host: str) -> tuple[Address, ...]:
        """In the order in which they are to be tried, at least one. The caller sets the deadline. Checkpoint.

        Raises OutboundFailure with a `dns.` reason.
        """
        ...

    @property
    def is_full(self) -> bool:
        """Whether a look-up has to wait for another one's end."""
        ...


class _Known(msgspec.Struct, frozen=True):
    addresses: tuple[Address, ...]
    until: float
    """Trio time."""


class SystemResolver:
    """getaddrinfo in at most `outbound_lookups` threads. A thread that is no longer waited for keeps its place until
    the system lets it go, so that hanging name servers can't pile threads up."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._threads = trio.CapacityLimiter(limits.outbound_lookups)
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._running: dict[str, trio.Event] = {}
        self._lookups = metrics.counter("overlayd_outbound_lookups", "Names looked up, by how it ended", "result")

    def __repr__(self) -> str:
        return f"SystemResolver(known={len(self._known)}, running={len(self._running)})"

    @property
    def is_full(self) -> bool:
        return self._threads.available_tokens == 0

    async def resolve(self, host: str) -> tuple[Address, ...]:
        while True:
            known = self._known.get(host)
            if known is not None and known.until > trio.current_time():
                self._known.move_to_end(host)
                await trio.lowlevel.checkpoint()
                return known.addresses
            running = self._running.get(host)
            if running is None:
                return await self._look_up(host)
            await running.wait()  # somebody asks already; when that fails, the next in line asks

    async def _look_up(self, host: str) -> tuple[Address, ...]:
        done = self._running[host] = trio.Event()
        if self.is_full:
            self._metrics.count_limit_hit("outbound_lookups")
        try:
            addresses = await trio.to_thread.run_sync(_getaddrinfo, host, limiter=self._threads, abandon_on_cancel=True)
        except socket.gaierror as err:
            is_unknown = err.errno in _NO_SUCH_NAME
            self._lookups.labels("unknown" if is_unknown else "failed").inc()
            if is_unknown:
                raise OutboundFailure.of(Reason.HOST_UNKNOWN, f"there is no host {host}", subject=host) from err
            raise OutboundFailure.of(
                Reason.DNS_FAILED, f"{host} couldn't be looked up: {err.strerror}", subject=host
            ) from err
        finally:
            del self._running[host]
            done.set()
        self._lookups.labels("found").inc()
        self._remember(host, addresses)
        return addresses

    def _remember(self, host: str, addresses: tuple[Address, ...]) -> None:
        if self._limits.outbound_name_age <= 0:
            return
        self._known[host] = _Known(addresses, trio.current_time() + self._limits.outbound_name_age)
        self._known.move_to_end(host)
        while len(self._known) > self._limits.outbound_names:
            self._metrics.count_limit_hit("outbound_names")
            self._known.popitem(last=False)


def _getaddrinfo(host: str) -> tuple[Address, ...]:
    """Runs in a thread. Raises socket.gaierror."""
    try:
        rows = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError as err:
        raise socket.gaierror(socket.EAI_NONAME, "not a name") from err
    found: dict[Address, None] = {}
    for *_, name in rows:
        found[ipaddress.ip_address(name[0])] = None
    if not found:
        raise socket.gaierror(socket.EAI_NONAME, "no address")
    return tuple(found)

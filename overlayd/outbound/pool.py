"""Connections that are kept open for the next call to the same endpoint under the same rules."""

from collections import OrderedDict, deque
from typing import TypeAlias

import trio

from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.outbound.wire import Wire

AGE_MAX_S = 300.0
"""A connection is used for so long at most, so that a name that moved is looked up again."""

Endpoint: TypeAlias = tuple[str, str, int, str]
"""Scheme, host, port and the key of the rules under which its address was checked."""


class Connection:
    """An open connection to a checked address."""

    __slots__ = ("address", "endpoint", "idle_since", "opened", "uses", "wire")

    def __init__(self, endpoint: Endpoint, address: str, wire: Wire) -> None:
        self.endpoint = endpoint
        self.address = address
        self.wire = wire
        self.opened = self.idle_since = trio.current_time()
        self.uses = 0


class Pool:
    """Idle connections, the newest used first. Bounded in all and per host; old ones go when looked at."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._idle: OrderedDict[Connection, None] = OrderedDict()
        """Longest idle first."""
        self._by_endpoint: dict[Endpoint, deque[Connection]] = {}
        metrics.gauge("overlayd_outbound_connections_idle", "Connections kept for the next call").set_function(
            lambda: len(self._idle)
        )

    def __repr__(self) -> str:
        return f"Pool(idle={len(self._idle)}, endpoints={len(self._by_endpoint)})"

    def take(self, endpoint: Endpoint) -> Connection | None:
        """A kept connection that still stands, None when there is none."""
        self.close_expired()
        while endpoint in self._by_endpoint:
            connection = self._by_endpoint[endpoint][-1]
            self._remove(connection)
            if connection.wire.is_usable():
                return connection
            connection.wire.close()
        return None

    def keep(self, connection: Connection) -> None:
        """Takes a connection back, or closes it when there are enough of them."""
        now = trio.current_time()
        same = self._by_endpoint.get(connection.endpoint, ())
        if self._limits.outbound_idle_connections == 0 or self._limits.outbound_idle_per_host == 0:
            connection.wire.close()
            return
        if now - connection.opened > AGE_MAX_S or connection.wire.is_closed:
            connection.wire.close()
            return
        if len(same) >= self._limits.outbound_idle_per_host:
            self._metrics.count_limit_hit("outbound_idle_per_host")
            self._close(self._by_endpoint[connection.endpoint][0])
        elif len(self._idle) >= self._limits.outbound_idle_connections:
            self._metrics.count_limit_hit("outbound_idle_connections")
            self._close(next(iter(self._idle)))
        connection.idle_since = now
        self._idle[connection] = None
        self._by_endpoint.setdefault(connection.endpoint, deque()).append(connection)

    def close_expired(self) -> float:
        """Closes what lay idle for too long; gives the seconds until the next one may be due."""
        timeout_s, now = self._limits.outbound_idle_timeout, trio.current_time()
        while self._idle:
            oldest = next(iter(self._idle))
            left_s = oldest.idle_since + timeout_s - now
            if left_s > 0:
                return left_s
            self._close(oldest)
        return timeout_s

    def close_all(self) -> None:
        """Closes every kept connection."""
        while self._idle:
            self._close(next(iter(self._idle)))

    def _close(self, connection: Connection) -> None:
        self._remove(connection)
        connection.wire.close()

    def _remove(self, connection: Connection) -> None:
        del self._idle[connection]
        same = self._by_endpoint[connection.endpoint]
        same.remove(connection)
        if not same:
            del self._by_endpoint[connection.endpoint]

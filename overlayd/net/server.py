"""The edge of the node: listeners, connections, and their orderly end."""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_network

import trio

from overlayd.access import Peer
from overlayd.model.clock import Clock, Entropy, SystemClock
from overlayd.model.errors import TooManyConnections
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.push_stream import SocketPushStream
from overlayd.net.connection import Connection
from overlayd.net.door import Door
from overlayd.net.listeners import Bound, accept_connections, close_listeners, peer_of
from overlayd.net.opening import Opened, Opener
from overlayd.net.problem import plain_answer

REFUSALS_AT_ONCE = 64


class RequestIds:
    """Ids that are unique in practice: 40 random bits for the process, then a count."""

    def __init__(self, entropy: Entropy) -> None:
        self._prefix = entropy.draw(5).hex()
        self._count = 0

    def draw(self) -> str:
        self._count += 1
        return f"{self._prefix}-{self._count:x}"


class Admission:
    """How many connections there are, in all and per address (per uid for Unix peers)."""

    def __init__(self, limits: Limits, metrics: Metrics, connections_max: int) -> None:
        self._limits = limits
        self._metrics = metrics
        self._connections_max = connections_max
        self._by_address: Counter[str] = Counter()
        self._total = 0
        self._changed = trio.Event()
        self._opened = metrics.counter("overlayd_net_connections", "Connections accepted", "family")
        metrics.gauge("overlayd_net_connections_open", "Connections open now").set_function(lambda: self._total)

    def __repr__(self) -> str:
        return f"Admission(open={self._total}, addresses={len(self._by_address)})"

    def enter(self, peer: Peer) -> None:
        """Counts a connection in. Raises TooManyConnections."""
        self._count_in(peer)
        self._opened.labels(peer.family).inc()

    def _count_in(self, peer: Peer) -> None:
        key = _key_of(peer)
        if self._total >= self._connections_max:
            self._metrics.count_limit_hit("connections_max")
            raise TooManyConnections(f"{self._total} connections are open", subject="connections_max")
        if self._by_address[key] >= self._limits.connections_per_address:
            self._metrics.count_limit_hit("connections_per_address")
            raise TooManyConnections(
                f"{self._by_address[key]} connections of {key} are open", subject="connections_per_address"
            )
        self._total += 1
        self._by_address[key] += 1

    def move(self, peer: Peer, client: Peer) -> None:
        """Counts a connection to the client that its balancer named. Raises TooManyConnections; then nothing changed."""
        self.leave(peer)
        try:
            self._count_in(client)
        except TooManyConnections:
            self._total += 1
            self._by_address[_key_of(peer)] += 1
            raise

    def leave(self, peer: Peer) -> None:
        """Counts it out again."""
        key = _key_of(peer)
        self._total -= 1
        self._by_address[key] -= 1
        if not self._by_address[key]:
            del self._by_address[key]
        self._changed.set()
        self._changed = trio.Event()

    async def wait_empty(self) -> None:
        """Until no connection is open. Checkpoint."""
        await trio.lowlevel.checkpoint()
        while self._total:
            await self._changed.wait()


async def serve_connections(
    listeners: Sequence[Bound],
    door: Door,
    *,
    admission: Admission,
    limits: Limits,
    metrics: Metrics,
    next_request_id: Callable[[], str],
    stop: trio.Event,
    end_sessions: Callable[[], Awaitable[None]],
    clock: Clock | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves until `stop`, then drains: no more connections, idle ones end, `end_sessions` has the
    live sessions say goodbye, requests get `drain_timeout`, and what is left is cut.

    Reports the listeners' addresses through `task_status`. Closes the listeners.
    """
    accept_errors = metrics.counter("overlayd_net_accept_errors", "Connections that couldn't be accepted", "errno")
    denied = metrics.counter("overlayd_net_denied", "Connections closed because of where they come from", "reason")
    opener = Opener(limits=limits, metrics=metrics, clock=clock or SystemClock(), next_request_id=next_request_id)
    refusing: set[Connection] = set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(door.watch)

        def take(bound: Bound, stream: trio.SocketStream) -> None:
            try:
                peer = peer_of(stream.socket)
                denial = "" if bound.is_unix else bound.rules.judge(peer.address)
                if denial:
                    denied.labels(denial).inc()
                    stream.socket.close()
                    return
                admission.enter(peer)
            except OSError:
                stream.socket.close()
            except TooManyConnections as error:
                if len(refusing) < REFUSALS_AT_ONCE and opener.is_plain(bound, peer):
                    connection = Connection(SocketPushStream(stream.socket), peer, limits.stall_timeout)
                    nursery.start_soon(_refuse, connection, plain_answer(error, next_request_id()), refusing)
                else:
                    stream.socket.close()
            else:
                nursery.start_soon(_serve, door, opener, admission, bound, SocketPushStream(stream.socket), peer)

        try:
            async with trio.open_nursery() as accepting:
                for bound in listeners:
                    accepting.start_soon(accept_connections, bound, take, lambda name: accept_errors.labels(name).inc())
                task_status.started([bound.url for bound in listeners])
                await stop.wait()
                accepting.cancel_scope.cancel()
        finally:
            close_listeners(listeners)
        door.end_idle()
        opener.end_all()
        with trio.move_on_after(limits.drain_timeout) as draining:
            await end_sessions()
            await admission.wait_empty()
        if draining.cancelled_caught:
            metrics.count_limit_hit("drain_timeout")
        nursery.cancel_scope.cancel()
        door.abort_all()


async def _serve(
    door: Door, opener: Opener, admission: Admission, bound: Bound, link: SocketPushStream, peer: Peer
) -> None:
    counted = [peer]

    def admit(client: Peer) -> None:
        admission.move(counted[0], client)
        counted[0] = client

    try:
        is_plain = opener.is_plain(bound, peer)
        opened = Opened(link, peer) if is_plain else await opener.open(bound, link, peer, admit)
        if opened is not None:
            await door.serve_connection(opened.link, opened.peer, opened.unread)
    finally:
        link.abort()
        admission.leave(counted[0])


async def _refuse(connection: Connection, answer: bytes, refusing: set[Connection]) -> None:
    """Says why before it closes."""
    refusing.add(connection)
    try:
        await connection.send(answer)
        await connection.close_politely()
    except trio.BrokenResourceError:
        pass
    finally:
        refusing.discard(connection)
        connection.abort()


def _key_of(peer: Peer) -> str:
    """What counts as one address: an IPv4 address, an IPv6 /64 (which one client has whole), a uid."""
    if peer.family == "unix":
        return f"uid:{peer.uid}"
    if ":" in peer.address:
        return str(ip_network(f"{peer.address}/64", strict=False))
    return peer.address

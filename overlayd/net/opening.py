"""From accepting a connection to its first request: the balancer's header, then the TLS handshake.

Neither may cost others much. A handshake's arithmetic (a signature with an RSA key takes a millisecond) runs in a
thread of its own; connections that haven't come to their first request are bounded in count and time, and when there
are too many, the one goes whose peer has kept the node waiting longest: it is the least likely to be a real client.
"""

import ssl
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
import structlog
import trio

from overlayd.access import Peer
from overlayd.access.origin import is_loopback_address
from overlayd.model.clock import Clock
from overlayd.model.errors import BadRequest, TooManyConnections
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.push_stream import SocketPushStream
from overlayd.net.connection import Link, close_politely
from overlayd.net.listeners import Bound
from overlayd.net.problem import plain_answer
from overlayd.net.proxy_protocol import LongProxyHeader, ProxyHeader, WrongProxyHeader, parse_proxy_header
from overlayd.net.tls import TlsEndpoint, certificate_facts
from overlayd.net.tls_stream import TlsStream

T = TypeVar("T")
HANDSHAKE_RECORD = 0x16
"""The first byte of TLS, whatever the version."""
UNKNOWN = "unknown"
ENDING_MAX = 64
"""Connections at a time that are told why they end."""
_RECEIVE_BYTES = 4 << 10
_ANSWER_S = 2.0
_REASONS = {
    "UNSUPPORTED_PROTOCOL": "version", "WRONG_VERSION_NUMBER": "version", "VERSION_TOO_LOW": "version",
    "NO_SHARED_CIPHER": "cipher", "NO_SUITABLE_KEY_SHARE": "cipher", "NO_SHARED_GROUPS": "cipher",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no_certificate", "CERTIFICATE_VERIFY_FAILED": "wrong_certificate",
}  # fmt: skip
_log = structlog.get_logger("net.opening")


class Opened(msgspec.Struct):
    """A connection that is ready for its first request. `unread`: what was read from it already."""

    link: Link
    peer: Peer
    unread: bytes = b""


class OpeningFailed(Exception):
    """There won't be a request. `answer` is sent before the end."""

    def __init__(self, reason: str, words: str, answer: bytes = b"") -> None:
        super().__init__(words)
        self.reason = reason
        self.answer = answer


class _Waits:
    """Which connections wait for their peers, the longest first."""

    def __init__(self, opening_max: int, metrics: Metrics) -> None:
        self._opening_max = opening_max
        self._metrics = metrics
        self._waiting: OrderedDict[object, trio.CancelScope] = OrderedDict()
        self._is_over = False
        self.count = 0

    def enter(self) -> None:
        """Makes room for one more. Raises OpeningFailed when every other one is being worked on."""
        if self.count >= self._opening_max:
            self._metrics.count_limit_hit("opening_max")
            if not self._waiting:
                raise OpeningFailed("crowded", "too many connections are in their handshake")
            self._waiting.popitem(last=False)[1].cancel()
        self.count += 1

    def leave(self) -> None:
        self.count -= 1

    def end(self) -> None:
        """Nobody waits any more."""
        self._is_over = True
        for scope in self._waiting.values():
            scope.cancel()

    async def peer(self, wait: Callable[[], Awaitable[T]]) -> T:
        """What the peer does next. Checkpoint. Raises OpeningFailed when others needed the room."""
        token = object()
        if self._is_over:
            raise OpeningFailed("stopping", "the node is shutting down")
        with trio.CancelScope() as scope:
            self._waiting[token] = scope
            try:
                return await wait()
            finally:
                self._waiting.pop(token, None)
        if self._is_over:
            raise OpeningFailed("stopping", "the node is shutting down")
        raise OpeningFailed("crowded", "gave its place to others after the longest wait")


class Opener:
    """Opens connections, one call of `open` each. One for the node."""

    def __init__(self, *, limits: Limits, metrics: Metrics, clock: Clock, next_request_id: Callable[[], str]) -> None:
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._next_request_id = next_request_id
        self._waits = _Waits(limits.opening_max, metrics)
        self._ending = 0
        self._arithmetic = trio.CapacityLimiter(limits.handshake_threads)
        self._done = metrics.counter("overlayd_tls_handshakes", "TLS handshakes done", "version", "resumed")
        self._failures = metrics.counter(
            "overlayd_net_opening_failures", "Connections that ended before their first request, by reason", "reason"
        )
        opening = metrics.gauge("overlayd_net_connections_opening", "Connections before or in their handshake")
        opening.set_function(lambda: self._waits.count)

    def is_plain(self, bound: Bound, peer: Peer) -> bool:
        """Whether nothing comes before the first request."""
        return bound.tls is None and (bound.is_unix or peer.address not in bound.rules.balancers)

    def end_all(self) -> None:
        """Ends connections that haven't come to their first request: the node is shutting down."""
        self._waits.end()

    async def open(
        self, bound: Bound, link: SocketPushStream, peer: Peer, admit: Callable[[Peer], None]
    ) -> Opened | None:
        """The connection ready for requests; None when it ended, which was counted. Checkpoint.

        `admit` is called with the client that a balancer names, and may raise TooManyConnections.
        """
        try:
            self._waits.enter()
        except OpeningFailed as failure:
            self._note(failure, peer)
            link.abort()
            return None
        stream: list[Link] = [link]
        try:
            return await self._open_in_time(bound, stream, peer, admit)
        except OpeningFailed as failure:
            self._note(failure, peer)
            answer = failure.answer if stream[-1] is link else b""
        except trio.BrokenResourceError:
            self._note(OpeningFailed("left", "the peer left"), peer)
            answer = b""
        finally:
            self._waits.leave()
        await self._end(link, stream[-1], answer)
        return None

    async def _open_in_time(
        self, bound: Bound, stream: list[Link], peer: Peer, admit: Callable[[Peer], None]
    ) -> Opened:
        with trio.move_on_after(self._limits.handshake_timeout):
            return await self._open(bound, stream, peer, admit)
        self._metrics.count_limit_hit("handshake_timeout")
        raise OpeningFailed("timeout", "took too long")

    async def _open(self, bound: Bound, stream: list[Link], peer: Peer, admit: Callable[[Peer], None]) -> Opened:
        link = stream[0]
        unread = b""
        if not bound.is_unix and peer.address in bound.rules.balancers:
            header, unread = await self._read_proxy_header(link)
            peer = client_of(peer, header)
            if bound.rules.judge_client(peer.address):
                raise OpeningFailed("denied", f"clients from {peer.address} are kept out")
            try:
                admit(peer)
            except TooManyConnections as error:
                answer = b"" if bound.tls else plain_answer(error, self._next_request_id())
                raise OpeningFailed("too_many", error.detail, answer) from error
        if bound.tls is None:
            return Opened(link, peer, unread)
        return await self._secure(bound.tls, stream, peer, unread)

    async def _read_proxy_header(self, link: Link) -> tuple[ProxyHeader, bytes]:
        """The header, and what came behind it."""
        data = b""
        while True:
            more = await self._waits.peer(lambda: link.receive_some(_RECEIVE_BYTES))
            if not more:
                raise OpeningFailed("left", "the peer left within the PROXY header")
            data += more
            try:
                header = parse_proxy_header(data, int(self._limits.proxy_header_bytes))
            except WrongProxyHeader as error:
                if isinstance(error, LongProxyHeader):
                    self._metrics.count_limit_hit("proxy_header_bytes")
                hint = "[listen] proxy_protocol names this peer, so that its connections begin with a header"
                raise OpeningFailed("proxy_header", str(error), self._answer(str(error), hint)) from error
            if header is not None:
                return header, data[header.size :]

    async def _secure(self, endpoint: TlsEndpoint, stream: list[Link], peer: Peer, received: bytes) -> Opened:
        link = stream[0]
        assert isinstance(link, SocketPushStream)
        # A peer that says nothing costs no session of OpenSSL's.
        received = received or await self._waits.peer(lambda: link.receive_some(_RECEIVE_BYTES))
        if not received:
            raise OpeningFailed("left", "the peer left before the handshake")
        if received[0] != HANDSHAKE_RECORD:
            self._refuse_clear_text(received)
        secure = TlsStream(link, endpoint.context, received)
        stream.append(secure)
        try:
            while not await trio.to_thread.run_sync(secure.step, limiter=self._arithmetic):
                if not await self._waits.peer(secure.exchange):
                    raise OpeningFailed("left", "the peer left within the handshake")
        except ssl.SSLError as err:
            raise OpeningFailed(_reason_of(err), f"{err.reason or err}".lower().replace("_", " ")) from err
        return Opened(secure, await self._secured_peer(secure, peer))

    async def _secured_peer(self, secure: TlsStream, peer: Peer) -> Peer:
        """The peer with what the handshake told of it."""
        await self._waits.peer(secure.send_produced)
        der = secure.peer_certificate()
        try:
            certificate = certificate_facts(der, self._clock) if der else None
        except ValueError as err:
            raise OpeningFailed("wrong_certificate", str(err)) from err
        self._done.labels(secure.version, "yes" if secure.is_resumed else "no").inc()
        return msgspec.structs.replace(peer, is_tls=True, certificate=certificate)

    def _refuse_clear_text(self, received: bytes) -> None:
        if not received[:1].isalpha() and received[:1] != b"\r":
            raise OpeningFailed("not_tls", "neither TLS nor HTTP")
        answer = self._answer(
            "this port speaks TLS", "use https:// (wss:// for WebSockets) with the same host and port"
        )
        raise OpeningFailed("clear_text", "HTTP in clear text on a port for TLS", answer)

    def _answer(self, words: str, hint: str) -> bytes:
        return plain_answer(BadRequest(words, hint=hint), self._next_request_id())

    async def _end(self, link: SocketPushStream, stream: Link, answer: bytes) -> None:
        """Sends what is left to say, in clear text or as TLS's own alert, then ends the connection. Those that nothing
        is said to, and those beyond a number, are cut."""
        has_words = bool(answer) or (isinstance(stream, TlsStream) and stream.produce())
        if not has_words or self._ending >= ENDING_MAX:
            link.abort()
            return
        self._ending += 1
        try:
            with trio.move_on_after(_ANSWER_S):
                if isinstance(stream, TlsStream):
                    await stream.flush()
                else:
                    await link.send_all(answer)
                await close_politely(link)
        except trio.BrokenResourceError:
            pass
        finally:
            self._ending -= 1
            link.abort()

    def _note(self, failure: OpeningFailed, peer: Peer) -> None:
        self._failures.labels(failure.reason).inc()
        _log.debug("connection didn't open", peer=peer.address, reason=failure.reason, detail=str(failure))


def client_of(peer: Peer, header: ProxyHeader) -> Peer:
    """The client that a balancer's header tells of. One it can't name has the address `unknown`: what the balancer
    itself may do is no measure for it. Nor is the loopback of a balancer on another machine this one's."""
    if header.is_local:
        return peer
    is_elsewhere = is_loopback_address(header.source) and not is_loopback_address(peer.address)
    return Peer(
        family="tcp", address=UNKNOWN if is_elsewhere else header.source or UNKNOWN, port=header.source_port, local=header.destination or peer.local,
        local_port=header.destination_port or peer.local_port, via=peer.address,
    )  # fmt: skip


def _reason_of(error: ssl.SSLError) -> str:
    reason = error.reason or ""
    if reason in _REASONS:
        return _REASONS[reason]
    return "alert" if "ALERT" in reason else "not_tls"

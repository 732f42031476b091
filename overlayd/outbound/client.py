"""Calls other servers over HTTP/1.1: one place for limits, deadlines, kept connections and the guard."""

import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager

import trio

from overlayd.model.errors import ConfigInvalid, OutboundFailure
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.outbound.answer import AnswerReader
from overlayd.outbound.exchange import Deadline, Part, encode_request, receive_into, talk
from overlayd.outbound.networks import NetworkPolicy, parse_networks
from overlayd.outbound.opening import Opener, make_context
from overlayd.outbound.places import Place, PlaceBook
from overlayd.outbound.pool import Connection, Endpoint, Pool
from overlayd.outbound.reasons import Reason
from overlayd.outbound.request import OutboundAnswer, OutboundRequest
from overlayd.outbound.resolver import Resolver, SystemResolver
from overlayd.outbound.settings import OutboundSettings
from overlayd.outbound.url import Target, parse_url

_SWEEP_MIN_S = 0.1
_LIMITS: dict[str, str] = {
    Reason.DNS_TIMEOUT: "outbound_lookup_timeout",
    Reason.CONNECT_TIMEOUT: "outbound_connect_timeout",
    Reason.TLS_TIMEOUT: "outbound_tls_timeout",
}
"""Limits that a failure tells of. The part's own time is nearly always what ended it."""
_DEAD = frozenset({Reason.ANSWER_CLOSED, Reason.ANSWER_RESET})


class Outbound:
    """Sends requests to other servers. Shared by the whole node; `keep_house` runs beside it."""

    def __init__(
        self, limits: Limits, settings: OutboundSettings, metrics: Metrics, *, resolver: Resolver | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:  # fmt: skip
        """Raises ConfigInvalid for a file of authorities that can't be used."""
        self._limits = limits
        self._metrics = metrics
        self.policy = policy_of(settings)
        self._resolver = resolver or SystemResolver(limits, metrics)
        self._opener = Opener(limits, self._resolver, context or _context_of(settings))
        self._pool = Pool(limits, metrics)
        self._places = PlaceBook(limits, metrics)
        self._calls = metrics.counter(
            "overlayd_outbound_requests",
            "Calls to other servers, by status class or the reason that none came",
            "result",
        )
        self._seconds = metrics.histogram("overlayd_outbound_seconds", "Calls to other servers, from start to end")
        self._opened = metrics.counter("overlayd_outbound_connections", "Connections opened to other servers")
        self._repeated = metrics.counter(
            "overlayd_outbound_repeats", "Requests sent again because a kept connection turned out to be dead"
        )

    def __repr__(self) -> str:
        return f"Outbound({self._places!r}, {self._pool!r})"

    async def send(self, request: OutboundRequest) -> OutboundAnswer:
        """One request, one answer, whatever its status. Waiting for a place counts as part of `timeout_s`.

        Checkpoint. Raises OutboundFailure, whose `reason` is one of `Reason`; ValueError for headers that can't be sent.
        """
        call = self._call(request, is_streamed=False)
        with self._watching(call):
            async with self._places.hold(call.target.authority, ""):
                await self._run(call)
        return self._finish(call)

    def place(self, url: str, owner: str) -> AbstractAsyncContextManager[Place]:
        """A place for one call in `owner`'s name, waited for as long as it takes; for `send_placed`.

        Whoever signs or stamps a request does so once it has its place. Raises OutboundFailure for a bad URL.
        """
        return self._places.hold(parse_url(url).authority, owner)

    async def send_placed(self, request: OutboundRequest, place: Place) -> OutboundAnswer:
        """As `send`, within a place; the time begins now. A 2xx is what makes a place's call a good one."""
        call = self._call(request, is_streamed=False)
        with self._watching(call):
            await self._run(call)
        answer = self._finish(call)
        place.is_good = 200 <= answer.status < 300
        return answer

    @asynccontextmanager
    async def stream(self, request: OutboundRequest, *, idle_timeout_s: float) -> "AsyncIterator[OutboundStream]":
        """An answer that is read as it comes, for as long as it comes (events, say). `timeout_s` is for its head,
        `idle_timeout_s` for each wait after it; `body_max` doesn't count. The connection closes with the block.

        Checkpoint. Raises OutboundFailure, ValueError.
        """
        call = self._call(request, is_streamed=True)
        async with self._places.hold(call.target.authority, ""):
            with self._watching(call):
                await self._run(call)
            assert call.connection is not None
            assert call.reader is not None
            try:
                yield OutboundStream(call.connection, call.reader, idle_timeout_s, call.target)
            finally:
                call.close()

    async def keep_house(self) -> None:
        """Closes connections that nobody uses any more. Runs until cancelled, then closes them all."""
        try:
            while True:  # noqa: ASYNC110 - no event: connections grow old by themselves
                await trio.sleep(max(_SWEEP_MIN_S, self._pool.close_expired()))
        finally:
            self.close()

    def close(self) -> None:
        """Closes the kept connections."""
        self._pool.close_all()

    def _call(self, request: OutboundRequest, *, is_streamed: bool) -> "_Call":
        policy = self.policy if request.policy is None else request.policy
        return _Call(request, parse_url(request.url), policy, Deadline(request.timeout_s), is_streamed)

    @contextmanager
    def _watching(self, call: "_Call") -> Iterator[None]:
        """The call within its time, counted, its connection closed when it fails. Raises OutboundFailure."""
        result = "cancelled"
        try:
            with call.deadline.scope:
                yield
            if call.deadline.scope.cancelled_caught:
                self._give_up(call)
            assert call.reader is not None
            result = f"{call.reader.status // 100}xx"
        except BaseException as err:
            if isinstance(err, OutboundFailure):
                result = err.reason
                self._count_limit(call, err)
            call.close()
            raise
        finally:
            self._calls.labels(result).inc()
            self._seconds.observe(trio.current_time() - call.deadline.started)

    def _finish(self, call: "_Call") -> OutboundAnswer:
        """The answer; its connection is kept or closed."""
        connection, reader = call.connection, call.reader
        assert connection is not None
        assert reader is not None
        if reader.is_reusable and reader.is_sent:
            self._pool.keep(connection)
        else:
            connection.wire.close()
        reader.close()
        spent_s = trio.current_time() - call.deadline.started
        return OutboundAnswer(
            status=reader.status, headers=tuple(reader.headers), body=reader.take_body(), is_cut=reader.is_cut,
            duration_us=int(spent_s * 1e6), address=connection.address,
        )  # fmt: skip

    async def _run(self, call: "_Call") -> None:
        data = encode_request(call.request, call.target)
        connection = self._pool.take(call.endpoint)
        if connection is not None:
            try:
                return await self._talk(call, connection, data)
            except OutboundFailure as failure:
                if failure.reason not in _DEAD or not call.may_repeat:
                    raise
                self._repeated.inc()
                call.close()
        connection = await self._opener.open(call.target, call.policy, call.deadline)
        self._opened.inc()
        await self._talk(call, connection, data)

    async def _talk(self, call: "_Call", connection: Connection, data: bytes) -> None:
        request, limits = call.request, self._limits
        call.connection = connection
        connection.uses += 1
        call.reader = AnswerReader(
            head_bytes=int(limits.outbound_head_bytes), head_lines=limits.outbound_head_lines,
            body_max=None if call.is_streamed else request.body_max, is_body_evidence=request.is_body_evidence,
        )  # fmt: skip
        await talk(
            connection, data, call.reader, call.deadline, is_head_enough=call.is_streamed,
            body_timeout_s=limits.outbound_body_timeout if request.is_body_evidence else None,
        )  # fmt: skip

    def _give_up(self, call: "_Call") -> None:
        """Time is over. Raises OutboundFailure, unless the status is there and the rest was evidence."""
        reader = call.reader
        if call.deadline.part is Part.BODY and reader is not None and call.request.is_body_evidence:
            self._metrics.count_limit_hit("outbound_body_timeout")
            reader.cut_body()
            return
        if call.deadline.part is Part.LOOKUP and self._resolver.is_full:
            raise OutboundFailure.of(
                Reason.DNS_BUSY, "too many names are being looked up; the name servers don't answer",
                subject=call.target.origin,
            )  # fmt: skip
        raise call.deadline.failure(call.target)

    def _count_limit(self, call: "_Call", failure: OutboundFailure) -> None:
        limit = call.reader.limit_hit if call.reader is not None else ""
        limit = limit or _LIMITS.get(failure.reason, "")
        if limit:
            self._metrics.count_limit_hit(limit)


class OutboundStream:
    """An answer whose head came; the body is read piece by piece."""

    def __init__(self, connection: Connection, reader: AnswerReader, idle_timeout_s: float, target: Target) -> None:
        self._connection = connection
        self._reader = reader
        self._idle_timeout_s = idle_timeout_s
        self._target = target
        self.status = reader.status
        self.headers = tuple(reader.headers)

    async def receive(self) -> bytes:
        """The next piece, b"" at the end. Checkpoint. Raises OutboundFailure: `body.timeout` after a silence."""
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(self._idle_timeout_s):
            while True:
                piece = self._reader.take_body()
                if piece or self._reader.is_complete:
                    return piece
                await receive_into(self._connection, self._reader)
        raise OutboundFailure.of(
            Reason.BODY_TIMEOUT, f"{self._target.origin} was silent for {self._idle_timeout_s:g} s",
            subject=self._target.origin,
        )  # fmt: skip


class _Call:
    """A call on its way."""

    __slots__ = ("connection", "deadline", "endpoint", "is_streamed", "policy", "reader", "request", "target")

    def __init__(
        self, request: OutboundRequest, target: Target, policy: NetworkPolicy, deadline: Deadline, is_streamed: bool
    ) -> None:
        self.request = request
        self.target = target
        self.policy = policy
        self.deadline = deadline
        self.is_streamed = is_streamed
        self.endpoint: Endpoint = (target.scheme, target.host, target.port, policy.key)
        self.connection: Connection | None = None
        self.reader: AnswerReader | None = None

    @property
    def may_repeat(self) -> bool:
        """Nothing of an answer came, and getting the request twice does the receiver no harm."""
        assert self.reader is not None
        return self.reader.wire_bytes == 0 and (self.request.is_repeatable or self.request.method == "GET")

    def close(self) -> None:
        if self.connection is not None:
            self.connection.wire.close()


def policy_of(settings: OutboundSettings) -> NetworkPolicy:
    """What the settings allow."""
    return NetworkPolicy(parse_networks(settings.allow_private), settings.ports)


def _context_of(settings: OutboundSettings) -> ssl.SSLContext:
    try:
        return make_context(settings.ca_file)
    except (OSError, ssl.SSLError) as err:
        raise ConfigInvalid(
            f"{settings.ca_file} can't be used as a file of certificate authorities: {err}", subject="ca_file"
        ) from err

"""The Trio client: `async with Client("http://127.0.0.1:7878") as client: ...`"""

import random
import ssl
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import urlencode

import httpx
import trio
from msgspec import UNSET

from overlayd.client import calls, transport, usage_calls
from overlayd.client.address import Address
from overlayd.client.calls import Call
from overlayd.client.following import Following, OnStatus
from overlayd.client.live import Live
from overlayd.client.producing import Prepared
from overlayd.client.publishing import Chunk, Chunker, PacketLike, PublishOutcome, build_packet, explained
from overlayd.client.reading import PAGE_PACKETS, check_message, check_packet, check_packets, in_order, is_last_page
from overlayd.client.resume import LIVE_POLICY, Resume, live_query
from overlayd.client.retry import Backoff, RetryPolicy, is_worth_repeating
from overlayd.client.subscriptions import AsyncSubscriptions
from overlayd.client.tls_files import TlsFiles, chosen_context
from overlayd.client.trust import LogView, check_proof
from overlayd.client.websocket import WebSocketReader, open_websocket
from overlayd.model.definition import Definition
from overlayd.model.errors import OverlaydError
from overlayd.model.proof import ChainCheck, SignedTree
from overlayd.model.quota import QuotaPolicy
from overlayd.model.verdict import Verdict
from overlayd.model.wire import (
    ConsistencyBody,
    NodeBody,
    Packet,
    PacketGap,
    PacketsBody,
    ReadBody,
    ReadyBody,
    ReceiptBody,
    SessionBody,
    StreamBody,
    StreamRemoved,
)
from overlayd.model.wire_usage import DeliveryList, QuotaBody, UsageBody

CLOSE_S = 2.0
T = TypeVar("T")
Deliver = Literal["", "appended", "confirmed", "both"]


class Client:
    """A connection pool to one node. Use it as an async context manager, from any number of tasks.

    `key` is sent as a bearer token. `retry` says how often a request is tried when that is safe. `verify`: every
    packet that is read has its content hash recomputed, and VerificationFailed raised if it isn't the stated one.
    All methods are checkpoints and raise the errors of overlayd.model.errors, NodeUnreachable among them.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        verify: bool = False,
        retry: RetryPolicy | None = None,
        tls: TlsFiles | None = None,
        ssl_context: ssl.SSLContext | None = None,
        chance: random.Random | None = None,
    ) -> None:
        """`ssl_context` beats `tls`. Raises BadParameter for a URL that isn't a node's address, and for files of `tls`
        that can't be used."""
        self.address = Address.parse(url)
        self._headers = transport.headers_of(key)
        self._verify = verify
        self._retry = retry or RetryPolicy()
        self._ssl_context = chosen_context(tls, ssl_context)
        self._chance = chance or random.Random()  # noqa: S311 - spreads retries, keeps no secret
        self._lives: set[Live] = set()
        self._http: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        self._http = httpx.AsyncClient(
            transport=transport.async_transport(self.address, self._ssl_context),
            **transport.client_arguments(self._headers),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._http is not None
        with trio.move_on_after(CLOSE_S, shield=True):
            for live in tuple(self._lives):
                await live.aclose()
            await self._http.aclose()

    async def send(self, call: Call[T]) -> T:
        """Sends a request and reads its answer, trying again as far as that is safe."""
        backoff = Backoff(self._retry, self._chance)
        while True:
            try:
                return call.read(await self._exchange(call))
            except OverlaydError as error:
                if not is_worth_repeating(error, is_repeatable=call.is_repeatable):
                    raise
                pause_s = backoff.fail(error.retry_after_s)
                if backoff.is_spent:
                    raise
            await trio.sleep(pause_s)

    async def _exchange(self, call: Call[Any]) -> calls.Answer:
        assert self._http is not None, "enter the client with `async with` first"
        request = self._http.build_request(**transport.request_arguments(self.address, call))
        if call.content:
            request.stream = transport.BytesBody(call.content)
        with transport.translated_errors(self.address):
            response = await self._http.send(request, stream=True)
            try:
                reading = transport.AnswerReader(response.status_code, response.headers)
                async for part in response.aiter_bytes():
                    reading.feed(part)
                return reading.finish()
            finally:
                await response.aclose()

    async def _drive(self, steps: Generator[Call[Any], Any, T]) -> T:
        try:
            call = next(steps)
            while True:
                call = steps.send(await self.send(call))
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def node(self) -> NodeBody:
        """Who the node is and where its log stands."""
        return await self.send(calls.node())

    async def ready(self) -> ReadyBody:
        """Whether the node can take packets."""
        return await self.send(calls.ready())

    async def streams(self, *, q: str = "", tag: str = "", state: str = "") -> list[StreamBody]:
        """Every stream that matches, by name."""
        found: list[StreamBody] = []
        after = ""
        while True:
            page = await self.send(calls.streams(q=q, tag=tag, state=state, after=after))
            found += page.streams
            if not page.next_after:
                return found
            after = page.next_after

    async def stream(self, name: str) -> StreamBody:
        """One stream's definition and where it stands."""
        return await self.send(calls.stream(name))

    async def define(self, name: str, definition: Definition | Mapping[str, Any], *, if_match: str = "") -> StreamBody:
        """Creates a stream or changes its definition. A mapping needs only what differs from the defaults."""
        return await self.send(calls.define(name, definition, if_match=if_match))

    async def set_state(self, name: str, state: Literal["active", "paused", "stopped"]) -> StreamBody:
        """Pauses, stops or goes on with a stream."""
        return await self.send(calls.set_state(name, state))

    async def delete(self, name: str) -> StreamRemoved:
        """Takes a stream's packets away for good."""
        return await self.send(calls.delete(name))

    async def publish(
        self,
        stream: str,
        data: Any = UNSET,
        *,
        octets: bytes | None = None,
        id: str | None = None,
        type: str | None = None,
        time: str | None = None,
        source: str | None = None,
        key: str | None = None,
        topics: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        salt: str | None = None,
        expected_sequence: int | None = None,
        proof: bool = False,
    ) -> ReceiptBody:
        """Puts a packet in the log and gives its receipt once it is durable.

        `data` is anything JSON can say (a msgspec.Raw goes verbatim), or give `octets`. With an `id` a repeat is
        recognized, so a broken connection is retried here; without one UncertainPublish is raised instead.
        """
        packet = build_packet(
            data, octets=octets, id=id, type=type, time=time, source=source, key=key, topics=topics,
            metadata=metadata, salt=salt,
        )  # fmt: skip
        call = calls.publish_packet(
            stream, packet, is_repeatable=bool(id), expected_sequence=expected_sequence, proof=proof
        )
        try:
            return await self.send(call)
        except OverlaydError as error:
            reason = explained(error, Chunk(1, [packet], has_ids=bool(id)), PublishOutcome())
            if reason is error:
                raise
            raise reason from error

    async def produce(self, prepared: Prepared) -> ReceiptBody:
        """Publishes a packet that brings its transaction, and checks that the receipt is about both. Safe to repeat."""
        call = calls.publish_packet(prepared.stream, prepared.packet, is_repeatable=True)
        receipt = await self.send(call)
        prepared.check_receipt(receipt)
        return receipt

    async def follow(
        self,
        receipts: ReceiptBody | Sequence[ReceiptBody],
        *,
        min_confirmations: int = 0,
        on_status: OnStatus | None = None,
    ) -> list[Packet]:
        """Waits until packets of one stream are confirmed so deep (0: at the stream's smallest depth); gives them.

        `on_status` hears what happens on the way. Raises NotConfirmed for one that failed or was dropped.
        """
        wanted = (receipts,) if isinstance(receipts, ReceiptBody) else receipts
        following = Following(wanted, min_confirmations, on_status)
        async with self.live(**following.query()) as messages:
            async for message in messages:
                for sequence in following.to_look_at(message):
                    following.judge(await self.read_packet(following.stream, sequence))
                if following.take(message):
                    break
        return following.in_order()

    async def publish_many(
        self,
        stream: str,
        packets: Iterable[PacketLike] | AsyncIterable[PacketLike],
        *,
        on_progress: Callable[[PublishOutcome], None] | None = None,
        chunk_packets: int = 1000,
    ) -> PublishOutcome:
        """Publishes packet objects (mappings with `data`, or their JSON text) in requests of bounded size.

        A request whose packets all have ids is retried; otherwise a broken connection raises UncertainPublish,
        which names the packets in doubt. Rejected packets don't stop the rest; the outcome lists them.
        """
        chunker = Chunker(packets_max=chunk_packets)
        outcome = PublishOutcome()
        if isinstance(packets, AsyncIterable):
            async for packet in packets:
                await self._publish_chunk(stream, chunker.add(packet), outcome, on_progress)
        else:
            for packet in packets:
                await self._publish_chunk(stream, chunker.add(packet), outcome, on_progress)
        await self._publish_chunk(stream, chunker.finish(), outcome, on_progress)
        return outcome

    async def _publish_chunk(
        self,
        stream: str,
        chunk: Chunk | None,
        outcome: PublishOutcome,
        on_progress: Callable[[PublishOutcome], None] | None,
    ) -> None:
        if chunk is None:
            return
        try:
            body = await self.send(calls.publish_lines(stream, chunk.lines, is_repeatable=chunk.has_ids))
        except OverlaydError as error:
            reason = explained(error, chunk, outcome)
            if reason is error:
                raise
            raise reason from error
        outcome.add(chunk, body)
        if on_progress is not None:
            on_progress(outcome)

    async def read(
        self, stream: str, *, after: int = 0, limit: int = 100, wait_s: float = 0.0, deliver: Deliver = ""
    ) -> PacketsBody:
        """Packets behind a sequence; with `wait_s` the node waits up to 55 s for the first."""
        call = calls.read_packets(stream, after=after, limit=limit, wait_s=wait_s, deliver=deliver)
        return check_packets(await self.send(call), is_wanted=self._verify)

    async def read_packet(self, stream: str, sequence: int) -> Packet:
        """One packet."""
        return check_packet(await self.send(calls.read_packet(stream, sequence)), is_wanted=self._verify)

    async def read_data(self, stream: str, sequence: int) -> bytes:
        """A packet's stored body, byte for byte."""
        return await self.send(calls.read_data(stream, sequence))

    async def read_last(self, stream: str, key: str = "") -> Packet:
        """The newest packet, of one key if given."""
        return check_packet(await self.send(calls.read_last(stream, key)), is_wanted=self._verify)

    async def find_packets(self, packet_id: str) -> list[Packet]:
        """The packets of any stream that carry this id."""
        found = (await self.send(calls.find_packets(packet_id))).packets
        return [check_packet(packet, is_wanted=self._verify) for packet in found]

    def packets(self, stream: str, *, after: int = 0, follow: bool = False) -> "PacketWalk":
        """Every packet behind a sequence, in order, and a gap where some can't be given any more.

        Ends at the head, or with `follow` waits there for more.
        """
        return PacketWalk(partial(self.read, stream), after, follow=follow)

    async def read_log(self, streams: str | Iterable[str] = (), *, wait_s: float = 0.0, **query: Any) -> ReadBody:
        """Messages of any streams behind a cursor, in one answer; takes the same query as `live`."""
        body = await self.send(calls.read_log(live_query(streams, **query).params(), wait_s=wait_s))
        for message in body.messages:
            check_message(message, is_wanted=self._verify)
        return body

    def live(
        self,
        streams: str | Iterable[str] = (),
        *,
        after: str = "",
        start: str = "",
        topics: Iterable[str] = (),
        types: Iterable[str] = (),
        keys: Iterable[str] = (),
        filter: str = "",
        deliver: Deliver = "",
        min_confirmations: int = 0,
        status: bool = False,
        on_gap: Literal["message", "error"] = "message",
        view: LogView | None = None,
        retry: RetryPolicy = LIVE_POLICY,
        on_pause: Callable[[float, str], None] | None = None,
    ) -> Live:
        """Messages as they are appended, from `after` a cursor or from `start` (now, beginning, last, a time).

        Reconnects and resumes by itself for as long as `retry` allows; only the first connection may fail.
        With a `view` the node must prove on each connection that its log extends the one seen before.
        """
        query = live_query(
            streams, topics=topics, types=types, keys=keys, start=start, after=after, filter=filter, deliver=deliver,
            min_confirmations=min_confirmations, status=status, on_gap=on_gap,
        )  # fmt: skip

        async def connect(params: list[tuple[str, str]]) -> WebSocketReader:
            target = f"/v1/live?{urlencode(params)}"
            return await open_websocket(self.address, target, self._headers, self._ssl_context)

        live = Live(
            connect,
            Resume(query, retry, self._chance, view),
            check=lambda message: check_message(message, is_wanted=self._verify),
            prepare=None if view is None else lambda: self._prepare(view),
            on_pause=on_pause,
            on_close=self._lives.discard,
        )
        self._lives.add(live)
        return live

    async def _prepare(self, view: LogView) -> None:
        if not view.seen:
            await self.check_log(view)

    async def proof(self, stream: str, sequence: int) -> bytes:
        """A packet's proof, as the JSON that stands alone in a file."""
        return await self.send(calls.proof(stream, sequence))

    async def verify_proof(
        self, stream: str, sequence: int, view: LogView, *, subject: Packet | ReceiptBody | None = None,
        chain: ChainCheck | None = None,
    ) -> Verdict:  # fmt: skip
        """Fetches a packet's proof and checks it against the view's keys and everything seen before.

        `subject`, the packet or receipt at hand, must be what is proven. `chain` (`overlayd.bsv.chain_check.ChainCheck`)
        checks its block and the producer's signature, too. Raises VerificationFailed or ForkDetected.
        """
        return await self._drive(check_proof(view, stream, sequence, subject, chain))

    async def check_log(self, view: LogView) -> SignedTree:
        """Fetches the newest checkpoint and checks that the log extends what the view saw; remembers it."""
        return await self._drive(view.take_checkpoint(await self.checkpoint()))

    async def checkpoint(self) -> str:
        """The newest signed checkpoint, as a note."""
        return await self.send(calls.checkpoint())

    async def consistency(self, old_size: int, new_size: int) -> ConsistencyBody:
        """The node's proof that one size extends another."""
        return await self.send(calls.consistency(old_size, new_size))

    async def sessions(self) -> list[SessionBody]:
        """The live connections of the node."""
        return await self.send(calls.sessions())

    async def end_session(self, session_id: str) -> None:
        """Ends a live connection."""
        await self.send(calls.end_session(session_id))

    async def usage(
        self, *, principal: str = "", stream: str = "", method: str = "", from_: str = "", to: str = "", by: str = "",
        limit: int = 0, after: str = "",
    ) -> UsageBody:  # fmt: skip
        """One page of what was published, read and delivered, by hour, day or in total. Times are RFC 3339."""
        return await self.send(
            usage_calls.usage(
                principal=principal, stream=stream, method=method, from_=from_, to=to, by=by, limit=limit, after=after
            )
        )

    async def deliveries(
        self, *, principal: str = "", stream: str = "", limit: int = 0, before: int = 0
    ) -> DeliveryList:  # fmt: skip
        """Deliveries that are over, the newest first."""
        return await self.send(usage_calls.deliveries(principal=principal, stream=stream, limit=limit, before=before))

    async def quota(self, principal: str = "") -> QuotaBody:
        """What somebody used and has left; without a name, oneself."""
        return await self.send(usage_calls.quota(principal))

    async def quota_policies(self) -> list[QuotaPolicy]:
        """All quota policies, by name."""
        return await self.send(usage_calls.quota_policies())

    async def put_quota_policy(self, policy: QuotaPolicy) -> QuotaPolicy:
        """Creates a policy, or changes it for everybody who has it."""
        return await self.send(usage_calls.put_quota_policy(policy))

    async def delete_quota_policy(self, name: str) -> None:
        """Takes a policy away; whoever has it is refused."""
        await self.send(usage_calls.delete_quota_policy(name))

    @property
    def subscriptions(self) -> AsyncSubscriptions:
        """Durable subscriptions of the node."""
        return AsyncSubscriptions(self.send)

    def __repr__(self) -> str:
        return f"Client({str(self.address)!r})"


class PacketWalk:
    """An async iterator over a stream, a page at a time. It holds nothing open and may be left at any point."""

    def __init__(self, read: Callable[..., Awaitable[PacketsBody]], after: int, *, follow: bool) -> None:
        self._read = read
        self._after = after
        self._follow = follow
        self._items: deque[Packet | PacketGap] = deque()
        self._is_done = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Packet | PacketGap:
        """The next packet or gap. Checkpoint."""
        if self._items:
            await trio.lowlevel.checkpoint()
        while not self._items:
            if self._is_done:
                raise StopAsyncIteration
            wait_s = calls.HOLD_MAX_S if self._follow else 0.0
            page = await self._read(after=self._after, limit=PAGE_PACKETS, wait_s=wait_s)
            self._items.extend(in_order(page))
            self._is_done = not self._follow and is_last_page(page, self._after)
            self._after = page.next_after
        return self._items.popleft()

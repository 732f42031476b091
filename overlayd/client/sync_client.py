"""The client for programs without Trio: `with SyncClient("http://127.0.0.1:7878") as client: ...`

Plain blocking calls in the calling thread, no thread or event loop behind them. Live reading uses the NDJSON form of
`GET /v1/live`, which has the same messages and resumes in the same way as the WebSocket of the Trio client.
"""

import random
import ssl
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx
from msgspec import UNSET, Raw

from overlayd.client import calls, transport, usage_calls
from overlayd.client.address import Address
from overlayd.client.calls import Call
from overlayd.client.following import Following, OnStatus
from overlayd.client.lines import LiveLines
from overlayd.client.producing import Prepared
from overlayd.client.publishing import Chunk, Chunker, PacketLike, PublishOutcome, build_packet, explained
from overlayd.client.reading import (
    PAGE_PACKETS,
    check_message,
    check_packet,
    check_packets,
    in_order,
    is_last_page,
    verify_packet,
)
from overlayd.client.resume import LIVE_POLICY, Resume, live_query
from overlayd.client.retry import Backoff, RetryPolicy, is_worth_repeating
from overlayd.client.subscriptions import SyncSubscriptions
from overlayd.client.tls_files import TlsFiles, chosen_context
from overlayd.client.trust import LogView, check_proof
from overlayd.model.definition import Definition
from overlayd.model.errors import OverlaydError, VerificationFailed
from overlayd.model.proof import ChainCheck, SignedTree
from overlayd.model.quota import QuotaPolicy
from overlayd.model.verdict import Verdict
from overlayd.model.wire import (
    ConsistencyBody,
    LogMessage,
    NodeBody,
    Packet,
    PacketGap,
    PacketMessage,
    PacketsBody,
    ReadBody,
    ReadyBody,
    ReceiptBody,
    SessionBody,
    StreamBody,
    StreamRemoved,
)
from overlayd.model.wire_usage import DeliveryList, QuotaBody, UsageBody

T = TypeVar("T")
_LINE_ENDS = bytes.maketrans(b"\r\n", b"  ")
Deliver = Literal["", "appended", "confirmed", "both"]


class SyncClient:
    """Connections to one node, for one thread. The methods are those of `Client`, without `await`.

    `sleep` is what pauses between two attempts.
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
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`ssl_context` beats `tls`. Raises BadParameter for a URL that isn't a node's address, and for files of `tls`
        that can't be used."""
        self.address = Address.parse(url)
        self._verify = verify
        self._retry = retry or RetryPolicy()
        self._chance = chance or random.Random()  # noqa: S311 - spreads retries, keeps no secret
        self._sleep = sleep
        self._http = httpx.Client(
            transport=transport.sync_transport(self.address, chosen_context(tls, ssl_context)),
            **transport.client_arguments(transport.headers_of(key)),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes every connection."""
        self._http.close()

    def send(self, call: Call[T]) -> T:
        """Sends a request and reads its answer, trying again as far as that is safe."""
        backoff = Backoff(self._retry, self._chance)
        while True:
            try:
                return call.read(self._exchange(call))
            except OverlaydError as error:
                if not is_worth_repeating(error, is_repeatable=call.is_repeatable):
                    raise
                pause_s = backoff.fail(error.retry_after_s)
                if backoff.is_spent:
                    raise
            self._sleep(pause_s)

    def _exchange(self, call: Call[Any]) -> calls.Answer:
        transport.check_socket(self.address)
        with (
            transport.translated_errors(self.address),
            self._http.stream(**transport.request_arguments(self.address, call)) as response,
        ):
            reading = transport.AnswerReader(response.status_code, response.headers)
            for part in response.iter_bytes():
                reading.feed(part)
            return reading.finish()

    def _drive(self, steps: Generator[Call[Any], Any, T]) -> T:
        try:
            call = next(steps)
            while True:
                call = steps.send(self.send(call))
        except StopIteration as stop:
            result: T = stop.value
            return result

    def node(self) -> NodeBody:
        """Who the node is and where its log stands."""
        return self.send(calls.node())

    def ready(self) -> ReadyBody:
        """Whether the node can take packets."""
        return self.send(calls.ready())

    def streams(self, *, q: str = "", tag: str = "", state: str = "") -> list[StreamBody]:
        """Every stream that matches, by name."""
        found: list[StreamBody] = []
        after = ""
        while True:
            page = self.send(calls.streams(q=q, tag=tag, state=state, after=after))
            found += page.streams
            if not page.next_after:
                return found
            after = page.next_after

    def stream(self, name: str) -> StreamBody:
        """One stream's definition and where it stands."""
        return self.send(calls.stream(name))

    def define(self, name: str, definition: Definition | Mapping[str, Any], *, if_match: str = "") -> StreamBody:
        """Creates a stream or changes its definition. A mapping needs only what differs from the defaults."""
        return self.send(calls.define(name, definition, if_match=if_match))

    def set_state(self, name: str, state: Literal["active", "paused", "stopped"]) -> StreamBody:
        """Pauses, stops or goes on with a stream."""
        return self.send(calls.set_state(name, state))

    def delete(self, name: str) -> StreamRemoved:
        """Takes a stream's packets away for good."""
        return self.send(calls.delete(name))

    def publish(
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
        """Puts a packet in the log and gives its receipt once it is durable; as `Client.publish`."""
        packet = build_packet(
            data, octets=octets, id=id, type=type, time=time, source=source, key=key, topics=topics,
            metadata=metadata, salt=salt,
        )  # fmt: skip
        call = calls.publish_packet(
            stream, packet, is_repeatable=bool(id), expected_sequence=expected_sequence, proof=proof
        )
        try:
            return self.send(call)
        except OverlaydError as error:
            reason = explained(error, Chunk(1, [packet], has_ids=bool(id)), PublishOutcome())
            if reason is error:
                raise
            raise reason from error

    def produce(self, prepared: Prepared) -> ReceiptBody:
        """Publishes a packet that brings its transaction, and checks that the receipt is about both. Safe to repeat."""
        call = calls.publish_packet(prepared.stream, prepared.packet, is_repeatable=True)
        receipt = self.send(call)
        prepared.check_receipt(receipt)
        return receipt

    def follow(
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
        with self.live(**following.query()) as messages:
            for message in messages:
                for sequence in following.to_look_at(message):
                    following.judge(self.read_packet(following.stream, sequence))
                if following.take(message):
                    break
        return following.in_order()

    def publish_many(
        self,
        stream: str,
        packets: Iterable[PacketLike],
        *,
        on_progress: Callable[[PublishOutcome], None] | None = None,
        chunk_packets: int = 1000,
    ) -> PublishOutcome:
        """Publishes packet objects in requests of bounded size; as `Client.publish_many`."""
        chunker = Chunker(packets_max=chunk_packets)
        outcome = PublishOutcome()
        for packet in packets:
            self._publish_chunk(stream, chunker.add(packet), outcome, on_progress)
        self._publish_chunk(stream, chunker.finish(), outcome, on_progress)
        return outcome

    def _publish_chunk(
        self,
        stream: str,
        chunk: Chunk | None,
        outcome: PublishOutcome,
        on_progress: Callable[[PublishOutcome], None] | None,
    ) -> None:
        if chunk is None:
            return
        try:
            body = self.send(calls.publish_lines(stream, chunk.lines, is_repeatable=chunk.has_ids))
        except OverlaydError as error:
            reason = explained(error, chunk, outcome)
            if reason is error:
                raise
            raise reason from error
        outcome.add(chunk, body)
        if on_progress is not None:
            on_progress(outcome)

    def read(
        self, stream: str, *, after: int = 0, limit: int = 100, wait_s: float = 0.0, deliver: Deliver = ""
    ) -> PacketsBody:
        """Packets behind a sequence; with `wait_s` the node waits up to 55 s for the first."""
        call = calls.read_packets(stream, after=after, limit=limit, wait_s=wait_s, deliver=deliver)
        return check_packets(self.send(call), is_wanted=self._verify)

    def read_packet(self, stream: str, sequence: int) -> Packet:
        """One packet."""
        return check_packet(self.send(calls.read_packet(stream, sequence)), is_wanted=self._verify)

    def read_data(self, stream: str, sequence: int) -> bytes:
        """A packet's stored body, byte for byte."""
        return self.send(calls.read_data(stream, sequence))

    def read_last(self, stream: str, key: str = "") -> Packet:
        """The newest packet, of one key if given."""
        return check_packet(self.send(calls.read_last(stream, key)), is_wanted=self._verify)

    def find_packets(self, packet_id: str) -> list[Packet]:
        """The packets of any stream that carry this id."""
        found = self.send(calls.find_packets(packet_id)).packets
        return [check_packet(packet, is_wanted=self._verify) for packet in found]

    def packets(self, stream: str, *, after: int = 0, follow: bool = False) -> Iterator[Packet | PacketGap]:
        """Every packet behind a sequence, in order, and a gap where some can't be given any more.

        Ends at the head, or with `follow` waits there for more.
        """
        while True:
            wait_s = calls.HOLD_MAX_S if follow else 0.0
            page = self.read(stream, after=after, limit=PAGE_PACKETS, wait_s=wait_s)
            yield from in_order(page)
            if is_last_page(page, after) and not follow:
                return
            after = page.next_after

    def read_log(self, streams: str | Iterable[str] = (), *, wait_s: float = 0.0, **query: Any) -> ReadBody:
        """Messages of any streams behind a cursor, in one answer; takes the same query as `live`."""
        body = self.send(calls.read_log(live_query(streams, **query).params(), wait_s=wait_s))
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
    ) -> LiveLines:
        """Messages as they are appended, as `Client.live`; close it, or use it as a context manager."""
        query = live_query(
            streams, topics=topics, types=types, keys=keys, start=start, after=after, filter=filter, deliver=deliver,
            min_confirmations=min_confirmations, status=status, on_gap=on_gap,
        )  # fmt: skip
        if view is not None and not view.seen:
            self.check_log(view)
        return LiveLines(
            self._http,
            self.address,
            Resume(query, retry, self._chance, view),
            check=self._check_line,
            on_pause=on_pause,
            sleep=self._sleep,
        )

    def _check_line(self, message: LogMessage) -> None:
        """Verifies a packet message if wanted.

        A line of NDJSON can't hold the line ends that a payload may have between its tokens; the node writes blanks
        for them. Such a payload is fetched as it was stored.
        """
        if not self._verify or not isinstance(message, PacketMessage):
            return
        packet = message.packet
        try:
            verify_packet(packet)
        except VerificationFailed:
            stored = self.read_data(packet.stream_id, packet.packet_sequence)
            if stored.translate(_LINE_ENDS) != bytes(packet.data_payload):
                raise
            packet.data_payload = Raw(stored)
            verify_packet(packet)

    def proof(self, stream: str, sequence: int) -> bytes:
        """A packet's proof, as the JSON that stands alone in a file."""
        return self.send(calls.proof(stream, sequence))

    def verify_proof(
        self, stream: str, sequence: int, view: LogView, *, subject: Packet | ReceiptBody | None = None,
        chain: ChainCheck | None = None,
    ) -> Verdict:  # fmt: skip
        """Fetches a packet's proof and checks it against the view's keys and everything seen before."""
        return self._drive(check_proof(view, stream, sequence, subject, chain))

    def check_log(self, view: LogView) -> SignedTree:
        """Fetches the newest checkpoint and checks that the log extends what the view saw; remembers it."""
        return self._drive(view.take_checkpoint(self.checkpoint()))

    def checkpoint(self) -> str:
        """The newest signed checkpoint, as a note."""
        return self.send(calls.checkpoint())

    def consistency(self, old_size: int, new_size: int) -> ConsistencyBody:
        """The node's proof that one size extends another."""
        return self.send(calls.consistency(old_size, new_size))

    def sessions(self) -> list[SessionBody]:
        """The live connections of the node."""
        return self.send(calls.sessions())

    def end_session(self, session_id: str) -> None:
        """Ends a live connection."""
        self.send(calls.end_session(session_id))

    def usage(
        self, *, principal: str = "", stream: str = "", method: str = "", from_: str = "", to: str = "", by: str = "",
        limit: int = 0, after: str = "",
    ) -> UsageBody:  # fmt: skip
        """One page of what was published, read and delivered, by hour, day or in total. Times are RFC 3339."""
        return self.send(
            usage_calls.usage(
                principal=principal, stream=stream, method=method, from_=from_, to=to, by=by, limit=limit, after=after
            )
        )

    def deliveries(
        self, *, principal: str = "", stream: str = "", limit: int = 0, before: int = 0
    ) -> DeliveryList:  # fmt: skip
        """Deliveries that are over, the newest first."""
        return self.send(usage_calls.deliveries(principal=principal, stream=stream, limit=limit, before=before))

    def quota(self, principal: str = "") -> QuotaBody:
        """What somebody used and has left; without a name, oneself."""
        return self.send(usage_calls.quota(principal))

    def quota_policies(self) -> list[QuotaPolicy]:
        """All quota policies, by name."""
        return self.send(usage_calls.quota_policies())

    def put_quota_policy(self, policy: QuotaPolicy) -> QuotaPolicy:
        """Creates a policy, or changes it for everybody who has it."""
        return self.send(usage_calls.put_quota_policy(policy))

    def delete_quota_policy(self, name: str) -> None:
        """Takes a policy away; whoever has it is refused."""
        self.send(usage_calls.delete_quota_policy(name))

    @property
    def subscriptions(self) -> SyncSubscriptions:
        """Durable subscriptions of the node."""
        return SyncSubscriptions(self.send)

    def __repr__(self) -> str:
        return f"SyncClient({str(self.address)!r})"

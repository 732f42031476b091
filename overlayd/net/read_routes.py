"""Reading what is there, and waiting for a moment: packets of a stream, single packets, pages of a live query."""

import base64
from functools import partial

import msgspec
import trio
from blake3 import blake3
from quart import Response, request
from quart_trio import QuartTrio

from overlayd.access.principal import check_standing
from overlayd.access.stream_guard import StreamGuard
from overlayd.delivery.delivery import Delivery, OpenReader
from overlayd.delivery.packets import StreamPage, find_named, find_packet, find_paid, read_stream, show_present
from overlayd.delivery.query import Beginning, with_sight
from overlayd.delivery.reader import refuse_gaps
from overlayd.delivery.session import Registry
from overlayd.model.confirmation import NothingConfirmed
from overlayd.model.cursor import Cursor
from overlayd.model.errors import BadParameter, MalformedChainData, UnknownPacket
from overlayd.model.meta import decode_meta
from overlayd.model.txid import TxId, parse_txid
from overlayd.model.units import Duration
from overlayd.model.wire import Packet, PacketList, PacketsBody, encode_wire
from overlayd.net.app import answer, principal_of
from overlayd.net.encoding import packed_answer
from overlayd.net.lane import Lane
from overlayd.net.live_query import split_query
from overlayd.net.parameters import Parameters
from overlayd.net.stream_routes import known_stream
from overlayd.storage import Stream

LIMIT = 100
IMMUTABLE = "max-age=31536000, immutable"
OCTETS = "application/octet-stream"
_ID_CHARS_MAX = 1024
CONFIRMED_PAUSE_S = 0.1
"""Who waits for a confirmation looks again at most so often: most of what is appended meanwhile is none."""


def add_read_routes(
    app: QuartTrio, *, delivery: Delivery, registry: Registry, lane: Lane, streams: StreamGuard
) -> None:
    """Adds `/v1/read`, `/v1/packets`, and packets below `/v1/streams/{stream}`."""
    routes = _ReadRoutes(delivery, registry, lane, streams)
    packets = "/v1/streams/<stream>/packets"
    app.add_url_rule("/v1/read", "read", routes.read, methods=["GET"])
    app.add_url_rule("/v1/packets", "packets.find", routes.find, methods=["GET"])
    app.add_url_rule(packets, "packets.list", routes.list_packets, methods=["GET"])
    app.add_url_rule(f"{packets}/<sequence>", "packets.show", routes.show, methods=["GET"])
    app.add_url_rule(f"{packets}/<sequence>/data", "packets.data", routes.data, methods=["GET"])
    app.add_url_rule("/v1/streams/<stream>/last", "packets.last", routes.last, methods=["GET"])


class _ReadRoutes:
    """The routes with what they need."""

    def __init__(self, delivery: Delivery, registry: Registry, lane: Lane, streams: StreamGuard) -> None:
        self._streams = streams
        self._delivery = delivery
        self._registry = registry
        self._lane = lane
        self._packing = trio.CapacityLimiter(1)
        self._log = delivery.log
        self._reads = delivery.confirmations
        self._limits = delivery.limits

    async def list_packets(self, stream: str) -> Response:
        """Packets behind a sequence; waits for the first one if asked to."""
        principal = principal_of(request)
        self._streams.require(principal, "read", stream)
        parameters = Parameters(request, ("after", "limit", "wait", "deliver"))
        found = known_stream(self._log, stream)
        is_confirmed = parameters.choice("deliver", ("appended", "confirmed")) == "confirmed"
        if is_confirmed and found.definition.confirm.commit == "none":
            raise BadParameter(
                f"no packet of {found.name} will ever be confirmed: it commits nothing to a chain", subject="deliver",
                hint="use deliver=appended",
            )  # fmt: skip
        after = parameters.number("after") or 0
        limit = parameters.number("limit", minimum=1, maximum=self._limits.read_packets_max) or LIMIT
        wait_s = self._wait_s(parameters.text("wait"))
        if is_confirmed:
            page = await self._wait_for_confirmed(found, after, limit, wait_s)
        else:
            page = await self._wait_for_packets(found, after, limit, wait_s)
        self._streams.require(principal, "read", stream)  # much may have happened while it waited
        self._delivery.tally.count_sent(found.name, len(page.packets))
        body = PacketsBody(
            packets=page.packets, gaps=page.gaps, next_after=page.after, head_sequence=found.head_sequence
        )
        return await packed_answer(encode_wire(body), self._packing)

    async def show(self, stream: str, sequence: str) -> Response:
        """One packet as it stands now."""
        self._streams.require(principal_of(request), "read", stream)
        Parameters(request, ())
        found = known_stream(self._log, stream)
        entry = await find_packet(self._log, found, _number_of(sequence))
        packet = await show_present(self._reads, entry, found)
        etag = f"{entry.content_hash.hex()}-{_state_tag(packet)}"
        return _tagged(etag, "no-cache") or answer(encode_wire(packet), etag=f'"{etag}"', cache_control="no-cache")

    async def data(self, stream: str, sequence: str) -> Response:
        """The stored body, byte for byte; or the octets that it stands for, where those are asked for by name."""
        self._streams.require(principal_of(request), "read", stream)
        Parameters(request, ())
        found = known_stream(self._log, stream)
        entry = await find_packet(self._log, found, _number_of(sequence))
        body, content_type, etag = entry.body, "application/json", entry.content_hash.hex()
        if decode_meta(entry.meta).is_octets and OCTETS in request.accept_mimetypes.values():
            body, content_type, etag = base64.b64decode(msgspec.json.decode(body, type=str)), OCTETS, f"{etag}-octets"
        return _tagged(etag, IMMUTABLE) or answer(
            body, content_type=content_type, etag=f'"{etag}"', cache_control=IMMUTABLE, vary="Accept"
        )

    async def last(self, stream: str) -> Response:
        """The newest packet of a stream, or of a key."""
        self._streams.require(principal_of(request), "read", stream)
        parameters = Parameters(request, ("key",))
        found = known_stream(self._log, stream)
        key = parameters.text("key")
        entry = await self._log.find_last(found, key or None)
        if entry is None:
            what = f" with key {key[:100]!r}" if key else ""
            raise UnknownPacket(f"{found.name} has no packet{what}", subject=found.name)
        return answer(encode_wire(await show_present(self._reads, entry, found)))

    async def find(self) -> Response:
        """Packets of any stream that the caller may read, by the producer's id or by their own transaction."""
        principal = principal_of(request)
        check_standing(principal)
        parameters = Parameters(request, ("id", "txid"))
        packet_id, txid = parameters.text("id"), parameters.text("txid")
        may_read = partial(self._streams.may, principal, "read")
        if txid and isinstance(self._reads, NothingConfirmed):
            raise BadParameter("this node follows no chain and can't look packets up by txid", subject="txid")
        if txid and not packet_id:
            packets = await find_paid(self._log, self._reads, _txid_of(txid), may_read, self._limits.read_packets_max)
            return await packed_answer(encode_wire(PacketList(packets=packets)), self._packing)
        if txid:
            raise BadParameter("give either id or txid", subject="txid")
        if not 1 <= len(packet_id) <= _ID_CHARS_MAX:
            raise BadParameter(
                "id says which packet to look for", subject="id", hint="GET /v1/packets?id=<id>, or ?txid=<txid>"
            )
        body = PacketList(packets=await find_named(self._log, self._reads, packet_id, may_read))
        return await packed_answer(encode_wire(body), self._packing)

    async def read(self) -> Response:
        """One page of a live query: messages, and a cursor that has moved."""
        principal = principal_of(request)
        pairs = split_query(request.query_string.decode("ascii", "replace")) if request.query_string else []
        own: dict[str, str] = {}
        for name, value in pairs:
            if name in own:
                raise BadParameter(f"{name} is given twice", subject=name)
            if name in ("limit", "wait"):
                own[name] = value
        limit = _bounded(own.get("limit", str(LIMIT)), self._limits.read_packets_max)
        wait_s = self._wait_s(own.get("wait", ""))
        query = self._delivery.parse_arguments([pair for pair in pairs if pair[0] not in own], Beginning())
        query = with_sight(query, self._streams.sight(principal, "read", query.selection.streams))
        with await self._delivery.open_reader(query, principal.name) as opened:
            texts, cursor, is_at_head = await self._collect(opened, limit, wait_s)
        check_standing(principal)
        head = msgspec.json.encode(str(cursor))
        end = b"true" if is_at_head else b"false"
        body = b'{"messages":[%s],"cursor":%s,"at_head":%s}' % (b",".join(texts), head, end)
        return await packed_answer(body, self._packing)

    async def _collect(self, opened: OpenReader, limit: int, wait_s: float) -> tuple[list[bytes], Cursor, bool]:
        """Messages up to the limit, about `page_bytes` of them, or what `scan_max` entries hold."""
        texts: list[bytes] = []
        reader, frames, query = opened.reader, self._delivery.frames, opened.query
        deadline = trio.current_time() + wait_s
        cursor, scanned, size = opened.start, 0, 0
        while True:
            batch = await reader.read()
            for message in batch.messages:
                if len(texts) == limit:
                    return texts, cursor, False
                if query.on_gap == "error" and message.kind == "gap":
                    if not texts:
                        refuse_gaps([message])
                    return texts, cursor, False
                texts.append(frames.text(message, query.format))
                self._delivery.meters.count_read(message)
                size += len(texts[-1])
                cursor = message.cursor
            cursor = batch.cursor
            scanned += batch.scanned
            if scanned >= self._limits.scan_max:
                self._delivery.metrics.count_limit_hit("scan_max")
                return texts, cursor, batch.is_at_head
            if len(texts) == limit or size >= self._limits.page_bytes:
                return texts, cursor, batch.is_at_head
            if batch.is_at_head and (texts or not await self._wait_for_more(opened, deadline)):
                return texts, cursor, True
            async with self._lane.step_out():
                pass  # a scan may be long: between pages its place is another's, and packets come first

    async def _wait_for_more(self, opened: OpenReader, deadline: float) -> bool:
        """Whether something came in time."""
        if trio.current_time() >= deadline:
            return False
        async with self._lane.step_out():
            with self._registry.waiting(deadline):
                await opened.reader.wait()
        return not opened.reader.is_at_head

    async def _wait_for_packets(self, stream: Stream, after: int, limit: int, wait_s: float) -> StreamPage:
        deadline = trio.current_time() + wait_s
        while True:
            head = stream.head_sequence  # before the read: what came during it isn't in the page
            page = await read_stream(self._log, self._reads, stream, after, limit)
            if not page.is_empty or head > after or trio.current_time() >= deadline:
                return page
            async with self._lane.step_out():
                with self._registry.waiting(deadline) as scope:
                    while stream.head_sequence <= after and not _is_over(stream):
                        await self._log.wait_beyond(self._log.head)
            if scope.cancelled_caught or _is_over(stream):
                return page

    async def _wait_for_confirmed(self, stream: Stream, after: int, limit: int, wait_s: float) -> StreamPage:
        deadline = trio.current_time() + wait_s
        while True:
            head = self._log.head
            page = await read_stream(self._log, self._reads, stream, after, limit, is_confirmed=True)
            if not page.is_empty or page.after > after or trio.current_time() >= deadline or _is_over(stream):
                return page
            async with self._lane.step_out():
                with self._registry.waiting(deadline):
                    await self._log.wait_beyond(head)
                    await trio.sleep(CONFIRMED_PAUSE_S)

    def _wait_s(self, text: str) -> float:
        """Raises BadParameter. Longer holds than allowed are cut."""
        if not text:
            return 0.0
        try:
            wanted_s = float(Duration.parse(text))
        except ValueError as err:
            raise BadParameter(f"wait: {err}", subject="wait") from err
        if wanted_s > self._limits.wait_max:
            self._delivery.metrics.count_limit_hit("wait_max")
        return min(wanted_s, float(self._limits.wait_max))


def _is_over(stream: Stream) -> bool:
    """Whether the stream is deleted, or about to be: it is stopped first, and its packets go before its name."""
    return stream.is_deleted or (stream.state == "stopped" and not stream.packets)


def _tagged(etag: str, cache_control: str) -> Response | None:
    """304 when the client has it already. It carries what the whole answer would say about keeping it, because a cache
    takes that over (RFC 9110, 15.4.5)."""
    if not request.if_none_match.contains(etag):
        return None
    response = Response(b"", status=304)
    response.headers["ETag"] = f'"{etag}"'
    response.headers["Cache-Control"] = cache_control
    return response


def _state_tag(packet: Packet) -> str:
    """Names what is shown of a packet's confirmation, its growing number of confirmations too; 0 where there is none."""
    if packet.confirmation_status == "none":
        return "0"
    shown = (packet.confirmation_status, packet.txid, packet.confirmations, packet.block_height, packet.block_hash)
    return blake3(repr(shown).encode()).hexdigest(8)


def _txid_of(text: str) -> TxId:
    """Raises BadParameter."""
    try:
        return parse_txid(text)
    except MalformedChainData as err:
        raise BadParameter(f"txid: {err.detail}", subject="txid") from err


def _number_of(text: str) -> int:
    """A sequence in a path. Raises BadParameter."""
    if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) < 1:
        raise BadParameter(f"sequence must be a whole number from 1, not {text[:40]!r}", subject="sequence")
    return int(text)


def _bounded(text: str, maximum: int) -> int:
    """Raises BadParameter."""
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= maximum:
        raise BadParameter(f"limit must be a whole number from 1 to {maximum}, not {text[:40]!r}", subject="limit")
    return int(text)

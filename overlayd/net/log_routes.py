"""The log as a transparency log: checkpoints, consistency, tiles (C2SP), and proofs of packets."""

import re

import msgspec
from msgspec import UNSET
from quart import Response, request
from quart_trio import QuartTrio

from overlayd.access import require, require_some
from overlayd.access.audit import AuditTrail
from overlayd.access.stream_guard import StreamGuard
from overlayd.model.confirmation import ConfirmationReads, NothingConfirmed
from overlayd.model.cursor import Epoch, parse_epoch
from overlayd.model.errors import BadParameter, NotFound, UnknownEpoch, UnknownPacket
from overlayd.model.merkle import TILE_HEIGHT, TILE_WIDTH
from overlayd.model.proof import encode_proof
from overlayd.model.tlog_proof import encode_tlog_proof, tlog_proof_of
from overlayd.model.wire import ConsistencyBody, encode_wire, format_sha256
from overlayd.net.app import answer, author_of, principal_of
from overlayd.net.lane import Lane
from overlayd.net.parameters import Parameters
from overlayd.net.proofs import prove_entry, prove_packet
from overlayd.net.stream_routes import known_stream
from overlayd.storage import Log

TEXT = "text/plain; charset=utf-8"
OCTETS = "application/octet-stream"
IMMUTABLE = "max-age=31536000, immutable"
_TILE = re.compile(
    r"(?P<level>entries|0|[1-9][0-9]?)/(?P<index>(?:x[0-9]{3}/)*[0-9]{3})(?:\.p/(?P<width>[1-9][0-9]{0,2}))?"
)
_SEQUENCE = re.compile(r"[1-9][0-9]{0,18}")


class TileName(msgspec.Struct, frozen=True):
    """A tile as C2SP tlog-tiles names it. `level` is None for an entry bundle."""

    level: int | None
    index: int
    width: int

    @property
    def leaves_end(self) -> int:
        """The size of the smallest tree that has it."""
        return (self.index * TILE_WIDTH + self.width) << TILE_HEIGHT * (self.level or 0)


def parse_tile_name(text: str) -> TileName:
    """From `<L>/<N>[.p/<W>]` or `entries/<N>[.p/<W>]`; N in groups of three digits. Raises NotFound."""
    match = _TILE.fullmatch(text)
    digits = "" if match is None else match["index"].replace("x", "").replace("/", "")
    width = TILE_WIDTH if match is None or match["width"] is None else int(match["width"])
    is_odd = len(digits) > 3 and digits.startswith("000")
    if match is None or is_odd or len(digits) > 18 or (match["width"] is not None and width >= TILE_WIDTH):
        raise NotFound(
            f"there is no tile {text[:80]!r}", subject=text[:80],
            hint="tiles are named level/N or entries/N, N in groups of three digits such as x001/234, with .p/W for "
            "the first W of a tile",
        )  # fmt: skip
    return TileName(None if match["level"] == "entries" else int(match["level"]), int(digits), width)


def add_log_routes(
    app: QuartTrio, *, log: Log, lane: Lane, streams: StreamGuard, trail: AuditTrail,
    confirmations: ConfirmationReads | None = None,
) -> None:  # fmt: skip
    """Adds `/v1/log/…` and the proof of a packet."""
    routes = _LogRoutes(log, lane, streams, trail, confirmations or NothingConfirmed())
    app.add_url_rule("/v1/log/checkpoint", "log.checkpoint", routes.checkpoint, methods=["GET"])
    app.add_url_rule("/v1/log/<epoch>/checkpoint", "log.epoch", routes.epoch_checkpoint, methods=["GET"])
    app.add_url_rule("/v1/log/consistency", "log.consistency", routes.consistency, methods=["GET"])
    app.add_url_rule("/v1/log/<epoch>/tile/<path:tile>", "log.tile", routes.tile, methods=["GET"])
    proof = "/v1/streams/<stream>/packets/<sequence>/proof"
    app.add_url_rule(proof, "packets.proof", routes.proof, methods=["GET"])


class _LogRoutes:
    """The routes with what they need."""

    def __init__(
        self, log: Log, lane: Lane, streams: StreamGuard, trail: AuditTrail, confirmations: ConfirmationReads
    ) -> None:
        self._log = log
        self._lane = lane
        self._streams = streams
        self._trail = trail
        self._confirmations = confirmations

    async def checkpoint(self) -> Response:
        """The newest signed checkpoint."""
        require_some(principal_of(request), "read")
        Parameters(request, ())
        async with self._lane.step_out():
            newest = await self._log.checkpoint()
        return answer(newest.note.encode(), content_type=TEXT)

    async def epoch_checkpoint(self, epoch: str) -> Response:
        """The newest checkpoint of an epoch. An earlier epoch's is old, and may cover what a restore took away;
        the header says how far it holds."""
        require_some(principal_of(request), "read")
        Parameters(request, ())
        parsed = parse_epoch(epoch)
        if parsed == self._log.epoch:
            return await self.checkpoint()
        common = self._common_size(parsed)
        async with self._lane.step_out():
            found = await self._log.find_checkpoint(parsed)
        if found is None:
            raise NotFound(f"no checkpoint of epoch {epoch} is kept", subject=epoch)
        return answer(found.note.encode(), content_type=TEXT, x_overlayd_common_size=str(common))

    async def consistency(self) -> Response:
        """That the log at one size begins with the log at another."""
        require_some(principal_of(request), "read")
        parameters = Parameters(request, ("from", "to"))
        older = parameters.number("from")
        if older is None:
            raise BadParameter("from is missing: the size of the older tree", subject="from")
        newer = parameters.number("to")
        if max(older, newer or 0) > self._log.head:
            raise BadParameter(f"the log has {self._log.head} entries", subject="to" if newer else "from")
        async with self._lane.step_out():
            return answer(encode_wire(await self._consistency_body(older, newer)))

    async def tile(self, epoch: str, tile: str) -> Response:
        """Hashes of the tree, or the entries themselves."""
        principal = principal_of(request)
        name = parse_tile_name(tile)
        if name.level is None:
            require(principal, "audit")
        else:
            require_some(principal, "read")
        Parameters(request, ())
        if name.leaves_end > self._common_size(parse_epoch(epoch)):
            raise NotFound("the tree has no such tile yet", subject=tile[:80])
        async with self._lane.step_out():
            if name.level is None:
                await self._trail.write_once(author_of(request).record("log.entries", "entries"))
                octets = await self._log.read_entry_tile(name.index, name.width)
            else:
                octets = await self._log.read_tile(name.level, name.index, name.width)
        return answer(octets, content_type=OCTETS, cache_control=IMMUTABLE)

    async def proof(self, stream: str, sequence: str) -> Response:
        """A proof that stands alone."""
        self._streams.require(principal_of(request), "read", stream)
        form = Parameters(request, ("format",)).choice("format", ("json", "tlog-proof"))
        found = known_stream(self._log, stream)
        number = parse_sequence(sequence)
        async with self._lane.step_out():
            offset = await self._log.find_offset(found, number)
            if offset is None:
                raise UnknownPacket(f"{stream} has no packet {number}", subject=f"{stream}/{number}")
            entry = await self._log.read_entry(offset)
            if form == "tlog-proof":  # which holds no anchor
                proof = await prove_entry(self._log, found, entry, await self._log.checkpoint(offset))
                return answer(encode_tlog_proof(tlog_proof_of(proof)).encode(), content_type=TEXT)
            proof = await prove_packet(self._log, self._confirmations, found, entry)
        return answer(encode_proof(proof))

    async def _consistency_body(self, older: int, newer: int | None) -> ConsistencyBody:
        checkpoint = await self._log.checkpoint(older)
        size = checkpoint.size if newer is None else newer
        if size < older:
            raise BadParameter(f"to must not be below from, which is {older}", subject="to")
        return ConsistencyBody(
            from_=older,
            to=size,
            from_root=format_sha256(await self._log.root_at(older)),
            to_root=format_sha256(await self._log.root_at(size)),
            path=[format_sha256(node) for node in await self._log.consistency_path(older, size)],
            checkpoint=checkpoint.note if checkpoint.size == size else UNSET,
        )

    def _common_size(self, epoch: Epoch) -> int:
        """How many of the log's entries an epoch shares with the present one. Raises UnknownEpoch."""
        if epoch == self._log.epoch:
            return self._log.head
        for earlier, common in self._log.ancestry:
            if earlier == epoch:
                return common
        raise UnknownEpoch("this log never had that epoch", subject="epoch", hint="GET /v1/node names its epochs")


def parse_sequence(text: str) -> int:
    """A packet's number in its stream, from a path. Raises BadParameter."""
    if _SEQUENCE.fullmatch(text) is None or int(text) >= 1 << 63:
        raise BadParameter(f"not a sequence: {text[:40]!r}", subject="sequence", hint="a whole number from 1 on")
    return int(text)

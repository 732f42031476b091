"""`/v1/log/keys`: which keys signed the log's checkpoints, how each came to, and changing to another."""

from collections.abc import Callable

from quart import Response, request
from quart_trio import QuartTrio

from overlayd.access import require, require_some
from overlayd.access.audit import AuditTrail
from overlayd.model.key_chain import LogKeyBody, LogKeysBody
from overlayd.model.note import CheckpointText, VerifierKey, parse_origin
from overlayd.model.wire import encode_wire
from overlayd.net.app import answer, author_of, principal_of
from overlayd.net.lane import Lane
from overlayd.net.parameters import Parameters
from overlayd.net.proofs import prove_entry
from overlayd.storage import Checkpoint, Log
from overlayd.storage.group import Group
from overlayd.storage.log_keys import LogKeyFacts
from overlayd.storage.own import append_own


def add_log_key_routes(app: QuartTrio, *, log: Log, lane: Lane, trail: AuditTrail) -> None:
    """Adds `GET /v1/log/keys` and `POST /v1/log/keys/rotate`."""

    @app.get("/v1/log/keys")
    async def list_log_keys() -> Response:
        """Every key of the log, with the proof of the entry that introduced it."""
        require_some(principal_of(request), "read")
        Parameters(request, ())
        async with lane.step_out():
            return answer(encode_wire(await keys_body(log)))

    @app.post("/v1/log/keys/rotate")
    async def rotate_log_key() -> Response:
        """Changes the key; answers when the new one has taken over."""
        require(principal_of(request), "admin")
        Parameters(request, ())
        tell = _teller(trail)
        async with lane.step_out():
            await log.keys.rotate(tell)
            return answer(encode_wire(await keys_body(log)))


def _teller(trail: AuditTrail) -> Callable[[Group, str], None]:
    author = author_of(request)

    def tell(group: Group, vkey: str) -> None:
        append_own(group, [trail.packet(author.record("log.rotate_key", vkey))])

    return tell


async def keys_body(log: Log) -> LogKeysBody:
    """Every key with what introduced it. Checkpoint."""
    keys = [await _key_body(log, fact) for fact in log.keys.facts()]
    return LogKeysBody(log=log.log_id, origin=log.origin, keys=tuple(keys))


async def _key_body(log: Log, fact: LogKeyFacts) -> LogKeyBody:
    row = fact.row
    introduced = None
    if row.checkpoint:
        text = CheckpointText.parse(row.checkpoint.partition("\n\n")[0] + "\n")
        checkpoint = Checkpoint(parse_origin(text.origin)[1], text.size, text.root, row.checkpoint)
        introduced = await prove_entry(log, None, await log.read_entry(row.offset), checkpoint)
    vkey = VerifierKey(log.origin, row.public_key)
    return LogKeyBody(
        key=str(vkey), state=fact.state, from_size=row.from_size, to_size=fact.to_size, introduced=introduced
    )

"""`/.well-known/auth`: handshakes of mutual authentication. Everything after them is an ordinary request."""

import msgspec
from quart import Response, request
from quart_trio import QuartTrio

from overlayd.access.gate import Gate
from overlayd.access.mutual.messages import AUTH_PATH
from overlayd.access.mutual.peer import MutualPeer
from overlayd.model.errors import BadRequest, NotFound, Unauthorized
from overlayd.model.wire_mutual import HandshakeIn
from overlayd.net.app import answer, principal_of, read_body
from overlayd.net.content import Bodies

LIMIT = "handshake_bytes"


def add_mutual_routes(
    app: QuartTrio, *, peer: MutualPeer | None, gate: Gate, bodies: Bodies, bytes_max: int
) -> None:  # fmt: skip
    """Adds the route. `peer`: None where nobody may come in this way."""

    async def shake() -> Response:
        """Begins a session, for somebody who says that they hold a key; requests will show it."""
        if peer is None:
            raise NotFound(
                "nobody comes in by mutual authentication here", subject=AUTH_PATH,
                hint="[[access.identities]] lists who may, and [access.mutual] enabled lets them",
            )  # fmt: skip
        with bodies.hold() as hold:
            raw = await read_body(request, bodies, hold, bytes_max, LIMIT)
        try:
            asked = msgspec.json.decode(raw, type=HandshakeIn)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
            raise BadRequest("the body isn't a message of mutual authentication", subject="body") from err
        try:
            told = peer.shake(asked)
        except Unauthorized as error:
            gate.note_refused("mutual", principal_of(request).address, error)
            raise
        return answer(msgspec.json.encode(told), cache_control="no-store")

    app.add_url_rule(AUTH_PATH, "mutual.shake", shake, methods=["POST"])

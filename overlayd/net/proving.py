"""The second step of letting a request in: its whole body is read and proven before anything looks at it."""

import msgspec

from overlayd.access.gate import Prove
from overlayd.net.connection import Connection
from overlayd.net.content import Bodies
from overlayd.net.head import Head
from overlayd.net.request_body import RequestBody

LIMIT = "signed_body_max"
_FRAMING = frozenset((b"content-length", b"transfer-encoding", b"expect"))


async def prove_body(
    connection: Connection, head: Head, prove: Prove, *, bodies: Bodies, bytes_max: int
) -> Head:  # fmt: skip
    """Reads the body, has it proven, and puts it back as unread; gives the head that fits it from now on.

    The body is bounded, so what was sent in chunks is put back in one piece. A checkpoint when it waits for the body,
    or `prove` is one. Raises BodyTooLarge,
    RequestTimeout, IntakeBusy, ClientLeft, and what `prove` raises.
    """
    length = head.content_length or 0
    if not head.is_chunked and length <= min(bytes_max, len(connection.unread)):  # it is all here, and may stay so
        await prove(bytes(connection.unread[:length]))
        return head
    source = RequestBody(connection, head, bodies.limits)
    with bodies.hold() as hold:
        body = await bodies.reader(source, "", bytes_max, LIMIT).read_all(hold)
        await prove(body)
    connection.unread[:0] = body
    headers = [pair for pair in head.headers if pair[0] not in _FRAMING]
    if head.has_body:
        headers.append((b"content-length", str(len(body)).encode()))
    return msgspec.structs.replace(
        head, headers=tuple(headers), content_length=len(body) if head.has_body else None, is_chunked=False
    )

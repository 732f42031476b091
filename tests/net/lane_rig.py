"""The publish lane without a door: a request with a principal of the test's choice, over a pair of sockets."""

import socket
from contextlib import suppress
from functools import partial

import trio
from net_rig import Answer, RawClient

from overlayd.access import Peer, Principal
from overlayd.model.limits import Limits
from overlayd.model.push_stream import SocketPushStream
from overlayd.net.connection import Connection
from overlayd.net.head import parse_head
from overlayd.net.publish_lane import PublishLane, Target, Visit, find_target


def socket_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Two ends of one connection."""
    ours, theirs = socket.socketpair()
    return (
        trio.SocketStream(trio.socket.from_stdlib_socket(ours)),
        trio.SocketStream(trio.socket.from_stdlib_socket(theirs)),
    )


def encode_head(method: str, path: str, headers: dict[str, str], length: int) -> bytes:
    """A request's head."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {length}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def target_of(method: str, path: str) -> Target | None:
    """Where the lane would publish to; None for what it leaves to the application."""
    if method != "POST" or not path.isascii():
        return None
    return find_target(parse_head(encode_head(method, path, {}, 0), Limits()))


async def ask_lane(
    lane: PublishLane, path: str, body: bytes, headers: dict[str, str], *, who: Principal, limits: Limits
) -> Answer:
    """One request through the lane, its body over the socket."""
    head = parse_head(encode_head("POST", path, headers, len(body)), limits)
    target = find_target(head)
    assert target is not None
    ours, theirs = socket_pair()
    client, connection = (
        RawClient(theirs),
        Connection(SocketPushStream(ours.socket), Peer("unix"), float(limits.stall_timeout)),
    )
    visit = Visit(connection, head, target, who, "r-1", trio.current_time(), lambda: False)
    async with client, ours, trio.open_nursery() as nursery:
        nursery.start_soon(partial(_send, client, body))
        nursery.start_soon(lane.serve, visit)
        answer = await client.read_answer()
        nursery.cancel_scope.cancel()
    return answer


async def _send(client: RawClient, body: bytes) -> None:
    """A client that goes on sending when nobody listens any more."""
    with suppress(trio.BrokenResourceError):
        await client.send(body)

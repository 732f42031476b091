"""What quick publishing remembers of heads never makes two different heads the same."""

from types import SimpleNamespace
from typing import Any

import trio
from hypothesis import given
from hypothesis import strategies as st

from overlayd.access import Principal
from overlayd.model.limits import Limits
from overlayd.net.head import HEAD_END
from overlayd.net.quick_publish import QuickPublish

WHO = Principal("loopback", "loopback", frozenset(("publish",)), "127.0.0.1", may_create=True)
LINES = (
    "POST /v1/streams/a/packets HTTP/1.1", "POST /v1/streams/b/packets HTTP/1.1", "POST /v1/streams/a/packets HTTP/1.0",
    "POST /v1/streams/a/packets?atomic=true HTTP/1.1", "POST /v1/streams/a/packets?expected_sequence=7 HTTP/1.1",
    "POST /v1/streams/a/data HTTP/1.1", "GET /v1/streams/a/packets HTTP/1.1", "POST http://x/v1/streams/a/packets HTTP/1.1",
)  # fmt: skip
HEADERS = (
    "Host: localhost", "Host: other", "Content-Type: application/json", "content-type: text/plain", "Expect: 100-continue",
    "Content-Encoding: gzip", "Transfer-Encoding: chunked", "Idempotency-Key: k1", "Idempotency-Key: 22", "Connection: close",
    "X-1: 5", "X-Content-Length: 5", "CONTENT-LENGTH: 7", "Content-Length: 10", "Content-Length: 010", "Content-Length:12",
    "Content-Length: \t9 ", "Content-Length: 5 5", "Content-Length: +5", "Content-Length: ", "ce-specversion: 1.0",
    "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "Origin: http://localhost",
)  # fmt: skip


def quick_publish() -> QuickPublish:
    """One that only judges heads."""
    publisher: Any = SimpleNamespace(
        limits=Limits(), intake=None, log=None, metering=None, bodies=SimpleNamespace(budget=None),
        streams=SimpleNamespace(may=lambda *_: True), lane=SimpleNamespace(courtesy=None),
    )  # fmt: skip
    gate: Any = SimpleNamespace(generation=0, is_good=lambda *_: True)
    return QuickPublish(
        publisher=publisher, request_log=None, next_request_id=str, recall=lambda *_: WHO, gate=gate,  # type: ignore[arg-type]
        stop=trio.Event(),
    )  # fmt: skip


def known_connection() -> Any:
    """A connection that somebody has shown who they are on, before any head."""
    return SimpleNamespace(memo=None, answer_headers=(), remembered=SimpleNamespace(principal=WHO))


def test_on_a_connection_that_nobody_is_known_on_no_head_is_judged() -> None:
    """Its task has to ask the gate in any case."""
    connection = known_connection()
    connection.remembered.principal = None
    raw = b"POST /v1/streams/a/packets HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n"
    assert quick_publish()._judge(connection, raw) is None
    assert quick_publish()._judge(known_connection(), raw) is not None


def told(found: Any) -> Any:
    """What was found out about a head, without the memo's own bytes."""
    return found and (found[0].path, found[0].target, found[1].terms, found[2])


heads = st.tuples(
    st.sampled_from(LINES), st.lists(st.sampled_from(HEADERS), max_size=3).map(lambda more: [HEADERS[0], *more, HEADERS[2]])
).map(lambda parts: "\r\n".join((parts[0], *parts[1])).encode() + HEAD_END)  # fmt: skip


@given(st.lists(heads, min_size=2, max_size=6), st.data())
def test_what_is_recognized_is_what_would_be_judged(raws: list[bytes], data: st.DataObject) -> None:
    """Whatever heads came before, one that is recognized says exactly what judging it afresh says."""
    quick, connection = quick_publish(), known_connection()
    for raw in [*raws, *data.draw(st.permutations(raws))]:
        known = told(quick._find_known(connection, raw + b"body", len(raw) - len(HEAD_END)))
        fresh = quick_publish()._judge(known_connection(), raw)
        assert known is None or known == told(fresh)
        quick._judge(connection, raw)


def test_the_same_head_is_recognized() -> None:
    """Lengths may differ, and streams that were seen before; another header makes it another head."""
    quick, connection = quick_publish(), known_connection()
    line, headers = LINES[0].encode(), b"\r\nHost: localhost\r\nContent-Length: %d\r\nX: y\r\n\r\n"

    def find(raw: bytes) -> Any:
        return told(quick._find_known(connection, raw, len(raw) - len(HEAD_END)))

    assert quick._judge(connection, line + headers % 5) is not None
    assert find(line + headers % 5) is not None
    assert find(line + headers % 123456)[3] == 123456
    other = LINES[1].encode() + headers % 6
    assert find(other) is None
    assert quick._judge(connection, other) is not None
    assert find(other)[0] == "/v1/streams/b/packets"
    assert find(line + headers % 7)[0] == "/v1/streams/a/packets"
    for changed in (b"X: z", b"Y: y", b"X: y\r\nZ: 1"):
        assert find((line + headers % 5).replace(b"X: y", changed)) is None

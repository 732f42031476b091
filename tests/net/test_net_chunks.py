"""The chunked coding: whatever the cuts, the same body; whatever is unclear is refused."""

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.errors import BadRequest, HeadTooLarge, OverlaydError
from overlayd.net.chunks import ChunkDecoder

PIECES = st.lists(st.binary(min_size=1, max_size=300), max_size=8)
SIZE_FORMS = st.sampled_from(["{:x}", "{:X}", "0{:x}", "{:x};name=value", "{:x} ; a", "{:x}\t"])


def decode(raw: bytes, cuts: list[int]) -> tuple[bytes, bytes, bool]:
    """Body, rest, and whether it was complete, when the bytes come cut like this."""
    decoder = ChunkDecoder(1000)
    body, at = b"", 0
    for end in [*sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]:
        if decoder.is_done:
            return body, decoder.rest + raw[at:], True
        body += decoder.feed(raw[at:end])
        at = end
    return body, decoder.rest, decoder.is_done


def h11_body(raw: bytes) -> bytes | None:
    """What h11 makes of it; None when it refuses."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + raw)
    body = b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return body
            elif event in (h11.NEED_DATA, h11.PAUSED):
                return None
    except h11.RemoteProtocolError:
        return None


@given(PIECES, SIZE_FORMS, st.sampled_from([b"", b"A: b\r\n", b"A:\r\nB: c\r\n"]), st.lists(st.integers(0, 9999)))
def test_any_cut(pieces: list[bytes], form: str, trailers: bytes, cuts: list[int]) -> None:
    """Chunks of every size, cut anywhere, are the body; what follows stays for the next request."""
    raw = b"".join(form.format(len(piece)).encode() + b"\r\n" + piece + b"\r\n" for piece in pieces)
    raw += b"0\r\n" + trailers + b"\r\n"
    assert decode(raw + b"POST /next", cuts) == (b"".join(pieces), b"POST /next", True)


@given(st.text(alphabet="0a1;x\r\n \t:", max_size=24).map(str.encode), st.lists(st.integers(0, 30)))
def test_never_more_lenient_than_h11(raw: bytes, cuts: list[int]) -> None:
    """What is taken here is taken by h11 too, and is the same body; nothing else than our errors is raised."""
    try:
        body, _, is_done = decode(raw, cuts)
    except OverlaydError:
        return
    if is_done:
        assert h11_body(raw) == body


@pytest.mark.parametrize(
    "raw",
    [
        b"zz\r\n", b"-1\r\n", b"+1\r\n", b"0x1\r\n", b" 1\r\n", b"\r\n", b"1\nx\n", b"2\r\nabcd", b"1\r\nx\n\r\n", b"1;\x00\r\n",
        b"00000000000000001\r\n", b"1_0\r\n", b"0\r\nbad trailer\r\n\r\n", b"0\r\n folded: x\r\n\r\n", b"1\r\nx\r0\r\n",
    ],
)  # fmt: skip
def test_refused(raw: bytes) -> None:
    """Sizes that aren't hexadecimal digits, chunks of another length, trailers that aren't headers."""
    with pytest.raises(BadRequest):
        ChunkDecoder(1000).feed(raw)


@pytest.mark.parametrize("raw", [b"f" * 2000, b"1;" + b"x" * 2000, b"0\r\n" + b"X: y\r\n" * 500])
def test_bounded(raw: bytes) -> None:
    """Endless sizes, extensions and trailers are 431."""
    with pytest.raises(HeadTooLarge):
        ChunkDecoder(1000).feed(raw)

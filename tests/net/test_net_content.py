"""Request bodies: counted, inflated, timed, within the budget."""

import gzip
import zlib
from collections.abc import Sequence

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.model.errors import BadRequest, BodyTooLarge, IntakeBusy, RequestTimeout, WrongContentEncoding
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.units import Size
from overlayd.net.content import EMPTY_MEMBERS_MAX, INFLATE_PIECE_BYTES, Bodies, BodyReader, Inflater
from overlayd.net.lane import Lane


class Pieces:
    """A body that arrives in pieces, each after a pause."""

    def __init__(self, pieces: Sequence[bytes], pause_s: float = 0) -> None:
        self._pieces = list(pieces)
        self._pause_s = pause_s
        self.is_ready = pause_s == 0

    def receive_nowait(self) -> None:
        """Nothing comes without a wait."""

    async def receive(self) -> bytes:
        await trio.sleep(self._pause_s)
        return self._pieces.pop(0) if self._pieces else b""


def make_bodies(limits: Limits | None = None) -> Bodies:
    """Bodies with limits of their own."""
    limits = limits or Limits()
    metrics = Metrics()
    return Bodies(limits, Lane(2, 10, metrics), metrics)


def read_of(pieces: Sequence[bytes], *, encoding: str = "", bytes_max: int = 1000, pause_s: float = 0) -> BodyReader:
    """A reader over these pieces."""
    return make_bodies().reader(Pieces(pieces, pause_s), encoding, bytes_max, "body_bytes")


def _hits_of(reader: BodyReader, limit: str) -> float:
    """How often the reader hit a limit."""
    return reader._metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": limit}) or 0.0


async def take(reader: BodyReader) -> None:
    """Reads to the end."""
    while piece := await reader.read_piece():
        assert len(piece) <= INFLATE_PIECE_BYTES


async def test_plain_body() -> None:
    """A body is what its pieces are, up to its limit exactly."""
    bodies = make_bodies()
    with bodies.hold() as hold:
        reader = bodies.reader(Pieces([b"ab", b"c" * 998]), "identity", 1000, "body_bytes")
        assert await reader.read_all(hold) == b"ab" + b"c" * 998


@pytest.mark.parametrize("encoding", ["", "gzip"])
async def test_over_its_limit(encoding: str) -> None:
    """One byte more than the limit is 413, counted while reading, inflated bytes for gzip."""
    pieces = [b"x" * 1001] if not encoding else [gzip.compress(b"x" * 1001)]
    bodies = make_bodies()
    with bodies.hold() as hold, pytest.raises(BodyTooLarge) as caught:
        await bodies.reader(Pieces(pieces), encoding, 1000, "body_bytes").read_all(hold)
    assert caught.value.subject == "body_bytes"


async def test_bomb_is_stopped_early() -> None:
    """A small body that inflates to gigabytes is refused after its limit, not after inflating it."""
    bomb = gzip.compress(b"\0" * 50_000_000)
    assert len(bomb) < 60_000
    reader = read_of([bomb], encoding="gzip", bytes_max=200_000)
    with pytest.raises(BodyTooLarge):
        await take(reader)
    assert reader.bytes <= 200_000 + INFLATE_PIECE_BYTES


@given(st.lists(st.binary(max_size=200_000), max_size=4), st.integers(1, 70_000))
@settings(max_examples=30, deadline=None)
def test_inflater_gives_back_what_was_compressed(members: list[bytes], cut: int) -> None:
    """Members behind one another, cut anywhere, come back whole and in bounded pieces."""
    packed = b"".join(map(gzip.compress, members)) or gzip.compress(b"")
    inflater, pieces = Inflater(), []
    for at in range(0, len(packed), cut):
        pieces += inflater.feed(packed[at : at + cut])
    inflater.finish()
    assert b"".join(pieces) == b"".join(members)
    assert all(len(piece) <= INFLATE_PIECE_BYTES for piece in pieces)


@pytest.mark.parametrize(
    "packed",
    [b"plain", gzip.compress(b"abc") + b"trailing", gzip.compress(b"abc") + b"\0", gzip.compress(b"abc")[:-1], b"",
     gzip.compress(b"abc")[:12], zlib.compress(b"abc"), gzip.compress(b"abc")[:-8] + b"\0" * 8,
     gzip.compress(b"") * (EMPTY_MEMBERS_MAX + 3)],
)  # fmt: skip
async def test_bad_gzip(packed: bytes) -> None:
    """What isn't gzip all through, is cut short, has a wrong sum or a flood of empty members, is 400."""
    reader = read_of([packed[:7], packed[7:]] if packed else [], encoding="gzip")
    with pytest.raises(BadRequest):
        await take(reader)


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "zstd", "chunked"])
def test_other_encodings(encoding: str) -> None:
    """Other content encodings are 415 and the hint names what is taken."""
    with pytest.raises(WrongContentEncoding):
        read_of([], encoding=encoding)


async def test_silent_body(autojump_clock: trio.testing.MockClock) -> None:
    """No byte for `stall_timeout` is 408."""
    reader = read_of([b"a", b"b"], pause_s=31)
    with pytest.raises(RequestTimeout) as caught:
        await reader.read_piece()
    assert caught.value.subject == "stall_timeout"


async def test_trickling_body(autojump_clock: trio.testing.MockClock) -> None:
    """A body slower than `body_rate_min` is given up after ten seconds, though it never stops."""
    reader = read_of([b"x"] * 100, pause_s=1)
    with pytest.raises(RequestTimeout) as caught:
        await take(reader)
    assert caught.value.subject == "body_rate_min"
    assert _hits_of(reader, "body_rate_min") == 1
    assert 10 < trio.current_time() < 13


async def test_slow_enough_body(autojump_clock: trio.testing.MockClock) -> None:
    """A body that keeps to the rate may take as long as it needs."""
    reader = read_of([b"x" * 200] * 100, pause_s=1, bytes_max=100_000)
    await take(reader)
    assert reader.bytes == 20_000


async def test_budget() -> None:
    """All bodies together hold no more than `bodies_in_flight_bytes`; what is given back can be taken again."""
    bodies = make_bodies(Limits(bodies_in_flight_bytes=Size(1000)))
    with bodies.hold() as first, bodies.hold() as second:
        await bodies.reader(Pieces([b"x" * 800]), "", 5000, "body_bytes").read_all(first)
        with pytest.raises(IntakeBusy):
            await bodies.reader(Pieces([b"x" * 300]), "", 5000, "body_bytes").read_all(second)
        first.resize(0)
        await bodies.reader(Pieces([b"x" * 300]), "", 5000, "body_bytes").read_all(second)
    with bodies.hold() as third:
        third.resize(1000)

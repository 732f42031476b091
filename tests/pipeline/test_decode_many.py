"""Packets decoded together: the same drafts and the same refusals as one by one, in runs of bounded size."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.errors import OverlaydError
from overlayd.model.limits import Limits
from overlayd.model.units import Size
from overlayd.pipeline import decode_many
from overlayd.pipeline.decode import Decoded, decode_packet, decode_packets
from overlayd.pipeline.decode_many import RUN_BYTES, THREAD_BYTES, decode_request
from overlayd.pipeline.json_text import measure_depth, outside_strings

LIMITS = Limits(packet_bytes=Size(400_000), json_depth_max=5, id_chars=20)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=8,
)  # fmt: skip
OBJECTS = st.fixed_dictionaries(
    {},
    optional={
        "data": JSON, "id": st.text(max_size=25) | JSON, "type": st.text(max_size=25), "key": JSON,
        "topics": st.just(["a.b"]) | JSON, "metadata": JSON, "time": st.just("2024-01-15T10:30:00Z") | JSON,
        "data_base64": st.just("AAAA"), "stranger": JSON,
    },
).flatmap(lambda members: st.booleans().map(lambda is_ascii: json.dumps(members, ensure_ascii=is_ascii).encode(
    "utf-8", "surrogatepass")))  # fmt: skip
ODD = st.sampled_from(
    (
        b'{"data":1', b'2}', b'{"data":[1', b'2]},{"data":3}', b'{"data":1},{"data":2}', b'{"data":"a', b'b"}', b"",
        b'{"data":1,"data":2}', b'{"data":{"a":1,"a":2}}', b'{"id":"a","id":"b","data":1}', b'{"data":1e999}', b"[1]",
        b'{"data":"\\u003a","data":1}', b'{"data":"\\ud800"}', b'{"data":"\xff"}', b"\xef\xbb\xbf{}", b'{"data":"]["}',
        b'{"data":"\\"[[[[[["}', b'{"data":[[[[[[]]]]]]}', b' {"data" : 12345678901234567890123 }\r', b"null",
    )
)  # fmt: skip
TEXTS = OBJECTS | ODD


def outcome(one: Decoded | OverlaydError) -> Any:
    """What can be compared: the draft with its value, or the whole refusal."""
    if isinstance(one, Decoded):
        return msgspec.structs.asdict(one.draft), repr(one.data()), one.claim
    return type(one), one.code, one.detail, one.hint, one.subject, tuple(one.violations)


def alone(raw: bytes, index: int) -> Decoded | OverlaydError:
    """One packet by itself."""
    try:
        return decode_packet(raw, index, LIMITS)
    except OverlaydError as refusal:
        return refusal


async def decoded_by_place(raws: Sequence[bytes], limits: Limits = LIMITS) -> dict[int, Any]:
    """What a request's packets came to."""
    decoded, rejections = await decode_request(raws, 7, limits, trio.CapacityLimiter(1))
    return {one.draft.index: outcome(one) for one in decoded} | {at: outcome(e) for at, e in rejections.items()}


@given(st.lists(TEXTS, max_size=6))
def test_together_is_as_one_by_one(raws: list[bytes]) -> None:
    """Whatever texts come in one request, sound, broken or meant to run into each other, each is judged as if alone."""
    expected = {at: outcome(alone(raw, at)) for at, raw in enumerate(raws, 7)}
    assert trio.run(decoded_by_place, raws) == expected


@given(st.lists(OBJECTS, min_size=2, max_size=6))
def test_sound_packets_are_decoded_at_once(raws: list[bytes]) -> None:
    """The quick way takes on every request of sound JSON, so that the comparison above compares something."""
    found = decode_packets(raws, 0, LIMITS)
    if found is None:
        assert any(not isinstance(alone(raw, 0), Decoded) for raw in raws)
    else:
        assert [outcome(one) for one in found] == [outcome(alone(raw, at)) for at, raw in enumerate(raws)]


@given(st.lists(st.sampled_from([b"[", b"]", b"{", b"}", b'"', b"\\", b"a", b":"]), max_size=40).map(b"".join))
def test_depth_is_that_of_the_text_without_strings(raw: bytes) -> None:
    """Counting brackets and quotes alone gives what cutting strings out gives, for any text."""
    depth = deepest = 0
    for byte in outside_strings(raw):
        depth += (byte in b"[{") - (byte in b"]}")
        deepest = max(depth, deepest)
    assert measure_depth(raw) == deepest


async def test_runs_are_bounded_and_large_packets_are_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than RUN_BYTES are decoded at once; a broken packet sends its run through one by one, once."""
    runs: list[int] = []

    def count(raws: Sequence[bytes], first_index: int, limits: Limits) -> list[Decoded | OverlaydError] | None:
        runs.append(len(raws))
        assert sum(map(len, raws)) <= RUN_BYTES
        return decode_packets(raws, first_index, limits)

    monkeypatch.setattr(decode_many, "decode_packets", count)
    small, broken = b'{"data":"' + b"x" * (RUN_BYTES // 4 - 20) + b'"}', b'{"data":'
    large = b'{"data":"' + b"x" * (THREAD_BYTES + 1) + b'"}'
    raws = [small] * 8 + [large] + [small, broken, small, small]
    assert await decoded_by_place(raws) == {at: outcome(alone(raw, at)) for at, raw in enumerate(raws, 7)}
    assert runs == [4, 4, 4]


async def test_packets_over_the_limit_are_named_at_their_place() -> None:
    """A packet that is too large is refused by itself, those around it are taken."""
    limits = Limits(packet_bytes=Size(100), json_depth_max=5, id_chars=20)
    found = await decoded_by_place([b'{"data":1}', b'{"data":"' + b"x" * 100 + b'"}', b'{"data":2}'], limits)
    assert [found[7][0]["sent"], found[8][1], found[9][0]["sent"]] == [b"1", "packet.too_large", b"2"]

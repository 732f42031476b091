"""Texts that are too short to be costly aren't measured; the measure would have passed every one of them."""

from hypothesis import example, given
from hypothesis import strategies as st

from overlayd.model.limits import Limits
from overlayd.pipeline.schema import compile_schema
from overlayd.pipeline.schema_cost import SchemaCost

COSTS = st.lists(st.tuples(*[st.floats(0, 1e4)] * 3), min_size=1, max_size=4).map(lambda rows: SchemaCost(tuple(rows)))
TEXTS = st.lists(st.sampled_from([b",", b"{", b"[", b'"', b"]", b"}", b"a"]), min_size=1, max_size=60).map(b"".join)


@given(COSTS, st.floats(1, 1e6), TEXTS)
@example(SchemaCost(((0.0, 0.0, 2.3e-309),)), 1.0, b",")  # more bytes than there are numbers for
def test_short_texts_cannot_be_costly(cost: SchemaCost, steps_max: float, raw: bytes) -> None:
    """Whatever is in a text of at most that length, judging it takes no more than the steps that are allowed."""
    if len(raw) <= cost.bytes_within(steps_max):
        assert cost.steps_for(raw) <= steps_max * (1 + 1e-9)


def test_ordinary_packets_are_short_and_bombs_are_not() -> None:
    """A plain schema needn't measure a packet of a kilobyte; one that looks at each place very often must."""
    limits = Limits()
    plain = compile_schema({"type": "object", "properties": {"a": {"type": "integer"}}}, limits)
    assert plain._bytes_within > 1000
    branches = {"anyOf": [{"type": "string", "minLength": at} for at in range(300)]}
    costly = compile_schema({"type": "array", "items": {"type": "array", "items": branches}}, limits)
    assert costly._bytes_within < plain._bytes_within

"""Predicates in CEL against an evaluator of ten lines, over payloads of all kinds."""

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.delivery.agents.predicate import DEPTH_MAX, PredicateError, predicate_to_cel
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.wire import Packet
from overlayd.pipeline.filters import FilterBook, _evaluate, _open_subject

NAMES = st.sampled_from(["a", "b", "c d", "0", "1", "true", 'q"', "ä"])
TEXTS = st.sampled_from(["", "a", "A", "ab", "xAbx", "É", "é", "a.b", "(x", "$", "tab\t", "line\n", "\\", '"', "😀"])
NUMBERS = st.one_of(st.integers(-5, 5), st.sampled_from([0.5, -1.5, 1e30, 1e-7, 2.0, 1 << 62]))
SCALARS = st.one_of(st.none(), st.booleans(), TEXTS, NUMBERS)
PAYLOADS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=8,
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(".".join)
LEAVES = st.one_of(
    st.tuples(st.sampled_from(["gt", "gte", "lt", "lte"]), PATHS, st.one_of(TEXTS, NUMBERS)),
    st.tuples(st.sampled_from(["eq", "includes"]), PATHS, SCALARS),
).map(lambda leaf: {leaf[0]: [leaf[1], leaf[2]]})
PREDICATES = st.recursive(
    st.one_of(LEAVES, st.just({})),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2).map(lambda many: {"and": many}),
        st.lists(inner, max_size=2).map(lambda many: {"or": many}),
        inner.map(lambda one: {"not": one}),
    ),
    max_leaves=4,
)
MISSING = object()


def holds(predicate: dict[str, Any], payload: Any) -> bool:
    """What the predicate means."""
    if not predicate:
        return True
    ((operator, operand),) = predicate.items()
    if operator in ("and", "or"):
        return (all if operator == "and" else any)(holds(one, payload) for one in operand)
    if operator == "not":
        return not holds(operand, payload)
    found, value = find(payload, operand[0]), operand[1]
    if found is MISSING:
        return False
    if operator == "eq":
        return same(found, value)
    if operator == "includes":
        if isinstance(found, list):
            return any(same(fold(one), fold(value)) for one in found)
        return isinstance(found, str) and isinstance(value, str) and value.lower() in found.lower()
    if kind(found) != kind(value):
        return False
    return bool({"gt": found > value, "gte": found >= value, "lt": found < value, "lte": found <= value}[operator])


def find(payload: Any, path: str) -> Any:
    """What stands at a dotted path."""
    for step in path.split("."):
        if step.isdigit():
            payload = payload[int(step)] if isinstance(payload, list) and int(step) < len(payload) else MISSING
        else:
            payload = payload.get(step, MISSING) if isinstance(payload, dict) else MISSING
    return payload


def kind(value: Any) -> str:
    """What may be compared with each other."""
    if isinstance(value, bool) or value is None:
        return str(value)
    return "number" if isinstance(value, (int, float)) else type(value).__name__


def same(one: Any, other: Any) -> bool:
    """Strictly equal."""
    return kind(one) == kind(other) and one == other


def fold(value: Any) -> Any:
    """Without the difference of upper and lower case."""
    return value.lower() if isinstance(value, str) else value


def matches(expression: str, payload: Any) -> bool | None:
    """What the node's own filters say."""
    book: FilterBook[Any, Any] = FilterBook(limits=Limits(), metrics=Metrics(), describe=lambda view, state: view)
    filter = book.lease(expression, "p").filter
    packet = Packet(
        stream_id="a", packet_sequence=1, packet_id="1", offset=1, appended_at="", content_hash="", leaf_hash="",
        data_payload=msgspec.Raw(msgspec.json.encode(payload)),
    )  # fmt: skip
    return _evaluate(filter, _open_subject(book._keys, book._generation, packet, Limits()))


@settings(max_examples=300, deadline=None)
@given(PREDICATES, PAYLOADS)
def test_the_expression_means_what_the_predicate_means(predicate: dict[str, Any], payload: Any) -> None:
    """For every payload, and never an error."""
    assert matches(predicate_to_cel(predicate), payload) is holds(predicate, payload)


def test_missing_and_empty() -> None:
    """No predicate holds for everything; a comparison with nothing doesn't hold, and its `not` does."""
    assert predicate_to_cel({}) == predicate_to_cel({"and": []}) == "true"
    assert matches(predicate_to_cel({"or": []}), 1) is False
    assert matches(predicate_to_cel({"not": {"gt": ["a.b", 1]}}), {"a": 5}) is True
    assert matches(predicate_to_cel({"eq": ["a", None]}), {}) is False


@pytest.mark.parametrize(
    ("predicate", "pointer"),
    [
        (5, ""),
        ({"gt": ["a", 1], "lt": ["a", 2]}, ""),
        ({"near": ["a", 1]}, "/near"),
        ({"and": {"gt": ["a", 1]}}, "/and"),
        ({"and": [{"gt": ["a"]}]}, "/and/0/gt"),
        ({"gt": ["a", True]}, "/gt/1"),
        ({"eq": ["a", []]}, "/eq/1"),
        ({"eq": ["a", math.inf]}, "/eq/1"),
        ({"lt": ["a..b", 1]}, "/lt/0"),
        ({"lt": ["", 1]}, "/lt/0"),
        ({"not": {"includes": [5, "a"]}}, "/not/includes"),
    ],
)
def test_refusals_name_the_place(predicate: Any, pointer: str) -> None:
    """Each with a pointer into the predicate."""
    with pytest.raises(PredicateError) as caught:
        predicate_to_cel(predicate)
    assert caught.value.pointer == pointer


def test_nesting_is_bounded() -> None:
    """What nests deeper than the limit is refused."""
    predicate: dict[str, Any] = {"eq": ["a", 1]}
    for _ in range(DEPTH_MAX - 1):
        predicate = {"not": predicate}
    predicate_to_cel(predicate)
    with pytest.raises(PredicateError, match="nest"):
        predicate_to_cel({"not": predicate})

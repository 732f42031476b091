"""The index of selections: it finds everybody whom asking each of them would find, and does it without asking."""

from typing import Any

import msgspec
import pytest
from delivery_fakes import FakeLog, make_delivery, query_of
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.delivery.matching import Matcher
from overlayd.delivery.shelves import Shelves
from overlayd.model.entry import Z32, Kind, StoredEntry

NAMES = ["a", "b", "plant.x", "plant.y", "plant.x.deep"]
WORDS = ["p", "q", "r"]


class Holder:
    """What stands on a shelf."""

    def __init__(self, matcher: Matcher) -> None:
        self.matcher = matcher


def some(values: list[str], largest: int = 2) -> "st.SearchStrategy[list[str]]":
    """None, one or several of the values."""
    return st.lists(st.sampled_from(values), max_size=largest, unique=True)


SELECTIONS = st.fixed_dictionaries(
    {
        "stream": some([*NAMES, "plant.*", "*", "plant.>", ">"]), "key": some(WORDS), "type": some(WORDS),
        "topic": some(["t.p", "t.q", "t.*", ">"]), "deliver": st.sampled_from(["appended", "confirmed", "both"]),
        "status": st.sampled_from(["true", "false"]),
    }
)  # fmt: skip
PACKETS = st.tuples(
    st.sampled_from(NAMES), st.sampled_from(["", *WORDS]), st.sampled_from(["", *WORDS]), some(["t.p", "t.q", "z"])
)


def is_wanted(matcher: Matcher, entry: StoredEntry, delivery: Any) -> bool:
    """What asking a selection by itself gives."""
    chosen = matcher.selection
    stream = matcher.find_stream(entry.stream_hash)
    if entry.kind == Kind.STATUS:
        return (chosen.status or chosen.deliver != "appended") and (stream is not None or entry.stream_hash == Z32)
    if stream is None:
        return False
    if entry.kind == Kind.REMOVAL or entry.is_reduced:
        return True
    return chosen.deliver != "confirmed" and matcher.is_view_match(delivery.views.view(entry, stream.name))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(SELECTIONS, max_size=12), st.lists(PACKETS, min_size=1, max_size=12),
    st.lists(st.tuples(st.booleans(), st.integers(0, 11)), max_size=30),
)  # fmt: skip
def test_nobody_is_missed(
    selections: list[dict[str, Any]], packets: list[tuple[str, str, str, list[str]]], steps: list[tuple[bool, int]]
) -> None:
    """While selections come and go, each entry finds all that want it, each once."""
    log = FakeLog()
    for name, key, type_, topics in packets:
        log.add(name, 1, key=key, type=type_, topics=msgspec.json.encode(topics) if topics else b"")
    log.add("a", 2)
    log.add_status(1, 1, "confirmed", stream="a", depth=1)
    log.add_status(1, len(packets), "pending")
    log.remove("a", 1, len(packets) + 1, "erased")
    delivery = make_delivery(log)
    shelves: Shelves[Holder] = Shelves(log, delivery.views)  # type: ignore[arg-type]  # a fake
    holders = [Holder(delivery.matcher(query_of(**arguments).selection)) for arguments in selections]
    standing: set[int] = set()
    for is_coming, number in [(True, at) for at in range(len(holders))] + steps:
        if number < len(holders):
            if is_coming and number not in standing:
                shelves.add(holders[number])
                standing.add(number)
            elif not is_coming and number in standing:
                shelves.remove(holders[number])
                standing.discard(number)
        for entry in log._entries:
            found = list(shelves.find(entry))
            assert len(found) == len(set(map(id, found)))
            for at in standing:
                if is_wanted(holders[at].matcher, entry, delivery):
                    assert holders[at] in found
    assert len(shelves) == len(standing)
    assert {id(one) for one in shelves.every()} == {id(holders[at]) for at in standing}


@pytest.mark.parametrize("detail", ["stream", "key", "type", "topic"])
def test_what_is_narrow_is_found_directly(detail: str) -> None:
    """Of three hundred selections with one stream, key, type or topic each, a packet finds one."""
    log = FakeLog()
    delivery = make_delivery(log)
    shelves: Shelves[Holder] = Shelves(log, delivery.views)  # type: ignore[arg-type]  # a fake
    for number in range(300):
        shelves.add(Holder(delivery.matcher(query_of(**{detail: f"w{number}"}).selection)))
    wanted: dict[str, Any] = (
        {"topics": b'["w7"]'} if detail == "topic" else {} if detail == "stream" else {detail: "w7"}
    )
    log.add("w7" if detail == "stream" else "a", 1, **wanted)
    (found,) = shelves.find(log._entries[-1])
    chosen = found.matcher.selection
    assert "w7" in {"stream": chosen.streams, "key": chosen.keys, "type": chosen.types, "topic": chosen.topics}[detail]

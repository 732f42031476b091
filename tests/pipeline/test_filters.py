"""Filters at work: what matches, what is shared, what it may cost."""

import itertools
import json
from typing import Any

import msgspec
import pytest
import trio
from msgspec import UNSET, Raw

from overlayd.model.entry import StoredEntry
from overlayd.model.errors import InvalidFilter, LimitReached
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.units import Duration, Size
from overlayd.model.wire import Packet
from overlayd.pipeline.filters import SLICE_S, FilterBook, look_up


class View:
    """A packet that is being looked at: its entry and what consumers see of it."""

    def __init__(self, data: Any, offset: int = 1, **members: Any) -> None:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.entry = StoredEntry(
            raw=b"", leaf=offset.to_bytes(32, "big"), kind=1, epoch=1, offset=offset, appended_us=0, stream_hash=b"",
            sequence=offset, prev=b"", target_from=0, target_to=0, salt=b"", commitment=b"", content_hash=b"", meta=b"",
            body=body, fingerprint=b"", is_reduced=False,
        )  # fmt: skip
        metadata = members.pop("metadata", UNSET)
        self.packet = Packet(
            stream_id="w", packet_sequence=offset, packet_id="i", offset=offset, appended_at="2024-01-15T10:30:00Z",
            data_payload=Raw(body), content_hash="blake3:", leaf_hash="sha256:",
            metadata=UNSET if metadata is UNSET else Raw(json.dumps(metadata).encode()), **members,
        )  # fmt: skip


class Desk:
    """A book that counts how often a packet was described."""

    def __init__(self, **limits: Any) -> None:
        self.described = 0
        self.metrics = Metrics()
        self.book: FilterBook[View, str] = FilterBook(
            limits=msgspec.structs.replace(Limits(), **limits), metrics=self.metrics, describe=self._describe
        )

    def _describe(self, view: View, state: str) -> Packet:
        self.described += 1
        return msgspec.structs.replace(view.packet, confirmation_status=state)

    async def judge(self, text: str, view: View, state: str = "none") -> bool | None:
        lease = self.book.lease(text, "p")
        try:
            return await lease.judge(view, state)
        finally:
            lease.release()

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


DATA = {"t": 21.5, "n": 7, "s": "grün-17", "tags": ["a", "b"], "deep": {"list": [{"k": 1}, {"k": 2}]}, "none": None,
        "big": (1 << 64) - 1, "ok": True, "odd name": 5, "in": 3}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("data.t > 21", True),
        ("data.n == 7.0 && data.t < 22", True),
        ("data['odd name'] == 5 && data.in == 3", True),
        ("data.deep.list[1].k == 2", True),
        ("data.deep.list[2].k == 2", False),
        ("data.deep.list.exists(x, x.k == 2)", True),
        ("data.deep.list.all(x, x.k < data.n)", True),
        ("data.tags.exists_one(x, x == 'a')", True),
        ("'b' in data.tags", True),
        ("'t' in data && size(data) == 10", True),
        ("data.none == null", True),
        ("data.big > 18446744073709551614u", True),
        ("data.ok", True),
        ("!data.ok", False),
        ("data.s.startsWith('gr\\u00fc')", True),
        ("data.s.matches('^gr.n-[0-9]{2}$')", True),
        ("data.s.matches(r'\\d\\d$') && !data.s.matches('x')", True),
        ("has(data.s) && !has(data.zz) && !has(data.zz.y)", True),
        ("data.zz == 1 || data.n == 7", True),
        ("packet.type == 'reading' && packet.stream_id == 'w' && packet.packet_sequence == 1", True),
        ("packet.metadata.room == 'k' && 'x.y' in packet.topics", True),
        ("packet.confirmation_status == 'none'", True),
        ("has(packet.type) && !has(packet.key)", True),
        ("'type' in packet && !('key' in packet) && !('data_payload' in packet)", True),
        ("timestamp(packet.appended_at).getFullYear() == 2024", True),
        ("data.n == 7 ? data.t > 1 : false", True),
    ],
)
async def test_filters_see_packets_as_consumers_do(text: str, verdict: bool) -> None:
    """Payload, members, topics and metadata are there under the names of the wire."""
    view = View(DATA, type="reading", topics=["x.y"], metadata={"room": "k"})
    assert await Desk().judge(text, view) is verdict


@pytest.mark.parametrize(
    "text",
    ["data.zz == 1", "!(data.zz == 1)", "data.t == 1 || data.zz", "data.s > 5", "data.n + data.s == 1", "data.s", "data.n / 0 == 1",
     "9223372036854775807 + data.n > 0", "data.tags[7] == 'a'", "data.n.matches('7')", "!data.n.matches('7')", "data.zz.exists(x, true)",
     "packet.key == ''", "data.tags.exists(x, x == data.deep)", "int(data.s) == 1", "data.deep.list.all(x, x.zz == 1)"],
)  # fmt: skip
async def test_missing_and_mistyped_is_no_match(text: str) -> None:
    """A missing member, a wrong type, overflow or a value that isn't a boolean never matches, and is counted."""
    desk = Desk()
    assert await desk.judge(text, View(DATA)) is False
    assert desk.count("overlayd_filter_errors_total") == 1


async def test_scalars_and_lists_are_data_too() -> None:
    """A payload that isn't an object can be asked as a whole or by index."""
    assert await Desk().judge("data > 5", View(6))
    assert await Desk().judge("data[0] == 'x'", View(["x"]))
    assert await Desk().judge(
        "data == 'YQ==' && packet.data_encoding == 'base64'", View("YQ==", data_encoding="base64")
    )


async def test_equal_filters_are_one_and_each_entry_is_looked_at_once() -> None:
    """Two users of one expression share it; an entry is described once however many filters see it."""
    desk = Desk()
    first, second = desk.book.lease("data.n == 7", "p"), desk.book.lease("data.n == 7", "q")
    other = desk.book.lease("data.t > 1", "p")
    assert first.filter is second.filter
    view = View(DATA)
    for lease in (first, second, other, first):
        assert await lease.judge(view, "none")
    assert desk.described == 1
    assert await first.judge(view, "confirmed")
    assert desk.described == 2
    assert desk.count("overlayd_filters") == 2
    for lease in (first, second, second, other):
        lease.release()
    assert desk.count("overlayd_filters") == 0


async def test_a_later_filter_finds_paths_that_earlier_ones_did_not_name() -> None:
    """An entry that was looked at before a filter came is looked at again for the paths it names."""
    desk = Desk()
    view = View(DATA)
    first = desk.book.lease("data.n == 7", "p")
    assert await first.judge(view, "none")
    second = desk.book.lease("data.t > 1", "p")
    assert await second.judge(view, "none")
    assert await first.judge(view, "none")
    first.release()
    third = desk.book.lease("data.n == 7 && data.s.matches('gr')", "p")
    assert await third.judge(view, "none")


async def test_an_entry_that_was_erased_is_forgotten() -> None:
    """After clear() nothing of an entry is left, and another entry at its offset isn't confused with it."""
    desk = Desk()
    lease = desk.book.lease("data == 1", "p")
    assert await lease.judge(View(1), "none")
    desk.book.clear()
    assert await lease.judge(View(1), "none")
    assert desk.described == 2
    other = View(2)
    other.entry.leaf = b"x" * 32
    assert await lease.judge(other, "none") is False


async def test_distinct_filters_are_capped() -> None:
    """A principal and the node have caps on distinct filters; repeats of one don't count, releases give back."""
    desk = Desk(filters_per_principal=2, filters_max=3)
    leases = [desk.book.lease(f"data == {at}", "p") for at in (1, 2, 2)]
    with pytest.raises(LimitReached, match="of one principal"):
        desk.book.lease("data == 3", "p")
    desk.book.lease("data == 3", "q")
    with pytest.raises(LimitReached, match="on this node"):
        desk.book.lease("data == 4", "q")
    assert desk.count("overlayd_limit_hits_total", limit="filters_per_principal") == 1
    assert desk.count("overlayd_limit_hits_total", limit="filters_max") == 1
    leases[0].release()
    leases[0].release()
    desk.book.lease("data == 4", "p")


def test_what_the_engine_refuses_leaves_nothing_behind() -> None:
    """An expression that doesn't compile is an InvalidFilter in the writer's own words, and isn't counted."""
    desk = Desk()
    for text in ("data.a ==", "data.a data.b", "true ? 1", "{1}"):
        with pytest.raises(InvalidFilter) as caught:
            desk.book.lease(text, "p")
        assert "p1" not in caught.value.detail
    assert desk.count("overlayd_filters") == 0
    with pytest.raises(InvalidFilter):
        desk.book.lease("true // " + "x" * 3000, "p")


async def test_large_packets_are_judged_in_a_thread() -> None:
    """A packet over filter_inline_bytes is decoded and judged in a thread, and isn't kept."""
    desk = Desk(filter_inline_bytes=Size(100))
    view = View({"n": 7, "text": "x" * 200})
    lease = desk.book.lease("data.n == 7", "p")
    assert await lease.judge(view, "none")
    assert await lease.judge(view, "none")
    assert desk.count("overlayd_filter_seconds_count") == 2
    assert await lease.judge(View({"n": 8}, 2), "none") is False
    assert desk.count("overlayd_filter_seconds_count") == 2
    assert desk.count("overlayd_limit_hits_total", limit="filter_inline_bytes") == 2


async def test_dear_filters_go_to_a_thread_and_come_back() -> None:
    """A comprehension starts in a thread and moves to the loop once it proves cheap."""
    desk = Desk()
    lease = desk.book.lease("data.exists(x, x == 1)", "p")
    for at in range(20):
        assert await lease.judge(View([1, 2], at + 1), "none")
    assert 1 <= desk.count("overlayd_filter_seconds_count") < 20
    in_thread = desk.count("overlayd_filter_seconds_count")
    assert desk.count("overlayd_limit_hits_total", limit="filter_mean_us") == in_thread


async def test_a_filter_that_overruns_is_disabled() -> None:
    """After filter_overruns evaluations over filter_timeout the answer is None from then on; others go on."""
    desk = Desk(filter_timeout=Duration(0), filter_overruns=3)
    lease = desk.book.lease("data == 1", "p")
    assert [await lease.judge(View(1, at), "none") for at in range(1, 6)] == [True, True, True, None, None]
    assert desk.count("overlayd_filter_overruns_total") == 3
    assert desk.count("overlayd_filters_disabled_total") == 1
    assert desk.count("overlayd_limit_hits_total", limit="filter_overruns") == 1
    assert desk.count("overlayd_limit_hits_total", limit="filter_timeout") == 3
    assert await desk.book.lease("data != 1", "p").judge(View(1), "none") is False


async def test_lists_and_objects_are_cut() -> None:
    """Filters see the first filter_list_items members of a list or of an object asked as a whole."""
    desk = Desk(filter_list_items=3)
    view = View({"l": [1, 2, 3, 4], "m": {"a": 1, "b": 2, "c": 3, "d": 4}, "deep": [[1, 2, 3, 4]]})
    assert await desk.judge("size(data.l) == 3 && size(data.m) == 3 && size(data.deep[0]) == 3", view)
    assert await desk.judge("data.m.d == 4 && data.l[3] == 4", view)


async def test_long_evaluations_give_others_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quick evaluations in a row let other tasks run whenever they took a slice together."""
    looks = itertools.count()
    # Each evaluation looks at the clock before and after, and takes a quarter of a slice.
    monkeypatch.setattr("overlayd.pipeline.filters.time.thread_time", lambda: next(looks) * SLICE_S / 4)
    desk = Desk(filter_mean_us=1_000_000)
    lease = desk.book.lease("data.n == 7", "p")
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        view = View(DATA)
        for at in range(3000):
            await lease.judge(view, str(at))
        nursery.cancel_scope.cancel()
    assert turns >= 3000 // 8


async def test_one_entry_may_be_asked_by_many_at_once() -> None:
    """While a thread judges an entry, others ask about the same one, inline and in threads, and all are right."""
    desk = Desk(filter_inline_bytes=Size(1000))
    items = "data.l.exists(x, x == 9) || data.l.exists(x, x == 3)"
    texts = [items, "data.n == 1", "data.n == 2", "data.s.matches('^x+$')", items.replace("3", "4")]
    leases = [desk.book.lease(text, "p") for text in texts]
    verdicts: dict[str, bool | None] = {}

    async def ask(at: int) -> None:
        verdicts[texts[at]] = await leases[at].judge(View({"l": [1, 2, 3], "n": 1, "s": "xxx"}), "none")

    for _ in range(5):
        desk.book.clear()
        async with trio.open_nursery() as nursery:
            for at in range(len(texts)):
                nursery.start_soon(ask, at)
        assert [verdicts[text] for text in texts] == [True, True, False, True, False]


async def test_texts_too_long_for_a_pattern_do_not_match() -> None:
    """Matching is bounded by the pattern's size times the text; beyond it there is no match, counted."""
    desk = Desk(filter_inline_bytes=Size(10 << 20))
    pattern = "(?:[a-z][0-9]){90}x"
    assert await desk.judge(f"data.matches('{pattern}')", View("a1" * 90 + "x"))
    assert await desk.judge(f"data.matches('{pattern}')", View("a1" * 90 + "x" + " " * 100_000)) is False
    assert desk.count("overlayd_filter_errors_total") == 1


def test_paths_that_break_off_are_left_out() -> None:
    """Looking up gives what is there and nothing for the rest, whatever stands in the way."""
    view = View({"a": {"b": [1, {"c": None}]}}, type="t", metadata={"m": 1})
    paths = {
        ("data", "a", "b", 1, "c"): "p1", ("data", "a", "b", 5): "p2", ("data", "a", "b", "c"): "p3", ("data", "a", "x", "y"): "p4",
        ("packet", "type"): "p5", ("packet", "key"): "p6", ("packet", "metadata", "m"): "p7", ("packet", "type", "x"): "p8",
        ("data", "a", 0): "p9",
    }  # fmt: skip
    assert look_up(paths, view.packet, 1000) == {"p1": None, "p5": "t", "p7": 1}


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        ("filter_bytes", "data == '" + "x" * 3000 + "'"), ("filter_pattern_chars", "data.matches('" + "a" * 513 + "')"),
        ("filter_pattern_repeats", "data.matches('(a{11}){10}')"),
    ],
)  # fmt: skip
def test_each_limit_that_a_filter_hits_is_counted(limit: str, text: str) -> None:
    """A filter over a bound is refused, names the setting, and the bound's own counter goes up."""
    desk = Desk()
    with pytest.raises(InvalidFilter) as caught:
        desk.book.lease(text, "p")
    assert caught.value.extra == {"limit": limit}
    assert desk.count("overlayd_limit_hits_total", limit=limit) == 1


async def test_a_cancelled_evaluation_leaves_the_entry_usable() -> None:
    """When the reader goes while a thread judges, the entry is judged again for the next one."""
    desk = Desk()
    dear = desk.book.lease("data.exists(x, x == 1)", "p")
    view = View([1])
    assert await desk.book.lease("size(data) == 1", "p").judge(view, "none")
    with trio.CancelScope() as scope:
        scope.cancel()
        await dear.judge(view, "none")
    assert await dear.judge(view, "none")
    assert await desk.book.lease("size(data) == 2", "p").judge(view, "none") is False

"""What `overlayd top` makes of a node's figures."""

import signal
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from rich.console import Console

from overlayd.cli import top
from overlayd.cli.node_figures import Frame, Section, Snapshot, frame_of
from overlayd.cli.top import drawing_of, print_frame, watch
from overlayd.model.wire import QueryBody, SessionBody, SessionSubscription
from overlayd.model.wire_chain import ChainBody, ChainSourceBody, TipBody
from overlayd.model.wire_statistics import SessionStats, StatsBody, StorageStatsBody, StreamStats, SubscriptionStats
from overlayd.model.wire_subscriptions import SubscriptionBody

AT = "2026-01-02T03:04:05.000000Z"
LATER = "2026-01-02T03:04:15.000000Z"


def stream(name: str, **figures: Any) -> StreamStats:
    """A stream's figures."""
    known = {"messages_in": 0, "messages_out": 0, "refused": 0, "failed": 0, "packets": 0, "bytes": 0, "subscribers": 0}
    return StreamStats(stream=name, state="active", **(known | figures))


def stats(*streams: StreamStats, at: str = AT, **figures: Any) -> StatsBody:
    """A node's figures."""
    known: dict[str, Any] = {
        "node": "n1", "at": at, "started_at": "2026-01-02T01:04:05.000000Z", "head": 7, "messages_in": 0,
        "messages_out": 0, "refused": 0, "failed": 0, "sessions": SessionStats(websocket=1, lag_entries_max=4),
        "subscriptions": SubscriptionStats(
            active=1, paused=2, disabled=3, lag_entries_max=40, outstanding=5, dead_letters=6
        ),
        "storage": StorageStatsBody(
            database_bytes=1 << 20, wal_bytes=0, disk_free_bytes=1 << 30, full=False, intake_packets=8, intake_bytes=9
        ),
        "stream_count": len(streams), "streams": list(streams),
    }  # fmt: skip
    return StatsBody(**(known | figures))


def subscription(name: str, lag: int, delivered: int) -> SubscriptionBody:
    """A durable subscription."""
    return SubscriptionBody(
        id=name, name=name, kind="webhook", owner="api", principal="p", created_at=AT, state="active", cursor="e1a-1",
        outstanding=1, lag_entries=lag, delivered=delivered, failed=2, dead_letters=0, last_error="no\x1b[2Janswer",
    )  # fmt: skip


def session(id: str, sent: int, lag: int) -> SessionBody:
    """A live session."""
    query = QueryBody(streams=["a.>"], topics=[], types=[], keys=[], deliver="appended", format="packet")
    return SessionBody(
        id=id, transport="websocket", principal="loopback", address="127.0.0.1", opened_at=AT, messages_sent=sent,
        bytes_sent=10, subscriptions=[SessionSubscription(query=query, cursor="e1a-1", lag_entries=lag)],
    )  # fmt: skip


BEFORE = Snapshot(
    stats(stream("a", messages_in=100), stream("b", messages_out=5), messages_in=100, messages_out=5, refused=1),
    [subscription("slow", 100, 10), subscription("quick", 0, 10)], [session("s1", 10, 0)],
)  # fmt: skip
NOW = Snapshot(
    stats(
        stream("a", messages_in=150, latency_ms_mean=1.2345, last_packet_at=LATER), stream("b", messages_out=205),
        stream("new", messages_in=1), at=LATER, messages_in=150, messages_out=205, refused=2, error_rate=0.0132,
    ),
    [subscription("quick", 0, 60), subscription("slow", 120, 10)], [session("s1", 40, 0), session("s2", 1, 9)],
    ChainBody(
        network="regtest", tip=TipBody(height=102, hash="0" * 64, time="2026-01-02T03:00:15.000000Z"), first_height=0,
        sources=[ChainSourceBody(name="arc", state="backing_off", abilities=[])], watched=3, unfunded=4, anchor_waiting=0,
    ),
)  # fmt: skip


def rows(frame: Frame, title: str) -> dict[str, tuple[str, ...]]:
    """A section's rows by their first cell."""
    (found,) = [section for section in frame.sections if section.title.startswith(title)]
    return {row[0]: row for row in found.rows}


def test_rates_are_what_lies_between_two_looks() -> None:
    """By the node's own clock; the busiest stream stands first, who is new has none."""
    frame = frame_of(BEFORE, NOW)
    streams = rows(frame, "streams")
    assert list(streams) == ["b", "a", "new"]
    assert streams["a"][2:6] == ("5.0", "0", "150", "0")
    assert streams["a"][8:] == ("1.23 ms", "0", "2026-01-02T03:04:15Z")
    assert streams["b"][3] == "20"
    assert streams["new"][2:4] == ("-", "-")
    assert frame.lines[0] == "n1  up 2 h  head 7  2026-01-02T03:04:15Z"
    assert "in 5.0/s, out 20/s, refused 0.1/s" in frame.lines[1]
    assert "(1.32%)" in frame.lines[1]


def test_who_is_furthest_behind_stands_first() -> None:
    """Subscriptions and sessions; what others wrote can't steer the terminal."""
    frame = frame_of(BEFORE, NOW)
    durable = rows(frame, "durable subscriptions (2)")
    assert list(durable) == ["slow", "quick"]
    assert durable["quick"][5] == "5.0"
    assert "\x1b" not in durable["slow"][-1]
    live = rows(frame, "live sessions (2)")
    assert list(live) == ["s2", "s1"]
    assert live["s1"][4] == "3.0"
    assert live["s1"][-1] == "a.>"


def test_the_first_look_has_no_rates() -> None:
    """Nor has one after the node was started anew."""
    anew = msgspec.structs.replace(NOW.stats, started_at=LATER)
    for before, now in ((None, NOW), (BEFORE, msgspec.structs.replace(NOW, stats=anew))):
        frame = frame_of(before, now)
        assert "in -, out -, refused -" in frame.lines[1]
        assert rows(frame, "streams")["a"][2:4] == ("-", "-")


def test_the_chain_is_told_where_there_is_one() -> None:
    """Height, age of the newest block, what waits, and sources that are in trouble."""
    assert (
        frame_of(None, NOW).lines[-1]
        == "chain      regtest at 102, newest block 4 min old; 3 watched, 4 unpaid; arc backing_off"
    )
    assert not any(line.startswith("chain") for line in frame_of(None, BEFORE).lines)


def test_a_full_disk_catches_the_eye() -> None:
    """Publishing is refused."""
    full = msgspec.structs.replace(NOW.stats.storage, full=True)
    frame = frame_of(None, msgspec.structs.replace(NOW, stats=msgspec.structs.replace(NOW.stats, storage=full)))
    assert any(line.startswith("disk       FULL") for line in frame.lines)


def test_what_is_drawn_fits_the_terminal() -> None:
    """Sections share the rows: one with few leaves its own to the others."""
    many = Section("many", ("A",), [(str(number),) for number in range(500)])
    few = Section("few", ("B",), [("x",), ("y",)])
    frame = Frame(["one", "two"], [many, few])
    for height in (16, 24, 60):
        console = Console(width=100, height=height, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(drawing_of(frame, console.size, "away"))
        lines = console.export_text().rstrip("\n").split("\n")
        console.file.close()
        assert height - 3 <= len(lines) <= height
        assert "no answer: away" in lines
        assert {"x", "y"} <= set(lines)


@pytest.mark.parametrize(("width", "columns"), [(200, 4), (32, 4), (31, 3), (20, 3), (19, 2), (5, 1)])
def test_columns_without_room_are_left_out(width: int, columns: int) -> None:
    """On a narrow terminal the first columns are whole, instead of none."""
    section = Section(
        "s", ("NAME", "STATE", "N", "LAST"), [("weather-1", "active", "7", "2026-01-02"), ("b", "x", "1", "-")]
    )
    with open("/dev/null", "w") as nowhere:
        console = Console(width=width, height=24, record=True, file=nowhere)
        console.print(drawing_of(Frame(["l"], [section]), console.size))
    text = console.export_text()
    assert text.split("\n")[3].split() == ["NAME", "STATE", "N", "LAST"][:columns]
    assert ("…" in text) == (columns == 1)


def test_empty_sections_are_left_out(capsys: Any) -> None:
    """A node without readers shows none."""
    print_frame(frame_of(None, Snapshot(stats(), [], [])))
    assert "live sessions" not in capsys.readouterr().out


def test_an_interrupt_that_something_swallows_ends_it_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a callback of the collector does, whose exceptions are only printed."""
    looks = 0

    def look(client: object) -> Snapshot:
        nonlocal looks
        looks += 1
        assert looks < 5, "it goes on"
        if looks == 3:
            with suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        return NOW

    monkeypatch.setattr(top, "read_snapshot", look)
    before = signal.getsignal(signal.SIGINT)
    watch(None, 0.0)  # type: ignore[arg-type]
    assert looks == 3
    assert signal.getsignal(signal.SIGINT) is before

"""The real log against a list per stream, through random requests, flushes, failed commits, deletions and restarts."""

import shutil
import sqlite3
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_rig import Rig, append, draft, forget_tail

from overlayd.model.draft import Receipt
from overlayd.model.entry import Kind, StoredEntry, verify_entry
from overlayd.model.errors import IdReused, SequenceMismatch, StorageFull
from overlayd.model.merkle import root_of
from overlayd.storage import Log, writer

STREAMS = ("a", "b.c")

_items = st.lists(
    st.tuples(st.sampled_from(["", "i0", "i1", "i2", "i3"]), st.sampled_from(["1", '"x"'])), min_size=1, max_size=5
)
_operations = st.one_of(
    st.tuples(
        st.just("append"), st.sampled_from(STREAMS), _items, st.booleans(), st.sampled_from([None, None, 0, 1, "head"])
    ),
    st.tuples(st.just("fail"), st.sampled_from(STREAMS), _items),
    st.tuples(st.just("delete"), st.sampled_from(STREAMS)),
    st.tuples(st.sampled_from(["reopen", "crash"])),
    st.tuples(st.just("go cold")),
)


class Packet(msgspec.Struct):
    """What the model remembers of a packet."""

    id: str
    data: str
    offset: int


class Model:
    """The log as a list per stream."""

    def __init__(self) -> None:
        self.streams: dict[str, list[Packet]] = {}
        self.deleted: set[int] = set()

    def judge(self, stream: str, items: list[tuple[str, str]], is_atomic: bool, expected: int | None) -> Any:
        """The outcome per item ("new", "refused", or the packet repeated), or the error's class."""
        known = {packet.id: packet for packet in self.streams.get(stream, []) if packet.id}
        outcomes: list[Any] = []
        first: dict[str, int] = {}
        for at, (packet_id, data) in enumerate(items):
            if packet_id and packet_id in first:
                earlier = first[packet_id]
                same = items[earlier][1] == data
                outcomes.append(
                    (("repeat", earlier) if outcomes[earlier] == "new" else outcomes[earlier]) if same else "refused"
                )
                continue
            first[packet_id] = at
            if packet_id in known:
                outcomes.append(known[packet_id] if known[packet_id].data == data else "refused")
            else:
                outcomes.append("new")
        if is_atomic and "refused" in outcomes:
            return IdReused
        if "new" in outcomes and expected not in (None, len(self.streams.get(stream, []))):
            return SequenceMismatch
        return outcomes

    def apply(self, stream: str, items: list[tuple[str, str]], outcomes: list[Any], result: list[Any]) -> None:
        """Checks the log's answer against the judgement and takes over what is new."""
        packets = self.streams.setdefault(stream, []) if "new" in outcomes else self.streams.get(stream, [])
        for (packet_id, data), outcome, got in zip(items, outcomes, result, strict=True):
            if outcome == "refused":
                assert isinstance(got.error, IdReused)
                continue
            assert isinstance(got, Receipt)
            if outcome == "new":
                packets.append(Packet(packet_id, data, got.offset))
                assert (got.sequence, got.duplicate) == (len(packets), False)
            else:
                expected = outcome.offset if isinstance(outcome, Packet) else result[outcome[1]].offset
                assert (got.offset, got.duplicate) == (expected, True)


@given(st.lists(_operations, min_size=1, max_size=12))
@settings(max_examples=5, deadline=None)
async def test_log_behaves_like_a_list_per_stream(operations: list[tuple[Any, ...]]) -> None:
    """Whatever is asked, the answers and all that can be read are those of the model."""
    with tempfile.TemporaryDirectory() as directory:
        await run_scenario(Rig(Path(directory) / "data"), operations)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@given(st.lists(_operations, min_size=1, max_size=40))
@settings(max_examples=200, deadline=None)
async def test_log_behaves_like_a_list_per_stream_for_long(operations: list[tuple[Any, ...]]) -> None:
    """The same, longer and more often."""
    with tempfile.TemporaryDirectory() as directory:
        await run_scenario(Rig(Path(directory) / "data"), operations)


async def run_scenario(rig: Rig, operations: list[tuple[Any, ...]]) -> None:
    """Runs operations on a log and on its model."""
    rig.set_settings(flush_entries=8)
    model = Model()
    async with AsyncExitStack() as stack:
        log = await stack.enter_async_context(rig.open())
        for operation in operations:
            match operation:
                case ("append", stream, items, is_atomic, expected):
                    await run_append(log, model, stream, items, is_atomic, expected)
                case ("fail", stream, items):
                    await run_failure(log, stream, items)
                case ("delete", stream):
                    await run_delete(log, model, stream)
                case ("reopen",):
                    await stack.aclose()
                    log = await stack.enter_async_context(rig.open())
                case ("crash",):
                    await log.checkpoint(log.head)  # then nothing is written while it is copied
                    copy = rig.directory.with_name(rig.directory.name + "x")
                    shutil.copytree(rig.directory, copy)
                    await stack.aclose()
                    rig.directory = copy
                    log = await stack.enter_async_context(rig.open())
                case ("go cold",):
                    forget_tail(log)
            await check(log, model)


async def run_append(
    log: Log, model: Model, stream: str, items: list[tuple[str, str]], is_atomic: bool, expected: int | str | None
) -> None:
    """One request, judged by both."""
    head = len(model.streams.get(stream, []))
    number = head if expected == "head" else expected
    assert not isinstance(number, str)
    outcomes = model.judge(stream, items, is_atomic, number)
    request = [draft(data, index=at, id=packet_id) for at, (packet_id, data) in enumerate(items)]
    before = log.head
    if isinstance(outcomes, type):
        with pytest.raises(outcomes):
            await append(log, stream, request, atomic=is_atomic, expected_sequence=number)
        assert log.head == before
        return
    result = await append(log, stream, request, atomic=is_atomic, expected_sequence=number)
    model.apply(stream, items, outcomes, result.outcomes)
    assert result.head_sequence == len(model.streams.get(stream, []))


async def run_failure(log: Log, stream: str, items: list[tuple[str, str]]) -> None:
    """A commit that finds the disk full leaves no trace."""
    before, real = log.head, writer.commit_group

    def raise_full(connection: sqlite3.Connection) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    def fail(
        connection: sqlite3.Connection, rows: Any, tiles: Any, statements: Any, calls: Any, actions: list[Any]
    ) -> None:  # fmt: skip
        real(connection, rows, tiles, statements, calls, [*actions, raise_full])

    request = [draft(data, index=at, id=f"f{packet_id}{at}") for at, (packet_id, data) in enumerate(items)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "commit_group", fail)
        with pytest.raises(StorageFull):
            await append(log, stream, request)
    log._disk.is_full = False
    assert log.head == before


async def run_delete(log: Log, model: Model, stream: str) -> None:
    """Deleting takes every packet and frees the name."""
    if stream not in model.streams:
        return
    packets = model.streams.pop(stream)
    assert await log.delete_stream(stream) == len(packets)
    model.deleted |= {packet.offset for packet in packets}


async def check(log: Log, model: Model) -> None:
    """Everything that can be read agrees with the model."""
    entries: list[StoredEntry] = []
    while len(entries) < log.head:
        page = await log.read_page(len(entries))
        assert page.damaged == []
        entries += page.entries
    for entry in entries:
        verify_entry(entry, None)
    assert [entry.offset for entry in entries] == list(range(1, log.head + 1))
    assert await log.root_at(log.head) == root_of(entry.leaf for entry in entries)
    gone = {entry.offset for entry in entries if entry.is_reduced and entry.kind == Kind.PACKET}
    assert gone == model.deleted
    assert sorted(stream.name for stream in log.list_streams()) == sorted(model.streams)
    for name, packets in model.streams.items():
        stream = log.find_stream(name)
        assert stream is not None
        assert (stream.head_sequence, stream.packets) == (len(packets), len(packets))
        found = await log.read_packets(stream, 0, 1000)
        assert [(entry.offset, entry.body.decode()) for entry in found] == [(p.offset, p.data) for p in packets]
        assert all(
            entry.prev == (bytes(32) if at == 0 else found[at - 1].leaf) for at, entry in enumerate(found)
        )  # fmt: skip

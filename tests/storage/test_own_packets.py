"""Packets of the node's own streams: in the transaction of what they tell about, and safe from everybody."""

import pytest
from storage_rig import Rig, append

from overlayd.model.definition import Definition
from overlayd.model.errors import Forbidden, UnknownStream
from overlayd.storage.group import Group
from overlayd.storage.own import OwnPacket, append_own

AUDIT = Definition(title="Audit")


def packet(body: bytes = b'{"n":1}', key: str = "") -> OwnPacket:
    """A packet of the audit stream."""
    return OwnPacket("overlayd.audit", AUDIT, "test.done", body, key)


def tell(group: Group) -> None:
    """Adds a packet to the group."""
    append_own(group, [packet()])


async def test_an_own_stream_comes_with_its_first_packet(rig: Rig) -> None:
    """The first packet creates the stream with the definition that it carries; a restart finds both."""
    async with rig.open() as log:
        (offset,) = await log.append_own([packet(key="k")])
        entry = await log.read_entry(offset)
        assert entry.body == b'{"n":1}'
        assert entry.sequence == 1
    async with rig.open() as log:
        stream = log.find_stream("overlayd.audit")
        assert stream is not None
        assert (stream.head_sequence, stream.definition.title) == (1, "Audit")
        found = await log.find_last(stream, "k")
        assert found is not None
        assert found.offset == offset


async def test_a_change_and_its_trace_are_one_transaction(rig: Rig) -> None:
    """A state that is set, a definition and a deletion bring their packets along; a refused one brings none."""
    async with rig.open() as log:
        await log.define_stream("weather", Definition(), along=lambda group, is_new: tell(group))
        before = log.head
        await log.set_stream_state("weather", "paused", own=[packet()])
        assert log.head == before + 1
        await log.delete_stream("weather", own=[packet()])
        stream = log.find_stream("overlayd.audit")
        assert stream is not None
        assert stream.head_sequence == 3
        with pytest.raises(UnknownStream):
            await log.set_stream_state("weather", "paused", own=[packet()])
        assert stream.head_sequence == 3


async def test_statements_count_only_with_their_packets(rig: Rig) -> None:
    """A feature's statements run in the transaction of the packets."""
    async with rig.open() as log:
        await log.write(lambda connection: connection.execute("CREATE TABLE noted (n INTEGER)"))
        await log.append_own([packet()], [("INSERT INTO noted VALUES (?)", (7,))])
        assert await log.read(lambda connection: connection.execute("SELECT n FROM noted").fetchall()) == [(7,)]


async def test_nobody_changes_an_own_stream(rig: Rig) -> None:
    """Publishing, defining, stopping, deleting and erasing are refused; retention may take old packets away."""
    async with rig.open() as log:
        await log.append_own([packet(), packet()])
        stream = log.find_stream("overlayd.audit")
        assert stream is not None
        with pytest.raises(Forbidden):
            await append(log, "overlayd.audit")
        with pytest.raises(Forbidden):
            await log.define_stream("overlayd.audit", Definition())
        with pytest.raises(Forbidden):
            await log.set_stream_state("overlayd.audit", "stopped")
        with pytest.raises(Forbidden):
            await log.delete_stream("overlayd.audit")
        with pytest.raises(Forbidden):
            await log.reduce(stream, 1, log.head, "erased")
        assert stream.packets == 2
        assert await log.reduce(stream, 1, log.head, "retention") == 2

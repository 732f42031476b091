"""Packets of the node's own streams, which only the node appends to: in the transaction of what they tell about."""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from overlayd.model.definition import Definition
from overlayd.model.draft import Draft
from overlayd.model.entry import Z32
from overlayd.model.names import is_node_name
from overlayd.storage.group import Group, PreparedDraft

Statement = tuple[str, tuple[Any, ...]]
"""SQL and its values. It must not be able to fail: it would take the whole group along."""
Rows = Callable[[sqlite3.Connection], None]
"""Writes several rows of a feature. Not able to fail either; it runs in the writer's thread."""


class OwnPacket(msgspec.Struct, frozen=True):
    """A packet of one of the node's own streams. `body`: JSON. `definition`: of the stream, should it not exist yet."""

    stream: str
    definition: Definition
    type: str
    body: bytes
    key: str = ""


def append_own(
    group: Group, packets: Sequence[OwnPacket], statements: Sequence[Statement] = (), along: Rows | None = None
) -> list[int]:
    """Adds the packets, and creates their streams where need be; gives the offsets. Part of a ChangeJob."""
    offsets = []
    for packet in packets:
        assert is_node_name(packet.stream), packet.stream
        pending = group.find(packet.stream)
        if pending is None:
            pending = group.create_stream(packet.stream, packet.definition, "config", "node")
        draft = Draft(0, packet.body, packet.body, type=packet.type, key=packet.key, principal="node")
        offsets += [entry.offset for entry in group.add_packets(pending, [PreparedDraft(draft, 0, Z32, 0)])]
    group.statements += statements
    if along is not None:
        group.actions.append(along)
    return offsets

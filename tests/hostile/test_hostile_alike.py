"""Hostile bytes where packets are posted: the publish lane and Quart say the same to them."""

from contextlib import suppress
from pathlib import Path

import trio
from hostile_rig import open_hostile_node
from real_waiting import PATIENCE_S
from test_hostile_lanes import ALL


async def test_hostile_bytes_are_answered_alike_on_both_ways(tmp_path: Path) -> None:
    """The publish lane and Quart give a connection's first request the same status, whatever it is."""
    statuses: list[dict[str, bytes]] = []
    for is_fast in (True, False):
        (tmp_path / str(is_fast)).mkdir()
        async with open_hostile_node(tmp_path / str(is_fast), is_fast=is_fast) as node:
            found = {}
            for name, raw in ALL.items():
                with trio.fail_after(PATIENCE_S):
                    async with await node.connect() as client:
                        said = b""
                        with suppress(trio.BrokenResourceError):
                            await client.send(raw)
                            await client.stream.send_eof()
                            said = await client.read_rest()
                found[name] = said[:12]
            statuses.append(found)
    assert statuses[0] == statuses[1]
    assert len(set(statuses[0].values())) > 3

"""The demo's chain: which streams are confirmed how, and a line for every run of packets that a block confirmed."""

from collections.abc import Callable
from typing import Any

import msgspec
import trio
from msgspec import UNSET

from overlayd.chain.settings import ChainSettings
from overlayd.cli.demo_data import HOST_STREAM, WEATHER_STREAM
from overlayd.client import Live
from overlayd.model.wire import Packet, PacketMessage

PAUSE_S = 0.3
"""A run ends when nothing more of it comes for so long."""
RULES: dict[str, dict[str, Any]] = {HOST_STREAM: {"commit": "packet"}, WEATHER_STREAM: {"commit": "batch"}}


def is_confirming(settings: ChainSettings) -> bool:
    """Whether the demo's packets are confirmed: only on the chain inside the node, where it costs nothing."""
    return settings.network == "regtest" and not settings.sources


def with_rule(stream: str, definition: dict[str, Any], settings: ChainSettings) -> dict[str, Any]:
    """The stream's definition, with how it is confirmed where it is."""
    return definition | ({"confirm": RULES[stream]} if is_confirming(settings) else {})


def describe(settings: ChainSettings) -> str:
    """What comes of the chain, in words."""
    return (
        f"A chain inside the node (regtest: real transactions and proofs, coins worth nothing) confirms them, a block every "
        f"{settings.regtest.block_interval}.\nEach packet of {HOST_STREAM} gets a transaction of its own; for "
        f"{WEATHER_STREAM} one transaction every {settings.anchors.anchor_interval} commits\nto everything so far.\n"
    )


def curl_lines(url: str) -> tuple[str, str, str]:
    """Three commands that show confirmations, as typed, while the demo's node is up."""
    return (
        f"curl '{url}/v1/streams/{HOST_STREAM}/packets?deliver=confirmed&limit=2'",
        f"curl -N -H 'Accept: text/event-stream' '{url}/v1/live?stream={HOST_STREAM}&deliver=confirmed'",
        f"curl {url}/v1/chain",
    )


class Run(msgspec.Struct):
    """Packets of one stream in a row that one block confirmed."""

    first: Packet
    last: Packet

    def takes(self, packet: Packet) -> bool:
        """Whether the packet is the next of it."""
        last = self.last
        return (packet.stream_id, packet.packet_sequence, packet.block_height) == (
            last.stream_id, last.packet_sequence + 1, last.block_height,
        )  # fmt: skip

    def describe(self) -> str:
        """One line."""
        first, last = self.first, self.last
        numbers = f"{first.packet_sequence}"
        if first is not last:
            numbers += f" to {last.packet_sequence}"
        txid = "" if last.txid is UNSET else last.txid
        how = f"transaction {txid[:16]}…"
        if first is not last and first.txid != last.txid:
            how = "each by a transaction of its own"
        elif first is not last:
            how = f"all by {how}"
        return f"-- block {last.block_height}: {last.stream_id} {numbers} confirmed, {how} --"


async def tell_confirmations(live: Live, tell: Callable[[str, str], None]) -> None:
    """Calls `tell` with the stream and a line for each run, for ever. `live` reads confirmed packets."""
    run: Run | None = None
    while True:
        message = None
        with trio.move_on_after(float("inf") if run is None else PAUSE_S):
            message = await live.receive()
        if message is not None and not isinstance(message, PacketMessage):
            continue
        if run is not None and message is not None and run.takes(message.packet):
            run.last = message.packet
            continue
        if run is not None:
            tell(run.last.stream_id, run.describe())
        run = None if message is None else Run(message.packet, message.packet)

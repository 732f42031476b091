"""Follows a stream and goes on where it stopped, also after this program was restarted.

python examples/follow_stream.py http://127.0.0.1:7878 'host.*' cursor.txt
"""

import sys

import trio

from overlayd.client import Client
from overlayd.model.wire import GapMessage, PacketMessage


async def main(url: str, pattern: str, cursor_file: str, count: int = 0) -> None:
    """Goes on for ever, or for `count` packets."""
    kept = trio.Path(cursor_file)
    after = (await kept.read_text()).strip() if await kept.exists() else ""
    seen = 0
    async with (
        Client(url, verify=True) as client,
        client.live(pattern, after=after, start="" if after else "beginning") as live,
    ):
        async for message in live:
            if isinstance(message, PacketMessage):
                packet = message.packet
                print(packet.stream_id, packet.packet_sequence, bytes(packet.data_payload).decode())
                seen += 1
            elif isinstance(message, GapMessage):
                print(f"gap from {message.from_} to {message.to}: {message.reason}")
            # Kept after the packet was dealt with: a crash in between repeats one packet and loses none.
            await kept.write_text(live.cursor)
            if seen == count > 0:
                return


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:4], *(int(word) for word in sys.argv[4:5]))

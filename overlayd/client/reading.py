"""What is done with packets that come in: their content hash recomputed, gaps put where they belong."""

from blake3 import blake3

from overlayd.model.errors import VerificationFailed
from overlayd.model.wire import LogMessage, Packet, PacketGap, PacketMessage, PacketsBody, format_blake3

PAGE_PACKETS = 500


def verify_packet(packet: Packet) -> None:
    """Recomputes the content hash from the payload's bytes. Raises VerificationFailed.

    It shows that payload and hash belong together, not that the packet is in the log: that takes its proof.
    """
    found = format_blake3(blake3(packet.data_payload).digest())
    if found != packet.content_hash:
        raise VerificationFailed(
            f"the payload of {packet.stream_id} {packet.packet_sequence} hashes to {found}, not {packet.content_hash}",
            subject=packet.stream_id,
        )


def check_packet(packet: Packet, *, is_wanted: bool) -> Packet:
    """The packet, verified if wanted."""
    if is_wanted:
        verify_packet(packet)
    return packet


def check_packets(page: PacketsBody, *, is_wanted: bool) -> PacketsBody:
    """The page, its packets verified if wanted."""
    for packet in page.packets if is_wanted else ():
        verify_packet(packet)
    return page


def check_message(message: LogMessage, *, is_wanted: bool) -> None:
    """Verifies a packet message if wanted."""
    if is_wanted and isinstance(message, PacketMessage):
        verify_packet(message.packet)


def in_order(page: PacketsBody) -> list[Packet | PacketGap]:
    """Packets and gaps of a page by sequence."""
    items: list[Packet | PacketGap] = [*page.packets, *page.gaps]
    return sorted(items, key=lambda item: item.packet_sequence if isinstance(item, Packet) else item.from_sequence)


def is_last_page(page: PacketsBody, after: int) -> bool:
    """Whether the page asked for behind `after` reached the stream's head."""
    return page.next_after >= page.head_sequence or page.next_after == after

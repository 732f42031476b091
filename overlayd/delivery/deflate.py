"""Compression of frames that many sessions share: WebSocket's permessage-deflate (RFC 7692) and gzip (RFC 1952).

A frame is compressed by itself, without looking back at others, so that one result serves every session. That is the
form that is negotiated: `server_no_context_takeover`. The client is told to do the same, so that nothing of a
compressor stays in memory between messages.
"""

import struct
import zlib

from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol, Opcode, RsvBits

NAME = "permessage-deflate"
COMPRESS_MIN_BYTES = 512
"""Shorter texts hardly shrink."""
COMPRESS_MAX_BYTES = 128 << 10
"""Longer ones would hold the event loop for more than a few milliseconds; they go as they are."""
GZIP_HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_EMPTY_LAST_BLOCK = b"\x03\x00"
_SYNC = b"\x00\x00\xff\xff"
_STORED_MAX = 0xFFFF
_WINDOW_BITS = 15
_KNOWN = frozenset((
    "server_no_context_takeover", "client_no_context_takeover", "server_max_window_bits", "client_max_window_bits",
))  # fmt: skip


def deflate(data: bytes) -> bytes:
    """A row of deflate blocks that ends at a byte and needs nothing before it."""
    compressor = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -_WINDOW_BITS)
    return compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)


def deflate_message(text: bytes) -> bytes | None:
    """The payload of a compressed WebSocket message; None for a text that is better sent as it is."""
    if not COMPRESS_MIN_BYTES <= len(text) <= COMPRESS_MAX_BYTES:
        return None
    return deflate(text).removesuffix(_SYNC)


def gzip_part(data: bytes) -> bytes:
    """Data in the middle of a gzip member; what is too short or too long to be compressed is only wrapped."""
    if COMPRESS_MIN_BYTES <= len(data) <= COMPRESS_MAX_BYTES:
        return deflate(data)
    parts = []
    for at in range(0, len(data), _STORED_MAX):
        part = data[at : at + _STORED_MAX]
        parts.append(struct.pack("<BHH", 0, len(part), len(part) ^ 0xFFFF) + part)
    return b"".join(parts)


def gzip_end(crc32: int, plain_bytes: int) -> bytes:
    """What ends a gzip member that held so much."""
    return _EMPTY_LAST_BLOCK + struct.pack("<II", crc32, plain_bytes & 0xFFFFFFFF)


def negotiate(offers: str) -> str | None:
    """The answer to the client's `Sec-WebSocket-Extensions`: the first offer that can be honored, None without one.

    An offer that wants a smaller window of the server can't: shared frames use the largest. Neither can one with
    parameters that nobody knows, that come twice, or have impossible values (RFC 7692, 7).
    """
    for offer in offers.split(","):
        name, *parameters = (part.strip() for part in offer.split(";"))
        if name.lower() == NAME:
            answer = _answer_offer(parameters)
            if answer is not None:
                return answer
    return None


def _answer_offer(parameters: list[str]) -> str | None:
    given: dict[str, str | None] = {}
    for parameter in parameters:
        name, equals, value = (part.strip() for part in parameter.partition("="))
        if name not in _KNOWN or name in given:
            return None
        given[name] = value.strip('"') if equals else None
    for name in ("server_no_context_takeover", "client_no_context_takeover"):
        if given.get(name) is not None:
            return None
    answer = f"{NAME}; server_no_context_takeover; client_no_context_takeover"
    if "server_max_window_bits" in given:
        if given["server_max_window_bits"] != str(_WINDOW_BITS):
            return None
        answer += f"; server_max_window_bits={_WINDOW_BITS}"
    bits = given.get("client_max_window_bits")
    if bits is not None and bits not in [str(number) for number in range(8, _WINDOW_BITS + 1)]:
        return None
    return answer


class Inflate(Extension):
    """The receiving half of permessage-deflate: each message by itself, and never more than `message_bytes` of it.

    Whoever reads gives it little at a time, and is told by ever longer messages to stop; the cap here holds even so.
    """

    name = NAME

    def __init__(self, message_bytes: int) -> None:
        self._message_bytes = message_bytes
        self._inflater: zlib._Decompress | None = None
        self._inflated_bytes = 0
        self._is_inside = False
        self._is_data = False

    def enabled(self) -> bool:
        return True

    def offer(self) -> bool:
        return False

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        """Which of the reserved bits mean something here."""
        self._is_data = not opcode.iscontrol()
        if rsv.rsv1 and (not self._is_data or opcode is Opcode.CONTINUATION):
            return CloseReason.PROTOCOL_ERROR
        if self._is_data and not self._is_inside:
            self._is_inside = True
            self._inflated_bytes = 0
            self._inflater = zlib.decompressobj(-_WINDOW_BITS) if rsv.rsv1 else None
        return RsvBits(True, False, False)

    def frame_inbound_payload_data(self, proto: FrameDecoder | FrameProtocol, data: bytes) -> bytes | CloseReason:
        """Some of a frame's payload."""
        if not self._is_data or self._inflater is None:
            return data
        return self._inflate(self._inflater, data)

    def frame_inbound_complete(
        self, proto: FrameDecoder | FrameProtocol, fin: bool
    ) -> bytes | CloseReason | None:  # fmt: skip
        """The end of a frame; with the message's last one comes what its sender cut off."""
        if not fin or not self._is_data:
            return None
        inflater, self._inflater, self._is_inside = self._inflater, None, False
        return None if inflater is None else self._inflate(inflater, _SYNC)

    def _inflate(self, inflater: "zlib._Decompress", data: bytes) -> bytes | CloseReason:
        room = self._message_bytes - self._inflated_bytes + 1
        if room <= 0:
            return CloseReason.MESSAGE_TOO_BIG  # 0 would mean without a bound
        try:
            inflated = inflater.decompress(data, room)
        except zlib.error:
            return CloseReason.INVALID_FRAME_PAYLOAD_DATA
        self._inflated_bytes += len(inflated)
        if self._inflated_bytes > self._message_bytes or inflater.unconsumed_tail:
            return CloseReason.MESSAGE_TOO_BIG
        return inflated

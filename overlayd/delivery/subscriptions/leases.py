"""Lease tokens: which delivery of which message a worker holds. Opaque to clients, fenced by generation and count."""

import base64
import binascii
import struct

import msgspec

from overlayd.delivery.subscriptions.units import Key

_TOKEN = struct.Struct(">BIQqHI")
_VERSION = 1


class Lease(msgspec.Struct, frozen=True):
    """`delivery` counts the message's deliveries: only the newest one's lease counts. `generation` is the
    subscription's: a seek ends all leases before it."""

    generation: int
    key: Key
    delivery: int

    def encode(self) -> str:
        """The token that a worker gets."""
        offset, index, part = self.key
        raw = _TOKEN.pack(_VERSION, self.generation, offset, index, part, self.delivery)
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    @classmethod
    def decode(cls, token: str) -> "Lease | None":
        """None for what was never given out."""
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            version, generation, offset, index, part, delivery = _TOKEN.unpack(raw)
        except (binascii.Error, ValueError, struct.error):
            return None
        return cls(generation, (offset, index, part), delivery) if version == _VERSION else None

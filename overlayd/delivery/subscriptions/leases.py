"""Lease tokens: which delivery of which message a worker holds. Opaque to clients, fenced by generation and count."""

import base64
import binascii
import struct

import msgspec
from blake3 import blake3

from overlayd.delivery.subscriptions.units import Key
from overlayd.model.cursor import Epoch

_TOKEN = struct.Struct(">BIIQqHI")
_VERSION = 2
_SCOPE_BYTES = 4


def scope_of(subscription_id: str, epoch: Epoch) -> int:
    """A number for one subscription in one life of the log. Another one of the same name begins at the first generation
    again, and after a restore other entries stand at the same offsets: what was leased before must not settle those."""
    return int.from_bytes(blake3(f"{subscription_id}:{epoch}".encode()).digest(_SCOPE_BYTES))


class Lease(msgspec.Struct, frozen=True):
    """`delivery` counts the message's deliveries: only the newest one's lease counts. `generation` is the
    subscription's: a seek ends all leases before it. `scope`: `scope_of`."""

    scope: int
    generation: int
    key: Key
    delivery: int

    def encode(self) -> str:
        """The token that a worker gets."""
        offset, index, part = self.key
        raw = _TOKEN.pack(_VERSION, self.scope, self.generation, offset, index, part, self.delivery)
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    @classmethod
    def decode(cls, token: str) -> "Lease | None":
        """None for what was never given out."""
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            version, scope, generation, offset, index, part, delivery = _TOKEN.unpack(raw)
        except (binascii.Error, ValueError, struct.error):
            return None
        return cls(scope, generation, (offset, index, part), delivery) if version == _VERSION else None

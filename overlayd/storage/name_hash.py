"""Names (packet ids, commitments, keys) as 64-bit hashes, keyed by a secret that lies outside the database."""

from collections.abc import Sequence
from enum import IntEnum

from blake3 import blake3


class Family(IntEnum):
    """What a hash stands for. Each has its own runs."""

    ID = 1
    COMMITMENT = 2
    KEY = 3


class NameHasher:
    """Hashes the names of one family."""

    def __init__(self, family: Family, secret: bytes) -> None:
        assert len(secret) == 32
        self._family = family
        self._hasher = blake3(bytes([family]), key=secret)
        self.mark = self._digest(b"\2", b"", b"", 8).to_bytes(8, "big")
        """Says which secret it was, and nothing else about it."""

    def key(self, name: bytes, scope: bytes = b"") -> int:
        """The hash of a name in a scope (a stream_hash, or nothing).

        Of an id, the high 32 bits come from the name alone, so that `prefix` finds it in every scope.
        """
        if self._family is Family.ID:
            high, low = self._hasher.copy(), self._hasher.copy()  # as `_digest`, for what comes with every packet
            high.update(b"\0\0" + name)
            low.update(b"\1%c%b%b" % (len(scope), scope, name))
            return int.from_bytes(high.digest(4) + low.digest(4), "big")
        return self._digest(b"\1", scope, name, 8)

    def prefix(self, name: bytes) -> int:
        """The high 32 bits of the hash of an id."""
        return self._digest(b"\0", b"", name, 4)

    def id_keys(self, names: Sequence[bytes], scope: bytes) -> list[int]:
        """The hashes of many ids in one scope, as `key` gives them; 0 for b"", which is none."""
        assert self._family is Family.ID
        copy, join, number = self._hasher.copy, b"".join, int.from_bytes
        anywhere, here = b"\0\0", b"\1%c%b" % (len(scope), scope)
        keys = []
        for name in names:
            if not name:
                keys.append(0)
                continue
            high, low = copy(), copy()
            high.update(anywhere + name)
            low.update(here + name)
            keys.append(number(join((high.digest(4), low.digest(4))), "big"))
        return keys

    def _digest(self, part: bytes, scope: bytes, name: bytes, length: int) -> int:
        hasher = self._hasher.copy()
        hasher.update(b"%b%c%b%b" % (part, len(scope), scope, name))
        return int.from_bytes(hasher.digest(length=length), "big")

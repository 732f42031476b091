"""Keyed hashes that stand for people and their texts. The key lies outside the database and its backups, so that nobody
who has only those can find out by trying whom they are about.
"""

import base64

from blake3 import blake3

from overlayd.storage.sealing import derive_key

_BYTES = 16


class PeopleHashes:
    """Pseudonyms for streams, names of subjects for tables and the audit stream. Each purpose has a key of its own."""

    def __init__(self, sealing_key: bytes) -> None:
        """`sealing_key`: the node's."""
        self._pseudonym = blake3(key=derive_key(sealing_key, "pseudonym"))
        self._subject = blake3(key=derive_key(sealing_key, "subject"))

    def pseudonym(self, stream: str, text: str) -> str:
        """Stands for a text in a stream: `p_` and 26 characters. The same text has another one in another stream."""
        hasher = self._pseudonym.copy()
        hasher.update(bytes((len(stream),)) + stream.encode() + text.encode())
        return f"p_{_base32(hasher.digest(_BYTES))}"

    def of_subject(self, subject: str) -> bytes:
        """16 bytes that stand for a subject in the node's tables."""
        hasher = self._subject.copy()
        hasher.update(subject.encode())
        return hasher.digest(_BYTES)

    def reference(self, subject: str) -> str:
        """The same for people, as audit records name a subject: `s_` and 26 characters."""
        return f"s_{_base32(self.of_subject(subject))}"


def _base32(octets: bytes) -> str:
    return base64.b32encode(octets).decode().rstrip("=").lower()

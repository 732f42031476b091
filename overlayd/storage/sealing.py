"""Secrets that lie in the database, sealed with a key that lies beside it: a copy of the database gives none away.

ChaCha20-Poly1305 under a key derived (HKDF-SHA256) from `DIR/keys/sealing.key`, one per purpose. What a secret is about
is authenticated along with it, so that a sealed one can't be moved to another owner.
"""

from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from overlayd.model.clock import Entropy
from overlayd.model.errors import SealBroken
from overlayd.storage.files import read_or_make_secret

KEY_NAME = "sealing.key"
KEY_BYTES = 32
_NONCE_BYTES = 12
_VERSION = b"\x01"


class Sealer:
    """Seals and opens the secrets of one purpose."""

    def __init__(self, key: bytes, purpose: str, entropy: Entropy) -> None:
        """`key`: KEY_BYTES of the node's sealing key."""
        self._cipher = ChaCha20Poly1305(derive_key(key, purpose))
        self._entropy = entropy

    def seal(self, secret: bytes, about: str) -> bytes:
        """The sealed form: version, nonce, ciphertext with its tag."""
        nonce = self._entropy.draw(_NONCE_BYTES)
        return _VERSION + nonce + self._cipher.encrypt(nonce, secret, about.encode())

    def open(self, sealed: bytes, about: str) -> bytes:
        """The secret. Raises SealBroken when key, owner or bytes aren't those that it was sealed with."""
        nonce, rest = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        try:
            if sealed[:1] != _VERSION:
                raise InvalidTag
            return self._cipher.decrypt(nonce, rest, about.encode())
        except (InvalidTag, ValueError) as err:
            raise SealBroken(
                f"the secret of {about} can't be opened with this node's {KEY_NAME}", subject=about,
                hint="put the key file back from your backup of the keys, or rotate the secret",
            ) from err  # fmt: skip


def derive_key(key: bytes, purpose: str) -> bytes:
    """The key of one purpose. `key`: KEY_BYTES of the node's sealing key."""
    assert len(key) == KEY_BYTES
    derived = HKDF(SHA256(), length=KEY_BYTES, salt=None, info=b"overlayd/sealing/1\n" + purpose.encode())
    return derived.derive(key)


def read_sealing_key(directory: Path, entropy: Entropy) -> bytes:
    """The node's sealing key, drawn on first use. Blocking. Raises LogInconsistent, ConfigInvalid."""
    key, _ = read_or_make_secret(directory / "keys" / KEY_NAME, KEY_BYTES, entropy)
    return key

"""Signed notes, verifier keys and checkpoints (C2SP signed-note, tlog-checkpoint, tlog-cosignature).

A log's origin line is also its key name, `overlayd/<log>/<epoch>`; `<log>` is derived from the log's first key,
so that it can be checked without asking anybody.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from typing import Protocol

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from overlayd.model.cursor import Epoch, format_epoch, parse_epoch
from overlayd.model.errors import BadCursor, UnknownSigner, VerificationFailed
from overlayd.model.signer import CheckpointKey

ALGORITHM_ED25519 = 0x01
ALGORITHM_COSIGNATURE = 0x04
NOTE_BYTES_MAX = 256 << 10
"""Room for 16 post-quantum signatures of 5 kB, three times over."""
SIGNATURES_MAX = 64
U64_MAX = (1 << 64) - 1

_SIGNATURE_LINE = re.compile("— ([^ ]+) ([A-Za-z0-9+/=]+)")
_ORIGIN = re.compile(r"overlayd/([a-z2-7]{26})/([0-9]{1,8}[a-z2-7]{8})", re.ASCII)
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,19}", re.ASCII)
_TIME_MAX_S = (1 << 63) - 1


class VerifierKey(msgspec.Struct, frozen=True):
    """A name, a signature type and a public key. Text form: `<name>+<key id, hex>+<base64 of type and key>`."""

    name: str
    public_key: bytes
    algorithm: int = ALGORITHM_ED25519

    @property
    def key_id(self) -> bytes:
        """4 bytes that tell keys of one name apart; no proof of anything."""
        return key_id_of(self.name, self.algorithm, self.public_key)

    def __str__(self) -> str:
        material = base64.b64encode(bytes([self.algorithm]) + self.public_key).decode()
        return f"{self.name}+{self.key_id.hex()}+{material}"

    @classmethod
    def parse(cls, text: str) -> "VerifierKey":
        """Raises VerificationFailed unless it is an Ed25519 log or witness key whose id fits."""
        name, _, rest = text.strip().partition("+")
        key_id, _, material = rest.partition("+")
        octets = decode_base64(material, "key")
        if not is_key_name(name) or len(octets) != 33:
            raise VerificationFailed("not a verifier key of the form name+id+base64", subject="key")
        if octets[0] not in (ALGORITHM_ED25519, ALGORITHM_COSIGNATURE):
            raise VerificationFailed(f"signature type {octets[0]:#04x} isn't known here", subject="key")
        key = cls(name, octets[1:], octets[0])
        if key.key_id.hex() != key_id:
            raise VerificationFailed("the verifier key's id doesn't fit its key", subject="key")
        return key

    def verify(self, text: bytes, signature: bytes) -> int | None:
        """The witness's Unix time for a cosignature, else None. Raises VerificationFailed."""
        seconds = None
        signed, octets = text, signature
        if self.algorithm == ALGORITHM_COSIGNATURE:
            seconds = int.from_bytes(signature[:8], "big")
            signed, octets = b"cosignature/v1\ntime %d\n" % seconds + text, signature[8:]
        if len(octets) != 64 or (seconds or 0) > _TIME_MAX_S:
            raise VerificationFailed(f"the signature of {self.name} is malformed", subject="checkpoint")
        try:
            Ed25519PublicKey.from_public_bytes(self.public_key).verify(octets, signed)
        except (InvalidSignature, ValueError) as err:
            raise VerificationFailed(f"the signature of {self.name} doesn't verify", subject="checkpoint") from err
        return seconds


class Signer(Protocol):
    """Signs notes. The key may live in a file, another process or a device; `sign` may block."""

    @property
    def key(self) -> VerifierKey:
        """What verifies its signatures."""
        ...

    def sign(self, text: bytes) -> bytes:
        """The signature over a note's text."""
        ...


class Ed25519Signer:
    """Signs with a key in memory."""

    __slots__ = ("_private", "key")

    def __init__(self, name: str, seed: bytes) -> None:
        assert is_key_name(name)
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.key = VerifierKey(name, self._private.public_key().public_bytes_raw())

    @property
    def name(self) -> str:
        return self.key.name

    @property
    def key_id(self) -> bytes:
        return self.key.key_id

    def sign(self, text: bytes) -> bytes:
        return self._private.sign(text)

    def __repr__(self) -> str:
        return f"Ed25519Signer({self.key})"


class NoteSigner:
    """Signs with a key that lies somewhere, under a name."""

    __slots__ = ("_private", "key")

    def __init__(self, name: str, private: CheckpointKey) -> None:
        assert is_key_name(name)
        self._private = private
        self.key = VerifierKey(name, private.public_key)

    def sign(self, text: bytes) -> bytes:
        """May block. Raises SignerUnavailable."""
        return self._private.sign(text)

    def __repr__(self) -> str:
        return f"NoteSigner({self.key})"


class NoteSignature(msgspec.Struct, frozen=True):
    """A signature line. `key` is set when the signer is known, and its signature then verified.

    `cosigned_s` is the Unix time that a witness states.
    """

    name: str
    key_id: bytes
    key: VerifierKey | None = None
    cosigned_s: int | None = None


class OpenedNote(msgspec.Struct, frozen=True):
    """A note's text, with its final newline, and who signed it."""

    text: str
    signatures: tuple[NoteSignature, ...]


class CheckpointText(msgspec.Struct, frozen=True):
    """The three lines: whose log, how many entries, which root."""

    origin: str
    size: int
    root: bytes

    def __str__(self) -> str:
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    @classmethod
    def parse(cls, text: str) -> "CheckpointText":
        """Raises VerificationFailed for anything but exactly three lines."""
        lines = text.split("\n")
        if len(lines) != 4 or lines[3]:
            raise VerificationFailed("a checkpoint has exactly three lines", subject="checkpoint")
        origin, size, root = lines[:3]
        if not is_key_name(origin):
            raise VerificationFailed("the checkpoint's origin isn't a key name", subject="checkpoint")
        if _DECIMAL.fullmatch(size) is None or int(size) > U64_MAX:
            raise VerificationFailed("the checkpoint's size isn't a number", subject="checkpoint")
        octets = decode_base64(root, "checkpoint")
        if len(octets) != 32:
            raise VerificationFailed("the checkpoint's root hasn't 32 bytes", subject="checkpoint")
        return cls(origin, int(size), octets)


def is_key_name(name: str) -> bool:
    """Whether a note may carry it: not empty, no white space, no plus, no control characters."""
    return bool(name) and not any(char <= " " or char.isspace() or char == "+" for char in name)


def key_id_of(name: str, algorithm: int, public_key: bytes) -> bytes:
    """First 4 bytes of SHA-256(name ‖ LF ‖ type ‖ key)."""
    return hashlib.sha256(name.encode() + b"\n" + bytes([algorithm]) + public_key).digest()[:4]


def log_id_of(first_public_key: bytes) -> str:
    """The log's name for ever: 26 base32 characters of its first Ed25519 key's hash."""
    assert len(first_public_key) == 32
    digest = hashlib.sha256(b"overlayd/log/1\n" + first_public_key).digest()
    return base64.b32encode(digest[:16]).decode().lower().rstrip("=")


def origin_of(log_id: str, epoch: Epoch) -> str:
    """The origin line, which is also the name of the log's key."""
    return f"overlayd/{log_id}/{format_epoch(epoch)}"


def parse_origin(origin: str) -> tuple[str, Epoch]:
    """Log id and epoch. Raises VerificationFailed."""
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        raise VerificationFailed("the origin isn't that of an overlayd log", subject="checkpoint")
    try:
        epoch = parse_epoch(match[2])
    except BadCursor as err:
        raise VerificationFailed("the origin's epoch can't be read", subject="checkpoint") from err
    if origin_of(match[1], epoch) != origin or match[1][-1] not in "aeimquy4":
        raise VerificationFailed("the origin isn't in its one form", subject="checkpoint")
    return match[1], epoch


def decode_base64(text: str, subject: str) -> bytes:
    """Standard, padded, canonical base64 and nothing else. Raises VerificationFailed."""
    try:
        octets = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as err:
        raise VerificationFailed("not base64", subject=subject) from err
    if base64.b64encode(octets).decode() != text:
        raise VerificationFailed("base64 that isn't in its one form", subject=subject)
    return octets


def sign_note(text: str, signers: Sequence[Signer]) -> str:
    """The text with one signature line per signer. The text ends with a newline."""
    assert text.endswith("\n")
    assert signers
    octets = text.encode()
    lines = [_signature_line(signer.key, signer.sign(octets)) for signer in signers]
    return f"{text}\n{''.join(lines)}"


def add_signature(note: str, key: VerifierKey, signature: bytes) -> str:
    """The note with one more signature line, such as a witness's."""
    return note + _signature_line(key, signature)


def _signature_line(key: VerifierKey, signature: bytes) -> str:
    return f"— {key.name} {base64.b64encode(key.key_id + signature).decode()}\n"


def open_note(note: str, keys: Sequence[VerifierKey]) -> OpenedNote:
    """Splits a note and checks each signature whose signer is known; unknown signers are kept as such.

    Raises VerificationFailed for a malformed note, for a known signer's wrong signature, and when no known
    signer signed.
    """
    text, lines = _split_note(note)
    known = {(key.name, key.key_id): key for key in keys}
    octets = text.encode()
    signatures = []
    for line in lines:
        match = _SIGNATURE_LINE.fullmatch(line)
        if match is None or not is_key_name(match[1]):
            raise VerificationFailed("a signature line is malformed", subject="checkpoint")
        signature = decode_base64(match[2], "checkpoint")
        if len(signature) < 5:
            raise VerificationFailed("a signature is too short", subject="checkpoint")
        key = known.get((match[1], signature[:4]))
        cosigned_s = None if key is None else key.verify(octets, signature[4:])
        signatures.append(NoteSignature(match[1], signature[:4], key, cosigned_s))
    if all(signature.key is None for signature in signatures):
        raise UnknownSigner(
            "none of the known keys signed the checkpoint", subject="checkpoint",
            hint="give the log's verifier key, as its owner published it",
        )  # fmt: skip
    return OpenedNote(text, tuple(signatures))


def _split_note(note: str) -> tuple[str, list[str]]:
    """Text (with its final newline) and signature lines."""
    try:
        size = len(note.encode())
    except UnicodeEncodeError as err:
        raise VerificationFailed("the note isn't UTF-8", subject="checkpoint") from err
    if size > NOTE_BYTES_MAX:
        raise VerificationFailed(f"a note has at most {NOTE_BYTES_MAX} bytes", subject="checkpoint")
    if any(char < " " and char != "\n" for char in note):
        raise VerificationFailed("the note holds control characters", subject="checkpoint")
    at = note.rfind("\n\n")
    if at < 0 or not note.endswith("\n") or at + 2 == len(note):
        raise VerificationFailed("the note has no signatures", subject="checkpoint")
    lines = note[at + 2 : -1].split("\n")
    if len(lines) > SIGNATURES_MAX:
        raise VerificationFailed(f"a note has at most {SIGNATURES_MAX} signatures", subject="checkpoint")
    return note[: at + 1], lines

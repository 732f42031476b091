"""The keys that sign checkpoints, where nothing else is configured: files of 32 bytes in `DIR/keys`. Blocking."""

import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from overlayd.model.clock import Entropy
from overlayd.model.errors import LogInconsistent, SignerUnavailable
from overlayd.model.signer import CheckpointKey
from overlayd.storage import files

SEED_BYTES = 32
FIRST_NAME = "log.ed25519"
_LATER_NAME = re.compile(r"log-([1-9][0-9]{0,8})\.ed25519", re.ASCII)


class SeedKey:
    """An Ed25519 key in memory. Implements `CheckpointKey`."""

    __slots__ = ("_private", "public_key")

    is_quick = True

    def __init__(self, seed: bytes) -> None:
        """`seed`: SEED_BYTES."""
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key = self._private.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self._private.sign(message)

    def __repr__(self) -> str:
        return f"SeedKey(of {self.public_key.hex()})"


class AwaitedKey:
    """A key that must be one of some that can't be reached now: asked again whenever it shall sign."""

    is_quick = False

    def __init__(self, public_key: bytes, attempts: Sequence[Callable[[], CheckpointKey]]) -> None:
        self.public_key = public_key
        self._attempts = attempts

    def sign(self, message: bytes) -> bytes:
        """Raises SignerUnavailable: why the first of them can't be reached, or that another key is there."""
        failure: SignerUnavailable | None = None
        for attempt in self._attempts:
            try:
                key = attempt()
                if key.public_key == self.public_key:
                    return key.sign(message)
                failure = failure or SignerUnavailable(
                    f"{key!r} isn't the log's key {self.public_key.hex()}", subject="checkpoint_key"
                )
            except SignerUnavailable as err:
                failure = failure or err
        raise failure or SignerUnavailable("the log's key can't be reached", subject="checkpoint_key")

    def __repr__(self) -> str:
        return f"AwaitedKey(of {self.public_key.hex()})"


class KeyFiles:
    """`DIR/keys/log.ed25519` and, after rotations, `log-2.ed25519` and so on. Implements `CheckpointKeys`."""

    def __init__(self, directory: Path, entropy: Entropy) -> None:
        """`directory`: the data directory."""
        self._place = directory / "keys"
        self._entropy = entropy

    def first(self) -> CheckpointKey:
        """Drawn if there is none. Raises LogInconsistent, ConfigInvalid."""
        return SeedKey(files.read_or_make_secret(self._place / FIRST_NAME, SEED_BYTES, self._entropy)[0])

    def find(self, public_key: bytes) -> CheckpointKey:
        """Raises LogInconsistent when no file holds it, ConfigInvalid."""
        for path in self.paths():
            key = SeedKey(files.read_secret(path, SEED_BYTES))
            if key.public_key == public_key:
                return key
        raise missing_key(public_key)

    def next(self, known: Collection[bytes]) -> CheckpointKey:
        """A file that no rotation used yet, such as one that was cut off before its entry left, or a new one."""
        number = 2
        for path in self.paths():
            key = SeedKey(files.read_secret(path, SEED_BYTES))
            if key.public_key not in known:
                return key
            match = _LATER_NAME.fullmatch(path.name)
            number = max(number, int(match[1]) + 1) if match is not None else number
        number = max(number, len(known) + 1)
        return SeedKey(files.read_or_make_secret(self._place / f"log-{number}.ed25519", SEED_BYTES, self._entropy)[0])

    def paths(self) -> list[Path]:
        """The files there are, the first one first."""
        later = [path for path in self._place.glob("log-*.ed25519") if _LATER_NAME.fullmatch(path.name)]
        later.sort(key=lambda path: int(path.name[4:-8]))
        first = self._place / FIRST_NAME
        return [*([first] if first.exists() else []), *later]


def missing_key(public_key: bytes) -> LogInconsistent:
    """What a start is told that has other keys than the log's."""
    return LogInconsistent(
        f"none of the keys is the one that signs this log, {public_key.hex()}", subject="keys/log.ed25519",
        hint="put the file back from your backup of the keys, or name the key in [node] checkpoint_key; without it, move "
        "the directory away and begin a new log",
    )  # fmt: skip

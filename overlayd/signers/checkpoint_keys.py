"""The keys that may sign the log, from everywhere the settings name. Blocking."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

from overlayd.model.clock import Entropy
from overlayd.model.errors import ConfigInvalid, KeyNotSuited, LogInconsistent, SignerUnavailable
from overlayd.model.signer import CheckpointKey
from overlayd.signers.pins import pin_reader
from overlayd.signers.settings import NodeKeySettings
from overlayd.signers.source import KeySource, parse_source, read_secret_source
from overlayd.storage.key_files import AwaitedKey, KeyFiles, SeedKey, missing_key

Opener = Callable[[], CheckpointKey]


class NodeCheckpointKeys:
    """`[node] checkpoint_key`, `checkpoint_key_next` and the files of the data directory. Implements `CheckpointKeys`."""

    def __init__(
        self, settings: NodeKeySettings, directory: Path, environ: Mapping[str, str], entropy: Entropy
    ) -> None:
        """Raises ConfigInvalid for places that aren't any."""
        self._directory = directory
        self._environ = environ
        self._files = KeyFiles(directory, entropy)
        self._own = _source("node.checkpoint_key", settings.checkpoint_key)
        self._next = _source("node.checkpoint_key_next", settings.checkpoint_key_next)
        self._opened: dict[str, CheckpointKey] = {}

    def first(self) -> CheckpointKey:
        """Raises ConfigInvalid, LogInconsistent, SignerUnavailable."""
        if self._own is None:
            return self._files.first()
        key = self._open(self._own)
        _ = key.public_key
        return key

    def find(self, public_key: bytes) -> CheckpointKey:
        """Raises LogInconsistent when it is none of them, ConfigInvalid, KeyNotSuited."""
        away: list[Opener] = []
        for source in (self._own, self._next):
            if source is None:
                continue
            opener = partial(self._open, source)
            try:
                key = opener()
                if key.public_key == public_key:
                    return key
            except SignerUnavailable:
                away.append(opener)
        try:
            return self._files.find(public_key)
        except LogInconsistent:
            if away:
                return AwaitedKey(public_key, away)
            raise missing_key(public_key) from None

    def next(self, known: Collection[bytes]) -> CheckpointKey:
        """Raises KeyNotSuited, SignerUnavailable, ConfigInvalid."""
        for source in (self._next, self._own):  # the settings may have moved the new key up already
            if source is not None:
                key = self._open(source)
                if key.public_key not in known:
                    return key
        if self._own is not None and self._own.kind != "file":
            raise KeyNotSuited(
                "there is no key to change to", subject="node.checkpoint_key_next",
                hint="make one where the present one lies, name it there, and restart the node",
            )  # fmt: skip
        return self._files.next(known)

    def _open(self, source: KeySource) -> CheckpointKey:
        """Tokens are opened once: their sessions outlive a call."""
        if source.token is not None:
            key = self._opened.get(source.setting)
            if key is None:
                from overlayd.signers.pkcs11_token import TokenCheckpointKey

                key = TokenCheckpointKey(source.token, pin_reader(source, self._directory, self._environ))
                self._opened[source.setting] = key
            return key
        try:
            return SeedKey(read_secret_source(source, self._directory, self._environ))
        except FileNotFoundError as err:
            raise ConfigInvalid(f"{source}: there is no such file", subject=source.setting) from err


def _source(setting: str, text: str) -> KeySource | None:
    return parse_source(setting, text) if text else None

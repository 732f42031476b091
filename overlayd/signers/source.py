"""Where a key lies, as the settings say it, and the secret bytes that files and credentials hold. Blocking."""

import binascii
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from overlayd.model.errors import ConfigInvalid
from overlayd.signers.pkcs11_uri import TokenUri, parse_token_uri
from overlayd.storage import files

SECRET_BYTES = 32
FILE_BYTES_MAX = 4 << 10
CREDENTIALS_DIRECTORY = "CREDENTIALS_DIRECTORY"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class KeySource(msgspec.Struct, frozen=True):
    """One place. `setting` is the key of the TOML that names it; `rest` a path or a credential's name."""

    setting: str
    kind: Literal["file", "credential", "pkcs11"]
    rest: str
    token: TokenUri | None = None

    def __str__(self) -> str:
        return f"{self.setting} ({self.kind}:{self.rest})" if self.token is None else f"{self.setting} ({self.token})"


def parse_source(setting: str, text: str) -> KeySource:
    """Raises ConfigInvalid."""
    kind, _, rest = text.partition(":")
    match kind:
        case "file" | "credential" if rest and "\0" not in rest:
            if kind == "credential" and ("/" in rest or rest in (".", "..")):
                raise ConfigInvalid(f"{setting}: a credential has a plain name", subject=setting)
            return KeySource(setting, "file" if kind == "file" else "credential", rest)
        case "pkcs11":
            return KeySource(setting, "pkcs11", "", parse_token_uri(setting, text))
    raise ConfigInvalid(
        f"{setting} names no place of a key",
        subject=setting,
        hint="file:PATH, credential:NAME or pkcs11:token=…;object=…",
    )


def read_secret_source(source: KeySource, directory: Path, environ: Mapping[str, str]) -> bytes:
    """The secret's 32 bytes, which the file may hold as they are or in hex. Relative paths begin at `directory`.

    Raises ConfigInvalid, without repeating anything of the content; FileNotFoundError for a file that isn't there.
    """
    content = read_private(source, directory, environ)
    if len(content) != SECRET_BYTES:
        try:
            content = binascii.unhexlify(content.strip())
        except ValueError:
            content = b""
    if len(content) != SECRET_BYTES:
        raise ConfigInvalid(f"{source} doesn't hold {SECRET_BYTES} bytes, nor their hex digits", subject=source.setting)
    return content


def read_private(source: KeySource, directory: Path, environ: Mapping[str, str]) -> bytes:
    """What a file or credential holds, as `read_secret_source`."""
    path = path_of(source, directory, environ)
    try:
        if source.kind == "file":
            mode = path.stat().st_mode
            if stat.S_ISREG(mode) and mode & _OTHERS:  # the service manager guards credentials by itself
                raise ConfigInvalid(f"others may use {path}", subject=source.setting, hint=f"chmod 600 {path}")
        content = files.read_file(path)
    except FileNotFoundError:
        if source.kind == "credential":
            raise ConfigInvalid(f"{source}: there is no such credential", subject=source.setting) from None
        raise
    except OSError as err:
        raise ConfigInvalid(f"{path} can't be read: {err.strerror}", subject=source.setting) from err
    if len(content) > FILE_BYTES_MAX:
        raise ConfigInvalid(f"{path} has over {FILE_BYTES_MAX >> 10} KiB", subject=source.setting)
    return content


def path_of(source: KeySource, directory: Path, environ: Mapping[str, str]) -> Path:
    """Raises ConfigInvalid when the service manager passed no credentials."""
    if source.kind == "file":
        return directory / source.rest
    credentials = environ.get(CREDENTIALS_DIRECTORY, "")
    if not credentials:
        raise ConfigInvalid(
            f"{source}: there are no credentials",
            subject=source.setting,
            hint="LoadCredential= in the unit passes them",
        )
    return Path(credentials) / source.rest

"""Files and credentials that the settings of access name: small, and secret ones readable by the service alone."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from overlayd.model.errors import ConfigInvalid

CREDENTIALS_DIRECTORY = "CREDENTIALS_DIRECTORY"
FILE_BYTES_MAX = 64 << 10
_OTHERS_MAY_READ = stat.S_IRGRP | stat.S_IROTH


def find_credential(name: str, environ: Mapping[str, str]) -> Path:
    """The file that the service manager passes under a name. Raises ConfigInvalid."""
    directory = environ.get(CREDENTIALS_DIRECTORY, "")
    if not directory or os.sep in name:
        raise ConfigInvalid(
            f"there is no credential {name!r}", hint="with systemd, LoadCredential= in the unit passes it"
        )
    return Path(directory) / name


def read_guarded(path: Path, *, is_secret: bool) -> bytes:
    """What a file holds. `is_secret`: nobody else may be able to read it; not for credentials, whose manager guards
    them. Blocking. Raises ConfigInvalid, without repeating anything of the content."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise ConfigInvalid(f"{path} isn't a file")
        if is_secret and mode & _OTHERS_MAY_READ:
            raise ConfigInvalid(f"others may read {path}", hint=f"chmod 600 {path}")
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as err:
        raise ConfigInvalid(f"{path} can't be read: {err.strerror}") from err
    if len(content) > FILE_BYTES_MAX:
        raise ConfigInvalid(f"{path} has over {FILE_BYTES_MAX >> 10} KiB")
    return content

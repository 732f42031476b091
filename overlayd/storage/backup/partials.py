"""Where a backup is put together: a directory beside its later place that says whose it is. Blocking.

Several nodes may put their backups in one place. Each removes only what a backup of its own log left when it was cut
off; what somebody is still writing is held with flock and stays, whoever asks.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from overlayd.model.errors import BackupRefused

SUFFIX: Final = ".partial"


def partial_name(name: str, log_id: str) -> str:
    """`.<id>.<log>.partial`: hidden, and never mistaken for a backup."""
    return f".{name}.{log_id}{SUFFIX}"


@contextmanager
def partial_directory(place: Path, name: str, log_id: str) -> Iterator[Path]:
    """An empty directory that is held until the end; whoever is done with it has renamed it, or it is removed.

    Removes what earlier backups of this log left there. Raises BackupRefused.
    """
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        clear_partials(place, log_id)
        partial = place / partial_name(name, log_id)
        partial.mkdir(mode=0o700)
    except OSError as error:
        raise BackupRefused(
            f"{place}: {error.strerror}", subject=str(place), hint="the service must be allowed to write there"
        ) from error
    held = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # some network file systems lock no directories; its name still tells whose it is
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(held)


def clear_partials(place: Path, log_id: str) -> None:
    """Removes what backups of this log left that nobody makes any more. What another log left is its own node's."""
    for stale in place.glob(f".*.{log_id}{SUFFIX}"):
        with suppress(OSError):  # gone meanwhile, or not ours to read
            held = os.open(stale, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(stale, ignore_errors=True)
            finally:
                os.close(held)

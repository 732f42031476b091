"""The files beside the database: lock, reserve, high-water mark and keys. Blocking: call from a thread."""

import base64
import errno
import fcntl
import os
import stat
from pathlib import Path

import msgspec

from overlayd.model.clock import Entropy
from overlayd.model.cursor import Epoch, format_epoch, parse_epoch
from overlayd.model.errors import BadCursor, ConfigInvalid, DirectoryInUse, LogInconsistent

DATABASE_NAME = "log.sqlite3"
RESTORED_SUFFIX = ".restored"
"""Of files that a restore has copied and not yet put in their place."""
_HIGH_WATER_HEAD = "overlayd/high-water/1"


class HighWater(msgspec.Struct, frozen=True):
    """Size and root of the last checkpoint that may have been signed, kept outside the database."""

    epoch: Epoch
    size: int
    root: bytes


class DirectoryLock:
    """Exclusive hold on a data directory, from construction to `release`."""

    def __init__(self, directory: Path) -> None:
        """Raises DirectoryInUse, ConfigInvalid."""
        self._descriptor = open_file(directory / "lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            os.close(self._descriptor)
            if err.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise DirectoryInUse(
                f"another daemon holds {directory}", subject=str(directory),
                hint="stop it, or choose another directory with --data",
            ) from err  # fmt: skip

    def release(self) -> None:
        """Lets the next daemon in. The file stays: removing it would race with a newcomer's open."""
        os.close(self._descriptor)


def make_directory(directory: Path) -> None:
    """Creates the data directory and its `keys`, readable by the service alone, and makes their names durable.

    A power cut could otherwise take away a directory whose every file was synced.
    """
    missing = [path for path in (directory / "keys", directory, *directory.absolute().parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
        sync_directory(path.parent)


def open_file(path: Path, flags: int, mode: int = 0o600) -> int:
    """A descriptor of a regular file, opened without waiting for anybody.

    Raises ConfigInvalid for anything else in its place (a pipe would make the open wait for ever), OSError.
    """
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, mode)
    except OSError as err:
        if err.errno != errno.ENXIO:  # a socket, or a pipe that nobody reads
            raise
        raise _irregular(path) from err
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _irregular(path)
    return descriptor


def read_file(path: Path) -> bytes:
    """All of a regular file. Raises ConfigInvalid, OSError."""
    with open(open_file(path, os.O_RDONLY), "rb") as file:
        return file.read()


def _irregular(path: Path) -> ConfigInvalid:
    return ConfigInvalid(
        f"{path} isn't a regular file", subject=str(path), hint="something else put it there; move it away"
    )


def sync_directory(directory: Path) -> None:
    """Makes creations, renames and removals in the directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Puts `content` at `path`, whole or not at all, and durable when it returns."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)  # an unclean stop's, or a pipe that would make the open wait for ever
    descriptor = open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.rename(path)
    sync_directory(path.parent)


def read_or_make_secret(path: Path, count: int, entropy: Entropy) -> tuple[bytes, bool]:
    """`count` secret bytes from the file (mode 0600), drawn on first use; and whether they are new.

    Raises LogInconsistent when the file has another length, ConfigInvalid when it isn't one or others may use it.
    """
    try:
        return read_secret(path, count), False
    except FileNotFoundError:
        secret = entropy.draw(count)
        replace_file(path, secret)
        return secret, True


def read_secret(path: Path, count: int) -> bytes:
    """`count` secret bytes from a file that nobody else may read or write.

    Raises LogInconsistent when it has another length, ConfigInvalid when others may use it, OSError.
    """
    secret = read_file(path)
    check_is_private(path)
    if len(secret) != count:
        raise LogInconsistent(
            f"{path} holds {len(secret)} bytes, not {count}", subject=str(path),
            hint="put the right file back from your backup of the keys",
        )  # fmt: skip
    return secret


def check_is_private(path: Path) -> None:
    """Nobody but its owner may use it. Raises ConfigInvalid, OSError."""
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigInvalid(f"others may use {path}", subject=str(path), hint=f"chmod 600 {path}")


def write_high_water(directory: Path, mark: HighWater, leaves: bytes = b"") -> None:
    """Durable when it returns. `leaves`: hashes that the database has in no tile yet, for the case that it is damaged."""
    kept = [base64.b64encode(leaves).decode()] if leaves else []
    lines = (_HIGH_WATER_HEAD, format_epoch(mark.epoch), str(mark.size), mark.root.hex(), *kept, "")
    replace_file(directory / "high-water", "\n".join(lines).encode())


def read_high_water(directory: Path) -> HighWater | None:
    """None when there is none. Raises LogInconsistent when it can't be read, ConfigInvalid when it isn't a file."""
    path = directory / "high-water"
    try:
        lines = read_file(path).decode("ascii").split("\n")
        head, epoch, size, root, *_leaves, rest = lines
        mark = HighWater(parse_epoch(epoch), int(size), bytes.fromhex(root))
    except FileNotFoundError:
        return None
    except (ValueError, BadCursor) as err:
        raise LogInconsistent(
            f"{path} can't be read", subject=str(path),
            hint="it is replaced as a whole, so something else wrote to it; compare the log with a checkpoint "
            "that somebody else kept, then remove the file",
        ) from err  # fmt: skip
    if head != _HIGH_WATER_HEAD or rest or len(lines) > 6 or len(mark.root) != 32 or mark.size < 0:
        raise LogInconsistent(f"{path} isn't a high-water mark", subject=str(path))
    return mark


def take_reserve(directory: Path, size: int) -> bool:
    """Allocates DIR/reserve; False when the disk has no room for it (then there is none)."""
    path = directory / "reserve"
    if size == 0:
        path.unlink(missing_ok=True)
        return True
    descriptor = open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        if os.fstat(descriptor).st_size != size:
            os.ftruncate(descriptor, 0)
            os.posix_fallocate(descriptor, 0, size)
            os.fsync(descriptor)
    except OSError as err:
        if err.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        path.unlink(missing_ok=True)
        return False
    finally:
        os.close(descriptor)
    return True


def release_reserve(directory: Path) -> bool:
    """Gives the reserved room back to the disk; whether there was any."""
    try:
        (directory / "reserve").unlink()
    except FileNotFoundError:
        return False
    return True


def free_bytes(directory: Path) -> int:
    """What an unprivileged process may still write on the directory's disk."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def file_bytes(path: Path) -> int:
    """Length of the file; 0 when there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0

"""What `overlayd doctor` looks at: each examination gives what it found and what to do about it. Blocking."""

import os
import resource
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from overlayd.cli.output import shown_bytes
from overlayd.cli.own_keys import read_own_keys
from overlayd.config import Settings
from overlayd.model.clock import Clock
from overlayd.model.entry import entry_of_row
from overlayd.model.errors import NewerSchema, OverlaydError, VerificationFailed
from overlayd.net.tls import TlsEndpoints
from overlayd.storage import files
from overlayd.storage.machine import Machine
from overlayd.storage.migrations import Feature, is_migration_due

State = Literal["ok", "warning", "failed", "skipped"]

SYNCS_MAX = 300
SYNC_S = 1.0
"""The disk is asked for so many syncs, or for so long."""
SLOW_SYNCS = 50.0
"""Syncs a second below which publishing is felt to be slow: a group commit is one."""
DESCRIPTORS_LOW = 4096
CERTIFICATE_DAYS = 21
CLOCK_AHEAD_S = 5.0
BORN = datetime(2025, 1, 1, tzinfo=UTC)
"""No clock that is right shows an earlier time."""
SQLITE_FIXED = ((3, 44, 6), (3, 50, 7), (3, 51, 3))
"""Versions, one per branch, from which two connections that write or checkpoint at once can't corrupt a WAL."""
NOT_DURABLE = {"tmpfs": "memory", "ramfs": "memory", "overlay": "a container's own layer"}
NETWORKED = frozenset(("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "ceph", "glusterfs"))


class Finding(msgspec.Struct, frozen=True):
    """What an examination came to. `fix`: what to do; "" when there is nothing to do."""

    name: str
    state: State
    detail: str
    fix: str = ""


def examine_settings(settings: Settings, files_read: tuple[Path, ...]) -> Iterator[Finding]:
    """They could be read; else nobody would ask."""
    read = ", ".join(str(file) for file in files_read) or "no file, only defaults"
    declared = f"{len(settings.streams)} streams, {len(settings.subscriptions)} subscriptions, {len(settings.keys)} keys declared"
    yield Finding("configuration", "ok", f"{read}; {declared}")


def examine_directory(directory: Path) -> Iterator[Finding]:
    """Who may do what in the data directory, and what kind of disk it is on."""
    if not directory.exists():
        yield Finding("directory", "ok", f"{directory} isn't there yet; the first start makes it")
        return
    found = directory.stat()
    loose = [path for path in _private_files(directory) if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)]
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        yield Finding(
            "directory", "failed", f"{directory} belongs to uid {found.st_uid}; uid {os.getuid()} may not write in it",
            f"run this as the service's user, or chown -R {os.getuid()} {directory}",
        )  # fmt: skip
    elif others := found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield Finding(
            "directory", "failed", f"{directory} has mode {stat.S_IMODE(found.st_mode):04o}: others may take the log away",
            f"chmod {stat.S_IMODE(found.st_mode) & ~others:04o} {directory}",
        )  # fmt: skip
    elif loose:
        names = " ".join(str(path) for path in loose)
        yield Finding("directory", "failed", f"others may read {names}", f"chmod 600 {names}")
    else:
        yield Finding("directory", "ok", f"{directory}, mode {stat.S_IMODE(found.st_mode):04o}, uid {found.st_uid}")
    yield _examine_kind(directory)


def _private_files(directory: Path) -> list[Path]:
    keys = directory / "keys"
    names = [*keys.glob("*")] if keys.is_dir() else []
    return [path for path in [*names, *directory.glob("*.key")] if path.is_file()]


def _examine_kind(directory: Path) -> Finding:
    kind = kind_of_filesystem(directory)
    if kind in NETWORKED:
        return Finding(
            "file system", "failed", f"{directory} is on {kind}: SQLite's locks and shared memory don't hold there",
            "put the data directory on a local disk",
        )  # fmt: skip
    if kind in NOT_DURABLE:
        return Finding(
            "file system", "warning", f"{directory} is on {kind}, {NOT_DURABLE[kind]}: nothing outlasts it",
            "put the data directory on a disk, in a container on a volume",
        )  # fmt: skip
    return Finding("file system", "ok", kind or "unknown to this system")


def kind_of_filesystem(directory: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """By the longest mount point above the directory; "" where the system doesn't tell. proc(5)."""
    place, best, kind = str(directory.resolve()), "", ""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        before, _, after = line.partition(" - ")
        point = before.split()[4].encode().decode("unicode_escape")
        if (place == point or place.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind


def examine_space(settings: Settings, directory: Path) -> Iterator[Finding]:
    """Room on the disk, and the marks at which something happens."""
    storage = settings.storage
    free = files.free_bytes(_there(directory))
    needed = int(storage.disk_high_water) + int(storage.reserve)
    detail = f"{shown_bytes(free)} free; publishing stops below {storage.disk_high_water}"
    if free < needed:
        yield Finding("space", "failed", detail, "make room, shorten retention, or move the data directory")
    elif free < int(storage.disk_low_water):
        yield Finding(
            "space", "warning", f"{detail}, and goes on again above {storage.disk_low_water}", "make room soon"
        )
    else:
        yield Finding("space", "ok", detail)


def examine_disk(directory: Path, now: Callable[[], float] = time.perf_counter) -> Iterator[Finding]:
    """How often a second the disk has really written something small: what a commit waits for."""
    place = _there(directory)
    path = place / ".overlayd-doctor"
    took: list[float] = []
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        yield Finding(
            "disk", "skipped", f"{place} can't be written in: {error.strerror}", "run this as the service's user"
        )
        return
    try:
        block = bytes(range(256)) * 16
        begun = now()
        while len(took) < SYNCS_MAX and now() - begun < SYNC_S:
            started = now()
            os.pwrite(descriptor, block, (len(took) % 64) * 4096)
            os.fdatasync(descriptor)
            took.append(now() - started)
    finally:
        os.close(descriptor)
        path.unlink(missing_ok=True)
    took.sort()
    rate = len(took) / max(sum(took), 1e-9)
    worst = took[min(len(took) - 1, int(0.99 * len(took)))] * 1000
    detail = f"{rate:.0f} writes a second reach the disk one after the other, p99 {worst:.1f} ms"
    if rate < SLOW_SYNCS:
        yield Finding(
            "disk", "warning", detail,
            "send packets in arrays or over several connections, which share a commit; storage.linger spares a slow disk",
        )  # fmt: skip
    else:
        yield Finding("disk", "ok", detail)


def examine_descriptors(settings: Settings, limit: tuple[int, int] | None = None) -> Iterator[Finding]:
    """Room for connections. The node raises its soft limit to the hard one by itself."""
    _, hard = limit or resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.limits.connections_max
    shown = "without bound" if hard == resource.RLIM_INFINITY else str(hard)
    if hard != resource.RLIM_INFINITY and hard < min(wanted, DESCRIPTORS_LOW):
        yield Finding(
            "descriptors", "warning", f"{shown} at most, for up to {wanted} connections",
            "LimitNOFILE=65536 in the unit, or ulimit -Hn 65536",
        )  # fmt: skip
    else:
        yield Finding("descriptors", "ok", f"{shown} at most, for up to {wanted} connections")


def examine_sqlite(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> Iterator[Finding]:
    """The library's version and what follows from it."""
    shown = ".".join(map(str, version))
    is_fixed = (
        any(version[:2] == fixed[:2] and version >= fixed for fixed in SQLITE_FIXED) or version >= SQLITE_FIXED[-1]
    )
    if is_fixed:
        yield Finding("sqlite", "ok", shown)
        return
    yield Finding(
        "sqlite", "ok",
        f"{shown}: other programs must not write or checkpoint this database beside the node, which before 3.51.3 can "
        "corrupt a WAL; the node itself has one writing connection only",
    )  # fmt: skip


def examine_clock(clock: Clock, machine: Machine, newest_us: int = 0) -> Iterator[Finding]:
    """Whether the time can be right. `newest_us`: of the log's newest entry."""
    now_us = clock.now_us()
    shown = f"{datetime.fromtimestamp(now_us / 1e6, UTC):%Y-%m-%d %H:%M:%S} UTC"
    fix = "timedatectl set-ntp true, or set the clock by hand"
    if now_us < BORN.timestamp() * 1e6:
        yield Finding("clock", "failed", f"{shown} can't be right", fix)
    elif newest_us > now_us + CLOCK_AHEAD_S * 1e6:
        ahead_s = (newest_us - now_us) / 1e6
        yield Finding("clock", "failed", f"{shown} is {ahead_s:.0f} s before the log's newest entry", fix)
    elif machine.clock_synced is False:
        yield Finding("clock", "warning", f"{shown}, kept in time by nobody", fix)
    else:
        known = "kept in time" if machine.clock_synced else "whether somebody keeps it in time isn't known"
        yield Finding("clock", "ok", f"{shown}, {known}")


def examine_log(directory: Path, features: Sequence[Feature] = ()) -> Iterator[Finding]:
    """Whether the database opens, is a log of a version that knows no more than these features, and fits the keys. Reads
    a few pages."""
    database = directory / files.DATABASE_NAME
    if not database.exists():
        yield Finding("log", "ok", "there is none yet; the first start makes it")
        return
    try:
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    except sqlite3.Error as error:
        yield Finding("log", "failed", f"{database}: {error}", "overlayd verify; overlayd restore or salvage")
        return
    try:
        head = connection.execute("SELECT coalesce(max(offset), 0) FROM entry").fetchone()[0]
        is_due = is_migration_due(connection, features)
        keys = read_own_keys(connection, directory)
        yield Finding(
            "log",
            "ok",
            f"{head} entries, {shown_bytes(files.file_bytes(database))}, log {keys.trusted.log_id}"
            + ("; the next start makes a backup of it and brings its tables up to date" if is_due else ""),
        )
        yield Finding("key", "ok", f"the checkpoint key in {directory / 'keys'} is the log's")
    except sqlite3.Error as error:
        yield Finding("log", "failed", f"{database}: {error}", "overlayd verify; overlayd restore or salvage")
    except NewerSchema as error:
        yield Finding("log", "failed", error.detail, error.hint)
    except OverlaydError as error:
        yield Finding("key", "failed", error.detail, error.hint or "put the key file back from your backup of the keys")
    finally:
        connection.close()


def newest_entry_us(directory: Path) -> int:
    """When the log's newest entry was appended; 0 when that can't be read."""
    database = directory / files.DATABASE_NAME
    if not database.exists():
        return 0
    try:
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
        try:
            row = connection.execute("SELECT e FROM entry ORDER BY offset DESC LIMIT 1").fetchone()
        finally:
            connection.close()
        return entry_of_row(row[0], b"", b"", b"", b"", b"", b"").appended_us if row else 0
    except (sqlite3.Error, VerificationFailed):
        return 0


def examine_certificates(settings: Settings, clock: Clock) -> Iterator[Finding]:
    """Those of listeners, and how long they hold."""
    if not settings.listen.tls:
        return
    try:
        endpoints = TlsEndpoints(settings.listen.tls, clock=clock)
    except OverlaydError as error:
        yield Finding("certificates", "failed", error.detail, error.hint)
        return
    now = datetime.fromtimestamp(clock.now_us() / 1e6, UTC)
    for endpoint in endpoints:
        days = (endpoint.expires_at - now).days
        detail = f"{endpoint.settings.address}: for {days} more days"
        if days < CERTIFICATE_DAYS:
            yield Finding("certificates", "warning", detail, "renew it, then overlayd reload")
        else:
            yield Finding("certificates", "ok", detail)


def _there(directory: Path) -> Path:
    """The directory, or the nearest one above it that there is."""
    return next(place for place in (directory, *directory.absolute().parents) if place.is_dir())

"""What is said about a backup: `manifest.json` beside its files. No private key is in it, nor in the files."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
from blake3 import blake3

from overlayd.model.errors import BackupDamaged
from overlayd.storage import files

MANIFEST_NAME = "manifest.json"
MANIFEST_BYTES_MAX = 1 << 20
FORMAT = 1
PIECE_BYTES = 4 << 20
REGTEST_NAME = "regtest.sqlite3"
"""The embedded chain, where a node has one: it is copied after the log, so that it has every block the log speaks of."""
FILE_NAMES = frozenset((files.DATABASE_NAME, REGTEST_NAME))
"""All that a backup may bring: nothing else of a data directory is ever put in place by one, least of all its keys or its
high-water mark."""


class FileFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a backup: its name, length in bytes and BLAKE3 (`blake3:<64 hex>`)."""

    name: str
    bytes: int
    blake3: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a backup holds. `entries` and `root` are those of the copied log, all of which `checkpoint` (a signed note)
    covers but what came after it. `keys`: what verifies its checkpoints, the log's first key first. `schema`: version by
    feature. `self_blake3`: over this manifest's JSON with an empty text in its place."""

    format: int
    id: str
    made_us: int
    made_at: str
    version: str
    sqlite: str
    log: str
    epoch: str
    entries: int
    root: str
    checkpoint: str
    checkpoint_size: int
    keys: tuple[str, ...]
    schema: dict[str, int]
    files: tuple[FileFacts, ...]
    self_blake3: str = ""

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(file.bytes for file in self.files)


_DECODER = msgspec.json.Decoder(Manifest)


def encode_manifest(manifest: Manifest) -> bytes:
    """With its own hash filled in; indented, for people."""
    sealed = msgspec.structs.replace(manifest, self_blake3=_own_hash(manifest))
    return msgspec.json.format(msgspec.json.encode(sealed), indent=2) + b"\n"


def read_manifest(backup: Path) -> Manifest:
    """The manifest of a backup's directory. Raises BackupDamaged, also for one that was altered or cut off."""
    path = backup / MANIFEST_NAME
    try:
        if path.stat().st_size > MANIFEST_BYTES_MAX:
            raise _damaged(path, "it is too long for a manifest")
        manifest = _DECODER.decode(files.read_file(path))
    except OSError as error:
        raise _damaged(backup, f"it isn't a backup: {MANIFEST_NAME}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(path, f"it can't be read: {error}") from error
    if manifest.format != FORMAT:
        raise _damaged(path, f"format {manifest.format} isn't known to this version")
    if manifest.self_blake3 != _own_hash(manifest):
        raise _damaged(path, "it isn't what was written: its own hash differs")
    names = [file.name for file in manifest.files]
    if not FILE_NAMES.issuperset(names) or len(set(names)) < len(names) or files.DATABASE_NAME not in names:
        raise _damaged(path, "it doesn't name the files that a backup has")
    return manifest


def check_files(backup: Path, manifest: Manifest) -> None:
    """Every file is as long as it was and has the hash it had. Reads all of them. Raises BackupDamaged."""
    for file in manifest.files:
        found = describe_file(backup / file.name)
        if found.bytes != file.bytes:
            raise _damaged(backup / file.name, f"it has {found.bytes} bytes, not the {file.bytes} that were written")
        if found.blake3 != file.blake3:
            raise _damaged(backup / file.name, "its bytes aren't those that were written")


def describe_file(path: Path) -> FileFacts:
    """Length and hash, read in pieces. Raises BackupDamaged when it can't be read."""
    hasher, count = blake3(), 0
    try:
        for piece in pieces_of(path):
            hasher.update(piece)
            count += len(piece)
    except OSError as error:
        raise _damaged(path, f"it can't be read: {error.strerror}") from error
    return FileFacts(path.name, count, f"blake3:{hasher.hexdigest()}")


def pieces_of(path: Path) -> Iterator[bytes]:
    """A file's bytes, PIECE_BYTES at a time."""
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def _own_hash(manifest: Manifest) -> str:
    bare = msgspec.structs.replace(manifest, self_blake3="")
    return f"blake3:{blake3(msgspec.json.encode(bare)).hexdigest()}"


def _damaged(path: Path, what: str) -> BackupDamaged:
    return BackupDamaged(f"{path}: {what}", subject=str(path), hint="take another backup; this one isn't used")

"""How fast a log is checked, so that a node beside it has the disk, and where a check that was cut off goes on."""

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from overlayd.cli.log_report import LogReport
from overlayd.storage import files

SAVED_EVERY = 50_000
"""Entries after which the progress is written down."""


class Progress(msgspec.Struct, frozen=True):
    """What the rest of a pass needs to know of the entries up to `after`. `log`: the log's first public key; `tree`: its
    rows, None once no root can be compared; `streams`: hash, last sequence, its leaf, losses before it."""

    log: bytes
    after: int
    tree: list[list[bytes]] | None
    streams: list[tuple[bytes, int, bytes, int]]
    last_us: int
    lost_so_far: int
    report: LogReport


_DECODER = msgspec.msgpack.Decoder(Progress)


class CheckPace:
    """`rate`: entries a second, 0 for as fast as it goes. `file`: where the progress is kept, if anywhere."""

    def __init__(self, rate: int = 0, file: Path | None = None, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._rate = rate
        self._file = file
        self._sleep = sleep
        self._unsaved = 0

    def load(self, log: bytes) -> Progress | None:
        """That of an earlier pass over the same log; None for another one's, and for a file that isn't one."""
        try:
            found = None if self._file is None else _DECODER.decode(files.read_file(self._file))
        except (OSError, msgspec.DecodeError):
            return None
        return found if found is not None and found.log == log else None

    def note_page(self, count: int, progress: Callable[[], Progress]) -> None:
        """So many entries more were checked: writes that down now and then, and waits where it went too fast."""
        self._unsaved += count
        if self._file is not None and self._unsaved >= SAVED_EVERY:
            self._save(progress())
        if not self._rate:
            return
        try:
            self._sleep(count / self._rate)
        except KeyboardInterrupt:
            if self._file is not None:
                self._save(progress())
            raise

    def forget(self) -> None:
        """The pass is complete: the next one begins anew."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _save(self, progress: Progress) -> None:
        assert self._file is not None
        files.replace_file(self._file, msgspec.msgpack.encode(progress))
        self._unsaved = 0

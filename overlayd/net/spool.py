"""Answers that grow while a request is read: in memory while they are small, then in a file without a name."""

import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import IO

import trio

from overlayd.model.errors import StorageFull

BUFFER_BYTES = 256 << 10


class Spool:
    """Bytes written once and read once, in order. Close it when it isn't read to its end."""

    def __init__(self, directory: Path) -> None:
        """`directory`: where the file comes into being when it is needed."""
        self._directory = directory
        self._buffer = bytearray()
        self._file: IO[bytes] | None = None

    async def write(self, data: bytes) -> None:
        """Adds bytes. Checkpoint. Raises StorageFull."""
        self._buffer += data
        await trio.lowlevel.checkpoint()
        if len(self._buffer) >= BUFFER_BYTES:
            full, self._buffer = self._buffer, bytearray()
            await trio.to_thread.run_sync(self._write_file, full)

    async def read(self) -> AsyncGenerator[bytes, None]:
        """Everything that was written. Closes the file at the end."""
        try:
            if self._file is not None:
                file = self._file
                await trio.to_thread.run_sync(file.seek, 0)
                while piece := await trio.to_thread.run_sync(file.read, BUFFER_BYTES):
                    yield piece
            yield bytes(self._buffer)
        finally:
            self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write_file(self, data: bytearray) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 - closed by close()
            self._file.write(data)
        except OSError as err:
            raise StorageFull(f"the receipts can't be kept: {err.strerror}", subject=str(self._directory)) from err

"""A source's token, read from its file when it is needed, and again when the source refuses it.

A node writes a new cookie file each time that it starts, so a token that was right a moment ago may be wrong now.
"""

import os
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path

import trio

from overlayd.chain.sources.faults import Fault, unavailable
from overlayd.chain.sources.settings import ChainSourceSettings, SourceKind
from overlayd.model.errors import ConfigInvalid

CREDENTIALS_DIRECTORY = "CREDENTIALS_DIRECTORY"
TOKEN_BYTES_MAX = 4096


class Token:
    """What a source wants to see in the Authorization header; nothing for one without a file."""

    def __init__(self, source: str, kind: SourceKind, file: Path | None) -> None:
        self._source = source
        self._kind = kind
        self._file = file
        self._value: str | None = None

    def __repr__(self) -> str:
        return f"Token({self._source}, {'from a file' if self._file else 'none'})"

    async def header(self) -> tuple[tuple[str, str], ...]:
        """The header, or nothing. Raises SourceUnavailable when the file can't be read."""
        if self._file is None:
            return ()
        if self._value is None:
            self._value = await self._read(self._file)
        return (("Authorization", self._value),)

    async def reread(self) -> bool:
        """Reads the file again; whether another token is in it now."""
        if self._file is None:
            await trio.lowlevel.checkpoint()
            return False
        before, self._value = self._value, None
        self._value = await self._read(self._file)
        return self._value != before

    async def _read(self, file: Path) -> str:
        try:
            text = await trio.to_thread.run_sync(_read_start, file)
        except (OSError, UnicodeDecodeError) as err:
            raise unavailable(
                Fault.UNAUTHORIZED, f"its token can't be read: {type(err).__name__}", source=self._source,
                hint=f"see that {file} is there and readable for the service",
            ) from err  # fmt: skip
        text = text.strip()
        if not text.isascii() or not text.isprintable() or not text:
            raise unavailable(
                Fault.UNAUTHORIZED, "its token isn't one line of printable characters", source=self._source
            )
        if self._kind == "node":
            return f"Basic {b64encode(text.encode()).decode()}"
        # WhatsOnChain takes the key alone.
        return text if self._kind == "whatsonchain" else f"Bearer {text}"


def make_token(settings: ChainSourceSettings, environ: Mapping[str, str]) -> Token:
    """The token that the settings point to; nothing is read yet. Raises ConfigInvalid."""
    name = settings.name or settings.kind
    if settings.credential:
        directory = environ.get(CREDENTIALS_DIRECTORY, "")
        if not directory or os.sep in settings.credential:
            raise ConfigInvalid(
                f"chain source {name}: there is no credential {settings.credential!r}", subject=f"source {name}",
                hint="with systemd, LoadCredential= in the unit passes it",
            )  # fmt: skip
        return Token(name, settings.kind, Path(directory) / settings.credential)
    return Token(name, settings.kind, Path(settings.file) if settings.file else None)


def _read_start(file: Path) -> str:
    with file.open("rb") as opened:
        return opened.read(TOKEN_BYTES_MAX).decode()

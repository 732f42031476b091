"""The file of a producer's coins, which survives being interrupted at any point.

What is about to be published is written down with the spending of its coins before anything is sent. So a coin is never
spent twice, and a packet whose answer never came is sent again as it was.
"""

import os
from pathlib import Path

import click
import msgspec

from overlayd.client import Coin, Prepared, Purse


class Unanswered(msgspec.Struct, frozen=True):
    """A packet that was, or was about to be, sent. `packet` is its JSON text."""

    stream: str
    packet: str
    coin: Coin
    change: tuple[Coin, ...]


class CoinBook(msgspec.Struct):
    """What the file holds. A plain list of coins is read, too."""

    coins: list[Coin] = []
    unanswered: list[Unanswered] = []


class CoinFile:
    """A file of coins, and the purse that is made of it. Blocking."""

    def __init__(self, path: Path) -> None:
        """Raises UsageError for a file that holds something else. One that isn't there holds no coins."""
        self._path = path
        book = _read(path)
        self.purse = Purse(book.coins)
        self.unanswered = book.unanswered

    def note_prepared(self, many: list[Prepared]) -> None:
        """Before they are sent."""
        self.unanswered += [Unanswered(one.stream, one.packet.decode(), one.coin, one.change) for one in many]
        self.write()

    def settle(self, packet: str, *, is_refused: bool = False) -> None:
        """A packet was answered. When it was refused, nobody has its transaction: its coin is there again, unless
        other packets build on it."""
        found = next((one for one in self.unanswered if one.packet == packet), None)
        if found is None:
            return
        self.unanswered.remove(found)
        if is_refused:
            self.purse.put_back(found.coin, found.change)

    def write(self) -> None:
        """Replaces the file, durably."""
        book = CoinBook(self.purse.coins(), self.unanswered)
        text = msgspec.json.format(msgspec.json.encode(book), indent=1) + b"\n"
        beside = self._path.with_name(f".{self._path.name}.new")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self._path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _read(path: Path) -> CoinBook:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return CoinBook()
    except OSError as error:
        raise click.UsageError(f"--coins {path}: {error.strerror}") from error
    try:
        if text.lstrip().startswith(b"["):
            return CoinBook(msgspec.json.decode(text, type=list[Coin]))
        return msgspec.json.decode(text, type=CoinBook)
    except msgspec.DecodeError as error:
        raise click.UsageError(
            f'--coins {path}: {error}; a list of {{"txid": "…", "vout": 0, "satoshis": 1000}} is expected'
        ) from error

"""SQLite's file format, read page by page without SQLite, which gives up a whole table for one broken page of it.

https://www.sqlite.org/fileformat2.html. Nothing is trusted: every number is checked against the page, every page is
entered once. What comes out is as good as the bytes; entries prove themselves by their hashes. Blocking, one thread.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import msgspec

from overlayd.storage import files

PAGE_BYTES = 4096
INTERIOR_INDEX, INTERIOR_TABLE, LEAF_INDEX, LEAF_TABLE = 2, 5, 10, 13
PAYLOAD_BYTES_MAX = 1 << 30
_FIRST_HEADER = 100
_WAL_HEADER, _FRAME_HEADER = 32, 24
_WAL_MAGIC = (0x377F0682, 0x377F0683)
_CACHED = 256
_PAGE_NUMBER = struct.Struct(">I")

Value: TypeAlias = int | float | bytes | str | None


class BadPage(Exception):
    """The page, or the chain of pages, isn't what SQLite writes. Never leaves this package."""


class Cell(msgspec.Struct, frozen=True):
    """A row of a leaf: its rowid (0 in an index) and its record. `is_whole`: every byte of the record was there."""

    rowid: int
    payload: bytes
    is_whole: bool


class PageImage:
    """The database as its last commit left it: the file, and over it the pages of the write-ahead log that hold.

    The files aren't changed. Not beside a connection of this process: closing a file that SQLite has open in the same
    process gives up its locks.
    """

    def __init__(self, database: Path) -> None:
        """Raises OSError."""
        self._descriptor = files.open_file(database, os.O_RDONLY)
        self._wal = -1
        wal = database.with_name(database.name + "-wal")
        self._newest: dict[int, int] = {}
        self.count = self.last = os.fstat(self._descriptor).st_size // PAGE_BYTES
        try:
            self._wal = files.open_file(wal, os.O_RDONLY)
        except OSError:
            return
        self._newest, committed = _read_wal(self._wal)
        self.count = committed or self.count
        self.last = max(self.count, max(self._newest, default=0))

    def close(self) -> None:
        os.close(self._descriptor)
        if self._wal >= 0:
            os.close(self._wal)

    def __enter__(self) -> "PageImage":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, number: int) -> bytes:
        """A page by its number, from 1. Raises BadPage for one that isn't there."""
        if number < 1:
            raise BadPage(f"page {number}")
        at = self._newest.get(number)
        try:
            page = (
                os.pread(self._descriptor, PAGE_BYTES, (number - 1) * PAGE_BYTES)
                if at is None
                else os.pread(self._wal, PAGE_BYTES, at)
            )
        except OSError as error:  # a sector that the disk can't read any more
            raise BadPage(f"page {number}: {error}") from error
        if len(page) != PAGE_BYTES:
            raise BadPage(f"page {number}")
        return page

    @property
    def pages(self) -> range:
        """Every page's number, those beyond the file's end that only the write-ahead log has included."""
        return range(1, self.last + 1)


def _read_wal(descriptor: int) -> tuple[dict[int, int], int]:
    """Where the newest committed frame of each page lies, and the database's length after the last commit."""
    header = os.pread(descriptor, _WAL_HEADER, 0)
    if len(header) != _WAL_HEADER:
        return {}, 0
    magic, _version, page_bytes, _sequence, salt1, salt2, check1, check2 = struct.unpack(">8I", header)
    if magic not in _WAL_MAGIC or page_bytes != PAGE_BYTES:
        return {}, 0
    order = ">" if magic & 1 else "<"
    sums = _checksum(header[:24], (0, 0), order)
    if sums != (check1, check2):
        return {}, 0
    newest: dict[int, int] = {}
    pending: dict[int, int] = {}
    count, at = 0, _WAL_HEADER
    while True:
        frame = os.pread(descriptor, _FRAME_HEADER + PAGE_BYTES, at)
        if len(frame) != _FRAME_HEADER + PAGE_BYTES:
            break
        number, committed, frame_salt1, frame_salt2, check1, check2 = struct.unpack(">6I", frame[:_FRAME_HEADER])
        sums = _checksum(frame[_FRAME_HEADER:], _checksum(frame[:8], sums, order), order)
        if (frame_salt1, frame_salt2) != (salt1, salt2) or sums != (check1, check2):
            break
        pending[number] = at + _FRAME_HEADER
        if committed:
            newest.update(pending)
            pending.clear()
            count = committed
        at += _FRAME_HEADER + PAGE_BYTES
    return newest, count


def _checksum(data: bytes, start: tuple[int, int], order: str) -> tuple[int, int]:
    one, two = start
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        one = (one + even + two) & 0xFFFFFFFF
        two = (two + odd + one) & 0xFFFFFFFF
    return one, two


def walk_leaves(image: PageImage, root: int, seen: set[int] | None = None) -> Iterator[int]:
    """The leaf pages below a root in the tree's order, as far as interior pages lead to them; each once.

    Raises BadPage at a page that isn't one of a tree, after which the walk can't go on: `find_leaves` does better.
    """
    for number, error in find_leaves(image, root, seen):
        if error is not None:
            raise error
        yield number


def find_leaves(image: PageImage, root: int, seen: set[int] | None = None) -> Iterator[tuple[int, BadPage | None]]:
    """The same past broken pages: each of those is given with its error, and the walk goes on beside it."""
    seen = set() if seen is None else seen
    waiting = [root]
    while waiting:
        number = waiting.pop()
        if number in seen:
            yield number, BadPage(f"page {number} is there twice")
            continue
        seen.add(number)
        try:
            page = image.read(number)
            kind = page[header_at(number)]
            if kind in (LEAF_TABLE, LEAF_INDEX):
                yield number, None
                if kind == LEAF_INDEX:
                    continue
            elif kind in (INTERIOR_TABLE, INTERIOR_INDEX):
                waiting += reversed(children_of(image, number, page))
                if kind == INTERIOR_INDEX:
                    yield number, None  # it holds rows of its own
            else:
                raise BadPage(f"page {number} is none of a tree")
        except BadPage as error:
            yield number, error


def children_of(image: PageImage, number: int, page: bytes) -> list[int]:
    """The pages below an interior one, in order. Raises BadPage when one of the numbers can't be right."""
    start, number_at = header_at(number), _PAGE_NUMBER.unpack_from
    numbers = [number_at(page, at)[0] for at in _pointers(page, start, 12)]
    numbers.append(number_at(page, start + 8)[0])
    if not 1 < min(numbers) <= max(numbers) <= image.last or len(set(numbers)) != len(numbers):
        raise BadPage(f"page {number} leads to pages that aren't there")
    return numbers


def read_cells(image: PageImage, number: int) -> Iterator[Cell]:
    """The rows of a page, those that can't be taken apart left out. Raises BadPage when it is no page with rows."""
    page, start = image.read(number), header_at(number)
    kind = page[start]
    if kind not in (LEAF_TABLE, LEAF_INDEX, INTERIOR_INDEX):
        raise BadPage(f"page {number} has no rows")
    for at in _pointers(page, start, 12 if kind == INTERIOR_INDEX else 8):
        try:
            yield _read_cell(image, page, at + (4 if kind == INTERIOR_INDEX else 0), kind == LEAF_TABLE)
        except BadPage:
            continue


def count_cells(image: PageImage, number: int) -> int:
    """How many rows a page says it has."""
    return cells_in(number, image.read(number))


def cells_in(number: int, page: bytes) -> int:
    """The same of a page that was read."""
    start = header_at(number)
    return int.from_bytes(page[start + 3 : start + 5], "big")


def decode_record(payload: bytes) -> list[Value]:
    """The values of a row. Raises BadPage."""
    length, at = _varint(payload, 0)
    if not at <= length <= len(payload):
        raise BadPage("a record's head is longer than the record")
    values: list[Value] = []
    body = length
    while at < length:
        kind, at = _varint(payload, at)
        value, body = _decode_value(payload, kind, body)
        values.append(value)
    if at != length or body != len(payload):
        raise BadPage("a record's lengths contradict each other")
    return values


def _decode_value(payload: bytes, kind: int, at: int) -> tuple[Value, int]:
    if kind == 0:
        return None, at
    if kind in (8, 9):
        return kind - 8, at
    if kind in (10, 11):
        raise BadPage("a record has a value of no kind")
    length = (kind - 12) // 2 if kind >= 12 else (0, 1, 2, 3, 4, 6, 8, 8)[kind]
    end = at + length
    raw = payload[at:end]
    if len(raw) != length:
        raise BadPage("a record ends inside a value")
    if kind == 7:
        return float(struct.unpack(">d", raw)[0]), end
    if kind < 7:
        return int.from_bytes(raw, "big", signed=True), end
    if kind % 2 == 0:
        return raw, end
    try:
        return raw.decode(), end
    except UnicodeDecodeError as error:
        raise BadPage("a text isn't UTF-8") from error


def header_at(number: int) -> int:
    """Where a page's own head begins: the first page has the file's before it."""
    return _FIRST_HEADER if number == 1 else 0


def _pointers(page: bytes, start: int, header: int) -> list[int]:
    """Where the cells begin; numbers that lead out of the page are left out. Raises BadPage when most do."""
    count = int.from_bytes(page[start + 3 : start + 5], "big")
    first = start + header
    if first + 2 * count > PAGE_BYTES:
        raise BadPage("a page says it has more rows than fit")
    pointers = struct.unpack_from(f">{count}H", page, first)
    return [at for at in pointers if first + 2 * count <= at < PAGE_BYTES - 3]


def _read_cell(image: PageImage, page: bytes, at: int, is_table: bool) -> Cell:
    size, at = _varint(page, at)
    rowid = 0
    if is_table:
        rowid, at = _varint(page, at)
        if rowid >= 1 << 63:
            rowid -= 1 << 64
    if not 0 < size <= PAYLOAD_BYTES_MAX:
        raise BadPage("a row of no length")
    local = _local_bytes(size, is_table)
    payload = page[at : at + local]
    if len(payload) != local:
        raise BadPage("a row ends outside of its page")
    if local == size:
        return Cell(rowid, payload, True)
    rest, is_whole = _read_overflow(image, int.from_bytes(page[at + local : at + local + 4], "big"), size - local)
    return Cell(rowid, payload + rest, is_whole)


def _local_bytes(size: int, is_table: bool) -> int:
    """How much of a row of this size stands in its own page."""
    most = PAGE_BYTES - 35 if is_table else (PAGE_BYTES - 12) * 64 // 255 - 23
    if size <= most:
        return size
    least = (PAGE_BYTES - 12) * 32 // 255 - 23
    local = least + (size - least) % (PAGE_BYTES - 4)
    return local if local <= most else least


def _read_overflow(image: PageImage, number: int, size: int) -> tuple[bytes, bool]:
    """The rest of a long row from its chain of pages, as far as that leads."""
    pieces: list[bytes] = []
    left = size
    while left > 0:
        try:
            page = image.read(number)
        except BadPage:
            return b"".join(pieces), False
        pieces.append(page[4 : 4 + left])
        left -= PAGE_BYTES - 4
        number = int.from_bytes(page[:4], "big")
    return b"".join(pieces), True


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(9):
        if at >= len(data):
            raise BadPage("a number ends outside of its page")
        byte = data[at]
        at += 1
        if place == 8:
            return value << 8 | byte, at
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            break
    return value, at

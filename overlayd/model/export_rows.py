"""The rows of an evidence export: one packet each, as NDJSON or CSV, and what a row must be for its entry (docs/export.md)."""

import base64
import csv
from collections.abc import Iterator
from typing import BinaryIO, Protocol

import msgspec

from overlayd.model.clock import format_time_us
from overlayd.model.entry import Z32, EntryHeader
from overlayd.model.errors import VerificationFailed
from overlayd.model.export_file import LINE_BYTES_MAX
from overlayd.model.hash_text import format_blake3, format_sha256
from overlayd.model.meta import Meta


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A packet. Absent text is "". `topics`, `metadata` and `body` are JSON texts, verbatim; `salt` and `meta` base64.

    Offset, stream and sequence are those of the entry; salt, commitment, meta and body open its seal; the others say again,
    for the reader's ease, what stands in these.
    """

    offset: int
    stream: str
    sequence: int
    appended_at: str
    id: str
    type: str
    time: str
    source: str
    key: str
    topics: str
    metadata: str
    body: str
    content_hash: str
    commitment: str
    salt: str
    meta: str


COLUMNS = Row.__struct_fields__
NUMBERS = frozenset({"offset", "sequence"})
_VERBATIM = frozenset({"topics", "metadata", "body"})
"""Of a CSV, JSON texts as they are; each other text is written as a JSON string."""
_CSV_HEAD = (",".join(COLUMNS) + "\r\n").encode()
_encode_json = msgspec.json.Encoder().encode
_decode_row = msgspec.json.Decoder(Row).decode
_decode_text = msgspec.json.Decoder(str).decode


class RowWriter(Protocol):
    """Writes rows in their order."""

    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


class RowReader(Protocol):
    """Reads rows in their order."""

    def read(self) -> Row | None:
        """The next row, None after the last. Raises VerificationFailed for what isn't one."""
        ...

    def is_written_as(self, row: Row) -> bool:
        """Whether the row that was read last stands in the file as this one is written."""
        ...


def row_of(header: EntryHeader, stream: str, opening: tuple[bytes, bytes, bytes], meta: Meta, body: bytes,
           content_hash: bytes) -> Row:  # fmt: skip
    """The row of a packet's entry. `opening`: salt, commitment, meta as octets. Raises ValueError for a body that
    isn't text, which no JSON is, and for a time beyond the year 9999."""
    salt, commitment, meta_raw = opening
    return Row(
        header.offset, stream, header.sequence, format_time_us(header.appended_us), meta.id, meta.type, meta.time,
        meta.source, meta.key, meta.topics.decode(), meta.metadata.decode(), body.decode(),
        format_blake3(content_hash), "" if commitment == Z32 else format_sha256(commitment),
        base64.b64encode(salt).decode(), base64.b64encode(meta_raw).decode(),
    )  # fmt: skip


class NdjsonWriter:
    """One JSON object a line."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, row: Row) -> None:
        self._file.write(_encode_json(row) + b"\n")

    def close(self) -> None:
        """Nothing comes after the last row."""


class NdjsonReader:
    """As NdjsonWriter wrote."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._line = b""

    def read(self) -> Row | None:
        self._line = read_line(self._file, "rows")
        if not self._line:
            return None
        try:
            return _decode_row(self._line)
        except (ValueError, RecursionError) as err:
            raise VerificationFailed(f"a row can't be read: {err}", subject="rows") from err

    def is_written_as(self, row: Row) -> bool:
        return self._line == _encode_json(row) + b"\n"


def csv_line(row: Row) -> bytes:
    """RFC 4180. Texts are JSON tokens, so that a cell begins with a quotation mark, bracket, letter of true, false or null,
    or is a number, and no program takes it for a formula."""
    cells = []
    for name, value in zip(COLUMNS, msgspec.structs.astuple(row), strict=True):
        if name in NUMBERS:
            cells.append(b"%d" % value)
        elif value == "":
            cells.append(b"")
        else:
            text = value.encode() if name in _VERBATIM else _encode_json(value)
            cells.append(b'"' + text.replace(b'"', b'""') + b'"')
    return b",".join(cells) + b"\r\n"


class CsvWriter:
    """A line of column names, then one record a row."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        file.write(_CSV_HEAD)

    def write(self, row: Row) -> None:
        self._file.write(csv_line(row))

    def close(self) -> None:
        """Nothing comes after the last row."""


class CsvReader:
    """As CsvWriter wrote."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lines: list[bytes] = []
        if read_line(file, "rows") != _CSV_HEAD:
            raise VerificationFailed("the first line doesn't name the columns", subject="rows")
        csv.field_size_limit(LINE_BYTES_MAX)
        self._records = csv.reader(self._read_lines(), strict=True)

    def _read_lines(self) -> Iterator[str]:
        """Those of a record are kept as they are, to be compared."""
        length = 0
        while line := read_line(self._file, "rows"):
            length = length + len(line) if self._lines else len(line)
            if length > LINE_BYTES_MAX:
                raise VerificationFailed("a row is too long", subject="rows")
            self._lines.append(line)
            yield line.decode()

    def read(self) -> Row | None:
        self._lines.clear()
        try:
            cells = next(self._records, None)
            return None if cells is None else _row_of_cells(cells)
        except (ValueError, RecursionError, csv.Error) as err:
            raise VerificationFailed(f"a row can't be read: {err}", subject="rows") from err

    def is_written_as(self, row: Row) -> bool:
        return b"".join(self._lines) == csv_line(row)


def _row_of_cells(cells: list[str]) -> Row:
    """Raises ValueError."""
    if len(cells) != len(COLUMNS):
        raise ValueError(f"{len(cells)} columns, not {len(COLUMNS)}")
    values = {
        name: int(cell) if name in NUMBERS else cell if name in _VERBATIM or not cell else _decode_text(cell)
        for name, cell in zip(COLUMNS, cells, strict=True)
    }
    return msgspec.convert(values, Row)


def read_line(file: BinaryIO, subject: str) -> bytes:
    """A line with its newline, b"" at the end. Raises VerificationFailed for one that is too long."""
    line = file.readline(LINE_BYTES_MAX + 1)
    if len(line) > LINE_BYTES_MAX:
        raise VerificationFailed("a line is too long", subject=subject)
    return line

"""The rows of an evidence export as Parquet, by pyarrow, which only this form needs."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from overlayd.model.errors import ConfigInvalid, VerificationFailed
from overlayd.model.export_rows import COLUMNS, NUMBERS, Row

GROUP_ROWS = 10_000
GROUP_BYTES = 16 << 20
"""A group is written at either; reading holds one group in memory."""
_BATCH_ROWS = 1000


def load_pyarrow() -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet. Raises ConfigInvalid where they aren't installed."""
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as err:
        raise ConfigInvalid(
            "Parquet needs pyarrow, which isn't installed", subject="--format parquet",
            hint="pip install 'overlayd[parquet]', or take ndjson or csv",
        ) from err  # fmt: skip


class ParquetWriter:
    """Columns as in the other forms: two u64, the others text."""

    def __init__(self, file: BinaryIO) -> None:
        """Raises ConfigInvalid without pyarrow."""
        self._arrow, parquet = load_pyarrow()
        kinds = [(name, self._arrow.uint64() if name in NUMBERS else self._arrow.large_string()) for name in COLUMNS]
        self._schema = self._arrow.schema([self._arrow.field(name, kind, nullable=False) for name, kind in kinds])
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._rows: list[tuple[Any, ...]] = []
        self._bytes = 0

    def write(self, row: Row) -> None:
        self._rows.append(msgspec.structs.astuple(row))
        self._bytes += len(row.body) + 2 * len(row.meta)
        if len(self._rows) >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        columns = zip(*self._rows, strict=True) if self._rows else ((),) * len(COLUMNS)
        arrays = [
            self._arrow.array(list(column), type=field.type)
            for column, field in zip(columns, self._schema, strict=True)
        ]
        self._writer.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))
        self._rows, self._bytes = [], 0

    def close(self) -> None:
        """Writes what waits, and the footer."""
        if self._rows:
            self._flush()
        self._writer.close()


class ParquetReader:
    """Rows by their values: how they are packed is Parquet's affair, and no part of the evidence."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigInvalid without pyarrow, VerificationFailed for another file."""
        self._arrow, parquet = load_pyarrow()
        try:
            self._file = parquet.ParquetFile(path)
        except (self._arrow.ArrowException, OSError) as err:
            raise VerificationFailed(f"the rows can't be read: {err}", subject="rows") from err
        if tuple(self._file.schema_arrow.names) != COLUMNS:
            raise VerificationFailed("the columns are others than an export has", subject="rows")
        self._rows = self._read_rows()
        self._row: Row | None = None

    def _read_rows(self) -> Iterator[dict[str, Any]]:
        for batch in self._file.iter_batches(batch_size=_BATCH_ROWS):
            yield from batch.to_pylist()

    def read(self) -> Row | None:
        try:
            values = next(self._rows, None)
            self._row = None if values is None else msgspec.convert(values, Row)
        except (self._arrow.ArrowException, OSError, ValueError) as err:
            raise VerificationFailed(f"a row can't be read: {err}", subject="rows") from err
        return self._row

    def is_written_as(self, row: Row) -> bool:
        return self._row == row

"""Read raw files of any format as chunks of text columns, with the line on which each row stands.

Everything is read as text first, so that a bad value can be shown as it was written, with its line. A line that is no
row at all (broken JSON, the wrong number of fields) goes to `reject`; a file that cannot be read any further raises a
UserError. Blank lines are no rows.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.ingest.chunks import Chunk, Reject
from pipeline.ingest.delimited import read_delimited, refuse_twice
from pipeline.ingest.json_lines import read_json_lines
from pipeline.ingest.lines import as_text, read_lines
from pipeline.ingest.packing import open_unpacked, packing
from pipeline.ingest.parquet_limits import asks_too_much, chunk_rows
from pipeline.ingest.sources import RawFile
from pipeline.printing import shown


def read_chunks(file: RawFile, reject: Reject, columns: Sequence[str] | None = None) -> Iterator[Chunk]:
    """Yield all rows of a file in order; no chunk is empty.

    Args:
        reject: called with (line, reason, row as written) for each line that is no row.
        columns: the columns wanted; None: all of them (of JSON lines: those that the chunk has).

    Raises:
        UserError: the file is truncated, not in its encoding, or not in its format.
    """
    inside = [name for name in columns or () if name not in file.constants] or None
    if file.format.kind == "csv":
        chunks = read_delimited(file, reject, inside)
    elif file.format.kind == "parquet":
        chunks = _read_parquet(file, inside)
    elif file.format.kind == "jsonl" and inside is not None and not file.skip:
        chunks = read_json_lines(file, reject, inside)
    else:
        chunks = read_lines(file, reject, inside)
    return (_with_constants(chunk, file.constants, columns) for chunk in chunks if len(chunk.lines))


def _with_constants(chunk: Chunk, constants: Mapping[str, str], columns: Sequence[str] | None) -> Chunk:
    if not constants:
        return chunk
    table = chunk.table
    for name, value in constants.items():
        table = table.append_column(name, pa.repeat(pa.scalar(value), len(table)))
    return Chunk(table.select(columns) if columns is not None else table, chunk.lines, chunk.records)


def sample(file: RawFile) -> pa.Table | None:
    """Return the first chunk with all its columns, or None when the file has no row."""
    chunk = next(read_chunks(file, _ignore), None)
    return chunk.table if chunk else None


def _ignore(line: int, reason: str, row: str) -> None:
    """Reject nothing: bad rows of a sample are reported when the whole file is read."""


def _read_parquet(file: RawFile, columns: Sequence[str] | None) -> Iterator[Chunk]:
    first = 0
    try:
        with _plain_parquet(file) as stream:
            rows = chunk_rows(file, stream, columns)
            source = pq.ParquetFile(stream, pre_buffer=False)
            refuse_twice(file, source.schema_arrow.names)
            for batch in source.iter_batches(rows, columns=columns):
                records = np.arange(first, first + batch.num_rows, dtype=np.int64)
                first += batch.num_rows
                table = pa.table({name: _column_text(batch[name]) for name in batch.schema.names})
                yield Chunk(table, records + 1, records)
    except UserError:
        raise
    except MemoryError as error:
        raise asks_too_much(file, str(error)) from None
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:  # a damaged file raises any
        raise UserError(
            f"{file.name} cannot be read as Parquet: {shown(str(error).partition(chr(10))[0])}",
            "the file is damaged or was cut short",
            "write or copy the file again",
        ) from None


@contextmanager
def _plain_parquet(file: RawFile) -> Iterator[IO[bytes]]:
    """Open the file; one that is packed as a whole is unpacked into a temporary file first, in bounded memory."""
    if not packing(file.path):
        with file.path.open("rb") as stream:
            yield stream
        return
    with open_unpacked(file.path, file.name, file.limits.file_bytes) as packed, tempfile.TemporaryFile() as unpacked:
        shutil.copyfileobj(packed, unpacked)
        unpacked.seek(0)
        yield unpacked


def _column_text(column: pa.Array) -> pa.Array:
    """Return a Parquet column as text: times and dates by ISO 8601, flags as 1 and 0, lists by `as_text`.

    A time of a column with a zone is given in UTC and ends in Z. No number is rounded, and none has an exponent: the
    float 1.25e10 is "12500000000".
    """
    if pa.types.is_date(column.type):
        return column.cast(pa.string())
    if pa.types.is_timestamp(column.type):
        text = column.cast(pa.timestamp(column.type.unit)).cast(pa.string())  # in UTC
        return pc.binary_join_element_wise(text, "Z", "") if column.type.tz else text
    if pa.types.is_floating(column.type):
        return _float_text(column)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if pa.types.is_dictionary(column.type):
        return _column_text(column.dictionary_decode())
    if (
        pa.types.is_binary(column.type)
        or pa.types.is_large_binary(column.type)
        or pa.types.is_fixed_size_binary(column.type)
    ):
        return pa.array([_decoded(value) for value in column.to_pylist()], pa.string())
    if pa.types.is_nested(column.type):
        return pa.array([as_text(value) for value in column.to_pylist()], pa.string())
    text = column.cast(pa.string())
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:  # a damaged file or a careless writer: not UTF-8
        return pa.array([_decoded(value) for value in text.cast(pa.binary()).to_pylist()], pa.string())
    return text


def _decoded(value: bytes | None) -> str | None:
    """Return bytes as the UTF-8 text that they are, None where they are none."""
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _float_text(column: pa.Array) -> pa.Array:
    """Return the shortest decimals that name each float, as Arrow writes them, and no exponent."""
    text = column.cast(pa.string())
    exponent = pc.fill_null(pc.match_substring(text, "e"), False)
    if pc.any(exponent).as_py():
        plain = [format(Decimal(value), "f") for value in text.filter(exponent).to_pylist()]
        text = pc.replace_with_mask(text, exponent, pa.array(plain, pa.string()))
    return text

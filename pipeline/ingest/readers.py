"""Read raw files of any format as chunks of text columns, with the line on which each row stands.

Everything is read as text first, so that a bad value can be shown as it was written, with its line. A line that is no
row at all (broken JSON, the wrong number of fields) goes to `reject`; a file that cannot be read any further raises a
UserError. Blank lines are no rows.
"""

import gzip
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.ingest.chunks import Chunk, Reject, open_binary, too_large, truncated
from pipeline.ingest.delimited import read_delimited
from pipeline.ingest.lines import as_text, read_lines
from pipeline.ingest.parquet_limits import asks_too_much, chunk_rows
from pipeline.ingest.sources import RawFile
from pipeline.printing import shown

UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # of Arrow's timestamps, in a second


def read_chunks(file: RawFile, reject: Reject, columns: Sequence[str] | None = None, ticks: int = 1) -> Iterator[Chunk]:
    """Yield all rows of a file in order; no chunk is empty.

    Args:
        reject: called with (line, reason, row as written) for each line that is no row.
        columns: the columns wanted; None: all of them (of JSON lines: those that the chunk has).
        ticks: units of the log's clock in a second; values of Parquet's timestamp type are expressed in these units.

    Raises:
        UserError: the file is truncated, not in its encoding, or not in its format.
    """
    if file.format.kind == "csv":
        chunks = read_delimited(file, reject, columns)
    elif file.format.kind == "parquet":
        chunks = _read_parquet(file, columns, ticks)
    else:
        chunks = read_lines(file, reject, columns)
    return (chunk for chunk in chunks if len(chunk.lines))


def sample(file: RawFile, ticks: int = 1) -> pa.Table | None:
    """Return the first chunk with all its columns, or None when the file has no row."""
    chunk = next(read_chunks(file, _ignore, ticks=ticks), None)
    return chunk.table if chunk else None


def _ignore(line: int, reason: str, row: str) -> None:
    """Reject nothing: bad rows of a sample are reported when the whole file is read."""


def _read_parquet(file: RawFile, columns: Sequence[str] | None, ticks: int) -> Iterator[Chunk]:
    first = 0
    try:
        with _plain_parquet(file) as stream:
            rows = chunk_rows(file, stream, columns)
            for batch in pq.ParquetFile(stream).iter_batches(rows, columns=columns):
                records = np.arange(first, first + batch.num_rows, dtype=np.int64)
                first += batch.num_rows
                table = pa.table({name: _column_text(batch[name], ticks) for name in batch.schema.names})
                yield Chunk(table, records + 1, records)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise truncated(file) from None
    except MemoryError as error:
        raise asks_too_much(file, str(error)) from None
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:  # a damaged file raises any
        raise UserError(
            f"{file.name} cannot be read as Parquet: {shown(str(error).splitlines()[0])}",
            "the file is damaged or was cut short",
            "write or copy the file again",
        ) from None


@contextmanager
def _plain_parquet(file: RawFile) -> Iterator[IO[bytes]]:
    """Open the file; one that is gzipped as a whole is unpacked into a temporary file first, in bounded memory."""
    if not file.gzipped:
        with file.path.open("rb") as stream:
            yield stream
        return
    with open_binary(file) as packed, tempfile.TemporaryFile() as stream:
        size = 0
        while block := packed.read(1 << 20):
            size += len(block)
            if size > file.limits.file_bytes:
                raise too_large(file)
            stream.write(block)
        stream.seek(0)
        yield stream


def _column_text(column: pa.Array, ticks: int) -> pa.Array:
    """Return a Parquet column as text: times in ticks since 1970, flags as 1 and 0, lists by `as_text`.

    No number is rounded, and none has an exponent: the time 1970-01-01T00:00:01.5 is "1.5" in seconds, "1500" in
    milliseconds, and the float 1.25e10 is "12500000000".
    """
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s" if pa.types.is_date32(column.type) else "ms"))
    if pa.types.is_timestamp(column.type):
        return _time_text(column, ticks)
    if pa.types.is_floating(column.type):
        return _float_text(column)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if pa.types.is_dictionary(column.type):
        return _column_text(column.dictionary_decode(), ticks)
    if (
        pa.types.is_binary(column.type)
        or pa.types.is_large_binary(column.type)
        or pa.types.is_fixed_size_binary(column.type)
    ):
        return pa.array([_decoded(value) for value in column.to_pylist()], pa.string())
    if pa.types.is_nested(column.type):
        return pa.array([as_text(value) for value in column.to_pylist()], pa.string())
    return column.cast(pa.string())


def _decoded(value: bytes | None) -> str | None:
    """Return bytes as the UTF-8 text that they are, None where they are none."""
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _time_text(column: pa.Array, ticks: int) -> pa.Array:
    unit = UNITS[column.type.unit]
    values = column.cast(pa.int64())
    if unit <= ticks:  # seconds to be told in milliseconds: 5 -> "5000", and no product that could overflow
        return pc.binary_join_element_wise(values.cast(pa.string()), str(ticks // unit)[1:], "")
    # milliseconds to be told in seconds: 1500 -> whole 1, rest 500 -> "1.500"; whole numbers have no point
    scale = unit // ticks
    whole = pc.divide(values, scale)
    rest = pc.abs(pc.subtract(values, pc.multiply(whole, scale)))
    padded = pc.utf8_lpad(rest.cast(pa.string()), len(str(scale)) - 1, "0")
    text = whole.cast(pa.string())
    return pc.if_else(pc.equal(rest, 0), text, pc.binary_join_element_wise(text, padded, "."))


def _float_text(column: pa.Array) -> pa.Array:
    """Return the shortest decimals that name each float, as Arrow writes them, and no exponent."""
    text = column.cast(pa.string())
    exponent = pc.fill_null(pc.match_substring(text, "e"), False)
    if pc.any(exponent).as_py():
        plain = [format(Decimal(value), "f") for value in text.filter(exponent).to_pylist()]
        text = pc.replace_with_mask(text, exponent, pa.array(plain, pa.string()))
    return text

"""Bound the memory that a Parquet file asks for, from its footer and from its dictionaries.

A file of a kilobyte can hold a million rows that repeat one value of a megabyte, because a dictionary or a compressed
page stores the value once. So rows are read in chunks that are small enough for the longest value. Values that share a
beginning, which the encoding DELTA_BYTE_ARRAY stores once, are not foreseen.
"""

from collections.abc import Sequence
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.ingest.chunks import MAX_COLUMNS, check_columns
from pipeline.ingest.lines import CHUNK_ROWS
from pipeline.ingest.sources import RawFile
from pipeline.printing import shown

CHUNK_BYTES = 256 << 20  # of the values of one chunk


def chunk_rows(file: RawFile, stream: IO[bytes], columns: Sequence[str] | None) -> int:
    """Return how many rows of the open file to read at once.

    Args:
        columns: the columns that will be read; None: all.

    Raises:
        UserError: the file declares more columns, rows or bytes in a row than a log has, or a dictionary has a text
            longer than `Limits.line_bytes`.
    """
    footer = pq.read_metadata(stream)
    check_columns(file, footer.num_columns)
    if footer.num_rows > file.limits.file_bytes:
        raise asks_too_much(file, f"it declares {footer.num_rows:,} rows")
    fields = footer.schema.to_arrow_schema()
    texts = [f.name for f in fields if pa.types.is_string(f.type) and (columns is None or f.name in columns)]
    packed = pq.ParquetFile(stream, read_dictionary=texts, pre_buffer=False)
    rows = CHUNK_ROWS
    for number in range(footer.num_row_groups):
        # Only these facts of a group: the facts of its columns end the process where a footer is damaged (pyarrow 25).
        group = footer.row_group(number)
        a_row = group.total_byte_size // max(group.num_rows, 1)
        if a_row > CHUNK_BYTES:
            raise asks_too_much(file, f"it declares {a_row:,} bytes a row")
        longest = _longest(file, packed, number, texts) if texts else 0
        rows = max(1, min(rows, CHUNK_BYTES // max(a_row, longest, 1)))
    return rows


def _longest(file: RawFile, packed: pq.ParquetFile, group: int, texts: Sequence[str]) -> int:
    """Return the bytes of the longest text in the dictionaries of a group, which come with its first row."""
    longest = 0
    for batch in packed.iter_batches(1, row_groups=[group], columns=texts):
        for name in batch.schema.names:
            column = batch[name]
            if pa.types.is_dictionary(column.type) and len(column.dictionary):
                most = pc.max(pc.binary_length(column.dictionary)).as_py() or 0
                if most > file.limits.line_bytes:
                    raise asks_too_much(file, f"a value of the column {shown(name)} has {most:,} bytes")
                longest = max(longest, most)
        break
    return longest


def asks_too_much(file: RawFile, reason: str) -> UserError:
    return UserError(
        f"{file.name} asks for more memory than a log needs: {shown(reason)}",
        f"a value has at most ingest.max_line_bytes, {file.limits.line_bytes:,}, a row {CHUNK_BYTES >> 20} MiB, and a "
        f"file {MAX_COLUMNS:,} columns",
        "check where the file comes from, write it again without the large columns, or raise ingest.max_line_bytes",
    )

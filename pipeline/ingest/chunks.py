"""A chunk of a raw file's rows as text, and what every reader shares."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.ingest.sources import RawFile

MAX_COLUMNS = 10_000
Reject = Callable[[int, str, str], None]  # (line, reason, row as written)


@dataclass(frozen=True)
class Chunk:
    """Some rows of a file, in the file's order.

    table: one string column per column of the file; null or "" where a value is missing.
    lines: 1-based line of the file on which each row begins (for Parquet the row number).
    records: 0-based number of each row in the file; rejected rows count, blank lines do not.
    """

    table: pa.Table
    lines: np.ndarray
    records: np.ndarray

    def filter(self, wanted: np.ndarray) -> "Chunk":
        """Return the rows where `wanted` (bool per row) is true."""
        return Chunk(self.table.filter(pa.array(wanted)), self.lines[wanted], self.records[wanted])


def check_columns(file: RawFile, columns: int) -> None:
    """Raise UserError where a file has more columns than any log: each takes memory and time in every chunk."""
    if columns > MAX_COLUMNS:
        raise UserError(
            f"{file.name} has more than {MAX_COLUMNS:,} columns",
            f"at least {columns:,} were found; a log has a few, an item file some dozens",
            "check how the file is written (ingest.delimiter), or write the columns that are needed into a new file",
        )


def wrong_width(found: int, expected: int) -> str:
    return f"{found} fields where {expected} are expected"

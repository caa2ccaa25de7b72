"""A chunk of a raw file's rows as text, and what every reader shares: to open a file and to say what is wrong in it."""

import gzip
import io
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

    def filter(self, keep: np.ndarray) -> "Chunk":
        """Return the rows where `keep` (bool per row) is true."""
        return Chunk(self.table.filter(pa.array(keep)), self.lines[keep], self.records[keep])


def open_binary(file: RawFile) -> gzip.GzipFile | io.BufferedReader:
    """Open a file for reading bytes, decompressed where it is gzipped."""
    return gzip.open(file.path, "rb") if file.gzipped else file.path.open("rb")


def too_large(file: RawFile) -> UserError:
    return UserError(
        f"{file.name} unpacks to more than ingest.max_file_bytes, {file.limits.file_bytes:,} bytes",
        "a small file can be made that unpacks without end",
        "check where the file comes from, or raise ingest.max_file_bytes",
    )


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


def truncated(file: RawFile) -> UserError:
    return UserError(
        f"{file.name} is no complete gzip file",
        "the file was cut short, or it is not compressed at all",
        "download or copy the file again (`gzip -t FILE` must print nothing)",
    )


def wrong_encoding(file: RawFile, line: int) -> UserError:
    return UserError(
        f"{file.name}, line {line}: not valid UTF-8",
        "the text is probably Latin-1 (or Windows-1252)",
        "convert the file: iconv -f latin1 -t utf-8 OLD > NEW",
    )

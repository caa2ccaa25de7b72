"""CSV and TSV through Arrow's streaming parser, with the line of every row.

Arrow numbers the rows it refuses and says nothing about those it gives, so lines are worked out: a row's number is its
place among all rows, and its line is that plus the line breaks inside quoted fields before it.

Shape legend: N good rows of a batch, B bad rows among them.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from pipeline.errors import UserError
from pipeline.ingest.chunks import Chunk, Reject, open_binary, truncated, wrong_encoding, wrong_width
from pipeline.ingest.sources import RawFile

BLOCK_BYTES = 4 << 20  # of text parsed at once; a quoted field cannot be longer


def read_delimited(file: RawFile, reject: Reject, columns: Sequence[str] | None) -> Iterator[Chunk]:
    """Rows of a delimited file; `readers.read_chunks` documents the arguments."""
    lines = LineCounter(first=1 if file.format.header else 2)
    try:
        names = _names(file)
        with _open(file, names, lines) as batches:
            for batch in batches:
                chunk = lines.with_lines(pa.Table.from_batches([batch]), reject)
                yield Chunk(chunk.table.select(columns or names), chunk.lines, chunk.records)
        lines.finish(reject)
    except UnicodeDecodeError:  # of the header
        raise wrong_encoding(file, line=1) from None
    except (pa.ArrowInvalid, OSError) as error:
        if "Empty CSV" not in str(error):
            raise _explain(file, error) from None


def _names(file: RawFile) -> list[str]:
    if file.format.header:
        return list(file.format.header)
    with _open(file, [], LineCounter(first=2)) as batches:
        names = batches.schema.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"{file.name} has the column '{twice[0]}' twice",
            f"columns found: {', '.join(names)}",
            "rename or remove one of them",
        )
    return names


def _open(file: RawFile, names: list[str], lines: "LineCounter") -> pacsv.CSVStreamingReader:
    form = file.format
    return pacsv.open_csv(
        pa.input_stream(str(file.path), compression="gzip" if file.gzipped else None),
        pacsv.ReadOptions(
            use_threads=False, block_size=BLOCK_BYTES, encoding=form.encoding, column_names=list(form.header) or None
        ),
        pacsv.ParseOptions(
            delimiter=form.delimiter,
            quote_char='"' if form.quoted else False,
            newlines_in_values=form.quoted,
            ignore_empty_lines=False,
            invalid_row_handler=lines.refuse,
        ),
        # Nothing is null: "NA" is a user's name as good as any, and what is missing is "".
        pacsv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), null_values=[]),
    )


class LineCounter:
    """Gives each row its line and number.

    Args:
        first: line, and row in Arrow's count, of the file's first row of data.
    """

    def __init__(self, first: int):
        self.first = self.number = first  # of the next row
        self.breaks = 0  # line breaks inside the rows so far
        self.blank = 0  # blank lines so far
        self.bad: list[tuple[int, str, str]] = []  # (number, reason, text) of refused rows, not placed yet

    def refuse(self, row: pacsv.InvalidRow) -> str:
        """Arrow's invalid_row_handler, called before the batch that the row would have been in is given out."""
        self.bad.append((row.number, wrong_width(row.actual_columns, row.expected_columns), row.text))
        return "skip"

    def with_lines(self, table: pa.Table, reject: Reject) -> Chunk:
        """The batch without its blank lines; bad rows that stand before its end go to `reject`."""
        bad = 0
        while bad < len(self.bad) and self.bad[bad][0] - self.number - bad < table.num_rows:
            bad += 1
        numbers_N, lines_N = self._advance(_line_breaks(table), bad, reject)
        blank_N = _is_blank(table)
        records_N = numbers_N - self.first - self.blank - np.cumsum(blank_N)
        self.blank += int(blank_N.sum())
        return Chunk(table, lines_N, records_N).filter(~blank_N)

    def finish(self, reject: Reject) -> None:
        """Bad rows after the last good one."""
        self._advance(np.zeros(0, np.int64), len(self.bad), reject)

    def _advance(self, breaks_N: np.ndarray, bad: int, reject: Reject) -> tuple[np.ndarray, np.ndarray]:
        """(numbers_N, lines_N) of the next N good rows, among which the next `bad` refused ones stand."""
        taken, self.bad = self.bad[:bad], self.bad[bad:]
        at_B = np.array([number for number, _, _ in taken], np.int64) - self.number
        at_N = np.delete(np.arange(len(breaks_N) + bad), at_B)
        breaks = np.zeros(len(breaks_N) + bad, np.int64)
        breaks[at_N], breaks[at_B] = breaks_N, [text.count("\n") for _, _, text in taken]
        numbers = self.number + np.arange(len(breaks))
        lines = numbers + self.breaks + np.cumsum(breaks) - breaks
        for line, (_, reason, text) in zip(lines[at_B].tolist(), taken, strict=True):
            reject(line, reason, text)
        self.number += len(breaks)
        self.breaks += int(breaks.sum())
        return numbers[at_N], lines[at_N]


def _line_breaks(table: pa.Table) -> np.ndarray:
    """int64 [N]: line breaks inside the fields of each row."""
    counts = np.zeros(table.num_rows, np.int64)
    for column in table.columns:
        counts += pc.count_substring(column, "\n").to_numpy()
    return counts


def _is_blank(table: pa.Table) -> np.ndarray:
    """bool [N]: all fields are empty, as Arrow shows a blank line."""
    blank = np.ones(table.num_rows, bool)
    for column in table.columns:
        if blank.any():
            blank &= pc.equal(column, "").to_numpy()
    return blank


def _explain(file: RawFile, error: Exception) -> UserError:
    text = str(error)
    if "invalid UTF8" in text:
        return wrong_encoding(file, _first_bad_line(file))
    if "zlib" in text or "compressed stream" in text:
        return truncated(file)
    if "straddling" in text:
        return UserError(
            f"{file.name} has a field longer than {BLOCK_BYTES >> 20} MiB",
            "a double quote was probably opened and never closed",
            "mend the file at that place",
        )
    return UserError(f"{file.name} cannot be read: {text.splitlines()[0]}", fix="mend the file, or leave it out")


def _first_bad_line(file: RawFile) -> int:
    with open_binary(file) as stream:
        for line, raw in enumerate(stream, 1):
            try:
                raw.decode("utf-8")
            except UnicodeDecodeError:
                return line
    return 0

"""Read CSV and TSV through Arrow's streaming parser, and find the line of every row.

Arrow numbers the rows that it refuses and does not number those that it delivers, so lines are worked out. A row's
number is its position among all rows; its line is that number plus the line breaks inside quoted fields of the rows
before it.

Shape legend: G good rows of a batch, B bad rows among them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from pipeline.errors import UserError
from pipeline.ingest.chunks import Chunk, Reject, check_columns, wrong_width
from pipeline.ingest.encodings import open_utf8
from pipeline.ingest.sources import RawFile
from pipeline.printing import shown


def read_delimited(file: RawFile, reject: Reject, columns: Sequence[str] | None) -> Iterator[Chunk]:
    """Yield the rows of a delimited file; `readers.read_chunks` documents the arguments."""
    lines = LineCounter(first=file.skip + (1 if file.format.header else 2))
    try:
        names = _names(file)
        with _open(file, names, lines) as batches:
            for batch in batches:
                chunk = lines.with_lines(pa.Table.from_batches([batch]), reject)
                yield Chunk(chunk.table.select(columns or names), chunk.lines, chunk.records)
        lines.finish(reject)
    except (pa.ArrowInvalid, OSError) as error:
        if "Empty CSV" not in str(error):
            raise _explain(file, error) from None


def _names(file: RawFile) -> list[str]:
    if file.format.header:
        return list(file.format.header)
    with _open(file, [], LineCounter(first=file.skip + 2)) as batches:
        names: list[str] = batches.schema.names
    check_columns(file, len(names))
    refuse_twice(file, names)
    return names


def refuse_twice(file: RawFile, names: Sequence[str]) -> None:
    """Refuse a file with two columns of one name."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise UserError(
            f"{file.name} has the column '{shown(twice[0])}' twice",
            f"columns found: {', '.join(map(shown, names))}",
            "rename or remove one of the two columns",
        )


def _open(file: RawFile, names: list[str], lines: "LineCounter") -> pacsv.CSVStreamingReader:
    form = file.format
    return pacsv.open_csv(
        open_utf8(file),
        pacsv.ReadOptions(
            use_threads=False,
            block_size=file.limits.line_bytes,  # no line can be longer than a block
            skip_rows=file.skip,
            column_names=list(form.header) or None,
        ),
        pacsv.ParseOptions(
            delimiter=form.delimiter,
            quote_char='"' if form.quoted else False,
            newlines_in_values=form.quoted,
            ignore_empty_lines=False,
            invalid_row_handler=lines.refuse,
        ),
        # Nothing is null here: ids.py and values.py say which texts stand for a missing value.
        pacsv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), null_values=[]),
    )


class LineCounter:
    """Give each row its line and its number.

    Args:
        first: line of the file's first row of data, which is also its number in Arrow's count.
    """

    def __init__(self, first: int):
        self.first = first
        self.number = first  # of the next row
        self.breaks = 0  # line breaks inside the rows so far
        self.blank = 0  # blank lines so far
        self.bad: list[tuple[int, str, str]] = []  # (number, reason, text) of refused rows whose line is not known yet

    def refuse(self, row: pacsv.InvalidRow) -> str:
        """Note a bad row; Arrow calls this before it delivers the batch that the row would have been in."""
        self.bad.append((row.number, wrong_width(row.actual_columns, row.expected_columns), row.text))
        return "skip"

    def with_lines(self, table: pa.Table, reject: Reject) -> Chunk:
        """Return the batch without its blank lines; bad rows that stand before its end go to `reject`."""
        # A bad row belongs to this batch if fewer good rows stand before it than the batch has. The good rows before it
        # are all rows before it less the bad ones: the next row is 10, the bad rows are 11 and 12, then one good row
        # (10) stands before each of them.
        bad = 0
        while bad < len(self.bad) and self.bad[bad][0] - self.number - bad < table.num_rows:
            bad += 1
        numbers_G, lines_G = self._advance(_line_breaks(table), bad, reject)

        # Blank lines are rows for Arrow but no records: rows a, blank, b -> blank_G 0 1 0; records of a and b 0, 1.
        blank_G = _is_blank(table)
        records_G = numbers_G - self.first - self.blank - np.cumsum(blank_G)
        self.blank += int(blank_G.sum())
        return Chunk(table, lines_G, records_G).filter(~blank_G)

    def finish(self, reject: Reject) -> None:
        """Reject the bad rows after the last good one."""
        self._advance(np.zeros(0, np.int64), len(self.bad), reject)

    def _advance(self, breaks_G: np.ndarray, bad: int, reject: Reject) -> tuple[np.ndarray, np.ndarray]:
        """Return (numbers_G, lines_G) of the next G good rows, among which the next `bad` refused ones stand.

        The comments follow one example: the next row has number 2 and line 2; good, bad and good rows follow, and the
        first of them has one line break inside.
        """
        # breaks_G [1, 0]; the refused row has the number 3
        taken = self.bad[:bad]
        self.bad = self.bad[bad:]

        # positions among the 3 rows: at_B [1], hence at_G [0, 2]
        rows = len(breaks_G) + bad
        at_B = np.array([number for number, _, _ in taken], np.int64) - self.number
        at_G = np.delete(np.arange(rows), at_B)

        # line breaks inside each row: [1, 0, 0]
        breaks = np.zeros(rows, np.int64)
        breaks[at_G] = breaks_G
        breaks[at_B] = [text.count("\n") for _, _, text in taken]

        # numbers [2, 3, 4]; line breaks before each row [0, 1, 1], hence lines [2, 4, 5]
        numbers = self.number + np.arange(rows)
        lines = numbers + self.breaks + np.cumsum(breaks) - breaks
        for line, (_, reason, text) in zip(lines[at_B].tolist(), taken, strict=True):
            reject(line, reason, text)
        self.number += rows
        self.breaks += int(breaks.sum())
        return numbers[at_G], lines[at_G]


def _line_breaks(table: pa.Table) -> np.ndarray:
    """Count the line breaks inside the fields of each row, int64 [G]."""
    counts = np.zeros(table.num_rows, np.int64)
    for column in table.columns:
        counts += pc.count_substring(column, "\n").to_numpy()
    return counts


def _is_blank(table: pa.Table) -> np.ndarray:
    """Tell which rows have only empty fields, which is how Arrow shows a blank line. bool [G]."""
    blank = np.ones(table.num_rows, bool)
    for column in table.columns:
        if blank.any():
            blank &= pc.equal(column, "").to_numpy()
    return blank


def _explain(file: RawFile, error: Exception) -> UserError:
    text = str(error)
    if "straddling" in text:
        return UserError(
            f"{file.name} has a line longer than ingest.max_line_bytes, {file.limits.line_bytes:,}",
            "a double quote was probably opened and never closed",
            "close or remove that quote in the file, or raise ingest.max_line_bytes if the line is meant to be so long",
        )
    return UserError(
        f"{file.name} cannot be read: {shown(text.splitlines()[0])}",
        "the parser of CSV and TSV files stopped there",
        "mend the file, or leave it out of ingest.path and ingest.files",
    )

"""Collect the rows that cannot be used, each with its file, line and reason, and tell when there are too many."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.ingest.chunks import Chunk
from pipeline.ingest.sources import RawFile
from pipeline.ingest.values import reasons
from pipeline.printing import shown
from pipeline.raw_times import Complaint

SCHEMA = pa.schema([("source", pa.string()), ("line", pa.int64()), ("reason", pa.string()), ("row", pa.string())])
ROW_CHARACTERS = 300  # characters of a bad row that are written; longer rows are cut
BUFFER_ROWS = 50_000


class Rejects:
    """Write bad rows into a Parquet file at `path`, a buffer at a time, and count them by file and reason."""

    def __init__(self, path: Path):
        self.path = path
        self.counts: Counter[tuple[str, str]] = Counter()  # (source, reason) -> rows
        self.examples: dict[tuple[str, str], str] = {}  # (source, reason) -> "source, line 7: the row"
        self.buffer: list[tuple[str, int, str, str]] = []
        self.writer: pq.ParquetWriter

    def __enter__(self) -> "Rejects":
        self.writer = pq.ParquetWriter(self.path, SCHEMA, compression="zstd")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._flush()
        self.writer.close()

    def of(self, file: RawFile) -> Callable[[int, str, str], None]:
        """Return the function that readers of `file` call with (line, reason, row)."""
        spans = file.format.kind == "csv"
        return lambda line, reason, row: self.add(file.name, line, reason, row, spans_lines=spans)

    def add(self, source: str, line: int, reason: str, row: str, *, spans_lines: bool = True) -> None:
        """Count and list a bad row.

        Args:
            spans_lines: line breaks in `row` are those of the file, as in CSV. Such a row was swallowed by a stray
                quote: each of its lines is a lost row and is listed alone.
        """
        for offset, text in enumerate(row.split("\n") if spans_lines else [row.replace("\n", "\\n")]):
            self.examples.setdefault((source, reason), f"{source}, line {line + offset}: {shown(text[:80])}")
            self.counts[source, reason] += 1
            self.buffer.append((source, line + offset, reason, text[:ROW_CHARACTERS]))
        if len(self.buffer) >= BUFFER_ROWS:
            self._flush()

    def usable(self, file: RawFile, chunk: Chunk, complaints: Sequence[Complaint], named: Sequence[str]) -> pa.Array:
        """Tell which rows have no complaint (bool per row); the other rows are added, with the columns `named`."""
        # complaints ([T, F, F], "user is missing"), ([T, T, F], "rating is not a number") ->
        # found ["user is missing", "rating is not a number", null] -> usable [F, F, T]
        found = reasons(complaints, len(chunk.lines))
        usable = pc.is_null(found)

        # row numbers of the bad rows, here 0 and 1, and their text in these columns: "u1,i7,x"
        bad = pc.indices_nonzero(pc.invert(usable)).to_pylist()
        if bad:
            fields = [[text or "" for text in chunk.table[name].take(bad).to_pylist()] for name in named]
            reject = self.of(file)
            for i, row in zip(bad, zip(*fields, strict=True), strict=True):
                reject(int(chunk.lines[i]), found[i].as_py(), ",".join(row))
        return usable

    def _flush(self) -> None:
        columns = list(zip(*self.buffer, strict=True)) if self.buffer else [()] * len(SCHEMA)
        self.writer.write_table(
            pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
        )
        self.buffer.clear()

    def forget(self, sources: Sequence[str]) -> None:
        """Take back all bad rows of these files, which are about to be read again."""
        self._flush()
        self.writer.close()
        before = self.path.replace(self.path.with_suffix(".before"))
        self.writer = pq.ParquetWriter(self.path, SCHEMA, compression="zstd")
        forgotten = pa.array(sources, pa.string())
        with pq.ParquetFile(before) as file:
            for batch in file.iter_batches(BUFFER_ROWS):
                self.writer.write_batch(batch.filter(pc.invert(pc.is_in(batch["source"], forgotten))))
        before.unlink()
        for counts in (self.counts, self.examples):
            for key in [key for key in counts if key[0] in sources]:
                del counts[key]

    def total(self, sources: Sequence[str]) -> int:
        """Count the bad rows of these files."""
        return sum(count for (source, _), count in self.counts.items() if source in sources)

    def by_reason(self, sources: Sequence[str] | None = None) -> dict[str, int]:
        """Count the bad rows per reason, most frequent first, of `sources` or of all files."""
        reasons: Counter[str] = Counter()
        for (source, reason), count in self.counts.items():
            if sources is None or source in sources:
                reasons[reason] += count
        return dict(sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0])))

    def commonest(self, sources: Sequence[str]) -> list[str]:
        """Return a line for each of the three commonest reasons: how often, and the first such row."""
        reasons = self.by_reason(sources)
        return [
            f"  {count:,} x {reason} ({self._example(reason, sources)})" for reason, count in [*reasons.items()][:3]
        ]

    def _example(self, reason: str, sources: Sequence[str]) -> str:
        return next(self.examples[source, reason] for source in sources if (source, reason) in self.examples)

    def hint(self, sources: Sequence[str]) -> str:
        """Say what to do about rows of JSON that are probably written in another way; empty if nothing is known."""
        reason = next(iter(self.by_reason(sources)), "")
        if reason not in ("broken JSON", "not a JSON object"):
            return ""
        row = self._example(reason, sources).partition(": ")[2].lstrip("\ufeff \t")
        if row.startswith(("{'", "{u'")):
            return (
                "The rows are probably Python literals, as in Amazon's metadata of 2014: write each as JSON "
                "(json.dumps(ast.literal_eval(line)))"
            )
        if row.startswith("["):
            return 'The rows are lists without names: write each as an object, such as {"user": ..., "item": ...}'
        return ""

    def blocks(self, memory_limit: str) -> Iterator[pa.Table]:
        """Yield all rejects, sorted by source and line. Call it after the context manager has ended.

        Rejects of one line come in the order in which they were added. DuckDB sorts them within `memory_limit`, since
        a log may have nothing but rejects.
        """
        with duckdb.connect() as connection:
            connection.execute("SET memory_limit = ?", [memory_limit])
            connection.execute("SET temp_directory = ?", [str(self.path.with_suffix(".spill"))])
            connection.execute("SET enable_progress_bar = false")
            found = connection.execute(
                "SELECT source, line, reason, row FROM read_parquet(?, file_row_number = true) "
                "ORDER BY source, line, file_row_number",
                [str(self.path)],
            )
            for batch in found.to_arrow_reader(BUFFER_ROWS):
                yield pa.Table.from_batches([batch]).cast(SCHEMA)

    def too_many(self, sources: Sequence[str], read: int, limit: float, saved: Path) -> UserError | None:
        """Return the error to raise if all `read` rows of `sources` or more than `limit` are rejects, else None.

        Args:
            read: rows read of these files, rejected ones included.
            limit: share of them that may be rejects.
            saved: the file that will list the rejects, for the message.
        """
        rejected = self.total(sources)
        if rejected <= limit * read and not 0 < read == rejected:
            return None
        reasons = self.by_reason(sources)
        fix = f"{saved} lists all of them. Mend the log"
        fix += ", or raise ingest.max_reject_rate if the loss is acceptable." if rejected < read else "."
        if hint := self.hint(sources):
            fix += f"\n{hint}"
        commonest = next(iter(reasons))
        if commonest.startswith("timestamp"):
            fix += (
                "\nAll times of a log have one form, that of most rows: numbers since 1970 (ingest.time_unit auto: s, "
                "ms, us or ns), ISO 8601 such as 2024-09-05T12:32:27Z, or an order 0, 1, 2, ..."
            )
        elif commonest.startswith("item is not in "):
            fix += (
                "\nIds of the log and of the item file meet where they are the same text or the same whole number; "
                "ingest.unknown_items=keep takes the other items without texts."
            )
        elif commonest in ("user is missing", "item is missing"):
            fix += (
                f"\nThe words of ingest.null_words are no {commonest[:4]}, and a value without a text, such as an "
                'object {"id": 7} of JSON, counts as missing: write its field as a column.'
            )
        elif commonest.endswith(("is not a number", "is missing")) and not commonest.startswith(("user ", "item ")):
            column = commonest.rsplit(" is ", 1)[0]
            fix += (
                f"\nOnly columns of ingest.minimum need a number in every row: leave {column} out of it if it may lack."
            )
        return UserError(
            f"{rejected:,} of {read:,} rows of {', '.join(sources)} cannot be used",
            (f"that is more than ingest.max_reject_rate, {limit:g}" if rejected > limit * read else "no row is left")
            + "; the commonest reasons:\n"
            + "\n".join(self.commonest(sources)),
            fix,
        )

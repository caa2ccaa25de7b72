"""Leave out rows of the log by the texts of some of its columns (`ingest.where`), and count them."""

from collections import Counter
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.ingest.chunks import Chunk
from pipeline.printing import shown
from pipeline.raw_ids import whole_number

REMEMBERED = 10_000  # different values of a column that are counted; further ones are not named in messages
NAMED = 8  # values that a message names
FLAGS = {"true": "1", "false": "0"}


class RowFilter:
    """Tells which rows are wanted: those with one of the given texts in each of the given columns."""

    def __init__(self, where: Mapping[str, Sequence[str]]):
        """Take column -> the texts that are wanted there; the empty text means a missing value."""
        self.where = where
        self.texts = {name: pa.array([_plain(text) for text in texts], pa.string()) for name, texts in where.items()}
        self.seen: dict[str, Counter[str]] = {name: Counter() for name in where}  # column -> text -> rows
        self.not_wanted = 0  # rows so far that were left out

    def wanted(self, chunk: Chunk, columns: Mapping[str, str]) -> Chunk:
        """Return the rows that are wanted.

        Args:
            columns: name in `ingest.where` -> the log's column.
        """
        keep = pa.array([True] * len(chunk.lines))
        for name, column in columns.items():
            plain = self._read(name, chunk.table[column].combine_chunks())
            keep = pc.and_(keep, pc.is_in(plain, value_set=self.texts[name]))
        left = pc.sum(keep).as_py()
        self.not_wanted += len(keep) - left
        return chunk if left == len(keep) else chunk.filter(keep.to_numpy(zero_copy_only=False))

    def _read(self, name: str, text: pa.Array) -> pa.Array:
        """Return the texts of a column as they are compared, and count them."""
        encoded = pc.dictionary_encode(pc.fill_null(text, ""))
        counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(encoded.indices).to_pylist()}
        plain = [_plain(value) for value in encoded.dictionary.to_pylist()]
        seen = self.seen[name]
        for index, value in enumerate(plain):
            if value in seen or len(seen) < REMEMBERED:
                seen[value] += counts[index]
        return pa.array(plain, pa.string()).take(encoded.indices)

    def never_seen(self) -> list[str]:
        """Return a line for each wanted text that no row has."""
        return [
            f"ingest.where wants {shown(name)} '{shown(text)}', which no row has; {self.found(name)}"
            for name, texts in self.where.items()
            for text in texts
            if _plain(text) not in self.seen[name]
            and len(self.seen[name]) < REMEMBERED  # else it may be there
            and self.seen[name]
        ]

    def found(self, name: str) -> str:
        """Name the commonest texts of a column with their numbers of rows."""
        seen = self.seen[name]
        texts = ", ".join(f"{shown(text) or '(missing)'} ({count:,})" for text, count in seen.most_common(NAMED))
        more = len(seen) - NAMED
        return f"{shown(name)} has {texts}" + (f" and {more:,} more" if more > 0 else "")


def _plain(text: str) -> str:
    """Return a text as it is compared: without blanks around it, flags as 1 and 0, whole numbers by their digits."""
    text = text.strip()
    text = FLAGS.get(text.lower(), text)
    return whole_number(text) or text

r"""Read raw ids by one rule, so that the same id written in two ways is one user or item.

Blanks around an id are cut off. A word of `ingest.null_words` (nan, null, `\N`, ...) is no id, and neither is an empty
text. Where every id of a column is a whole number (7, 7.0, 1.2e10) the ids are its digits; one other id, such as abc or
007, and all ids of the column stay as they are written. The column is that of the whole log, all files together.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.ingest.id_index import IdIndex
from pipeline.raw_ids import whole_number
from pipeline.raw_times import Complaint

DIGITS = r"^(0|-?[1-9][0-9]*)$"  # a whole number as it is written plainly


class IdColumn:
    """Reads a column of raw ids, chunk by chunk, and finds out whether all of them are whole numbers."""

    def __init__(self, name: str, null_words: Sequence[str]):
        self.name = name
        self.null_words = pa.array(["", *(word.strip().lower() for word in null_words)], pa.string())
        self.trimmed = 0  # good rows whose id had blanks around it
        self.numeric = True  # all ids of good rows so far are whole numbers
        self.plain = True  # and all of them are written plainly

    def read(self, text: pa.Array) -> tuple[pa.Array, list[Complaint]]:
        """Return the ids without blanks around them, and what is wrong with them.

        A line break inside an id is the mark of a stray quote before it.
        """
        ids = pc.utf8_trim_whitespace(text)
        missing = pc.or_(pc.is_null(ids), pc.is_in(pc.utf8_lower(ids), self.null_words))
        return ids, [
            (missing, f"{self.name} is missing"),
            (pc.match_substring(text, "\n"), f"{self.name} holds a line break"),
        ]

    def accept(self, text: pa.Array, ids: pa.Array) -> None:
        """Take note of the ids of good rows, and of the text that they were read from."""
        self.trimmed += pc.sum(pc.not_equal(text, pc.utf8_trim_whitespace(text))).as_py() or 0
        if self.numeric and not pc.all(pc.match_substring_regex(ids, DIGITS), min_count=0).as_py():
            self.plain = False
            self.numeric = whole_numbers(ids).null_count == 0

    @property
    def to_rewrite(self) -> bool:
        """The ids are whole numbers, and not all of them are written plainly."""
        return self.numeric and not self.plain


def whole_numbers(ids: pa.Array) -> pa.Array:
    """Return ids that are whole numbers by their digits, "7.0" as "7"; null for every other id. The type stays."""
    encoded = pc.dictionary_encode(ids)
    numbers = [None if text is None else whole_number(text) for text in encoded.dictionary.to_pylist()]
    return pa.array(numbers, ids.type).take(encoded.indices)


def as_listed(ids: pa.Array, listed: IdIndex) -> tuple[pa.Array, np.ndarray]:
    """Return the ids as the item file lists them, and the row of each among those listed, int64, -1 where it is not.

    An id that is listed as it is written stays; of the others, "7.0" is 7 if 7 is listed.
    """
    rows = listed.find(ids)
    if (rows >= 0).all():
        return ids, rows
    numbers = whole_numbers(ids)
    by_number = np.where(rows < 0, listed.find(numbers), -1)
    return pc.if_else(pa.array(by_number >= 0), numbers, ids), np.maximum(rows, by_number)


def plain_unknown(ids: pa.Array, listed: pa.Array) -> pa.Array:
    """Return ids with those that are not listed (bool per row) as whole numbers where they are: "7.0" is 7."""
    return pc.if_else(listed, ids, pc.coalesce(whole_numbers(ids), ids))


def rewrite_ids(path: Path, columns: Sequence[str]) -> None:
    """Write the whole numbers in these columns of a Parquet file plainly, a batch at a time."""
    new = path.with_suffix(".rewritten")
    with pq.ParquetFile(path, pre_buffer=False) as source, pq.ParquetWriter(new, source.schema_arrow) as writer:
        for batch in source.iter_batches():
            for name in columns:
                batch = batch.set_column(batch.schema.get_field_index(name), name, whole_numbers(batch[name]))
            writer.write_batch(batch)
    new.replace(path)

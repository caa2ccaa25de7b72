"""Find the items that an item file lists again: exact copies count once, and an item with other texts is an error."""

from collections.abc import Collection, Mapping

import pyarrow as pa


class ListedItems:
    """The items that an item file has listed so far, for finding one that it lists again.

    Args:
        of: raw ids that are looked at, the others count as listed once; None: all.
    """

    def __init__(self, of: Collection[str] | None) -> None:
        self.of = None if of is None else frozenset(of)
        self.texts: dict[str, int] = {}  # raw id -> hash of the texts of its first row
        self.copies = 0  # rows so far that are equal to an earlier one
        self.twice = pa.array([], pa.bool_())  # of the last chunk: rows of a listed item, with other texts

    def add(self, raw_ids: pa.Array, texts: Mapping[str, pa.Array | pa.ChunkedArray]) -> pa.Array:
        """Add a chunk and return which of its rows are copies of an earlier row (bool per row)."""
        if self.of is not None and not self.of:
            self.twice = pa.repeat(pa.scalar(False), len(raw_ids))
            return self.twice
        copies, twice = [], []
        columns = [column.to_pylist() for column in texts.values()]
        for raw_id, *row in zip(raw_ids.to_pylist(), *columns, strict=True):
            if self.of is not None and raw_id not in self.of:
                copies.append(False)
                twice.append(False)
                continue
            text = hash(tuple(row))
            known = raw_id in self.texts
            copies.append(known and bool(raw_id) and self.texts[raw_id] == text)
            twice.append(known and not copies[-1])
            self.texts.setdefault(raw_id, text)
        self.copies += sum(copies)
        self.twice = pa.array(twice, pa.bool_())
        return pa.array(copies, pa.bool_())

"""Read data/interactions/items.parquet by columns and row by row: texts and vectors of all items take much memory.

Shape legend: I items.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import unreadable
from pipeline.manifest import verify_present

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 2**17  # that are read at once


class ItemTable:
    """The table of all items, whose columns are read when they are asked for.

    The file stays open, so that what is read later is the file that was checked at first.

    Raises:
        UserError: the file is missing or damaged.
    """

    def __init__(self, path: Path):
        import pyarrow.parquet as pq

        verify_present(path)
        self.path = path
        with self._reading():
            self._file = pq.ParquetFile(path, memory_map=True)
        self.names: list[str] = self._file.schema_arrow.names

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def read(self, columns: Sequence[str]) -> "pa.Table":
        """Return those of the columns that the table has, in the order of `columns`."""
        names = [name for name in columns if name in self.names]
        with self._reading():
            return self._file.read(names).select(names)

    def blocks(self, columns: Sequence[str]) -> Iterator["pa.Table"]:
        """Give what `read` returns, at most ROWS rows at a time; one block at least."""
        import pyarrow as pa

        names = [name for name in columns if name in self.names]
        with self._reading():
            rows = 0
            for batch in self._file.iter_batches(ROWS, columns=names):
                yield pa.Table.from_batches([batch]).select(names)
                rows += len(batch)
            if not rows:
                yield self._file.read(names).select(names)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn what Arrow finds wrong with the file into a UserError that names it."""
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise unreadable(self.path, error) from None

    def numbered(self, column: str) -> np.ndarray | None:
        """Return a number from 0 for each distinct value of a column, int32 [I], -1 for none.

        None: the table has no such column, or it holds no value.
        """
        if column not in self.names:
            return None
        known: dict[Any, int] = {}
        parts = []
        for block in self.blocks([column]):
            encoded = block[column].combine_chunks().dictionary_encode()
            numbers = [
                -1 if value is None else known.setdefault(value, len(known)) for value in encoded.dictionary.to_pylist()
            ]
            # Each cell as its position in the batch's dictionary; one without a value takes the last entry, -1.
            parts.append(np.array([*numbers, -1], np.int32)[encoded.indices.fill_null(len(numbers)).to_numpy()])
        return np.concatenate(parts) if known else None

    @property
    def raw_ids(self) -> "RawIds":
        """Return the raw ids of all items."""
        return RawIds(self)


class RawIds:
    """The raw ids of all items, which are read when the first one is asked for."""

    def __init__(self, items: ItemTable):
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, item: int) -> str:
        return str(self._column[int(item)])

    @cached_property
    def _column(self) -> "pa.ChunkedArray":
        return self._items.read(["raw_id"])["raw_id"]

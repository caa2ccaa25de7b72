"""Write the typed rows of a log, chunk by chunk, as Parquet with row groups that an engine reads well."""

from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

GROUP_ROWS = 122_880  # DuckDB's own; a core reads a row group at a time


class StagedFile:
    """A Parquet file that is being written.

    Raw ids are as good as all different within a row group, so that no dictionary is tried. The file is read a few
    times and then deleted, so that nothing is compressed, and no statistics are made.
    """

    def __init__(self, path: Path, schema: pa.Schema):
        self.writer = pq.ParquetWriter(path, schema, use_dictionary=False, compression="none", write_statistics=False)
        self.waiting: list[pa.Table] = []
        self.rows = 0  # that wait

    def __enter__(self) -> "StagedFile":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._flush()
        self.writer.close()

    def add(self, table: pa.Table) -> None:
        """Add the next rows."""
        self.waiting.append(table)
        self.rows += len(table)
        if self.rows >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self.waiting:
            self.writer.write_table(pa.concat_tables(self.waiting))
        self.waiting.clear()
        self.rows = 0

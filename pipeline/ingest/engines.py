"""The two engines that run the Ibis expressions of clean.py: DuckDB in this process, or Spark."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import ibis
import pyarrow as pa
from ibis.backends import BaseBackend
from ibis.expr.types import Table

from pipeline.errors import UserError
from pipeline.ingest.config import IngestConfig

BLOCK_ROWS = 100_000  # of a result that are in memory at once
LEAST_ROWS = 2048  # DuckDB never puts fewer into a block
TOO_MUCH_TEXT = "maximum total string size"  # what DuckDB says of a block of which a column of text has above 2 GiB


@dataclass(frozen=True)
class Rows:
    """A table that the engine computes block by block while it is read."""

    schema: pa.Schema
    blocks: Callable[[], Iterator[pa.Table]]

    def mapped(self, schema: pa.Schema, change: Callable[[Iterator[pa.Table]], Iterator[pa.Table]]) -> "Rows":
        """Return the table with its blocks changed; `schema` is that of the changed blocks."""
        return Rows(schema, lambda: change(self.blocks()))

    def read(self) -> pa.Table:
        """Return the whole table."""
        return pa.concat_tables([self.schema.empty_table(), *self.blocks()]).combine_chunks()


class Engine:
    """An Ibis backend, and a folder for the tables that it computes on the way."""

    def __init__(self, backend: BaseBackend, folder: Path):
        self.backend = backend
        self.folder = folder
        self.materialized = 0  # tables written so far
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, path: Path) -> Table:
        return self.backend.read_parquet(str(path))

    def materialize(self, table: Table) -> Table:
        """Compute `table` now, write it as Parquet and return a table that reads this file.

        Ibis' `cache` would not do: on Spark a cached table still carries the plan that made it, and the plan doubles
        with every round of a k-core until printing it fills the memory.
        """
        self.materialized += 1
        path = self.folder / f"{self.materialized}.parquet"
        table.to_parquet(path, compression="uncompressed")  # it is read again soon, a dozen times
        return self.read(path)

    def rows(self, table: Table) -> Rows:
        """Return `table` as blocks of about BLOCK_ROWS, which are computed when they are read."""
        schema = table.schema().to_pyarrow().remove_metadata()

        def blocks() -> Iterator[pa.Table]:
            done, size = 0, BLOCK_ROWS
            while True:
                try:
                    for batch in _after(table.to_pyarrow_batches(chunk_size=size), done):
                        done += batch.num_rows
                        yield pa.Table.from_batches([batch]).cast(schema)
                    return
                except OSError as error:
                    # A column of text has more than 2 GiB in these rows, which DuckDB finds while it fills the block.
                    if TOO_MUCH_TEXT not in str(error):
                        raise
                    if size <= LEAST_ROWS:
                        raise UserError(
                            f"the texts of {LEAST_ROWS:,} items have more than 2 GiB together",
                            "so many rows are in memory at once at least",
                            "cut the longest texts, or lower ingest.max_line_bytes, so that such rows are left out",
                        ) from None
                    size //= 8

        return Rows(schema, blocks)


def _after(batches: Iterable[pa.RecordBatch], done: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows after the first `done` ones; the rows of a table always come in the same order."""
    seen = 0
    for batch in batches:
        seen += batch.num_rows
        if seen > done:
            yield batch.slice(max(0, done - (seen - batch.num_rows)))


@contextmanager
def connect(config: IngestConfig, folder: Path) -> Iterator[Engine]:
    """Open the engine that `ingest.engine` names; DuckDB stays within `memory_limit` and spills to `folder` above it.

    Raises:
        UserError: Spark is not installed, the memory limit is no size, or DuckDB ran out of memory or disk.
    """
    if config.engine == "spark":
        yield Engine(_spark(), folder)
        return
    try:
        # Every result is sorted explicitly, so DuckDB may work in any order.
        connection = ibis.duckdb.connect(
            memory_limit=config.memory_limit, temp_directory=str(folder / "spill"), preserve_insertion_order=False
        )
    except duckdb.Error as error:
        raise UserError(
            f"ingest.memory_limit is {config.memory_limit!r}: {_first_line(error)}",
            "DuckDB does not understand this size",
            "set ingest.memory_limit to a size such as 4GB or 512MB",
        ) from None
    connection.raw_sql("SET enable_progress_bar = false")  # it redraws itself, which is unreadable in a pipe
    try:
        yield Engine(connection, folder)
    except duckdb.Error as error:
        raise UserError(
            f"DuckDB stopped: {_first_line(error)}",
            "nothing that was there before was changed",
            f"raise ingest.memory_limit (now {config.memory_limit}), or free some disk space under {folder.parent}",
        ) from error
    finally:
        connection.disconnect()


def _spark() -> BaseBackend:
    """Start a Spark session with the settings of spark-defaults.conf or PYSPARK_SUBMIT_ARGS (master, memory, ...)."""
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError:
        raise UserError(
            "ingest.engine is spark, but pyspark is not installed",
            "pyspark is large, so it is an extra that is installed only on demand",
            "run `pip install -e '.[spark]'` in the project's folder and install Java 17, or set ingest.engine: duckdb",
        ) from None
    try:
        session = (
            SparkSession.builder.appName("sidpipe ingest")
            .config("spark.sql.session.timeZone", "UTC")
            .config("spark.ui.showConsoleProgress", "false")
            .getOrCreate()
        )
    except PySparkException as error:
        raise UserError(
            f"Spark did not start: {_first_line(error)}",
            "Spark needs Java 17 and correct settings",
            "install Java 17, check spark-defaults.conf and PYSPARK_SUBMIT_ARGS, or set ingest.engine: duckdb",
        ) from None
    return ibis.pyspark.connect(session)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]

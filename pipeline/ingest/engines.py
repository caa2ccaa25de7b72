"""The two engines that run the Ibis expressions of clean.py: DuckDB in this process, or Spark."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import ibis
from ibis.backends import BaseBackend
from ibis.expr.types import Table

from pipeline.errors import UserError
from pipeline.ingest.config import IngestConfig


class Engine:
    """An Ibis backend and a folder for what is computed on the way."""

    def __init__(self, backend: BaseBackend, folder: Path):
        self.backend, self.folder, self.materialized = backend, folder, 0
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, path: Path) -> Table:
        return self.backend.read_parquet(str(path))

    def materialize(self, table: Table) -> Table:
        """`table`, computed now and read back from Parquet.

        Not Ibis' `cache`: on Spark a cached table still carries the plan that made it, which doubles with every pass of
        a k-core until printing it fills the memory.
        """
        self.materialized += 1
        path = self.folder / f"{self.materialized}.parquet"
        table.to_parquet(path)
        return self.read(path)


@contextmanager
def connect(config: IngestConfig, folder: Path) -> Iterator[Engine]:
    """The engine of `ingest.engine`; DuckDB stays within `memory_limit` and goes to `folder` above it.

    Raises:
        UserError: Spark is not installed, the memory limit is no size, or DuckDB ran out of memory or disk.
    """
    if config.engine == "spark":
        yield Engine(_spark(), folder)
        return
    try:
        # Every result is sorted explicitly, so nothing is lost by letting DuckDB work in any order.
        connection = ibis.duckdb.connect(
            memory_limit=config.memory_limit, temp_directory=str(folder / "spill"), preserve_insertion_order=False
        )
    except duckdb.Error as error:
        raise UserError(
            f"ingest.memory_limit is {config.memory_limit!r}: {_first_line(error)}",
            fix="write a size such as 4GB or 512MB",
        ) from None
    connection.raw_sql("SET enable_progress_bar = false")  # it redraws itself, which is unreadable in a pipe
    try:
        yield Engine(connection, folder)
    except duckdb.Error as error:
        raise UserError(
            f"DuckDB stopped: {_first_line(error)}",
            "nothing that was there before was changed",
            f"raise ingest.memory_limit (now {config.memory_limit}) or free space under {folder.parent}",
        ) from error
    finally:
        connection.disconnect()


def _spark() -> BaseBackend:
    """A session with the settings of spark-defaults.conf or PYSPARK_SUBMIT_ARGS (master, memory, ...)."""
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError:
        raise UserError(
            "ingest.engine is spark, but pyspark is not installed",
            "Spark is an extra, it is large",
            "pip install 'sidpipe[spark]' (and Java 17), or set ingest.engine: duckdb",
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
            "it needs Java 17, and its settings to be right",
            "install Java, look at spark-defaults.conf, or set ingest.engine: duckdb",
        ) from None
    return ibis.pyspark.connect(session)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]

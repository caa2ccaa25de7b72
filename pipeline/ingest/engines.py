"""The two engines that run the Ibis expressions of clean.py: DuckDB in this process, or Spark."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import ibis
from ibis.backends import BaseBackend

from pipeline.errors import UserError
from pipeline.ingest.config import IngestConfig


@contextmanager
def connect(config: IngestConfig, spill: Path) -> Iterator[BaseBackend]:
    """The engine of `ingest.engine`; DuckDB stays within `memory_limit` and goes to the folder `spill` above it.

    Raises:
        UserError: Spark is not installed, the memory limit is no size, or DuckDB ran out of memory or disk.
    """
    if config.engine == "spark":
        yield _spark()
        return
    try:
        # Every result is sorted explicitly, so nothing is lost by letting DuckDB work in any order.
        connection = ibis.duckdb.connect(memory_limit=config.memory_limit, temp_directory=str(spill),
                                         preserve_insertion_order=False)
    except duckdb.Error as error:
        raise UserError(f"ingest.memory_limit is {config.memory_limit!r}: {_first_line(error)}",
                        fix="write a size such as 4GB or 512MB") from None
    connection.raw_sql("SET enable_progress_bar = false")  # it redraws itself, which is unreadable in a pipe
    try:
        yield connection
    except duckdb.Error as error:
        raise UserError(f"DuckDB stopped: {_first_line(error)}", "nothing that was there before was changed",
                        f"raise ingest.memory_limit (now {config.memory_limit}) or free space under {spill.parent}"
                        ) from error
    # Not disconnected: Ibis drops its cached tables when they are collected, which after an error is later than here.


def _spark() -> BaseBackend:
    """A session with the settings of spark-defaults.conf or PYSPARK_SUBMIT_ARGS (master, memory, ...)."""
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        raise UserError("ingest.engine is spark, but pyspark is not installed", "Spark is an extra, it is large",
                        "pip install 'sidpipe[spark]' (and Java 17), or set ingest.engine: duckdb") from None
    session = (SparkSession.builder.appName("sidpipe ingest").config("spark.sql.session.timeZone", "UTC")
               .config("spark.ui.showConsoleProgress", "false").getOrCreate())
    return ibis.pyspark.connect(session)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]

"""Time and peak memory of the ingest stage on a synthetic log; prints one table.

    python benchmarks/ingest.py                        # 10 million events, CSV, DuckDB
    python benchmarks/ingest.py 1000000 --format parquet
    python benchmarks/ingest.py 1000000 --engine spark # needs the extra `spark`

Users and items are drawn from skewed popularities, so that the k-core needs several passes; one row in a thousand is
bad. Each size runs in a process of its own, whose peak resident memory is reported (that of Spark's JVM is not in it).
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from defaults import default_params, some

from pipeline.ingest.config import IngestConfig
from pipeline.ingest.stage import run

PART = 1_000_000  # events generated at once


def write_log(path: Path, events: int, seed: int = 0) -> None:
    """A log of `events` rows: a tenth as many users and a fiftieth as many items, log-normal popularity."""
    rng = np.random.default_rng(seed)
    users, items = max(events // 10, 10), max(events // 50, 10)
    chances = [
        np.cumsum(weights) / weights.sum()
        for weights in (rng.lognormal(sigma=1.0, size=users), rng.lognormal(sigma=1.5, size=items))
    ]
    writer = None
    for start in range(0, events, PART):
        size = min(PART, events - start)
        user, item = (np.searchsorted(chance, rng.random(size)) for chance in chances)
        stamps = rng.integers(1_300_000_000, 1_400_000_000, size)
        stamps[rng.random(size) < 0.001] = 0
        table = pa.table(
            {
                "user_id": pa.array(np.char.add("user", user.astype(str))),
                "item_id": pa.array(np.char.add("item", item.astype(str))),
                "timestamp": stamps,
                "rating": rng.integers(1, 6, size).astype(float),
            }
        )
        if writer is None:
            kind = pq.ParquetWriter if path.suffix == ".parquet" else pacsv.CSVWriter
            writer = kind(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def measure(log: Path, engine: str, memory_limit: str) -> dict[str, object]:
    """Run the stage once; returns one row of the table."""
    source = some(IngestConfig, path=str(log), engine=engine, memory_limit=memory_limit)
    params = replace(default_params(), dataset="custom", ingest=source)
    began = time.perf_counter()
    summary = run(params, output=log.parent / "interactions", scratch=log.parent / "scratch")
    seconds = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "events": f"{summary['rows_read']:,}",
        "file": f"{log.stat().st_size / 2**20:,.0f} MiB",
        "engine": f"{engine} {memory_limit}",
        "seconds": f"{seconds:.1f}",
        "CPU seconds": f"{used.ru_utime + used.ru_stime:.1f}",
        "events/s": f"{summary['rows_read'] / seconds:,.0f}",
        "peak GiB": f"{used.ru_maxrss / 2**20:.2f}",
        "passes": summary["k_core_passes"],
        "users": f"{summary['users']:,}",
        "items": f"{summary['items']:,}",
        "interactions": f"{summary['interactions']:,}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("events", type=int, nargs="*", default=[10_000_000], help="sizes to run (default 10000000)")
    parser.add_argument("--format", choices=["csv", "parquet"], default="csv")
    parser.add_argument("--engine", choices=["duckdb", "spark"], default="duckdb")
    parser.add_argument("--memory-limit", default="4GB", help="DuckDB's (default 4GB)")
    args = parser.parse_args()

    rows = []
    for events in args.events:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / f"interactions.{args.format}"
            write_log(log, events)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                rows.append(process.submit(measure, log, args.engine, args.memory_limit).result())
    widths = {name: max(len(name), *(len(str(row[name])) for row in rows)) for name in rows[0]}
    heading: dict[str, Any] = {name: name for name in widths}
    for line in (heading, *rows):
        print("  ".join(str(line[name]).rjust(width) for name, width in widths.items()))


if __name__ == "__main__":
    main()

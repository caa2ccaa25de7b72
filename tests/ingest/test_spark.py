"""`ingest.engine: spark` gives the same bytes as DuckDB. Skipped where the extra `spark` is not installed."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw_logs import Ingest, csv_text, jsonl_text, write

pytest.importorskip("pyspark", reason="no pyspark: pip install 'sidpipe[spark]'")


@pytest.mark.slow
@pytest.mark.parametrize("listed", [False, True], ids=["log only", "with items"])
def test_spark_and_duckdb_write_the_same_bytes(
    ingest: Ingest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: bool
) -> None:
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    options = "--master local[2] --conf spark.ui.enabled=false --conf spark.sql.shuffle.partitions=4 pyspark-shell"
    monkeypatch.setenv("PYSPARK_SUBMIT_ARGS", os.environ.get("PYSPARK_SUBMIT_ARGS", options))
    rng = np.random.default_rng(2)
    rows = [
        (f"u{user}", f"i{item}", 1_400_000_000 + time, stars)
        for user, item, time, stars in zip(
            (rng.beta(1, 3, 3000) * 400).astype(int),
            (rng.beta(1, 3, 3000) * 200).astype(int),
            rng.integers(0, 50, 3000),
            rng.integers(1, 6, 3000),
            strict=True,
        )
    ]
    write(tmp_path / "raw" / "interactions.csv", csv_text([*rows, ("", "", 1, 1)], "user,item,timestamp,rating"))
    if listed:
        names = [f"i{n}" for n in rng.permutation(200)]
        write(tmp_path / "raw" / "items.jsonl", jsonl_text([{"item": n, "title": f"Title é {n}"} for n in names]))

    def outputs(engine: str) -> tuple[dict[str, bytes], dict[str, Any]]:
        result = ingest(tmp_path / "raw", engine=engine, minimum={"rating": 2})
        return {file.name: file.read_bytes() for file in result.folder.iterdir()}, result.summary

    with_duckdb, summary = outputs("duckdb")
    with_spark, _ = outputs("spark")
    assert summary["k_core_passes"] > 1
    assert with_spark == with_duckdb

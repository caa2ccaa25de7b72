"""A log of a million rows has one result: in each form, in any blocks, and in any memory. Minutes."""

from pathlib import Path
from typing import Any

import pytest
from settings import read_params

from benchmarks.scale.logs import Sizes, make
from pipeline.artifacts import read_json
from pipeline.ingest import engines
from pipeline.ingest.stage import run

EVENTS = 1_000_000
OF_THE_LOG = ("interactions.parquet", "users.parquet", "items.parquet", "rejects.parquet", "cut.parquet")


def ingested(folder: Path, output: Path, **settings: Any) -> dict[str, bytes]:
    """The bytes of what ingest writes, and of ingest.json without the checksums of the raw files."""
    params = read_params({"dataset": "custom", "ingest": {"path": str(folder / "log"), **settings}})
    run(params, output=output, scratch=output.parent / "scratch")
    content = {name: (output / name).read_bytes() for name in OF_THE_LOG}
    return content | {"ingest.json": repr(sorted(read_json(output / "ingest.json") | {"sha256": ""})).encode()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("parquet")
    make(folder, Sizes(events=EVENTS, items=50_000, width=0))
    return folder, ingested(folder, folder / "out")


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_each_form_gives_the_same_bytes(tmp_path: Path, expected: tuple[Path, dict[str, bytes]], form: str) -> None:
    make(tmp_path, Sizes(events=EVENTS, items=50_000, width=0, format=form))
    assert ingested(tmp_path, tmp_path / "out") == expected[1]


@pytest.mark.parametrize("rows", [122_880, 10_000_000])
def test_blocks_of_another_engine_give_the_same_bytes(
    tmp_path: Path, expected: tuple[Path, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """DuckDB divides rows by 122,880; Spark gives all at once."""
    monkeypatch.setattr(engines, "BLOCK_ROWS", rows)
    assert ingested(expected[0], tmp_path / "out", memory_limit="500MB") == expected[1]


def test_spark_gives_the_same_bytes(
    tmp_path: Path, expected: tuple[Path, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyspark", reason="no pyspark: pip install 'sidpipe[spark]'")
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    monkeypatch.setenv("PYSPARK_SUBMIT_ARGS", "--master local[2] --conf spark.ui.enabled=false pyspark-shell")
    assert ingested(expected[0], tmp_path / "out", engine="spark") == expected[1]

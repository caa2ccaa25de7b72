"""`benchmarks.scale`: the logs that it makes, and the cost of a stage that it measures."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from benchmarks.scale import logs
from benchmarks.scale.logs import FORMATS, Sizes, make
from benchmarks.scale.measure import run_measured


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several slices of time and several blocks of items, although the logs are small."""
    monkeypatch.setattr(logs, "SLICE", 4_000)
    monkeypatch.setattr(logs, "BLOCK", 300)


def test_a_log_has_its_size_in_the_order_of_time(tmp_path: Path) -> None:
    make(tmp_path, Sizes(events=20_000, items=1000, width=8))
    log = pq.read_table(tmp_path / "log/interactions.parquet")
    times = log["timestamp"].to_numpy()
    lengths = pc.value_counts(log["user"]).field("counts").to_numpy()
    assert abs(len(log) - 20_000) < 1000
    assert (np.diff(times) >= 0).all()
    assert (lengths >= 5).all()
    assert len(lengths) == 20_000 // 14
    items = pq.read_table(tmp_path / "log/items.parquet")
    assert items["item"].to_pylist() == [f"i{item}" for item in range(1000)]
    assert set(log["item"].to_pylist()) <= set(items["item"].to_pylist())


def test_vectors_of_a_cluster_lie_together(tmp_path: Path) -> None:
    make(tmp_path, Sizes(events=2_000, items=1000, width=8))
    table = pq.read_table(tmp_path / "vectors.parquet")
    vectors = np.array(table["vector"].to_pylist())
    assert table["raw_id"].to_pylist() == [f"i{item}" for item in range(1000)]
    centres = vectors.reshape(2, 500, 8).mean(1)
    nearest = ((vectors[:, None] - centres) ** 2).sum(-1).argmin(1)
    assert (nearest == np.arange(1000) // 500).mean() > 0.95


def test_each_form_holds_the_same_rows(tmp_path: Path) -> None:
    for form in FORMATS:
        make(tmp_path / form, Sizes(events=9_000, items=500, width=0, format=form))
    first = pq.read_table(tmp_path / "parquet/log/interactions.parquet")
    second = pacsv.read_csv(tmp_path / "csv/log/interactions.csv")
    rows = [json.loads(line) for line in (tmp_path / "jsonl/log/interactions.jsonl").read_text().splitlines()]
    assert first == second
    assert pa.Table.from_pylist(rows) == first


def test_equal_arguments_make_equal_files_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make(tmp_path / name, Sizes(events=9_000, items=500, width=8, vectors="npy", seed=seed))
    for name in ("log/interactions.parquet", "log/items.parquet", "vectors.npy"):
        one, same, other = ((tmp_path / folder / name).read_bytes() for folder in "abc")
        assert one == same
        assert one != other


def test_the_cost_of_a_process_is_its_own(tmp_path: Path) -> None:
    """300 MB of memory and some computation, between two looks at the memory."""
    code = "import time; block = bytearray(b'1' * 300_000_000); sum(range(3_000_000)); time.sleep(0.3)"
    ended = run_measured([sys.executable, "-c", code], tmp_path, os.environ)
    assert ended["code"] == 0
    assert ended["peak_rss_mib"] > 280
    assert ended["peak_anonymous_mib"] > 280
    assert 0.05 < ended["cpu_seconds"] < ended["wall_seconds"] + 0.5

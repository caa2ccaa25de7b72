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
from benchmarks.scale.page import Row, exponents, plot, series, tables


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


def scale_row(label: str, events: int, seconds: float, **other: object) -> Row:
    sizes = {"events": events, "items": events // 10, "users": events // 14, "width": 64, "format": "parquet"}
    left = {"interactions_left": events // 2, "users_left": events // 28, "items_left": events // 20}
    cost = {"cpu_seconds": seconds, "wall_seconds": 1.0, "peak_rss_mib": 100, "peak_anonymous_mib": 90}
    made_by = {"settings": {}, "commit": "abc", "hardware": "2 cores", "load": 0.5, "output_mib": 1.0}
    return {"label": label, "stage": "ingest", **sizes, **left, **cost, **made_by, **other}


def test_exponents_are_slopes_on_logarithmic_axes() -> None:
    rows = [scale_row("after", 10**n, 2.0 * 3**n) for n in range(3, 7)]
    assert exponents([], "events") == []
    first, *others = exponents(rows, "events")
    assert first is None
    assert others == pytest.approx([np.log10(3)] * 3)


def test_the_tables_have_the_last_measurement_of_each_size() -> None:
    rows = [
        scale_row("after", 1000, 5.0),
        scale_row("before", 1000, 9.0),
        scale_row("after", 1000, 4.0),
        scale_row("after", 100, 1.0),
    ]
    rows.append(scale_row("after", 1000, 7.0, settings={"ingest.k_core": 0, "ingest.path": "/somewhere"}))
    text = tables(rows)
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "| parquet |" in line
    ]
    assert [(line[0], line[2], line[3], line[4], line[5]) for line in cells] == [
        ("before", "", "1,000", "9.0", ""),
        ("after", "", "100", "1.0", ""),
        ("after", "", "1,000", "4.0", "0.60"),
        ("after", "k_core=0", "1,000", "7.0", ""),
    ]
    assert "somewhere" not in text


def test_a_drawing_of_equal_rows_is_equal() -> None:
    rows = [scale_row("after", 10**n, 3.0**n) for n in range(3, 6)]
    first, second = (plot("ingest", series(rows, "ingest")) for _ in range(2))
    assert first == second
    assert first.startswith("<?xml")

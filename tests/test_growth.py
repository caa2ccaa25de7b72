"""Work and memory grow as the log does, in short: counted where it can be, so that a busy machine changes nothing.

docs/scale.md has the measurements at size.
"""

import math
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from settings import read_params, some_params

import pipeline.ingest.clean as cleaning
import pipeline.split.stage as splitting
from benchmarks.scale.logs import Sizes, make
from pipeline import artifacts
from pipeline.artifacts import Embeddings, Interactions, write_parquet
from pipeline.embed import precomputed
from pipeline.embed.precomputed import precomputed_vectors
from pipeline.ingest import engines, id_index
from pipeline.ingest.stage import run
from pipeline.large_files import write_rows

EVENTS = 150_000  # above one chunk of an engine, 122,880 rows


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("logs")
    for events in (EVENTS // 5, EVENTS):
        make(folder / str(events), Sizes(events=events, items=events // 10, width=0))
    return {events: folder / str(events) / "log" for events in (EVENTS // 5, EVENTS)}


def ingest(log: Path, output: Path, **settings: Any) -> dict[str, Any]:
    params = read_params({"dataset": "custom", "ingest": {"path": str(log), **settings}})
    return run(params, output=output, scratch=output.parent / "scratch")


def test_ingest_takes_at_most_the_power_1_2_of_the_rows_and_the_same_bytes_in_other_blocks(
    logs: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CPU seconds grow by about 1; a fixed part makes it less here. The last run has blocks of an odd size."""
    seconds = {}
    for events, log in logs.items():
        began = time.process_time()
        ingest(log, tmp_path / str(events))
        seconds[events] = time.process_time() - began
    assert math.log(seconds[EVENTS] / seconds[EVENTS // 5]) / math.log(5) < 1.2

    monkeypatch.setattr(engines, "BLOCK_ROWS", 33_333)
    ingest(logs[EVENTS], tmp_path / "again", memory_limit="200MB")
    for file in (tmp_path / str(EVENTS)).iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_a_listed_item_is_hashed_once_and_a_row_once(
    logs: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    largest = []
    plain_hash, plain_is_in = id_index.hash_texts, pc.is_in

    def hash_texts(texts: pa.Array) -> np.ndarray:
        hashed.append(len(texts))
        return plain_hash(texts)

    def is_in(values: pa.Array, value_set: pa.Array) -> pa.Array:
        largest.append(len(value_set))
        return plain_is_in(values, value_set)

    monkeypatch.setattr(id_index, "hash_texts", hash_texts)
    monkeypatch.setattr(pc, "is_in", is_in)
    summary = ingest(logs[EVENTS // 5], tmp_path / "out")
    assert sum(hashed) == summary["items_listed"] + summary["rows_read"]
    assert max(largest) < 100  # Arrow hashes this set anew for every chunk


def test_vectors_are_matched_in_less_memory_than_they_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precomputed, "BLOCK_ROWS", 20_000)
    vectors = np.random.default_rng(0).normal(size=(200_000, 32)).astype(np.float32)
    raw_ids = pa.array([f"i{row}" for row in range(len(vectors))])
    np.save(tmp_path / "v.npy", vectors)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 32)
    pq.write_table(pa.table({"raw_id": raw_ids, "v": lists}), tmp_path / "v.parquet", row_group_size=50_000)
    size = vectors.nbytes
    del lists, vectors
    for name in ("v.npy", "v.parquet"):
        tracemalloc.start()
        matched = precomputed_vectors(tmp_path / name, "auto", raw_ids, tmp_path)
        Embeddings.write_blocks(matched.shape, matched.blocks(), {}, tmp_path / "out")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 0.5 * size, name


def test_a_split_holds_no_interaction_twice(tmp_path: Path) -> None:
    """Two mapped files hold the interactions; memory holds a block of them, and a few numbers a user."""
    users, each = 2_000, 200
    rows = users * each
    rng = np.random.default_rng(0)
    columns = {
        "user_id": np.repeat(np.arange(users, dtype=np.int32), each),
        "item_id": rng.integers(0, 500, rows).astype(np.int32),
        "timestamp": np.arange(rows),
    }
    source = Interactions(tmp_path / "log")
    write_parquet(source.log, pa.table(columns))
    write_parquet(source.users, pa.table({"user_id": np.arange(users, dtype=np.int32)}))
    write_parquet(source.items, pa.table({"item_id": np.arange(500, dtype=np.int32)}))
    tracemalloc.start()
    splitting.run(some_params(), interactions=tmp_path / "log", output=tmp_path / "splits")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * rows


@pytest.mark.long
def test_texts_beyond_two_gibibytes_of_a_column_are_written(tmp_path: Path) -> None:
    """Arrow counts the bytes of a text column in 32 bits, so its rows come in several blocks."""
    text = pa.array(["x" * (1 << 20)])
    block = pa.table({"t": text.take(pa.array([0] * 600))})
    rows = write_rows(tmp_path / "t.parquet", block.schema, (block for _ in range(4)))
    assert rows == 2400
    assert pq.read_metadata(tmp_path / "t.parquet").num_rows == 2400


def test_positions_count_on_from_block_to_block() -> None:
    users = [0, 0, 1, 1, 1, 3, 3, 4]
    for size in range(1, 9):
        blocks = [
            pa.table(
                {
                    "user_id": users[at : at + size],
                    "item_id": users[at : at + size],
                    "timestamp": [5] * len(users[at : at + size]),
                }
            )
            for at in range(0, 8, size)
        ]
        found = [n for block in cleaning._with_positions(iter(blocks), 1) for n in block["position"].to_pylist()]
        assert found == [0, 1, 0, 1, 2, 0, 1, 0]


@pytest.mark.parametrize("reader", ["blocks", "vectors"])
def test_a_parquet_file_that_is_read_in_blocks_does_not_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    """Arrow's `pre_buffer` would keep what was read of every row group until the file is closed."""
    rows = 100_000
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.random.default_rng(0).random(40 * rows, np.float32)), 40)
    pq.write_table(pa.table({"v": lists}), tmp_path / "a.parquet", row_group_size=2_000)
    del lists
    monkeypatch.setattr(artifacts, "BLOCK_ROWS", 2_000)
    monkeypatch.setattr(precomputed, "BLOCK_ROWS", 2_000)
    before = pa.total_allocated_bytes()
    most = []
    plain = precomputed._matrix

    def sampled(array: np.ndarray, path: Path) -> np.ndarray:
        most.append(pa.total_allocated_bytes() - before)
        return plain(array, path)

    monkeypatch.setattr(precomputed, "_matrix", sampled)
    if reader == "vectors":
        precomputed_vectors(tmp_path / "a.parquet", "order", [""] * rows, tmp_path)
    else:
        most += [pa.total_allocated_bytes() - before for _ in artifacts.read_blocks(tmp_path / "a.parquet", ["v"])]
    assert len(most) >= rows // 2_000
    assert max(most) < (tmp_path / "a.parquet").stat().st_size / 4

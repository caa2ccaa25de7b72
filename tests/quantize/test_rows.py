"""Rows that are computed when they are read equal those of the whole array at once, to the bit, and hold no copies."""

import tracemalloc
from pathlib import Path

import faiss
import numpy as np
import pytest
from slow_residual import clouds, rkmeans

from pipeline.quantize import neighbours, rows
from pipeline.quantize.quality import quality_metrics
from pipeline.quantize.rkmeans import RKMeans, cluster
from pipeline.quantize.rows import LevelRows, UnitVectors, blocks, unit_rows


def at_once(vectors: np.ndarray, model: RKMeans) -> tuple[np.ndarray, list[np.ndarray], np.ndarray, np.ndarray]:
    """Residual k-means with whole arrays and one search per level: (codes, codebooks, last rows, errors)."""
    left, scales = vectors.astype(np.float32), np.ones(len(vectors))
    codes, books = [], []
    for level in range(model.levels):
        if level and model.normalize_residuals:
            left, lengths = unit_rows(left)
            scales *= lengths
        learned = np.ascontiguousarray(left[np.any(left != 0, axis=1)])
        seed = int(np.random.default_rng([model.seed, level, 0]).integers(2**31 - 1))
        run = faiss.Kmeans(
            left.shape[1],
            model.codes,
            niter=model.iterations,
            seed=seed,
            min_points_per_centroid=1,
            max_points_per_centroid=len(learned),
        )
        run.train(learned)
        assert run.centroids is not None
        index = faiss.IndexFlatL2(left.shape[1])
        index.add(run.centroids)
        nearest = index.search(left, 1)[1][:, 0]
        last, limit = left, 1e-6 * np.linalg.norm(left, axis=1).max()
        left = left - run.centroids[nearest]
        left[np.linalg.norm(left, axis=1) <= limit] = 0
        codes.append(nearest)
        books.append(run.centroids)
    return np.stack(codes, 1), books, last, scales * np.linalg.norm(left.astype(np.float64), axis=1)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("items", [4096, 9001, 13_000])
def test_blocks_change_no_bit(normalize: bool, items: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BLOCK", 4096 * 12)
    vectors = clouds(items, items=items, width=12, centers=200)
    vectors[::97] = 0
    model = rkmeans(codes=32, normalize_residuals=normalize, iterations=5)
    found = model.fit(UnitVectors(vectors))
    codes, books, last, errors = at_once(unit_rows(vectors)[0], model)
    assert (found.codes_IL == codes).all()
    assert [book.tobytes() for book in books] == [book.tobytes() for book in found.codebooks.values()]
    assert np.asarray(found.last_rows_Ik).tobytes() == last.tobytes()
    assert found.errors_I.tobytes() == errors.tobytes()
    assert found.errors_with(codes[:, -1]).tobytes() == errors.tobytes()
    some = np.random.default_rng(0).permutation(items)[:300]
    assert found.last_rows_Ik[some].tobytes() == last[some].tobytes()


@pytest.mark.parametrize("items", [0, 1, 19, 4095, 4096, 8191, 12_288, 50_001])
@pytest.mark.parametrize("width", [0, 1, 3, 700])
def test_blocks_cover_all_rows_once_and_begin_where_faiss_begins_one(items: int, width: int) -> None:
    found = list(blocks((items, width)))
    assert [row for block in found for row in range(block.start, block.stop)] == list(range(items))
    assert all(block.start % rows.QUERIES == 0 for block in found)
    assert all(block.stop - block.start >= rows.QUERIES for block in found[1:])


def test_a_sample_learns_from_so_many_points_and_tells_the_error_of_the_others() -> None:
    vectors = clouds(3, items=6000, width=16, centers=400)
    vectors[:100] = 0
    found = cluster(LevelRows(vectors, normalize=False), 32, 10, seed=4, points_per_code=30)
    assert found.sampled is not None
    assert (found.sampled.points, found.sampled.items) == (960, 5900)
    squares = np.square(vectors[:, None].astype(np.float64) - found.centroids_Vd).sum(-1)
    assert (squares[np.arange(6000), found.codes_I] <= squares.min(1) + 1e-3).all()
    # what all items would give lies between the errors of the sample and of the others
    whole = cluster(LevelRows(vectors, normalize=False), 32, 10, seed=4)
    assert whole.sampled is None
    error_of_all = np.square(vectors - whole.centroids_Vd[whole.codes_I]).sum() / 5900
    of_all = squares.min(1)[100:].mean()  # with the sampled centroids
    assert found.sampled.excess > 0
    assert of_all / error_of_all - 1 < found.sampled.excess
    again = cluster(LevelRows(vectors, normalize=False), 32, 10, seed=4, points_per_code=30)
    assert again.centroids_Vd.tobytes() == found.centroids_Vd.tobytes()


def test_enough_points_for_all_items_is_no_sample() -> None:
    vectors = clouds(5, items=500)
    whole, enough = rkmeans(codes=8).fit(vectors), rkmeans(codes=8, points_per_code=63).fit(vectors)
    assert whole.codes_IL.tobytes() == enough.codes_IL.tobytes()
    assert enough.sampled == ()
    assert len(rkmeans(codes=8, points_per_code=62).fit(vectors).sampled) == 3


def test_memory_is_that_of_the_sample_and_of_a_few_numbers_per_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors on disk are quantized and measured; NumPy's allocations stay far below their size."""
    monkeypatch.setattr(neighbours, "CHUNK", 2**11)  # closeness to the sample, whatever the number of items
    monkeypatch.setattr(rows, "BLOCK", 2**18)
    items, width = 120_000, 96
    path = tmp_path / "vectors.npy"
    mapped = np.lib.format.open_memmap(path, "w+", np.float32, (items, width))
    for block in blocks(mapped.shape):
        mapped[block] = clouds(block.start, items=block.stop - block.start, width=width)
    vectors = np.load(path, mmap_mode="r")
    model = rkmeans(codes=16, iterations=2, points_per_code=40)
    tracemalloc.start()
    try:
        found = model.fit(UnitVectors(vectors))
        fitted = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        quality_metrics(UnitVectors(vectors), found, 16)
        measured = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert fitted < 0.5 * vectors.nbytes
    assert measured < 0.5 * vectors.nbytes

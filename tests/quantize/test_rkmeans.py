"""Residual k-means against a slow reference in float64."""

import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from settings import read_params
from slow_residual import clouds, follow, rkmeans

from pipeline.doctor import check_faiss
from pipeline.errors import UserError
from pipeline.quantize.quantizer import require_items
from pipeline.quantize.rkmeans import kmeans
from pipeline.quantize.rows import unit_rows


@given(st.integers(0, 1000), st.booleans())
@settings(max_examples=8)
def test_each_level_gives_the_nearest_centroid_of_what_the_levels_before_left(seed: int, normalize: bool) -> None:
    vectors = clouds(seed)
    quantized = rkmeans(normalize_residuals=normalize).fit(vectors)
    for item in range(0, len(vectors), 10):
        rebuilt, excess = follow(vectors[item], quantized.codes_IL[item].tolist(), quantized, normalize)
        assert excess < 1e-3  # float32 may take either of two that are equally near
        if quantized.errors_I[item] > 0:
            assert quantized.errors_I[item] == pytest.approx(np.linalg.norm(vectors[item] - rebuilt), abs=1e-4)


def test_centroids_are_the_means_of_their_items_and_none_is_empty() -> None:
    vectors = clouds(1)
    centroids, codes = kmeans(vectors, 16, 100, seed=3)
    assert sorted(set(codes)) == list(range(16))
    for code in range(16):
        assert centroids[code] == pytest.approx(vectors[codes == code].mean(axis=0), abs=1e-4)


def test_a_row_of_zeros_never_becomes_a_centroid() -> None:
    # rows of unit length in many dimensions are farther from each other than from the origin
    rows, _ = unit_rows(np.random.default_rng(0).normal(size=(400, 64)).astype(np.float32))
    rows[:100] = 0
    for seed in range(5):
        centroids, codes = kmeans(rows, 16, 20, seed)
        assert np.bincount(codes[100:], minlength=16).max() < 100
        assert np.linalg.norm(centroids, axis=1).min() > 0.05


def test_fewer_distinct_rows_than_codes_gives_each_its_own() -> None:
    rows = clouds(2, items=10)
    rows[:4] = 0
    centroids, codes = kmeans(rows, 16, 20, seed=0)
    assert (centroids[codes] == rows).all()
    assert len(set(codes[4:])) == 6
    assert len(set(codes[:4])) == 1


def test_as_many_codes_as_items_leaves_nothing_to_later_levels() -> None:
    vectors = clouds(3, items=20)
    quantized = rkmeans(codes=20).fit(vectors)
    assert len(set(quantized.codes_IL[:, 0])) == 20
    assert (quantized.errors_I == 0).all()
    assert len(set(map(tuple, quantized.codes_IL[:, 1:]))) == 1


def test_identical_items_get_identical_codes() -> None:
    vectors = clouds(4)
    vectors[7] = vectors[200] = vectors[31]
    codes = rkmeans().fit(vectors).codes_IL
    assert (codes[[7, 200]] == codes[31]).all()


def test_more_codes_than_items_is_an_error_with_advice() -> None:
    with pytest.raises(UserError, match=r"quantize\.codes is 16, but there are only 9 items") as caught:
        rkmeans().fit(clouds(0, items=9))
    assert caught.value.fix.endswith("square root of items: 3")


@pytest.mark.parametrize("items", [2, 3, 5, 11])
def test_the_number_of_codes_that_is_advised_is_one_that_params_yaml_takes(items: int) -> None:
    with pytest.raises(UserError) as caught:
        require_items(64, items)
    codes = int(caught.value.fix.rpartition(" ")[2])
    read_params({"quantize": {"codes": codes}})
    require_items(codes, items)


def test_a_single_item_is_no_catalogue() -> None:
    with pytest.raises(UserError, match="the catalogue has a single item"):
        require_items(2, 1)


def test_restarts_never_make_the_first_level_worse() -> None:
    vectors = clouds(6)
    errors = []
    for restarts in (1, 6):
        quantized = rkmeans(levels=1, restarts=restarts, iterations=3).fit(vectors)
        errors.append((quantized.errors_I**2).sum())
    assert errors[1] < errors[0]


def test_bytes_depend_on_the_seed_and_not_on_the_number_of_threads() -> None:
    vectors = clouds(7, items=3000, width=32)
    before = faiss.omp_get_max_threads()
    try:
        results = []
        for threads in (1, 2, 7):
            faiss.omp_set_num_threads(threads)
            results.append(rkmeans(codes=64, restarts=2).fit(vectors))
    finally:
        faiss.omp_set_num_threads(before)
    for other in results[1:]:
        assert other.codes_IL.tobytes() == results[0].codes_IL.tobytes()
        assert [book.tobytes() for book in other.codebooks.values()] == [
            book.tobytes() for book in results[0].codebooks.values()
        ]
    assert rkmeans(codes=64, seed=6).fit(vectors).codes_IL.tobytes() != results[0].codes_IL.tobytes()


@pytest.mark.parametrize(
    ("device", "gpus", "taken"), [("auto", 2, True), ("cuda", 1, True), ("cpu", 2, False), ("auto", 0, False)]
)
def test_k_means_runs_on_a_gpu_where_faiss_sees_one(
    device: str, gpus: int, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Kmeans(faiss.Kmeans):
        def __init__(self, *sizes: int, gpu: bool, **settings: Any) -> None:
            asked.append(gpu)
            super().__init__(*sizes, **settings)

    monkeypatch.setattr(faiss, "Kmeans", Kmeans)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: gpus, raising=False)
    rkmeans(levels=1, device=device).fit(clouds(0))
    assert asked == [taken]


def test_a_gpu_that_faiss_cpu_cannot_use_is_an_error_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(faiss, "StandardGpuResources", raising=False)
    with pytest.raises(UserError, match=r"quantize\.device is cuda, but faiss has no GPU") as caught:
        rkmeans(device="cuda").fit(clouds(0))
    assert "-e '.[gpu]'" in caught.value.fix


@pytest.mark.parametrize("error", [RuntimeError, OSError, ImportError])
def test_a_faiss_that_does_not_load_is_one_line(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # faiss-gpu 1.15 raises RuntimeError where a CUDA library is missing, and the linker OSError or ImportError
    (tmp_path / "faiss.py").write_text(f"raise {error.__name__}('faiss-gpu: cuBLAS is missing\\nmore lines')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "faiss")
    with pytest.raises(UserError, match="faiss is installed, but does not load") as caught:
        rkmeans().fit(clouds(0))
    assert caught.value.why == "faiss-gpu: cuBLAS is missing"
    assert "-e '.[gpu]'" in caught.value.fix
    check = check_faiss()
    assert (check.state, check.found) == ("fail", "faiss-gpu: cuBLAS is missing")


def test_without_faiss_the_error_names_the_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match="faiss is not installed") as caught:
        rkmeans().fit(clouds(0))
    assert "-e '.[cpu]'" in caught.value.fix
    assert "-e '.[gpu]'" in caught.value.fix

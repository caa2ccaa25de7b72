"""An index of item vectors against the products with all of them, in float64."""

import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.decoding.item_index import EMPTY, ENOUGH, INDEX, ItemIndex, build_index, kind_of, read_index
from pipeline.errors import UserError
from pipeline.manifest import seal


def vectors_and_states(items: int = 3000, width: int = 16, queries: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(40, width))
    vectors = centres[rng.integers(0, 40, items)] + rng.normal(size=(items, width))
    return vectors.astype(np.float32), rng.normal(size=(queries, width)).astype(np.float32)


def brute_force(vectors: np.ndarray, states: np.ndarray, k: int) -> np.ndarray:
    """The first k items, of equal scores the smaller id first."""
    return np.argsort(-(states.astype(float) @ vectors.T.astype(float)), axis=1, kind="stable")[:, :k]


def test_flat_finds_what_the_products_of_all_items_say() -> None:
    vectors, states = vectors_and_states()
    index, figures = build_index("flat", vectors, states, seed=1)
    assert figures == {"recall_at_10": 1.0, "recall_at_200": 1.0}
    for k in (1, 10, 250):
        items, scores = index.search(states, k)
        assert items.tolist() == brute_force(vectors, states, k).tolist()
        exact = np.take_along_axis(states.astype(float) @ vectors.T, items, 1)
        np.testing.assert_allclose(scores, exact, rtol=1e-5, atol=1e-5)


def test_of_equal_items_those_with_the_smaller_ids_are_listed() -> None:
    rng = np.random.default_rng(4)
    few = rng.integers(-3, 4, size=(6, 8)).astype(np.float32)  # whole numbers, so that equal is equal
    vectors = np.repeat(few, 7, axis=0)[rng.permutation(42)]
    states = rng.integers(-3, 4, size=(30, 8)).astype(np.float32)
    index, _ = build_index("flat", vectors, states, seed=1)
    for k in (3, 10, 42, 50):
        assert index.search(states, k)[0].tolist() == brute_force(vectors, states, k).tolist()


def test_ivf_looks_at_as_many_groups_as_the_bound_wants() -> None:
    vectors, states = vectors_and_states()
    index, figures = build_index("ivf", vectors, states, seed=1)
    assert figures["recall_at_200"] >= ENOUGH
    assert 1 <= figures["probes"] <= figures["groups"]
    found, exact = index.search(states, 200)[0], brute_force(vectors, states, 200)
    share = np.mean([len(set(one) & set(other)) / 200 for one, other in zip(found, exact, strict=True)])
    assert figures["recall_at_200"] == pytest.approx(share, abs=1e-6)
    # It is the smallest power of 2: half as many groups do not do.
    index.index.nprobe = max(1, int(figures["probes"]) // 2)
    fewer = index.search(states, 200)[0]
    share = np.mean([len(set(one) & set(other)) / 200 for one, other in zip(fewer, exact, strict=True)])
    assert share < ENOUGH or figures["probes"] == 1
    again, _ = build_index("ivf", vectors, states, seed=1)
    again.index.nprobe = index.index.nprobe
    assert again.search(states, 50)[0].tolist() == index.search(states, 50)[0].tolist()


def test_a_row_with_fewer_items_than_slots_is_filled_up_with_nothing() -> None:
    vectors, states = vectors_and_states()
    index, _ = build_index("ivf", vectors, states, seed=1)
    index.index.nprobe = 1
    items, scores = index.search(states, 2000)
    assert ((items == EMPTY) == np.isneginf(scores)).all()
    assert (items == EMPTY).any()
    for row in items:
        listed = row[row != EMPTY]
        assert len(set(listed.tolist())) == len(listed)


@pytest.mark.parametrize("items", [1, 2, 38, 80])
def test_a_catalogue_of_a_few_items_has_an_index(items: int) -> None:
    vectors, states = vectors_and_states(items)
    for kind in ("flat", "ivf"):
        index, _ = build_index(kind, vectors, states, seed=1)
        assert index.search(states, 10)[0].tolist() == brute_force(vectors, states, 10).tolist()


def test_a_written_index_is_read_and_a_damaged_or_foreign_one_refused(tmp_path: Path) -> None:
    vectors, states = vectors_and_states()
    assert read_index(tmp_path, 3000, 16) == (None, "")
    index, _ = build_index("ivf", vectors, states, seed=1)
    index.write(tmp_path)
    seal(tmp_path, "dense")
    read, unused = read_index(tmp_path, 3000, 16)
    assert isinstance(read, ItemIndex)
    assert not unused
    assert read.index.nprobe == index.index.nprobe
    assert read.search(states, 20)[0].tolist() == index.search(states, 20)[0].tolist()
    with pytest.raises(UserError, match="3000 items of width 16, the model 2999"):
        read_index(tmp_path, 2999, 16)
    content = (tmp_path / INDEX).read_bytes()
    (tmp_path / INDEX).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="is not the file that"):
        read_index(tmp_path, 3000, 16)
    (tmp_path / INDEX).write_bytes(content[: len(content) // 2])
    seal(tmp_path, "dense")
    with pytest.raises(UserError, match="cannot be read"):
        read_index(tmp_path, 3000, 16)


def test_without_faiss_auto_scores_every_item_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kind_of("auto", 200_000) == ("exact", "")
    assert kind_of("auto", 200_001) == ("ivf", "")
    monkeypatch.setitem(sys.modules, "faiss", None)
    kind, why = kind_of("auto", 200_001)
    assert kind == "exact"
    assert "faiss is not installed" in why
    assert kind_of("exact", 10) == kind_of("auto", 10) == ("exact", "")
    for asked in ("flat", "ivf"):
        with pytest.raises(UserError, match=f"dense.index {asked} needs faiss"):
            kind_of(asked, 10)
    (tmp_path / INDEX).write_bytes(b"an index")
    read, unused = read_index(tmp_path, 10, 4)
    assert read is None
    assert "every item is scored" in unused


def test_a_small_catalogue_makes_an_index_without_a_word_of_faiss(capfd: pytest.CaptureFixture[str]) -> None:
    vectors = np.random.default_rng(0).standard_normal((23, 4), np.float32)
    _, figures = build_index("ivf", vectors, vectors[:5], seed=1)
    assert figures["recall_at_10"] == 1.0
    assert capfd.readouterr() == ("", "")

"""Counting lists what brute force over the catalogue lists, whichever form computes it."""

import numpy as np
import pytest
import torch

from pipeline.artifacts import Splits
from pipeline.views import lists
from pipeline.views.counting import Counting, count_and_choose
from pipeline.views.fusion import EMPTY, Listed
from pipeline.views.lists import SMOOTHING, Dense, Sparse, counting_view

ITEMS, USERS, LENGTH = 40, 30, 9


@pytest.fixture(scope="module")
def counted() -> Counting:
    rng = np.random.default_rng(0)
    ends = LENGTH * np.arange(1, USERS + 1)
    splits = Splits(
        items_N=rng.integers(0, ITEMS - 5, USERS * LENGTH).astype(np.int32),
        timestamps_N=np.arange(USERS * LENGTH),
        offsets=np.append(0, ends),
        train_end=ends - 2,
        valid_target=ends - 2,
        test_target=ends - 1,
        summary={"max_history": 6, "items": ITEMS},
    )
    return count_and_choose(splits, window=2, neighbours=8)


def brute_force(counted: Counting, history: list[int], backward: float) -> np.ndarray:
    """The score of every item, from one loop over the neighbours of each item of the history; float64."""
    scores = np.zeros(ITEMS)
    pairs = counted.pairs
    for age, item in enumerate(reversed(history), start=1):
        for entry in range(pairs.starts[item], pairs.starts[item + 1]):
            weight = pairs.after_E[entry] + backward * pairs.before_E[entry]
            scores[pairs.items_E[entry]] += weight / max(counted.counts_I[item], 1) ** 0.5 / age
    return scores


def check(listed: Listed, counted: Counting, histories: list[list[int]], backward: float, entries: int) -> None:
    np.testing.assert_allclose(listed.floor_W, np.log(SMOOTHING), rtol=1e-6)
    for history, items_E, scores_E in zip(histories, listed.items_WE.numpy(), listed.scores_WE.numpy(), strict=True):
        scores = brute_force(counted, history, backward).round(12)
        found = items_E[items_E != EMPTY]
        assert len(found) == len(set(found)) == min(entries, np.count_nonzero(scores))
        np.testing.assert_allclose(scores[found], -np.sort(-scores)[: len(found)])
        shares = scores[found] / max(scores.sum(), 1e-30)
        np.testing.assert_allclose(scores_E[: len(found)], np.log(shares + SMOOTHING), rtol=1e-6)
        assert not scores_E[len(found) :].any()


@pytest.mark.parametrize("backward", [0.0, 0.25, 1.0])
@pytest.mark.parametrize(("entries", "neighbours"), [(200, 2**22), (5, 2**22), (5, 1), (7, 30)])
def test_both_forms_list_what_brute_force_does(
    counted: Counting, monkeypatch: pytest.MonkeyPatch, backward: float, entries: int, neighbours: int
) -> None:
    """Items repeat in a history, some have no neighbour, scores tie, and a block may be a single history."""
    rng = np.random.default_rng(entries)
    monkeypatch.setattr(lists, "ENTRIES", entries)
    monkeypatch.setattr(lists, "NEIGHBOURS", neighbours)
    monkeypatch.setattr(lists, "SCORES", 3 * ITEMS)
    monkeypatch.setattr(lists, "BLOCK_ITEMS", 7)
    histories = [rng.integers(0, ITEMS, rng.integers(1, 7)).tolist() for _ in range(12)] + [[ITEMS - 1], [3, 3, 3]]
    items, offsets = np.concatenate(histories), np.cumsum([0, *map(len, histories)])
    for view in (Sparse(counted, backward), Dense.of(counted, torch.device("cpu"), backward)):
        check(view.list(items, offsets), counted, histories, backward, entries)


def test_of_equal_scores_the_sparse_form_lists_the_smaller_ids(
    counted: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "ENTRIES", 3)
    ties = 0
    for item in range(ITEMS):
        scores = brute_force(counted, [item], 1.0)
        order = [other for other in np.lexsort((np.arange(ITEMS), -scores.round(12))) if scores[other]][:3]
        listed = Sparse(counted, 1.0).list(np.array([item]), np.array([0, 1])).items_WE[0].numpy()
        assert listed[: len(order)].tolist() == order
        ties += int(len(order) == 3 and np.count_nonzero(scores.round(12) >= scores[order[-1]].round(12)) > 3)
    assert ties > 5


def test_a_large_catalogue_is_sparse_on_the_cpu(counted: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(counting_view(counted, "cpu"), Dense)
    monkeypatch.setattr(lists, "DENSE_ITEMS", ITEMS - 1)
    assert isinstance(counting_view(counted, "cpu"), Sparse)

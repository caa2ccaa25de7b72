"""The fusion equals brute force over the whole catalogue in float64, and its weights come from validation alone."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.metrics import ndcg_at, recall_at
from pipeline.views.fusion import EMPTY, Candidates, Listed, as_list, best_first, target_ranks_of, union
from pipeline.views.weights import GRID, TEMPERATURES, FusionWeights, ValidBatch, best, by_subset, fit, in_history

ITEMS = 15


def random_list(rng: np.random.Generator, windows: int, entries: int, margin: float = 1.0) -> Listed:
    """Lists of random length in random order, with some equal scores; unused slots are anywhere."""
    items = np.stack([rng.permutation(ITEMS)[:entries] for _ in range(windows)])
    items = np.where(rng.random(items.shape) < 0.3, EMPTY, items)
    scores = np.round(rng.normal(size=items.shape), 1).astype(np.float32)
    return as_list(torch.from_numpy(items), torch.from_numpy(scores), margin)


def brute_force(lists: list[Listed], slopes: list[float], window: int) -> np.ndarray:
    """The score of every item of the catalogue, as the docstring of `fusion` defines it, float64."""
    scores = np.zeros(ITEMS)
    for view, slope in zip(lists, slopes, strict=True):
        items = view.items_WE[window].tolist()
        for item in range(ITEMS):
            value = view.scores_WE[window, items.index(item)] if item in items else view.floor_W[window]
            scores[item] += slope * float(value)
    return scores


@given(st.integers(0, 2**31), st.integers(1, 3), st.booleans())
@settings(max_examples=60)
def test_the_ranking_equals_brute_force_over_the_whole_catalogue(seed: int, views: int, drop_seen: bool) -> None:
    rng = np.random.default_rng(seed)
    lists = [random_list(rng, 4, int(rng.integers(1, ITEMS))) for _ in range(views)]
    slopes = rng.choice([0.0, 0.25, 0.5, 1.0, 2.0], views).tolist()
    seen = torch.from_numpy(rng.integers(-1, ITEMS, (4, 3)))
    candidates = union(lists)
    scores_WJ = candidates.scores(torch.tensor(slopes))
    items, scores = best_first(candidates.items_WJ, scores_WJ, seen if drop_seen else None)
    for window in range(4):
        expected = brute_force(lists, slopes, window)
        listed_items = {item for view in lists for item in view.items_WE[window].tolist() if item >= 0}
        dropped = set(seen[window].tolist()) if drop_seen else set()
        order = sorted(listed_items - dropped, key=lambda item: (-round(float(expected[item]), 5), item))
        found = [item for item in items[window].tolist() if item >= 0]
        # Scores that are equal on paper may differ in the last bit: the order of scores is what is compared.
        assert sorted(found) == sorted(order)
        np.testing.assert_allclose(expected[found], expected[order], atol=1e-5)
        base = sum(slope * float(view.floor_W[window]) for view, slope in zip(lists, slopes, strict=True))
        np.testing.assert_allclose(scores[window, : len(found)] + base, expected[order], atol=1e-5)
        # No item outside the lists is above one inside.
        outside = [item for item in range(ITEMS) if item not in listed_items]
        if found and outside:
            assert expected[outside].max() <= expected[found].min() + 1e-5
        for target in range(ITEMS):
            ranks = target_ranks_of(candidates.items_WJ, scores_WJ, torch.full((4,), target))
            everything = sorted(listed_items, key=lambda item: (-round(float(expected[item]), 5), item))
            if target not in listed_items:
                assert ranks[window] == 0
            else:
                assert expected[everything[int(ranks[window]) - 1]] == pytest.approx(expected[target], abs=1e-5)


def test_equal_scores_are_ordered_by_item_id() -> None:
    lists = [as_list(torch.tensor([[9, 4, 6]]), torch.tensor([[1.0, 1.0, 2.0]]), 1.0)]
    candidates = union(lists)
    items, _ = best_first(candidates.items_WJ, candidates.scores(torch.tensor([1.0])))
    assert items.tolist() == [[6, 4, 9]]
    ranks = [
        int(target_ranks_of(candidates.items_WJ, candidates.scores(torch.tensor([1.0])), torch.tensor([item])))
        for item in (6, 4, 9, 5)
    ]
    assert ranks == [1, 2, 3, 0]


def test_the_order_of_the_lists_and_of_their_entries_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    lists = [random_list(rng, 6, 9) for _ in range(3)]
    shuffled = [
        Listed(view.items_WE[:, order], view.scores_WE[:, order], view.floor_W)
        for view in lists
        for order in [torch.from_numpy(rng.permutation(9))]
    ]
    one, other = union(lists), union(shuffled[::-1])
    assert torch.equal(one.items_WJ.sort(1).values, other.items_WJ.sort(1).values)
    weights = torch.tensor([1.0, 2.0, 0.5])
    for mine, theirs in zip(
        best_first(one.items_WJ, one.scores(weights)),
        best_first(other.items_WJ, other.scores(weights.flip(0))),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def random_batches(rng: np.random.Generator) -> list[ValidBatch]:
    return [
        ValidBatch(
            union([random_list(rng, 40, 8) for _ in range(3)]),
            torch.from_numpy(rng.integers(0, ITEMS, 40)),
            torch.from_numpy(rng.integers(-1, ITEMS, (40, 3))),
        )
        for _ in range(2)
    ]


@pytest.mark.parametrize("drop_seen", [False, True])
def test_every_trial_is_measured_as_a_slow_ranking_does(drop_seen: bool) -> None:
    batches = random_batches(np.random.default_rng(0))
    views = ("generator", "dense", "counting")
    temperatures, trials = fit(batches, views, drop_seen=drop_seen)
    assert len(trials) == len({trial.weights for trial in trials}) == len(GRID) ** 2 + len(GRID) + 1
    for trial in trials[::9]:
        slopes = torch.tensor([w / temperatures[view] for w, view in zip(trial.weights, views, strict=True)])
        ranks = []
        for batch in batches:
            seen = batch.seen_WM if drop_seen else None
            items, _ = best_first(batch.candidates.items_WJ, batch.candidates.scores(slopes), seen)
            for row, target in zip(items.tolist(), batch.targets_W.tolist(), strict=True):
                ranks.append(row.index(target) + 1 if target in row else 0)
        assert trial.recall_at_10 == recall_at(np.array(ranks), 10)
        assert trial.ndcg_at_10 == pytest.approx(ndcg_at(np.array(ranks), 10))


def test_the_best_trial_of_each_subset_uses_these_views_and_no_other() -> None:
    views = ("generator", "dense", "counting")
    _, trials = fit(random_batches(np.random.default_rng(1)), views, drop_seen=False)
    subsets = by_subset(trials, views)
    names = ["+".join(chosen) for size in (1, 2, 3) for chosen in itertools.combinations(views, size)]
    assert list(subsets) == names
    for name, weights in subsets.items():
        assert list(weights) == name.split("+")
        assert all(weights.values())
    assert best(trials).worth == max(trial.worth for trial in trials)


def test_a_temperature_is_the_likeliest_one() -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(4000, ITEMS))
    for true in (0.5, 1.0, 2.0):
        # Targets follow the softmax of logits; the view states them as if it were less or more sure.
        chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        targets = [rng.choice(ITEMS, p=row) for row in chances]
        items = torch.arange(ITEMS).expand(4000, -1)
        view = as_list(items, torch.from_numpy((logits * true).astype(np.float32)), 1.0)
        batch = ValidBatch(union([view]), torch.tensor(targets), torch.full((4000, 1), EMPTY))
        temperatures, _ = fit([batch], ("generator",), drop_seen=False)
        assert temperatures["generator"] == pytest.approx(true, rel=0.2)
        assert temperatures["generator"] in TEMPERATURES


def test_items_of_the_history_are_found() -> None:
    items = torch.tensor([[1, 4, EMPTY], [2, 4, 7]])
    assert in_history(items, torch.tensor([[4, EMPTY], [7, 2]])).tolist() == [[False, True, True], [True, False, True]]


FUSION = FusionWeights(
    weights={"generator": 1.0, "counting": 0.5},
    temperatures={"generator": 2.0, "counting": 1.0},
    backward=1.0,
    subsets={"generator": {"generator": 1.0}},
    entries={"counting": 200},
    margin=1.0,
    smoothing=1e-4,
    drop_seen=True,
    trials=9,
    valid_users=10,
    valid_recall_at_10=0.5,
    valid_ndcg_at_10=0.25,
    models={},
)


def test_the_folder_is_read_as_it_was_written_and_damage_is_named(tmp_path: Path) -> None:
    FUSION.write(tmp_path)
    assert FusionWeights.read(tmp_path) == FUSION
    assert FUSION.slopes().tolist() == [0.5, 0.5]
    assert FUSION.slopes({"counting": 1.0}).tolist() == [0, 1]
    text = (tmp_path / "fusion.json").read_text()
    (tmp_path / "manifest.json").unlink()
    for wrong in ('"generator": 0.0', '"counting": NaN', '"dense": 2.0', '"generator": "x"'):
        (tmp_path / "fusion.json").write_text(text.replace('"generator": 2.0', wrong))
        with pytest.raises(UserError, match=r"fusion\.json cannot be read"):
            FusionWeights.read(tmp_path)
    (tmp_path / "fusion.json").unlink()
    with pytest.raises(UserError, match="is not here"):
        FusionWeights.read(tmp_path)


def test_a_window_without_any_entry_has_no_ranking() -> None:
    nothing = as_list(torch.full((1, 2), EMPTY), torch.zeros(1, 2), 1.0)
    candidates = union([nothing, nothing])
    assert isinstance(candidates, Candidates)
    assert (candidates.items_WJ < 0).all()
    assert target_ranks_of(candidates.items_WJ, candidates.scores(torch.ones(2)), torch.tensor([3])).tolist() == [0]

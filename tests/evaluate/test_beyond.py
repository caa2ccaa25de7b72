"""What a model shows, on cases small enough to count by hand."""

import numpy as np
import pytest

from pipeline.evaluate.beyond import beyond_hits, calibration, diversity, long_tail

COUNTS = np.array([1, 6, 2, 1, 0])
EMPTY = -2


def test_the_head_is_the_fewest_items_with_four_fifths_of_the_interactions() -> None:
    assert long_tail(COUNTS).tolist() == [True, False, False, True, True]


def test_figures_of_two_users_by_hand() -> None:
    top_UK = np.array([[1, 2, EMPTY], [1, 0, 4]])
    found = beyond_hits(top_UK, COUNTS, np.array([1, 3]), np.array([0, 0, 1, 1, 1]), np.array([5, 5, 6, -1, 6]))
    assert found["coverage_at_10"] == 4 / 5
    assert found["long_tail_share_at_10"] == 2 / 5
    assert found["long_tail_share_of_targets"] == 1 / 2
    assert found["popularity_bias_at_10"] == pytest.approx((6 + 2 + 6 + 1 + 0) / 5 / 3.5)
    bits = [-np.log2(count / 10) for count in (6, 2, 6, 1, 1)]  # item 4 counts as one with one interaction
    assert found["novelty_at_10"] == pytest.approx(np.mean(bits))
    assert found["code_diversity_at_10"] == pytest.approx((1 + 2 / 3) / 2)  # 0 1; 0 0 1
    assert found["category_diversity_at_10"] == pytest.approx((1 + 2 / 3) / 2)  # 5 6; 5 5 6


def test_items_without_a_category_and_users_without_a_pair_are_left_out_of_diversity() -> None:
    kinds = np.array([7, -1, 8])
    assert diversity(np.array([[0, 1, 2], [1, 0, EMPTY]]), kinds) == 1.0
    assert diversity(np.array([[1, 0, EMPTY]]), kinds) == 0.0


def test_a_model_that_shows_one_list_to_all_is_seen_to_collapse() -> None:
    same = beyond_hits(np.tile([0, 1, 2], (50, 1)), np.full(100, 3), np.arange(50), np.arange(100))
    own = beyond_hits(np.arange(150).reshape(50, 3) % 100, np.full(100, 3), np.arange(50), np.arange(100))
    assert (same["coverage_at_10"], own["coverage_at_10"]) == (0.03, 1.0)
    assert "category_diversity_at_10" not in same


def test_true_probabilities_are_calibrated_and_twice_as_large_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    chance_U = rng.random(20_000) / 2
    ranks_U = np.where(rng.random(20_000) < chance_U, 1, 0)
    right, boastful = calibration(chance_U, ranks_U), calibration(2 * chance_U, ranks_U)
    assert right["expected_recall_at_10"] == pytest.approx(0.25, abs=0.01)
    assert right["calibration_error_at_10"] < 0.02
    assert boastful["calibration_error_at_10"] == pytest.approx(0.25, abs=0.02)

"""Intervals have the width that theory gives, and columns are resampled together."""

import numpy as np
import pytest
from scipy import stats

from pipeline.results.bootstrap import interval, resampled_means


@pytest.mark.parametrize(("users", "hits"), [(200, 20), (5000, 400)])
def test_the_interval_of_a_share_is_the_binomial_one(users: int, hits: int) -> None:
    values_UV = np.repeat([1.0, 0.0], [hits, users - hits])[:, None]
    low, high = interval(resampled_means(values_UV, 20_000, seed=1))
    expected = stats.binom.ppf([0.025, 0.975], users, hits / users) / users
    np.testing.assert_allclose([low[0], high[0]], expected, atol=1.5 / users)


def test_resampling_distinct_rows_equals_resampling_users_one_by_one() -> None:
    rng = np.random.default_rng(2)
    values_UV = rng.choice([0.0, 0.3, 1.0], (60, 2))
    slow = np.array([values_UV[rng.integers(0, 60, 60)].mean(0) for _ in range(20_000)])
    fast = resampled_means(values_UV, 20_000, seed=3)
    np.testing.assert_allclose(fast.mean(0), slow.mean(0), atol=0.003)
    np.testing.assert_allclose(np.cov(fast.T), np.cov(slow.T), rtol=0.06, atol=1e-4)


def test_equal_columns_stay_equal_in_every_resample() -> None:
    column = np.random.default_rng(4).random(50)
    draws = resampled_means(np.stack([column, column], 1), 100, seed=5)
    np.testing.assert_allclose(draws[:, 0], draws[:, 1])
    assert draws[:, 0].std() > 0


def test_95_of_100_intervals_cover_the_truth() -> None:
    rng, covered = np.random.default_rng(6), 0
    for repeat in range(300):
        sample = (rng.random((400, 1)) < 0.1).astype(float)
        low, high = interval(resampled_means(sample, 400, seed=repeat))
        covered += low[0] <= 0.1 <= high[0]
    assert 0.91 <= covered / 300 <= 0.98


def test_one_seed_gives_one_answer_and_many_samples_are_drawn_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values_UV = np.random.default_rng(7).random((30, 3))
    whole = resampled_means(values_UV, 50, seed=8)
    np.testing.assert_array_equal(whole, resampled_means(values_UV, 50, seed=8))
    monkeypatch.setattr("pipeline.results.bootstrap.CHUNK", 70)
    np.testing.assert_allclose(whole, resampled_means(values_UV, 50, seed=8))

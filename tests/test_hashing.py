"""Samples by hash: as the slow definition has them, equal for equal ids, and without a preference."""

import numpy as np
import pytest

from pipeline.hashing import hasher, sample_rows


@pytest.mark.parametrize("most", [1, 7, 99, 100])
def test_a_sample_is_the_ids_with_the_smallest_hashes(most: int) -> None:
    ids = np.sort(np.random.default_rng(0).permutation(1000)[:100])
    hashed = {int(i): int(hasher(3)(np.array([i], np.uint64))[0]) for i in ids}
    expected = sorted(sorted(hashed, key=hashed.__getitem__)[:most])
    assert ids[sample_rows(ids, most, 3)].tolist() == expected


def test_all_ids_are_taken_where_there_are_no_more_or_0_is_asked_for() -> None:
    ids = np.arange(5) * 3
    for most in (0, 5, 6, 10**9):
        assert sample_rows(ids, most, 1).tolist() == [0, 1, 2, 3, 4]
    assert sample_rows(np.array([], np.int64), 3, 1).tolist() == []


def test_a_smaller_sample_is_part_of_a_larger_one_and_users_who_leave_change_nothing_else() -> None:
    ids = np.arange(2000)
    small, large = sample_rows(ids, 100, 1), sample_rows(ids, 400, 1)
    assert set(small) <= set(large)
    left = np.setdiff1d(ids, small[:10])
    assert set(small[10:]) <= set(left[sample_rows(left, 100, 1)])
    assert set(small) != set(sample_rows(ids, 100, 2))


def test_a_sample_prefers_no_ids() -> None:
    picked = sample_rows(np.arange(100_000), 10_000, 1)
    parts = np.bincount(picked // 10_000, minlength=10)
    assert np.abs(parts - 1000).max() < 5 * 30  # five standard deviations of a binomial count
    assert abs((picked % 2).mean() - 0.5) < 0.025

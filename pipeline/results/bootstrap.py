"""Compute how far a mean over users could have been off: 95% intervals by resampling users.

Shape legend: U users, M values of each user (metrics), R resamples, C distinct rows of values.
"""

import numpy as np

LEVEL = 0.95
CHUNK = 2**24  # draws held at once


def resampled_means(values_UM: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Return means over users drawn with replacement, the same users for all M columns; float64 [R, M].

    Users with equal rows are interchangeable, so a resample is one multinomial draw over the distinct rows: exactly
    the bootstrap of Efron 1979, without an index per user.
    """
    # Gains of one metric, 1 0 0 1 0 -> rows 0, 1 with counts 3, 2: a resample draws 5 users, each a 1 with chance 2/5.
    rows_CM, counts_C = np.unique(values_UM, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    users = len(values_UM)
    chunk = max(1, CHUNK // len(rows_CM))
    parts = [
        rng.multinomial(users, counts_C / users, size=min(chunk, samples - start)) @ rows_CM
        for start in range(0, samples, chunk)
    ]
    return np.concatenate(parts) / users


def interval(draws_RM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and upper end of the central 95% of the resamples, [M] each (scalars for draws [R])."""
    low, high = np.quantile(draws_RM, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high

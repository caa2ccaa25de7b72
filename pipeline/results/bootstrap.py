"""How far a mean over users could have been off: 95% intervals by resampling users.

Shape legend: U users, V values of each user, R resamples, C distinct rows of values.
"""

import numpy as np

LEVEL = 0.95
CHUNK = 2**24  # draws held at once


def resampled_means(values_UV: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Means over users drawn with replacement, the same users for all V columns. float64 [R, V].

    Users with equal rows are interchangeable, so a resample is one multinomial draw over the distinct rows: exactly
    the bootstrap of Efron 1979, without an index per user.
    """
    rows_CV, counts_C = np.unique(values_UV, axis=0, return_counts=True)
    rng, users = np.random.default_rng(seed), len(values_UV)
    chunk = max(1, CHUNK // len(rows_CV))
    parts = [
        rng.multinomial(users, counts_C / users, size=min(chunk, samples - start)) @ rows_CV
        for start in range(0, samples, chunk)
    ]
    return np.concatenate(parts) / users


def interval(draws_RV: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the central 95% of the resamples, [V] each."""
    low, high = np.quantile(draws_RV, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high

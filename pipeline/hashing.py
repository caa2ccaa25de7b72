"""Compute each random number as a hash of what it is for, so that no stream has to be replayed to find it again.

Shape legend: n numbers that are wanted at once, U ids of which some are drawn.
"""

from collections.abc import Callable

import numpy as np

Hash = Callable[[np.ndarray], np.ndarray]


def hasher(*words: int) -> Hash:
    """Return splitmix64 (Steele, Lea, Flood 2014), keyed by `words` (not negative): uint64 [n] -> uint64 [n]."""
    key = np.random.SeedSequence(list(words)).generate_state(1, np.uint64)

    def hashed(x_n: np.ndarray) -> np.ndarray:
        z_n = (x_n + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + key
        z_n = (z_n ^ (z_n >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z_n = (z_n ^ (z_n >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z_n ^ (z_n >> np.uint64(31))

    return hashed


def sample_rows(ids_U: np.ndarray, most: int, *words: int) -> np.ndarray:
    """Return the rows of a sample of `most` ids, ascending, int64; all rows where there are no more, or `most` is 0.

    An id is in the sample by its hash alone, keyed by `words`: equal ids and words give equal samples, and a smaller
    sample is part of a larger one.

    Args:
        ids_U: distinct whole numbers from 0.
        most: size of the sample.
        words: the purpose of the sample.
    """
    if most == 0 or len(ids_U) <= most:
        return np.arange(len(ids_U))
    hash_U = hasher(*words)(np.asarray(ids_U).astype(np.uint64))
    # Splitmix64 is a bijection, so that distinct ids have distinct hashes and the sample does not depend on any order.
    rows: np.ndarray = np.sort(np.argpartition(hash_U, most - 1)[:most])
    return rows


def unit(hash_n: np.ndarray) -> np.ndarray:
    """Map hashes, uint64 [n], to numbers in [0, 1), float64 [n]."""
    return (hash_n >> np.uint64(11)) * 2.0**-53

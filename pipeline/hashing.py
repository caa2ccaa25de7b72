"""Random numbers as hashes of what they are for: any of them is computed on its own, and no stream has to be replayed.

Shape legend: W numbers wanted at once.
"""

from collections.abc import Callable

import numpy as np

Hash = Callable[[np.ndarray], np.ndarray]


def hasher(*words: int) -> Hash:
    """splitmix64 (Steele, Lea, Flood 2014), keyed by `words` (not negative): uint64 [W] -> uint64 [W]."""
    key = np.random.SeedSequence(list(words)).generate_state(1, np.uint64)

    def hashed(x_W: np.ndarray) -> np.ndarray:
        z_W = (x_W + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + key
        z_W = (z_W ^ (z_W >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z_W = (z_W ^ (z_W >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z_W ^ (z_W >> np.uint64(31))

    return hashed


def unit(hash_W: np.ndarray) -> np.ndarray:
    """uint64 -> float64 in [0, 1)."""
    return (hash_W >> np.uint64(11)) * 2.0**-53

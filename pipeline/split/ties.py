"""Shuffle the interactions of a user that carry the same timestamp.

On Amazon a timestamp is a day, and the order within a day is an artefact of the raw file (ascending item code in 99.9%
of the cases) that a model can learn. `ties: shuffled` removes that order.
"""

import numpy as np


def shuffle_ties(users_N: np.ndarray, timestamps_N: np.ndarray, seed: int) -> np.ndarray:
    """Return a row order [N] that permutes rows only inside groups of equal (user, timestamp), uniformly, by `seed`.

    The rows must be sorted by (user, timestamp), as ingest writes them.
    """
    keys_N = np.random.default_rng(seed).random(len(users_N))
    return np.lexsort((keys_N, timestamps_N, users_N))

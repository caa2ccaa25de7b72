"""Shuffle the interactions of a user that carry the same timestamp.

On Amazon a timestamp is a day, and the order within a day is an artefact of the raw file (ascending item code in 99.9%
of the cases) that a model can learn. `ties: shuffled` removes that order.
"""

import numpy as np


def shuffle_ties(users_N: np.ndarray, timestamps_N: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return a row order [N] that permutes rows only inside groups of equal (user, timestamp), uniformly.

    The rows must be sorted by (user, timestamp), as ingest writes them. Blocks of whole users, one after the other with
    the same generator, get the order that all of them get at once.
    """
    keys_N = random.random(len(users_N))
    return np.lexsort((keys_N, timestamps_N, users_N))

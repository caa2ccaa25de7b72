"""Count how often two items come together in the training part of a log: time and memory grow with its interactions.

A pair of items d <= window steps apart in one user's training part adds 1 / d. The two directions of a pair are counted
apart. Only the heaviest neighbours of an item are listed, so that a popular item of a large log does not have
the whole catalogue as its neighbours.

Shape legend: I items, M interactions of the splits; local: E entries of the list, of all items end to end.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pipeline.artifacts import Splits


@dataclass(frozen=True)
class Pairs:
    """`Pairs` list the neighbours of each item: those of item i are the entries starts[i] to starts[i + 1].

    items_E: int32, ascending for each item. after_E, before_E: float64, how often the neighbour came after the item and
    before it, each time divided by the steps between the two. left_out: entries that were dropped as not among the
    heaviest.
    """

    starts: np.ndarray
    items_E: np.ndarray
    after_E: np.ndarray
    before_E: np.ndarray
    left_out: int


def training_counts(splits: Splits) -> np.ndarray:
    """Return the number of training interactions of each item, int64 [I]."""
    items_M = np.asarray(splits.items_N)
    return np.bincount(items_M[_in_training(splits)], minlength=splits.summary["items"])


def popularity_columns(counts_I: np.ndarray) -> np.ndarray:
    """Return the column of each item: 0 for the most popular one, equal counts by item id. int64 [I]"""
    # Counts 1 5 3 -> columns 2 0 1
    column_I = np.empty(len(counts_I), np.int64)
    column_I[np.argsort(-counts_I, kind="stable")] = np.arange(len(counts_I))
    return column_I


def count_pairs(splits: Splits, *, window: int, neighbours: int) -> Pairs:
    """Count the pairs of the training part.

    Args:
        window: two items of a user come together when at most this many steps apart.
        neighbours: at most so many neighbours of an item are listed, those with most weight in both directions
            together; of equal weights the more popular ones.
    """
    after = _after(splits, window)
    # One sparsity pattern for both directions: the real part counts what came after, the imaginary what came before.
    both: sparse.csr_array = sparse.csr_array(after + 1j * after.T)
    both.sort_indices()
    stays_E = _heaviest(both, popularity_columns(training_counts(splits)), neighbours)
    rows_E = np.repeat(np.arange(both.shape[0]), np.diff(both.indptr))[stays_E]
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows_E, minlength=both.shape[0]))])
    data_E = both.data[stays_E]
    return Pairs(
        starts.astype(np.int64),
        both.indices[stays_E].astype(np.int32),
        np.ascontiguousarray(data_E.real),
        np.ascontiguousarray(data_E.imag),
        int((~stays_E).sum()),
    )


def _after(splits: Splits, window: int) -> sparse.csr_array:
    """Return how often the item of the column came after the item of the row, float64 [I, I]."""
    items_M = np.asarray(splits.items_N)
    training_M = _in_training(splits)
    user_M = _user(splits)
    items = splits.summary["items"]
    total = sparse.csr_array((items, items))
    for step in range(1, window + 1):
        # Items 7 3 7 of one user: step 1 pairs 7 3 and 3 7; step 2 pairs 7 with itself, which does not count.
        # Training comes first in each sequence, so that the earlier item of a pair is in training when the later is.
        pairs = np.flatnonzero((user_M[:-step] == user_M[step:]) & training_M[step:])
        first, second = items_M[pairs], items_M[pairs + step]
        different = first != second
        weights = np.full(int(different.sum()), 1 / step)
        total = total + sparse.csr_array((weights, (first[different], second[different])), shape=total.shape)
    return total


def _heaviest(both: sparse.csr_array, column_I: np.ndarray, neighbours: int) -> NDArray[np.bool_]:
    """Return which entries are among the `neighbours` heaviest of their row, bool [E]."""
    weight_E = (both.data.real + both.data.imag).round(9)  # sums that are equal on paper must tie
    stays_E = np.ones(len(weight_E), bool)
    for row in np.flatnonzero(np.diff(both.indptr) > neighbours):
        entries = slice(both.indptr[row], both.indptr[row + 1])
        order = np.lexsort((column_I[both.indices[entries]], -weight_E[entries]))
        stays_E[entries][order[neighbours:]] = False
    return stays_E


def _user(splits: Splits) -> np.ndarray:
    """Return the user of each interaction, int64 [M]."""
    return np.repeat(np.arange(splits.users), np.diff(splits.offsets))


def _in_training(splits: Splits) -> NDArray[np.bool_]:
    """Return whether each interaction belongs to training, bool [M]."""
    training_M: NDArray[np.bool_] = np.arange(len(splits.items_N)) < np.asarray(splits.train_end)[_user(splits)]
    return training_M

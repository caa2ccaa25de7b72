"""Count how often two items come together in the training part of a log: time grows with its interactions.

A pair of items d <= window steps apart in one user's training part adds 1 / d. The two directions of a pair are counted
apart. Only the heaviest neighbours of an item are listed, so that a popular item of a large log does not have
the whole catalogue as its neighbours. Items are counted in blocks, so that memory holds the list and one block.

Shape legend: I items, M interactions of the splits; local: E entries of the list, of all items end to end.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pipeline.artifacts import Splits

BLOCK_PAIRS = 2**24  # pairs that are counted at once


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
    counts_I = training_counts(splits)
    column_I = popularity_columns(counts_I)
    steps = _Steps(splits, window)
    degrees: list[np.ndarray] = []
    lists: tuple[list[np.ndarray], ...] = ([], [], [])  # items, after and before of each block
    left_out = 0
    for block in _blocks(counts_I, window):
        # One sparsity pattern for both directions: the real part is what came after, the imaginary what came before.
        both = steps.after(block) + 1j * steps.before(block)
        both.sort_indices()
        stays_E = _heaviest(both, column_I, neighbours)
        listed_E = np.flatnonzero(stays_E)
        degrees.append(np.diff(np.searchsorted(listed_E, both.indptr)))
        left_out += len(stays_E) - len(listed_E)
        columns = (both.indices.astype(np.int32, copy=False), both.data.real, both.data.imag)
        for parts, column in zip(lists, columns, strict=True):
            parts.append(column[listed_E])
    items_E, after_E, before_E = map(_joined, lists)
    starts = np.concatenate([[0], np.cumsum(np.concatenate(degrees))])
    return Pairs(starts.astype(np.int64), items_E, after_E, before_E, left_out)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Return the arrays end to end, and forget them."""
    joined = np.concatenate(parts)
    parts.clear()
    return joined


def _blocks(counts_I: np.ndarray, window: int) -> list[slice]:
    """Divide the items into consecutive blocks of about BLOCK_PAIRS pairs, so that memory holds few pairs at once."""
    # An interaction is in a pair with `window` others on each side at most. Counts 5 1 1 4, 2 pairs each, 12 in a block
    # -> pairs up to each item 10 12 14 22, blocks 0 0 1 1
    pairs_I = np.cumsum(2 * window * counts_I)
    number_I = np.maximum(pairs_I - 1, 0) // BLOCK_PAIRS
    starts = np.flatnonzero(np.diff(number_I, prepend=-1))
    return [slice(int(start), int(stop)) for start, stop in zip(starts, [*starts[1:], len(counts_I)], strict=True)]


class _Steps:
    """The pairs of the training part, by the steps between their items."""

    def __init__(self, splits: Splits, window: int):
        self.items_M = np.asarray(splits.items_N)
        self.items = splits.summary["items"]
        self.window = window
        self.user_M = _user(splits)
        self.training_M = _in_training(splits)

    def after(self, block: slice) -> sparse.csr_array:
        """Return how often the item of the column came after the item of the row, float64, by the rows of a block."""
        return self._counted(block, later=False)

    def before(self, block: slice) -> sparse.csr_array:
        """Return how often the item of the column came before the item of the row, float64, by the rows of a block."""
        return self._counted(block, later=True)

    def _counted(self, block: slice, *, later: bool) -> sparse.csr_array:
        """Count the pairs whose earlier item, or whose later one, is of the block."""
        total = sparse.csr_array((block.stop - block.start, self.items))
        for step in range(1, self.window + 1):
            # Items 7 3 7 of one user: step 1 pairs 7 3 and 3 7; step 2 pairs 7 with itself, which does not count.
            # Training comes first in each sequence: the earlier item of a pair is in training when the later is.
            firsts, seconds = self.items_M[:-step], self.items_M[step:]
            rows = seconds if later else firsts
            pairs = np.flatnonzero(
                (rows >= block.start)
                & (rows < block.stop)
                & (firsts != seconds)
                & (self.user_M[:-step] == self.user_M[step:])
                & self.training_M[step:]
            )
            row, column = rows[pairs] - block.start, (firsts if later else seconds)[pairs]
            weights = np.full(len(pairs), 1 / step)
            total = total + sparse.csr_array((weights, (row, column)), shape=total.shape)
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
    """Return the user of each interaction, int32 [M]."""
    return np.repeat(np.arange(splits.users, dtype=np.int32), np.diff(splits.offsets))


def _in_training(splits: Splits) -> NDArray[np.bool_]:
    """Return whether each interaction belongs to training, bool [M]."""
    # offsets 0 3 5, train_end 1 4 -> 1 of training, 2 not, 1 of training, 1 not
    offsets, train_end = np.asarray(splits.offsets), np.asarray(splits.train_end)
    lengths = np.column_stack([train_end - offsets[:-1], offsets[1:] - train_end]).ravel()
    training_M: NDArray[np.bool_] = np.repeat(np.tile([True, False], splits.users), lengths)
    return training_M

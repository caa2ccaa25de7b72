"""Count how often two items come together in the training part of a log: time grows with its interactions.

A pair of items d <= window steps apart in one user's training part adds 1 / d. The two directions of a pair are counted
apart. Only the heaviest neighbours of an item are listed, so that a popular item of a large log does not have
the whole catalogue as its neighbours. Items are counted in blocks, and the list of a block goes to a file, so that
memory holds one block, however many neighbours are listed.

Shape legend: I items, M interactions of the splits; local: E entries of the list, of all items end to end, J chosen
items, R items of a block that have more neighbours than are listed, P slots for the neighbours of each of these.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pipeline.artifacts import Splits

BLOCK_PAIRS = 2**22  # pairs that are counted at once
PORTION = 2**20  # slots for neighbours that are compared at once
CHUNK = 2**22  # interactions that are sorted by block at once


@dataclass(frozen=True)
class Pairs:
    """`Pairs` list the neighbours of each item: those of item i are the entries starts[i] to starts[i + 1].

    items_E: int32, ascending for each item. after_E, before_E: float64, how often the neighbour came after the item and
    before it, each time divided by the steps between the two. left_out: entries that were dropped as not among the
    heaviest. The last three arrays may be mapped files.
    """

    starts: np.ndarray
    items_E: np.ndarray
    after_E: np.ndarray
    before_E: np.ndarray
    left_out: int

    def rows(self, items_J: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (the entries of these items end to end, int64; where those of each item start in them, [J + 1])."""
        # starts 0 4 6, items 1 0 -> entries 4 5 | 0 1 2 3, starts 0 2 6
        starts_J = self.starts[items_J]
        degree_J = self.starts[items_J + 1] - starts_J
        offsets = np.concatenate([[0], np.cumsum(degree_J)])
        return np.repeat(starts_J - offsets[:-1], degree_J) + np.arange(offsets[-1]), offsets


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


def count_pairs(splits: Splits, *, window: int, neighbours: int, folder: Path | None = None) -> Pairs:
    """Count the pairs of the training part.

    Args:
        splits: the log, with the part for training.
        window: two items of a user come together when at most this many steps apart.
        neighbours: at most so many neighbours of an item are listed, those with most weight in both directions
            together; of equal weights the more popular ones.
        folder: where the list lies, in files without a name, which vanish with the list; None: where the system has
            its temporary files.
    """
    counts_I = training_counts(splits)
    column_I = popularity_columns(counts_I)
    blocks = _blocks(counts_I, window)
    steps = _Steps(splits, window, blocks)
    degrees: list[np.ndarray] = []
    left_out = 0
    with (
        _Growing(np.int32, folder) as items,
        _Growing(np.float64, folder) as after,
        _Growing(np.float64, folder) as before,
    ):
        for number in range(len(blocks)):
            # One sparsity pattern for both: the real part is what came after, the imaginary what came before.
            both = steps.after(number) + 1j * steps.before(number)
            both.sort_indices()
            stays_E = _heaviest(both, column_I, neighbours)
            listed_E = np.flatnonzero(stays_E)
            degrees.append(np.diff(np.searchsorted(listed_E, both.indptr)))
            left_out += len(stays_E) - len(listed_E)
            for part, column in ((items, both.indices), (after, both.data.real), (before, both.data.imag)):
                part.add(column[listed_E])
        starts = np.concatenate([[0], np.cumsum(np.concatenate(degrees))])
        return Pairs(starts.astype(np.int64), items.mapped(), after.mapped(), before.mapped(), left_out)


class _Growing:
    """An array that grows at its end, in a file without a name; what `mapped` returns outlives the `with` block."""

    def __init__(self, dtype: type[np.generic], folder: Path | None):
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.file = TemporaryFile(dir=folder)  # noqa: SIM115 - `__exit__` closes it

    def __enter__(self) -> "_Growing":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.file.close()

    def add(self, values: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(values, self.dtype).data)

    def mapped(self) -> np.ndarray:
        self.file.flush()
        length = self.file.tell() // self.dtype.itemsize
        if not length:
            return np.zeros(0, self.dtype)
        return np.asarray(np.memmap(self.file, self.dtype, "r", shape=(length,)))  # slices of a memmap are slow


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

    def __init__(self, splits: Splits, window: int, blocks: list[slice]):
        self.items_M = np.asarray(splits.items_N)
        self.items = splits.summary["items"]
        self.window = window
        self.blocks = blocks
        self.user_M = _user(splits)
        self.training_M = _in_training(splits)
        self.chunks = list(_by_block(self.items_M, self.training_M, blocks))

    def after(self, number: int) -> sparse.csr_array:
        """Return how often the item of the column came after the item of the row, float64, by the rows of a block."""
        return self._counted(number, later=False)

    def before(self, number: int) -> sparse.csr_array:
        """Return how often the item of the column came before the item of the row, float64, by the rows of a block."""
        return self._counted(number, later=True)

    def _counted(self, number: int, *, later: bool) -> sparse.csr_array:
        """Count the pairs whose earlier item, or whose later one, is of the block with this number."""
        block = self.blocks[number]
        positions = np.concatenate([order[starts[number] : starts[number + 1]] for order, starts in self.chunks])
        total = sparse.csr_array((block.stop - block.start, self.items))
        for step in range(1, self.window + 1):
            # Items 7 3 7 of one user: step 1 pairs 7 3 and 3 7; step 2 pairs 7 with itself, which does not count.
            # Training comes first in each sequence: the earlier item of a pair is in training when the later is.
            if later:
                seconds = positions[positions >= step]
                firsts = seconds - step
            else:
                firsts = positions[positions < len(self.items_M) - step]
                seconds = firsts + step
            together = (self.user_M[firsts] == self.user_M[seconds]) & self.training_M[seconds]
            first, second = self.items_M[firsts[together]], self.items_M[seconds[together]]
            differ = first != second
            first, second = first[differ], second[differ]
            row, column = (second - block.start, first) if later else (first - block.start, second)
            weights = np.full(len(row), 1 / step)
            total = total + sparse.csr_array((weights, (row, column)), shape=total.shape)
        return total


def _by_block(
    items_M: np.ndarray, training_M: np.ndarray, blocks: list[slice]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (the training interactions of a chunk of the log, sorted by block; where each block starts in them).

    They are indices on the axis M, ascending in each block.
    """
    # Items 5 0 6 1 of training, blocks 0 to 3 and 4 to 7 -> 1 3 | 0 2, starts 0 2 4
    numbers = np.arange(len(blocks), dtype=np.min_scalar_type(len(blocks)))  # few bits are sorted by radix
    number_I = np.repeat(numbers, [block.stop - block.start for block in blocks])
    for begin in range(0, len(items_M), CHUNK):
        chunk = begin + np.flatnonzero(training_M[begin : begin + CHUNK])
        number_C = number_I[items_M[chunk]]
        order = np.argsort(number_C, kind="stable")
        starts = np.searchsorted(number_C[order], np.arange(len(blocks) + 1))
        yield chunk[order].astype(np.int32 if len(items_M) < 2**31 else np.int64), starts


def _heaviest(both: sparse.csr_array, column_I: np.ndarray, neighbours: int) -> NDArray[np.bool_]:
    """Return which entries are among the `neighbours` heaviest of their row, bool [E]."""
    weight_E = (both.data.real + both.data.imag).round(9)  # sums that are equal on paper must tie
    stays_E = np.ones(len(weight_E), bool)
    degrees = np.diff(both.indptr)
    for rows in _portions(degrees, neighbours):
        # 1. The neighbours of each row side by side, empty slots behind them.
        slots = np.arange(degrees[rows].max())
        filled_RP = slots < degrees[rows][:, None]
        entry_RP = np.where(filled_RP, both.indptr[rows][:, None] + slots, 0)
        weight_RP = np.where(filled_RP, weight_E[entry_RP], -1.0)
        # 2. Neighbours stay that are heavier than the last one that does, and of those as heavy as it the most popular.
        # weights 3 1 2 1 with columns 0 3 1 2, of which 3 stay: the last weight is 1, one of these stays, column 2
        last_R = -np.partition(-weight_RP, neighbours - 1, axis=1)[:, neighbours - 1]
        heavier_RP, tie_RP = weight_RP > last_R[:, None], weight_RP == last_R[:, None]
        missing_R = neighbours - heavier_RP.sum(1)
        column_RP = np.where(tie_RP, column_I[both.indices[entry_RP]], len(column_I))
        last_column_R = np.sort(column_RP, axis=1)[np.arange(len(rows)), missing_R - 1]
        stays_RP = heavier_RP | (tie_RP & (column_RP <= last_column_R[:, None]))
        stays_E[entry_RP[filled_RP]] = stays_RP[filled_RP]
    return stays_E


def _portions(degrees: np.ndarray, neighbours: int) -> Iterator[np.ndarray]:
    """Yield the rows of more than `neighbours` entries, by their entries, some rows at once: PORTION slots, about."""
    rows = np.flatnonzero(degrees > neighbours)
    rows = rows[np.argsort(degrees[rows], kind="stable")]
    while len(rows):
        # degrees 3 4 9, 10 slots -> 3 4 | 9
        slots = degrees[rows] * np.arange(1, len(rows) + 1)
        count = max(1, int(np.searchsorted(slots, PORTION, side="right")))
        yield rows[:count]
        rows = rows[count:]


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

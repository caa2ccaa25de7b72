"""Rank by counting alone, without any learning: popularity and item-to-item co-occurrence.

Both count training interactions only, see the same histories as the model, and rank the whole catalogue, so a table
that shows them beside the model says what the model has learned. They are meant to be strong. Which weights and which
rules help was decided on the validation part of Amazon Beauty (never on test), where the recency weight and dropping
the history's items matter most: without both, recall at 10 falls from .095 to .069 there.

Co-occurrence counts pairs in both directions alike. By direction, a pair that came in the other order counts less, by
the weight that is best on validation. On Beauty that helps only on targets that share a day with the item before,
where the order is an artefact of the raw file; on all others it is worse. So both stand in every table.

A repeat is rare in most logs, and a model learns that by itself. Counting is given the same chance: recall at 10 on the
validation targets decides whether the items of the history leave its ranking (`filter_seen` leaves no choice).

Shape legend: M interactions of the splits, U users, I items, B users of one batch, E entries of a sparse matrix.

Items appear as columns, in the order of their popularity, so that "more popular first" is "smaller column first".
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pipeline.artifacts import Splits
from pipeline.decoding.ranking import histories_of
from pipeline.metrics import recall_at

BATCH = 512  # users scored at once
BACKWARD = (0.0, 0.25, 0.5, 1.0)  # weights that are tried for pairs in the other order
DIGITS = 12  # scores are rounded to them: sums that are equal on paper must tie, whatever the order of adding


@dataclass(frozen=True)
class Baselines:
    """Baselines hold the rank of each test target among all items, in user order.

    Ranks are 1-based, int64; 0 where the target was dropped as seen.
    """

    popularity_U: np.ndarray
    cooccurrence_U: np.ndarray
    directed_U: np.ndarray  # co-occurrence by direction
    drop_seen: dict[str, bool]  # by the names of BASELINES: whether the items of the history left the ranking
    backward: float  # weight of a pair in the other order, chosen on validation


@dataclass(frozen=True)
class Counts:
    """Counts of the training part say which column an item has, and how often items came together.

    column_I: int64, 0 for the item with most training interactions; ties by item id.
    """

    column_I: np.ndarray
    together_II: sparse.csr_array  # rows and columns are those of `column_I`


def baselines(splits: Splits, *, window: int, filter_seen: bool = False) -> Baselines:
    """Rank every test target by popularity, by co-occurrence, and by co-occurrence with a direction.

    Args:
        window: two items of a user co-occur when at most this many steps apart.
        filter_seen: items of the history leave both rankings; otherwise they leave where that helps on validation.
    """
    column_I = popularity_columns(splits)
    # Reorder rows and columns from item ids to popularity. Columns 2 0 1 of items 0 1 2 -> order 1 2 0
    order_I = np.argsort(column_I)

    def counts(backward: float) -> Counts:
        return Counts(column_I, cooccurrence(splits, window, backward)[order_I][:, order_I])

    def valid_recall(counted: Counts, drop: bool) -> float:
        return recall_at(rank_by_counts(splits, "valid", counted, drop_seen=drop), 10)

    none = sparse.csr_array((len(column_I), len(column_I)))  # all scores equal: popularity decides
    both_ways = counts(1.0)
    drop_seen = {
        name: filter_seen or valid_recall(counted, True) >= valid_recall(counted, False)
        for name, counted in (("popularity", Counts(column_I, none)), ("cooccurrence", both_ways))
    }
    drop_seen["directed"] = drop_seen["cooccurrence"]
    # Of equal recalls the largest weight: a direction has to show that it helps.
    recalls = {
        weight: valid_recall(both_ways if weight == 1 else counts(weight), drop_seen["directed"]) for weight in BACKWARD
    }
    backward = max(recalls, key=lambda weight: (recalls[weight], weight))
    popularity_U, cooccurrence_U, directed_U = (
        rank_by_counts(splits, "test", counted, drop_seen=drop_seen[name])
        for name, counted in (
            ("popularity", Counts(column_I, none)),
            ("cooccurrence", both_ways),
            ("directed", both_ways if backward == 1 else counts(backward)),
        )
    )
    return Baselines(popularity_U, cooccurrence_U, directed_U, drop_seen, backward)


def training_counts(splits: Splits) -> np.ndarray:
    """Return the number of training interactions of each item, int64 [I]."""
    items_M = np.asarray(splits.items_N)
    return np.bincount(items_M[_in_training(splits)], minlength=splits.summary["items"])


def popularity_columns(splits: Splits) -> np.ndarray:
    """Return the column of each item: 0 for the most popular one, equal counts by item id. int64 [I]"""
    # Counts 1 5 3 -> columns 2 0 1
    counts_I = training_counts(splits)
    column_I = np.empty_like(counts_I)
    column_I[np.argsort(-counts_I, kind="stable")] = np.arange(len(counts_I))
    return column_I


def cooccurrence(splits: Splits, window: int, backward: float = 1.0) -> sparse.csr_array:
    """Return how much item i of a history speaks for item j, float64 [I, I]; rows and columns are item ids.

    Each pair of training interactions of one user, d <= window steps apart, adds 1 / d from the earlier to the later
    item, and `backward` / d from the later to the earlier one; row i is divided by the square root of item i's count,
    since a rare item in the history says more than one everybody has.
    """
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
        near = sparse.csr_array(
            (np.full(different.sum(), 1 / step), (first[different], second[different])), shape=total.shape
        )
        total = total + near + backward * near.T
    scale_I = 1 / np.sqrt(np.maximum(training_counts(splits), 1))
    return sparse.csr_array(sparse.diags_array(scale_I) @ total)


def rank_by_counts(splits: Splits, part: str, counts: Counts, *, drop_seen: bool) -> np.ndarray:
    """Return the rank of each target of `part`, int64 [U]; equal scores by popularity.

    An item's score is the sum over the history of `together`, the k-th most recent item weighted by 1 / k. Nothing
    here is dense in the catalogue: only items that co-occur with the history are touched.
    """
    _, positions_U = splits.targets(part)
    targets_U = counts.column_I[np.asarray(splits.items_N)[positions_U]]
    ranks_U: NDArray[np.int64] = np.empty_like(targets_U)
    for start in range(0, len(positions_U), BATCH):
        rows = slice(start, start + BATCH)
        items, offsets = histories_of(splits, positions_U[rows])
        history_BI = _recency_weights(counts.column_I[items], offsets, len(counts.column_I))
        scores_BI = sparse.csr_array(history_BI @ counts.together_II)
        scores_BI.data = scores_BI.data.round(DIGITS)
        ranks_U[rows] = _ranks(scores_BI, history_BI if drop_seen else None, targets_U[rows])
    return ranks_U


def _ranks(scores_BI: sparse.csr_array, seen_BI: sparse.csr_array | None, targets_B: np.ndarray) -> np.ndarray:
    """Return 1 + how many items come before the target; 0 for a target that is dropped as seen. int64 [B]

    Items come before the target with a higher score, or with an equal score in a smaller column. With 6 items, scores
    of a row 0 .5 0 .2 0 0: target 3 has rank 2; target 2 has rank 4, behind the columns 1, 3 and 0.
    """
    # 1. Seen items lose their scores. Those in a column before the target's must not count among the unscored below.
    dropped_B = np.zeros(len(targets_B), bool)
    seen_before_B = np.zeros(len(targets_B), np.int64)
    if seen_BI is not None:
        scores_BI = scores_BI - scores_BI * (seen_BI > 0)
        dropped_B = _at(seen_BI, targets_B) > 0
        seen_before_B = _count_per_row(seen_BI, _columns_before(seen_BI, targets_B))
    scores_BI.eliminate_zeros()  # each entry that is left is a score above 0
    # 2. Scored items before the target: compare each entry with the target of its row.
    score_B = _at(scores_BI, targets_B)
    target_score_E = np.repeat(score_B, np.diff(scores_BI.indptr))
    before_E = _columns_before(scores_BI, targets_B)
    higher_E = (scores_BI.data > target_score_E) | ((scores_BI.data == target_score_E) & before_E)
    # 3. Unscored items before the target, only where it is unscored itself. Items that co-occur with nothing of the
    # history all score 0, in the order of their columns: target 2 of the example has two columns before it, and one
    # of them, column 1, is scored.
    unscored_B = np.where(score_B == 0, targets_B - _count_per_row(scores_BI, before_E) - seen_before_B, 0)
    return np.where(dropped_B, 0, 1 + _count_per_row(scores_BI, higher_E) + unscored_B)


def _recency_weights(columns: np.ndarray, offsets: np.ndarray, items: int) -> sparse.csr_array:
    """Return [B, I]: 1 / k at the k-th most recent item of each history; an item that repeats has the sum.

    Histories 4 2 4 and 1 -> row 0 has 1 + 1/3 at 4 and 1/2 at 2; row 1 has 1 at 1
    """
    ends = np.repeat(offsets[1:], np.diff(offsets))
    weights = 1.0 / (ends - np.arange(len(columns)))
    history_BI = sparse.csr_array((weights, columns, offsets), shape=(len(offsets) - 1, items))
    history_BI.sum_duplicates()
    return history_BI


def _at(matrix_BI: sparse.csr_array, columns_B: np.ndarray) -> np.ndarray:
    """Return the entry of each row in the given column, [B]."""
    pick_BI = sparse.csr_array((np.ones(len(columns_B)), (np.arange(len(columns_B)), columns_B)), shape=matrix_BI.shape)
    return np.asarray((matrix_BI * pick_BI).sum(axis=1)).ravel()


def _columns_before(matrix_BI: sparse.csr_array, columns_B: np.ndarray) -> NDArray[np.bool_]:
    """Return for each stored entry whether its column is smaller than its row's entry of `columns_B`, [E]."""
    before_E: NDArray[np.bool_] = matrix_BI.indices < np.repeat(columns_B, np.diff(matrix_BI.indptr))
    return before_E


def _count_per_row(matrix_BI: sparse.csr_array, chosen_E: np.ndarray) -> np.ndarray:
    """Return how many of each row's stored entries are chosen, int64 [B]."""
    rows_E = np.repeat(np.arange(matrix_BI.shape[0]), np.diff(matrix_BI.indptr))
    return np.bincount(rows_E[chosen_E], minlength=matrix_BI.shape[0])


def _user(splits: Splits) -> np.ndarray:
    """Return the user of each interaction, int64 [M]."""
    return np.repeat(np.arange(splits.users), np.diff(splits.offsets))


def _in_training(splits: Splits) -> NDArray[np.bool_]:
    """Return whether each interaction belongs to training, bool [M]."""
    training_M: NDArray[np.bool_] = np.arange(len(splits.items_N)) < np.asarray(splits.train_end)[_user(splits)]
    return training_M

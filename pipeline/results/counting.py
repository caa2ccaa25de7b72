"""What counting reaches without any learning: popularity and item-to-item co-occurrence.

Both count training interactions only, see the same histories as the model, and rank the whole catalogue, so a table
that shows them beside the model says what the model has learned. They are meant to be strong. Which weights and which
rules help was decided on the validation part of Amazon Beauty (never on test), where the recency weight and dropping
the history's own items matter most: without both, recall at 10 falls from .095 to .069 there. Pairs count in both
directions alike: a direction adds .005 there, but only on targets that share a day with the item before, where the
order is an artefact of the raw file; on all others it is worse.

A repeat is rare in most logs, and a model learns that by itself. Counting is given the same chance: whether the items
of the history leave its ranking is decided by recall at 10 on the validation targets (`filter_seen` leaves no choice).

Shape legend: N interactions, U users, I items, B users of one batch. Items appear as columns, in the order of their
popularity, so that "more popular first" is "smaller column first".
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from pipeline.artifacts import Splits
from pipeline.decoding.ranking import histories_of
from pipeline.metrics import recall_at

BATCH = 512  # users scored at once
DIGITS = 12  # scores are rounded to them: sums that are equal on paper must tie, whatever the order of adding


@dataclass(frozen=True)
class Baselines:
    """Ranks of each test target among all items, 1-based, 0 where its item was dropped as seen; in user order."""

    popularity_U: np.ndarray
    cooccurrence_U: np.ndarray
    drop_seen: dict[str, bool]  # `popularity`, `cooccurrence`: whether the items of the history left the ranking


@dataclass(frozen=True)
class Counts:
    """Training counts. column_I: place of each item by training interactions, ties by item id."""

    column_I: np.ndarray
    together_II: sparse.csr_array  # rows and columns are `column_I` places


def baselines(splits: Splits, *, window: int, filter_seen: bool = False) -> Baselines:
    """Rank every test target by popularity and by co-occurrence.

    Args:
        window: two items of a user co-occur when at most this many steps apart.
        filter_seen: items of the history leave both rankings; otherwise they leave where that helps on validation.
    """
    together, column_I = cooccurrence(splits, window), popularity_columns(splits)
    order_I = np.argsort(column_I)
    none = sparse.csr_array(together.shape)  # all scores equal: popularity decides
    ranks, without_seen = {}, {}
    for name, counts in (
        ("popularity", Counts(column_I, none)),
        ("cooccurrence", Counts(column_I, together[order_I][:, order_I])),
    ):
        without_seen[name] = filter_seen or _dropping_helps(splits, counts)
        ranks[name] = rank_by_counts(splits, "test", counts, drop_seen=without_seen[name])
    return Baselines(ranks["popularity"], ranks["cooccurrence"], without_seen)


def training_counts(splits: Splits) -> np.ndarray:
    """Training interactions of each item, int64 [I]."""
    items_N = np.asarray(splits.items_N)
    return np.bincount(items_N[_in_training(splits)], minlength=splits.summary["items"])


def popularity_columns(splits: Splits) -> np.ndarray:
    """Place of each item, 0 for the most popular one; equal counts by item id. int64 [I]."""
    counts_I = training_counts(splits)
    column_I = np.empty_like(counts_I)
    column_I[np.argsort(-counts_I, kind="stable")] = np.arange(len(counts_I))
    return column_I


def cooccurrence(splits: Splits, window: int) -> sparse.csr_array:
    """How much item i of a history speaks for item j, float64 [I, I], rows and columns are item ids.

    Each pair of training interactions of one user, d <= window steps apart, adds 1 / d in both directions; row i is
    divided by the square root of item i's count, since a rare item in the history says more than one everybody has.
    """
    items_N, training_N, items = np.asarray(splits.items_N), _in_training(splits), splits.summary["items"]
    owner_N = _owner(splits)
    total = sparse.csr_array((items, items))
    for step in range(1, window + 1):
        pairs = np.flatnonzero((owner_N[:-step] == owner_N[step:]) & training_N[step:])  # the earlier one is then too
        first, second = items_N[pairs], items_N[pairs + step]
        different = first != second
        near = sparse.csr_array(
            (np.full(different.sum(), 1 / step), (first[different], second[different])), shape=total.shape
        )
        total = total + near + near.T
    scale_I = 1 / np.sqrt(np.maximum(training_counts(splits), 1))
    return sparse.csr_array(sparse.diags_array(scale_I) @ total)


def rank_by_counts(splits: Splits, part: str, counts: Counts, *, drop_seen: bool) -> np.ndarray:
    """Rank of each target of `part`, int64 [U]; equal scores by popularity.

    An item's score is the sum over the history of `together`, the k-th most recent item weighted by 1 / k. Nothing
    here is dense in the catalogue: only items that co-occur with the history are touched.
    """
    _, positions_U = splits.targets(part)
    targets_U = counts.column_I[np.asarray(splits.items_N)[positions_U]]
    ranks_U = np.empty_like(targets_U)
    for start in range(0, len(positions_U), BATCH):
        rows = slice(start, start + BATCH)
        items, offsets = histories_of(splits, positions_U[rows])
        history_BI = _recency_weights(counts.column_I[items], offsets, len(counts.column_I))
        scores_BI = sparse.csr_array(history_BI @ counts.together_II)
        scores_BI.data = scores_BI.data.round(DIGITS)
        ranks_U[rows] = _ranks(scores_BI, history_BI if drop_seen else None, targets_U[rows])
    return ranks_U


def _dropping_helps(splits: Splits, counts: Counts) -> bool:
    with_seen, without_seen = (
        recall_at(rank_by_counts(splits, "valid", counts, drop_seen=drop), 10) for drop in (False, True)
    )
    return without_seen >= with_seen


def _ranks(scores_BI: sparse.csr_array, seen_BI: sparse.csr_array | None, targets_B: np.ndarray) -> np.ndarray:
    """1 + how many items stand before the target: higher scores, or equal ones in a smaller column."""
    dropped_B, seen_before_B = np.zeros(len(targets_B), bool), np.zeros(len(targets_B), np.int64)
    if seen_BI is not None:
        scores_BI = scores_BI - scores_BI * (seen_BI > 0)
        dropped_B = _at(seen_BI, targets_B) > 0
        seen_before_B = _count_per_row(seen_BI, _columns_before(seen_BI, targets_B))
    scores_BI.eliminate_zeros()
    score_B = _at(scores_BI, targets_B)
    score_of_entry = np.repeat(score_B, np.diff(scores_BI.indptr))
    before = _columns_before(scores_BI, targets_B)
    higher = (scores_BI.data > score_of_entry) | ((scores_BI.data == score_of_entry) & before)
    # Items that co-occur with nothing of the history all score 0 and stand in the order of their columns.
    unscored_B = np.where(score_B == 0, targets_B - _count_per_row(scores_BI, before) - seen_before_B, 0)
    return np.where(dropped_B, 0, 1 + _count_per_row(scores_BI, higher) + unscored_B)


def _recency_weights(columns: np.ndarray, offsets: np.ndarray, items: int) -> sparse.csr_array:
    """[B, I]: 1 / k at the k-th most recent item of each history; an item that repeats has the sum."""
    ends = np.repeat(offsets[1:], np.diff(offsets))
    weights = 1.0 / (ends - np.arange(len(columns)))
    history_BI = sparse.csr_array((weights, columns, offsets), shape=(len(offsets) - 1, items))
    history_BI.sum_duplicates()
    return history_BI


def _at(matrix_BI: sparse.csr_array, columns_B: np.ndarray) -> np.ndarray:
    """The entry of each row in the given column, [B]."""
    pick_BI = sparse.csr_array((np.ones(len(columns_B)), (np.arange(len(columns_B)), columns_B)), shape=matrix_BI.shape)
    return np.asarray((matrix_BI * pick_BI).sum(axis=1)).ravel()


def _columns_before(matrix_BI: sparse.csr_array, columns_B: np.ndarray) -> np.ndarray:
    """For each stored entry: whether its column is smaller than its row's."""
    return matrix_BI.indices < np.repeat(columns_B, np.diff(matrix_BI.indptr))


def _count_per_row(matrix_BI: sparse.csr_array, chosen: np.ndarray) -> np.ndarray:
    rows = np.repeat(np.arange(matrix_BI.shape[0]), np.diff(matrix_BI.indptr))
    return np.bincount(rows[chosen], minlength=matrix_BI.shape[0])


def _owner(splits: Splits) -> np.ndarray:
    return np.repeat(np.arange(splits.users), np.diff(splits.offsets))


def _in_training(splits: Splits) -> np.ndarray:
    """Whether each interaction belongs to training, bool [N]."""
    return np.arange(len(splits.items_N)) < np.asarray(splits.train_end)[_owner(splits)]

"""Describe the first ten items of all rankings beyond hits: a generator can collapse to a few items and still score.

Definitions. The *long tail* is every item but the most popular ones, which together have 80% of the training
interactions. *Coverage* is the share of the catalogue that is among the first ten of somebody. *Popularity bias* is the
mean number of training interactions of what is shown, over that of the test targets: above 1, popular items are shown
more often than they are wanted. *Novelty* is the mean of -log2 of an item's share of the training interactions, in
bits; an item without any counts as one with one. *Diversity* is the share of pairs in a top ten that differ in their
category, or in the first code of their Semantic ID. *Calibration*: the probabilities that the beam gives to the first
ten, added up, should be the chance that the target is among them. The calibration error is the mean distance of the
two over ten groups of users, sorted by that probability (the expected calibration error of Guo et al. 2017).

Sources: Vargas and Castells 2011, "Rank and relevance in novelty and diversity metrics", for novelty; Abdollahpouri et
al. 2019, "The unfairness of popularity bias in recommendation", for the long tail.

Shape legend: I items, U users, K items of a ranking, local: S shown items of all users end to end.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics import recall_gains

HEAD_SHARE = 0.8  # of the training interactions, which the items outside the long tail have
GROUPS = 10  # of users, for the calibration error
CALIBRATION = ("expected_recall_at_10", "calibration_error_at_10")


def beyond_hits(
    top_UK: np.ndarray,
    counts_I: np.ndarray,
    targets_U: np.ndarray,
    first_code_I: np.ndarray | None = None,
    categories_I: np.ndarray | None = None,
) -> dict[str, float]:
    """Return the figures of what is shown, by flat names.

    Args:
        top_UK: the first ten items of each user, below 0 where there is none.
        counts_I: training interactions.
        first_code_I: of the Semantic IDs; None: the model has none.
        categories_I: int, -1 for an item without a category; None: no item has one, and no figure is by category.
    """
    shown_S = top_UK[top_UK >= 0]
    tail_I = long_tail(counts_I)
    total = max(int(counts_I.sum()), 1)
    bits_I = np.log2(total / np.maximum(counts_I, 1))
    wanted = float(counts_I[targets_U].mean())
    figures = {
        "coverage_at_10": len(np.unique(shown_S)) / len(counts_I),
        "long_tail_share_at_10": _mean(tail_I[shown_S]),
        "long_tail_share_of_targets": _mean(tail_I[targets_U]),
        "popularity_bias_at_10": _mean(counts_I[shown_S]) / wanted if wanted else 0.0,
        "novelty_at_10": _mean(bits_I[shown_S]),
    }
    if first_code_I is not None:
        figures["code_diversity_at_10"] = diversity(top_UK, first_code_I)
    if categories_I is not None:
        figures["category_diversity_at_10"] = diversity(top_UK, categories_I)
    return figures


def calibration(mass_U: np.ndarray, ranks_U: np.ndarray) -> dict[str, float]:
    """Return the recall at 10 that the beam's probabilities promise, and how far promise and recall are apart."""
    hits_U = recall_gains(ranks_U, 10)
    order = np.argsort(mass_U, kind="stable")
    groups = [group for group in np.array_split(order, GROUPS) if len(group)]
    apart = sum(len(group) * abs(mass_U[group].mean() - hits_U[group].mean()) for group in groups)
    return dict(zip(CALIBRATION, (float(mass_U.mean()), float(apart / len(mass_U))), strict=True))


def long_tail(counts_I: np.ndarray) -> NDArray[np.bool_]:
    """Return which items are outside the smallest set of popular items that has 80% of the interactions, bool [I].

    Counts 1 6 2 1 -> the head is the items 1 and 2 (8 of 10 interactions), the tail is 0 and 3
    """
    order_I = np.argsort(-counts_I, kind="stable")
    before_I = np.cumsum(counts_I[order_I]) - counts_I[order_I]
    tail_I = np.empty(len(counts_I), bool)
    tail_I[order_I] = before_I >= HEAD_SHARE * counts_I.sum()
    return tail_I


def diversity(top_UK: np.ndarray, kinds_I: np.ndarray) -> float:
    """Return the mean over users of the share of pairs that differ in kind; items of kind -1 are left out.

    Kinds 7 7 8: two of the three pairs differ -> 2/3. A user with fewer than two known items is left out.
    """
    known_UK = (top_UK >= 0) & (kinds_I[top_UK] >= 0)
    pairs_U = known_UK.sum(1) * (known_UK.sum(1) - 1) // 2
    equal_U = np.zeros(len(top_UK), np.int64)
    for column in range(1, top_UK.shape[1]):
        alike = kinds_I[top_UK[:, :column]] == kinds_I[top_UK[:, column : column + 1]]
        equal_U += (alike & known_UK[:, :column] & known_UK[:, column : column + 1]).sum(1)
    return _mean(1 - equal_U[pairs_U > 0] / pairs_U[pairs_U > 0])


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0

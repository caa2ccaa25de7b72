"""Compute recall, NDCG and MRR of next-item ranking from the rank of the one right item.

Every user has exactly one target, so each metric is the mean over users of a gain that depends on the target's rank
alone. Gains and mean are separate functions, since bootstrap intervals and breakdowns need the gains user by user.
Ranks are 1-based; 0 means that the target was not found. Validation, evaluation and comparison all count here.

Shape legend: U users.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.metric_names import METRICS


def recall_gains(ranks_U: np.ndarray, k: int) -> np.ndarray:
    """Return 1 where the target is among the first k, else 0; float64 [U]. With one target this is the hit rate too."""
    return _within(ranks_U, k).astype(np.float64)


def ndcg_gains(ranks_U: np.ndarray, k: int) -> np.ndarray:
    """Return 1 / log2(rank + 1) where the target is among the first k, else 0; float64 [U].

    Source: Jaervelin and Kekaelaeinen 2002, with one relevant item, so that the ideal gain is 1.
    """
    return np.where(_within(ranks_U, k), 1.0 / np.log2(np.maximum(ranks_U, 1) + 1.0), 0.0)


def mrr_gains(ranks_U: np.ndarray, k: int) -> np.ndarray:
    """Return 1 / rank where the target is among the first k, else 0; float64 [U]."""
    return np.where(_within(ranks_U, k), 1.0 / np.maximum(ranks_U, 1), 0.0)


def gains(metric: str, ranks_U: np.ndarray) -> np.ndarray:
    """Return each user's gain of the metric of that name, such as `ndcg_at_10`; float64 [U]."""
    name, k = metric.rsplit("_at_", 1)
    return {"recall": recall_gains, "ndcg": ndcg_gains, "mrr": mrr_gains}[name](ranks_U, int(k))


def metrics_within(depth: int, metrics: Sequence[str]) -> list[str]:
    """Return those metrics whose K is at most `depth`: a ranking that ends before K would count too few hits."""
    return [metric for metric in metrics if int(metric.rsplit("_at_", 1)[1]) <= depth]


def recall_at(ranks_U: np.ndarray, k: int) -> float:
    """Return the share of users whose target is among the first k."""
    return _mean(recall_gains(ranks_U, k))


def ndcg_at(ranks_U: np.ndarray, k: int) -> float:
    """Return the mean of `ndcg_gains`."""
    return _mean(ndcg_gains(ranks_U, k))


def summarise(ranks_U: np.ndarray, metrics: Sequence[str] = METRICS) -> dict[str, float]:
    """Return these metrics over these users, by name; each is 0 when there are no users."""
    return {metric: _mean(gains(metric, ranks_U)) for metric in metrics}


def _within(ranks_U: np.ndarray, k: int) -> np.ndarray:
    return (ranks_U >= 1) & (ranks_U <= k)


def _mean(gains_U: np.ndarray) -> float:
    return float(gains_U.mean()) if len(gains_U) else 0.0
